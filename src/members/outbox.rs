//! What `recall-updates` says of a user is what the store holds: [`publish_updates`].
//!
//! Invariant: whoever changes a stored list tells of it afterwards, looks again, and tells once more if it has changed
//! meanwhile. So the last record of a key is what is stored, whatever overtook what: above all, a list that was
//! published just before its user was erased does not come to stand behind the erase.

use crate::members::error::Error;
use crate::members::records::update_record;
use nearshore_core::list::document::Update;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Peek, Store, Stored};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;

/// What is to be told of a user as stored: nothing of one without a list, or with only a first fallback.
pub fn current(peek: &Peek) -> Option<String> {
    peek.list.as_ref().filter(|list| list.claim > 0).map(update)
}

/// A stored list as it is told.
pub fn update(list: &Stored) -> String {
    let guards = (list.claim, list.epoch);
    Update::json(guards, &list.seen, (&list.doc, &list.audit))
}

/// Tells of lists on `recall-updates`, none deletes the user's record; again until it is what is stored.
pub async fn publish_updates<L: Log, S: Store>(
    log: &L,
    store: &S,
    (topics, ns): (&Topics, &str),
    mut told: Vec<(UserId, Option<String>)>,
) -> Result<(), Error> {
    while !told.is_empty() {
        let out = told
            .iter()
            .map(|(user, value)| update_record(topics, ns, user, value.clone()));
        log.send(out.collect()).await?;
        let users: Vec<UserId> = told.iter().map(|(user, _)| user.clone()).collect();
        let peeks = store.peek(ns, &users).await?;
        let now = told
            .into_iter()
            .zip(peeks)
            .filter_map(|((user, told), peek)| {
                let now = current(&peek);
                (now != told).then_some((user, now))
            });
        told = now.collect();
    }
    Ok(())
}
