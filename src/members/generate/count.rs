//! What generate counts of batches and lists.

use std::time::Duration;

use crate::metrics;
use nearshore_core::list::compose::FinishedList;
use nearshore_core::list::document::Source;
use nearshore_core::names::scoring::ScoreResponse;
use nearshore_core::queue::lanes::Work;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::{Lane, Reason};

pub(super) fn count_batch(arm: &str, answers: &[ScoreResponse], busy: Duration) {
    let sum =
        |of: fn(&ScoreResponse) -> u32| answers.iter().map(|answer| u64::from(of(answer))).sum();
    metrics::phase(arm, metrics::Phase::Model, busy);
    metrics::batch(
        arm,
        metrics::Batch {
            users: answers.len(),
            prompt_tokens: sum(|answer| answer.prompt_tokens),
            shared_tokens: sum(|answer| answer.shared_tokens),
            forwarded: sum(|answer| answer.forwarded),
            busy,
        },
    );
}

/// What is in hand, by lane: told when a turn begins, and empty when it is done.
pub(super) fn count_running<'a>(works: impl IntoIterator<Item = &'a Work>) {
    let mut running = [0; 3];
    for work in works {
        running[work.request.lane as usize] += 1;
    }
    for lane in [Lane::Urgent, Lane::Live, Lane::Backfill] {
        metrics::running(lane, running[lane as usize]);
    }
}

pub(super) fn count_dropped(made: &FinishedList) {
    for dropped in &made.audit.dropped {
        metrics::rejected(dropped.why, 1);
    }
}

/// Counts a list which the store accepted at `now`, and the time since its request's record.
pub(super) fn count_published(arm: &str, work: &Work, source: Source, now: Timestamp) {
    let lane = work.request.lane;
    metrics::published(Some(arm), lane, source);
    if lane != Lane::Backfill {
        let start = match work.request.reason {
            Reason::First => metrics::Start::Cold,
            Reason::Activity
            | Reason::Profile
            | Reason::Overdue
            | Reason::Sweep
            | Reason::Refresh => metrics::Start::Warm,
        };
        metrics::event_to_list(lane, start, now.since(work.request.time));
    }
}
