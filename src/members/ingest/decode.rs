//! Decoding a batch: records by user, and rejects for the `dlq`.
//!
//! Invariant: every record is in one of the two, or counted as ignored. The order of a user's records is that of the batches.

use std::collections::BTreeMap;

use super::{IngestSettings, Now};
use crate::members::dlq::Rejected;
use crate::metrics::Stage;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::event::{self, Accepted, Limits, Source, UserId};
use nearshore_core::user::record::{Record, Timestamp};

/// The records of some batches.
#[derive(Default)]
pub(super) struct Decoded<'a> {
    /// Records that can be folded, by user.
    pub(super) users: BTreeMap<UserId, Vec<Accepted>>,
    /// Records that cannot.
    pub(super) rejects: Vec<Rejected<'a>>,
    /// Number of events of a type that the shop ignores.
    pub(super) ignored: u64,
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
            Err(_) if is_ignored(settings, source, record, &limits) => decoded.ignored += 1,
            Err(reject) => decoded.rejects.push(Rejected {
                record,
                stage: stage(source),
                reject,
            }),
        }
    }
    decoded
}

/// Whether a record that cannot be used is an event of a type that the shop ignores. Nothing else of it must be right.
fn is_ignored(settings: &IngestSettings, source: Source, record: &Record, limits: &Limits) -> bool {
    source == Source::Events
        && !settings.ignore.is_empty()
        && event::event_type(record, limits).is_some_and(|kind| settings.ignore.contains(&kind))
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use bytes::Bytes;
    use nearshore_core::queue::topics::Topics;
    use nearshore_core::user::record::{Offset, Partition, Position};

    use super::*;

    #[test]
    fn an_event_of_an_ignored_type_is_counted_and_all_others_are_decoded_or_rejected() {
        let topics = Topics::default();
        let settings = IngestSettings {
            ns: "n".into(),
            group: "g".into(),
            topics: topics.clone(),
            limits: Limits::default(),
            policy: Default::default(),
            ignore: ["add_to_wishlist".to_owned(), "view".to_owned()].into(),
            units_max: 20,
            clock: || Timestamp(0),
            window: 9,
            cache_users: NonZeroUsize::MIN,
            triggers: false,
            hits_sample: 0.0,
            now: Now::Unchecked,
            complete_since: BTreeMap::new(),
        };
        let values = [
            (Some("u"), r#"{"type":"add_to_wishlist","list":7}"#),
            (None, r#"{"type":"add_to_wishlist"}"#),
            (Some("u"), r#"{"type":"Add_to_wishlist"}"#),
            (Some("u"), r#"{"type":"view","sku":"a"}"#),
            (None, r#"{"type":"click","sku":"a"}"#),
            (Some("u"), r#"{"kind":"add_to_wishlist"}"#),
        ];
        let batch = |topic: &std::sync::Arc<str>| {
            let partition = Partition {
                incarnation: 0,
                topic: topic.clone(),
                number: 0,
            };
            let record =
                |(nth, (key, value)): (usize, &(Option<&'static str>, &'static str))| Record {
                    position: Position {
                        partition: partition.clone(),
                        offset: Offset(nth as i64),
                    },
                    time: Timestamp(1_700_000_000_000),
                    key: key.map(|key| Bytes::from_static(key.as_bytes())),
                    value: Some(Bytes::from_static(value.as_bytes())),
                    headers: Vec::new(),
                };
            Batch {
                partition: partition.clone(),
                records: values.iter().enumerate().map(record).collect(),
                end: Offset(6),
            }
        };
        let (events, profiles) = (batch(&topics.user_events), batch(&topics.profile_changes));
        let decoded = decode(&settings, &[&events]);
        let folded = decoded.users.values().map(Vec::len).sum::<usize>();
        let codes: Vec<&str> = decoded.rejects.iter().map(|it| it.reject.code()).collect();
        assert_eq!((decoded.ignored, folded), (2, 1));
        assert_eq!(codes, ["unknown_type", "no_key", "missing_field"]);
        assert_eq!(
            decode(&settings, &[&profiles]).ignored,
            0,
            "profiles have no types"
        );
    }
}
