//! Users who are set aside because a stored value of theirs cannot be used: [`SetAside`].
//!
//! Decides what one bad value costs: the records of its user go to the `dlq`, whence they can be sent again when the
//! value is mended, and no other user notices. An erase is never set aside: it deletes what is stored of the user,
//! whatever it is. Invariant: where many users are concerned, it is not their values that are bad, and the partition stops.
//! Nothing is remembered between calls, so a mended value is used at once.

use std::collections::{BTreeMap, BTreeSet};

use super::decode::{Decoded, stage};
use crate::members::dlq::Rejected;
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Batch;
use nearshore_core::ports::store::{self, Store};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{Accepted, Change, Reject, UserId};
use nearshore_core::user::record::Timestamp;

/// Most users that one call sets aside.
const USERS_MAX: usize = 32;

/// What became of one user's bad value.
enum Fate {
    /// Found by the last try.
    Found(String),
    /// All that was stored of the user is deleted.
    Discarded,
}

/// The users of one call whose stored values cannot be used.
#[derive(Default)]
pub(super) struct SetAside(BTreeMap<UserId, Fate>);

impl SetAside {
    /// Adds the user of an error. Any other error is returned, and so is one that shows that setting aside does not help.
    pub(super) fn add(&mut self, error: Error) -> Result<(), Error> {
        let Error::Store(store::Error::Corrupt {
            user: Some(user), ..
        }) = &error
        else {
            return Err(error);
        };
        if self.0.contains_key(user) || self.0.len() >= USERS_MAX {
            return Err(error);
        }
        if let Error::Store(cause) = &error {
            metrics::store_error(cause);
        }
        tracing::warn!(
            %error,
            "a stored value of one user cannot be used; the user's records go to the dlq, an erase deletes it"
        );
        self.0.insert(user.clone(), Fate::Found(error.to_string()));
        Ok(())
    }

    /// Deletes what is stored of the users whose records have an erase.
    pub(super) async fn discard_erased<S: Store>(
        &mut self,
        store: &S,
        ns: &str,
        decoded: &Decoded<'_>,
    ) -> Result<(), Error> {
        for (user, fate) in &mut self.0 {
            let records = decoded.users.get(user).into_iter().flatten();
            let Some(at) = newest_erase(records) else {
                continue;
            };
            if let Fate::Found(_) = fate {
                store.discard(ns, user, at).await?;
                *fate = Fate::Discarded;
            }
        }
        Ok(())
    }

    /// Rejects the records of the other users, so that they go to the `dlq`.
    pub(super) fn reject<'a>(
        &self,
        decoded: &mut Decoded<'a>,
        topics: &Topics,
        batches: &[&'a Batch],
    ) {
        let mut rejected = BTreeSet::new();
        for (user, fate) in &self.0 {
            let Fate::Found(why) = fate else { continue };
            for accepted in decoded.users.remove(user).into_iter().flatten() {
                let position = &accepted.position;
                // One record of a mapped topic may have become several, of several users.
                if !rejected.insert(position.clone()) {
                    continue;
                }
                let mut records = batches.iter().flat_map(|batch| &batch.records);
                let record = records.find(|record| record.position == *position);
                decoded.rejects.extend(record.map(|record| Rejected {
                    record,
                    stage: stage(topics, &position.partition.topic),
                    reject: Reject::UnreadableValue(why.clone()),
                }));
            }
        }
        if !topics.inputs.is_empty() && !rejected.is_empty() {
            for records in decoded.users.values_mut() {
                records.retain(|accepted| !rejected.contains(&accepted.position));
            }
            decoded.users.retain(|_, records| !records.is_empty());
        }
    }
}

fn newest_erase<'a>(records: impl Iterator<Item = &'a Accepted>) -> Option<Timestamp> {
    let erases = records.filter(|record| record.change == Change::Erase);
    erases.map(|record| record.time).max()
}
