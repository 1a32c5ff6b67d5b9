//! Publishing updates on `recall-updates`: [`publish_updates`].
//!
//! Invariant: the last update of a user is what the store holds. A member that changes a stored list publishes the
//! update afterwards, reads the list again, and publishes once more if it has changed meanwhile. So the order in which
//! members publish does not matter: above all, a list that was published just before its user was erased does not end
//! up behind the erase.

use crate::members::error::Error;
use crate::members::records::update_record;
use nearshore_core::list::document::Update;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Peek, Store, Stored};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;

/// The update of what is stored of a user; none without a list, or with only a fallback of ingest, as earlier
/// releases stored it under claim 0.
pub fn current(peek: &Peek) -> Option<String> {
    peek.list.as_ref().filter(|list| list.claim > 0).map(update)
}

/// The update of a stored list.
pub fn update(list: &Stored) -> String {
    let guards = (list.claim, list.epoch);
    Update::json(guards, &list.seen, (&list.doc, &list.audit))
}

/// Publishes an update per user, `None` to delete the user's record. Repeats until each is what the store holds.
pub async fn publish_updates<L: Log, S: Store>(
    log: &L,
    store: &S,
    topics: &Topics,
    ns: &str,
    mut updates: Vec<(UserId, Option<String>)>,
) -> Result<(), Error> {
    while !updates.is_empty() {
        let records = updates
            .iter()
            .map(|(user, value)| update_record(topics, ns, user, value.clone()));
        log.send(records.collect()).await?;
        let users: Vec<UserId> = updates.iter().map(|(user, _)| user.clone()).collect();
        let peeks = store.peek(ns, &users).await?;
        let changed = updates
            .into_iter()
            .zip(peeks)
            .filter_map(|((user, published), peek)| {
                let stored = current(&peek);
                (stored != published).then_some((user, stored))
            });
        updates = changed.collect();
    }
    Ok(())
}
