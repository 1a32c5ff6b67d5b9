//! Stored lists of users whose profile may change: [`stored_lists`].
//!
//! Invariant: a list is read before its user is planned, so that products which the new profile forbids are removed in
//! the same write. The store refuses the write if the list changed meanwhile.

use std::collections::BTreeMap;

use nearshore_core::list::document::Document;
use nearshore_core::ports::store::{self, Store, Stored};
use nearshore_core::user::event::{Accepted, Change, UserId};
use nearshore_core::user::plan::StoredList;

/// Reads the lists of those users that have a profile record.
pub(super) async fn stored_lists<S: Store>(
    store: &S,
    ns: &str,
    users: &BTreeMap<UserId, Vec<Accepted>>,
) -> Result<BTreeMap<UserId, StoredList>, store::Error> {
    let has_profile = |records: &[Accepted]| {
        records
            .iter()
            .any(|record| matches!(record.change, Change::Profile(_)))
    };
    let users: Vec<UserId> = users
        .iter()
        .filter(|(_, records)| has_profile(records))
        .map(|(user, _)| user.clone())
        .collect();
    if users.is_empty() {
        return Ok(BTreeMap::new());
    }
    let peeks = store.peek(ns, &users).await?;
    let lists = users
        .into_iter()
        .zip(peeks)
        .filter_map(|(user, peek)| Some((user, parse(peek.list?)?)));
    Ok(lists.collect())
}

/// A list whose document does not parse is left as it is.
fn parse(list: Stored) -> Option<StoredList> {
    Some(StoredList {
        doc: Document::parse(&list.doc).ok()?,
        claim: list.claim,
        stage: list.stage,
        epoch: list.epoch,
        seen: list.seen,
        audit: list.audit,
    })
}
