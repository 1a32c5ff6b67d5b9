//! What `recall-updates` says last of a user is what stands in the store.
//!
//! Invariant: after its last record about a user a teller has seen the store agree with it. So whoever changes what
//! stands later also tells later, and neither a slow teller nor a zombie has the last word: above all, nothing of an
//! erased user follows the tombstone that the erase wrote. It does not know why a list changed.

use super::{Error, update_record};
use crate::event::UserId;
use crate::list::Update;
use crate::log::{Log, Outgoing};
use crate::store::{Store, Stored};
use crate::topics::Topics;

/// A user with their list, or that there is none to be told of.
pub type Told = (UserId, Option<Stored>);

/// Tells lists and erases, and tells again what changed meanwhile.
pub async fn tell<L: Log, S: Store>(
    (log, store): (&L, &S),
    (topics, ns): (&Topics, &str),
    mut told: Vec<Told>,
) -> Result<(), Error> {
    while !told.is_empty() {
        let records = told.iter().map(|told| record((topics, ns), told));
        log.send(records.collect()).await?;
        told = differing(store, ns, told).await?;
    }
    Ok(())
}

fn record((topics, ns): (&Topics, &str), (user, list): &Told) -> Outgoing {
    let value = list.as_ref().map(|list| {
        let guards = (list.ticket, list.epoch);
        Update::json(guards, &list.covers, (&list.doc, &list.audit))
    });
    update_record(topics, ns, user, value)
}

/// Those of whom the store has something else than was told, with what it has.
async fn differing<S: Store>(store: &S, ns: &str, told: Vec<Told>) -> Result<Vec<Told>, Error> {
    let users: Vec<UserId> = told.iter().map(|(user, _)| user.clone()).collect();
    let peeks = store.peek(ns, &users).await?;
    let differ = |((user, told), peek): (Told, crate::store::Peek)| {
        // A first-seen user's own fallback is not told.
        let stands = peek.list.filter(|list| list.ticket > 0);
        let same = match (&told, &stands) {
            (Some(told), Some(stands)) => (told.ticket, &told.doc) == (stands.ticket, &stands.doc),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        (!same).then_some((user, stands))
    };
    Ok(told.into_iter().zip(peeks).filter_map(differ).collect())
}
