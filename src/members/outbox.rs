//! Publishing updates on `recall-updates`: [`publish_updates`].
//!
//! Invariant: the last update of a user is what the store holds. A member that changes a stored list publishes the
//! update afterwards, reads the list again, and publishes once more if it has changed meanwhile. So the order in which
//! members publish does not matter: above all, a list that was published just before its user was erased does not end
//! up behind the erase.

use nearshore_core::list::document::{Audit, Stage, StoredAudit, Update};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Peek, Store, Stored};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::plan::StoredList;
use nearshore_core::user::record::Fences;

use crate::members::error::Error;
use crate::members::records::update_record;

/// The update of a list. Two are of the same list if they differ in the audit alone, which the store keeps with fewer
/// digits or not at all.
pub struct ListUpdate {
    claim: u64,
    stage: Stage,
    epoch: u64,
    seen: Fences,
    doc: String,
    audit: AuditText,
}

/// Where the JSON of an audit comes from.
enum AuditText {
    /// A list just made.
    Full(String),
    /// A list that was read.
    Stored(StoredAudit),
}

impl From<&Stored> for ListUpdate {
    fn from(list: &Stored) -> Self {
        Self {
            claim: list.claim,
            stage: list.stage,
            epoch: list.epoch,
            seen: list.seen.clone(),
            doc: list.doc.clone(),
            audit: AuditText::Stored(list.audit.clone()),
        }
    }
}

impl From<&StoredList> for ListUpdate {
    fn from(list: &StoredList) -> Self {
        Self {
            claim: list.claim,
            stage: list.stage,
            epoch: list.epoch,
            seen: list.seen.clone(),
            doc: list.doc.to_json(),
            audit: AuditText::Stored(list.audit.clone()),
        }
    }
}

impl ListUpdate {
    /// The update of a list just stored, with its whole audit.
    pub fn with_audit(list: &Stored, audit: &Audit) -> Self {
        Self {
            audit: AuditText::Full(audit.to_json()),
            ..Self::from(list)
        }
    }

    /// The record's value.
    fn json(&self) -> String {
        let audit = match &self.audit {
            AuditText::Full(text) => text.as_str().into(),
            AuditText::Stored(audit) => audit.json(),
        };
        Update::json((self.claim, self.epoch), &self.seen, (&self.doc, &audit))
    }

    fn is_of(&self, list: &Stored) -> bool {
        let of_list = (list.claim, list.stage, list.epoch, &list.seen, &list.doc);
        of_list == (self.claim, self.stage, self.epoch, &self.seen, &self.doc)
    }
}

/// The update of what is stored of a user; none without a list, or with only a fallback of ingest, as earlier releases
/// stored it under claim 0.
pub fn current(peek: &Peek) -> Option<ListUpdate> {
    stored(peek).map(ListUpdate::from)
}

fn stored(peek: &Peek) -> Option<&Stored> {
    peek.list.as_ref().filter(|list| list.claim > 0)
}

/// Publishes an update per user, `None` to delete the user's record. Repeats until each is what the store holds.
pub async fn publish_updates<L: Log, S: Store>(
    log: &L,
    store: &S,
    topics: &Topics,
    ns: &str,
    mut updates: Vec<(UserId, Option<ListUpdate>)>,
) -> Result<(), Error> {
    while !updates.is_empty() {
        let record = |(user, update): &(UserId, Option<ListUpdate>)| {
            update_record(topics, ns, user, update.as_ref().map(ListUpdate::json))
        };
        log.send(updates.iter().map(record).collect()).await?;
        let users: Vec<UserId> = updates.iter().map(|(user, _)| user.clone()).collect();
        let peeks = store.peek(ns, &users).await?;
        let changed = updates
            .into_iter()
            .zip(peeks)
            .filter_map(|((user, sent), peek)| {
                let is_stored = match (&sent, stored(&peek)) {
                    (Some(sent), Some(list)) => sent.is_of(list),
                    (None, None) => true,
                    _ => false,
                };
                (!is_stored).then(|| (user, current(&peek)))
            });
        updates = changed.collect();
    }
    Ok(())
}
