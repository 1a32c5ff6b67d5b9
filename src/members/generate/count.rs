//! What generate counts of batches and lists. It keeps nothing.

use std::time::Duration;

use crate::metrics;
use nearshore_core::list::compose::FinishedList;
use nearshore_core::list::document::Source;
use nearshore_core::names::scoring::ScoreResponse;
use nearshore_core::queue::lanes::Work;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::{Lane, Reason};

/// Counts a batch that an arm's model scored in `busy`.
pub(super) fn count_batch(arm: &str, responses: &[ScoreResponse], busy: Duration) {
    let sum = |of: fn(&ScoreResponse) -> u32| responses.iter().map(|one| u64::from(of(one))).sum();
    metrics::phase(arm, metrics::Phase::Model, busy);
    metrics::batch(
        arm,
        metrics::Batch {
            users: responses.len(),
            prompt_tokens: sum(|response| response.prompt_tokens),
            shared_tokens: sum(|response| response.shared_tokens),
            forwarded: sum(|response| response.forwarded),
            busy,
        },
    );
}

/// Sets how many users of each lane are being served: all of a turn when it begins, none when it is done.
pub(super) fn count_running<'a>(works: impl IntoIterator<Item = &'a Work>) {
    let mut running = [0; 3];
    for work in works {
        running[work.request.lane as usize] += 1;
    }
    for lane in [Lane::Urgent, Lane::Live, Lane::Backfill] {
        metrics::running(lane, running[lane as usize]);
    }
}

/// Counts the names that were kept off a list.
pub(super) fn count_dropped(list: &FinishedList) {
    for dropped in &list.audit.dropped {
        metrics::rejected(dropped.why, 1);
    }
}

/// Counts a list which the store accepted at `now`, and the time since its request's record: only of the list without
/// the model, which nobody waits long for, so that a slow model raises no alarm about it.
pub(super) fn count_published(arm: &str, work: &Work, source: Source, now: Timestamp) {
    let lane = work.request.lane;
    metrics::published(Some(arm), lane, source);
    if lane != Lane::Backfill && source != Source::Model {
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
