//! What stored lists earn, measured on a sample of buyers: [`shown_lists`] and [`EarnedCounts`].
//!
//! Invariant: it only measures. A list that cannot be read costs its measurement and never a fold, and what could not
//! be added to the store is left out, so nothing is counted twice. What counts is decided by
//! [`nearshore_core::list::hits`].

use std::collections::BTreeMap;

use super::IngestSettings;
use super::fold_users::Users;
use crate::metrics;
use nearshore_core::list::document::Document;
use nearshore_core::list::hits::{
    Earned, HitContext, ListKind, ShownList, earned, is_sampled, live_purchase,
};
use nearshore_core::ports::store::{self, ShownDoc, Store};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::plan::Plan;
use nearshore_core::user::record::Timestamp;

/// The lists of those sampled users who bought something now. None while a backfill catches up: its namespace is
/// served to nobody.
pub(super) async fn shown_lists<S: Store>(
    store: &S,
    settings: &IngestSettings,
    history_before: Timestamp,
    users: &Users,
) -> BTreeMap<UserId, ShownList> {
    let share = if settings.triggers {
        settings.hits_sample
    } else {
        0.0
    };
    let bought = |records: &[Accepted]| {
        let mut records = records.iter();
        records.any(|record| live_purchase(record, history_before).is_some())
    };
    let buyers = users
        .iter()
        .filter(|(user, records)| is_sampled(&user.0, share) && bought(records));
    let mut buyers: Vec<UserId> = buyers.map(|(user, _)| user.clone()).collect();
    while !buyers.is_empty() {
        match store.shown(&settings.ns, &buyers).await {
            Ok(shown) => {
                let lists = buyers.into_iter().zip(shown);
                return lists
                    .filter_map(|(user, doc)| Some((user, parse(doc?)?)))
                    .collect();
            }
            Err(error) => {
                metrics::store_error(&error);
                // The fold meets the same error, if it is one of Redis: it says so, and tries again.
                tracing::debug!(%error, "stored lists of buyers not read; their purchases are not compared with them");
                if !leave_out(&error, &mut buyers) {
                    break;
                }
            }
        }
    }
    BTreeMap::new()
}

/// Takes the user out whose list cannot be read; false if the error is of no user.
fn leave_out(error: &store::Error, users: &mut Vec<UserId>) -> bool {
    let store::Error::Corrupt {
        user: Some(user), ..
    } = error
    else {
        return false;
    };
    let before = users.len();
    users.retain(|one| one != user);
    users.len() < before
}

/// A list whose document does not parse, or that an older version stored, is not compared.
fn parse(shown: ShownDoc) -> Option<ShownList> {
    Some(ShownList {
        doc: Document::parse(&shown.doc).ok()?,
        epoch: shown.epoch,
        stored_at: shown.stored_at?,
    })
}

/// What a user's list earned by the records of a plan.
pub(super) fn earned_by(
    list: &ShownList,
    records: &[Accepted],
    plan: &Plan,
    snapshot: &Snapshot,
    history_before: Timestamp,
) -> (ListKind, Earned) {
    let context = HitContext {
        snapshot,
        profile: plan.held.state.profile.as_ref().map(|p| &p.profile),
        history_before,
    };
    (list.kind(), earned(list, records, &plan.steps, &context))
}

/// What lists earned by purchases that are stored, and is not counted yet. It survives an error of the batch: the next
/// try finds these purchases folded.
#[derive(Debug, Default)]
pub(super) struct EarnedCounts(BTreeMap<ListKind, Earned>);

impl EarnedCounts {
    /// Collects what a list earned. Call it when the purchases are stored.
    pub(super) fn collect(&mut self, kind: ListKind, earned: Earned) {
        *self.0.entry(kind).or_default() += earned;
    }

    /// Counts what was collected, in the metrics and in the store.
    pub(super) async fn count<S: Store>(&mut self, store: &S, ns: &str) {
        let earned = std::mem::take(&mut self.0);
        for (kind, earned) in &earned {
            metrics::list_earned(&kind.arm, kind.source, earned);
        }
        if !earned.is_empty()
            && let Err(error) = store.add_earned(ns, &earned).await
        {
            metrics::store_error(&error);
            tracing::warn!(target: "redis", %error, "what lists earned was not added to the counts of `nearshore arms`; it is left out of them");
        }
    }
}
