//! Decoding a batch: records by user, and rejects for the `dlq`.
//!
//! Invariant: every record is in one of the two. The order of a user's records is that of the batches.

use std::collections::BTreeMap;

use super::{IngestSettings, Now};
use crate::members::dlq::Rejected;
use crate::metrics::Stage;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::event::{self, Accepted, Limits, Source, UserId};
use nearshore_core::user::record::Timestamp;

/// The records of some batches.
#[derive(Default)]
pub(super) struct Decoded<'a> {
    /// Records that can be folded, by user.
    pub(super) users: BTreeMap<UserId, Vec<Accepted>>,
    /// Records that cannot.
    pub(super) rejects: Vec<Rejected<'a>>,
}

/// Decodes all records of the batches.
pub(super) fn decode<'a>(settings: &IngestSettings, batches: &[&'a Batch]) -> Decoded<'a> {
    let limits = Limits {
        now: settings.now.read(),
        ..settings.limits
    };
    let mut decoded = Decoded::default();
    for record in batches.iter().flat_map(|batch| &batch.records) {
        let source = settings.topics.source(&record.position.partition.topic);
        match event::decode_user(record, source, &limits) {
            Ok(accepted) => decoded
                .users
                .entry(accepted.user.clone())
                .or_default()
                .push(accepted),
            Err(reject) => decoded.rejects.push(Rejected {
                record,
                stage: stage(source),
                reject,
            }),
        }
    }
    decoded
}

/// The stage of a record that is rejected.
pub(super) fn stage(source: Source) -> Stage {
    match source {
        Source::Events => Stage::Event,
        Source::Profiles(_) => Stage::Profile,
    }
}

impl Now {
    fn read(self) -> Option<Timestamp> {
        match self {
            Self::Unchecked => None,
            Self::Clock(clock) => Some(clock()),
            Self::Fixed(now) => Some(now),
        }
    }
}
