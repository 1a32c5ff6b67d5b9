//! Decoding a batch: records by user, and rejects for the `dlq`.
//!
//! Invariant: every record is in one of the two, or counted as ignored. The order of a user's records is that of the
//! batches. A record of a mapped topic is used whole or refused whole: a part that is folded now would be folded again
//! when its dead letter is replayed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{IngestSettings, Now};
use crate::map::{MappedBatch, Outcome};
use crate::members::dlq::Rejected;
use crate::metrics::Stage;
use nearshore_core::ports::log::Batch;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{self, Accepted, Limits, Reject, Source, UserId};
use nearshore_core::user::record::{Record, Timestamp};

/// The records of some batches.
#[derive(Default)]
pub(super) struct Decoded<'a> {
    /// Records that can be folded, by user.
    pub(super) users: BTreeMap<UserId, Vec<Accepted>>,
    /// Records that cannot.
    pub(super) rejects: Vec<Rejected<'a>>,
    /// Number of events of a type that the shop ignores, and of records that were mapped to nothing, by topic.
    pub(super) ignored: BTreeMap<Arc<str>, u64>,
}

/// Decodes all records of the batches; of mapped ones what they became.
pub(super) fn decode<'a>(
    settings: &IngestSettings,
    batches: &[&'a Batch],
    mapped: Vec<MappedBatch>,
) -> Decoded<'a> {
    let limits = Limits {
        now: settings.now.read(),
        ..settings.limits
    };
    let mut decoded = Decoded::default();
    for (batch, mapped) in batches.iter().zip(mapped) {
        let topic = &batch.partition.topic;
        let source = settings.topics.source(topic);
        match mapped {
            None => {
                for record in &batch.records {
                    let one = event::decode_user(record, source, &limits).map(Some);
                    let one =
                        one.or_else(
                            |reject| match is_ignored(settings, source, record, &limits) {
                                true => Ok(None),
                                false => Err(reject),
                            },
                        );
                    decoded.add(record, stage(&settings.topics, topic), one);
                }
            }
            Some(mapped) => {
                for (record, outcome) in batch.records.iter().zip(mapped) {
                    let all = all_of(outcome, settings, source, &limits);
                    decoded.add(record, Stage::Map, all);
                }
            }
        }
    }
    decoded
}

/// Decodes all that a record became, without events that are ignored.
fn all_of(
    outcome: Outcome,
    settings: &IngestSettings,
    source: Source,
    limits: &Limits,
) -> Result<Vec<Accepted>, Reject> {
    let mut all = Vec::new();
    for piece in outcome? {
        match event::decode_user(&piece, source, limits) {
            Ok(accepted) => all.push(accepted),
            Err(_) if is_ignored(settings, source, &piece, limits) => {}
            Err(reject) => return Err(reject),
        }
    }
    Ok(all)
}

impl<'a> Decoded<'a> {
    /// Adds what a record became; nothing means that it is ignored.
    fn add(
        &mut self,
        record: &'a Record,
        stage: Stage,
        became: Result<impl IntoIterator<Item = Accepted>, Reject>,
    ) {
        let became = match became {
            Ok(became) => became,
            Err(reject) => {
                self.rejects.push(Rejected {
                    record,
                    stage,
                    reject,
                });
                return;
            }
        };
        let mut some = false;
        for accepted in became {
            some = true;
            let user = self.users.entry(accepted.user.clone());
            user.or_default().push(accepted);
        }
        if !some {
            let topic = record.position.partition.topic.clone();
            *self.ignored.entry(topic).or_default() += 1;
        }
    }
}

/// Whether a record that cannot be used is an event of a type that the shop ignores. Nothing else of it must be right.
fn is_ignored(settings: &IngestSettings, source: Source, record: &Record, limits: &Limits) -> bool {
    source == Source::Events
        && !settings.ignore.is_empty()
        && event::event_type(record, limits).is_some_and(|kind| settings.ignore.contains(&kind))
}

/// The stage of a record of this topic that is rejected.
pub(super) fn stage(topics: &Topics, topic: &str) -> Stage {
    if topics.inputs.get(topic).is_some() {
        return Stage::Map;
    }
    match topics.source(topic) {
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
        let decoded = decode(&settings, &[&events], vec![None]);
        let folded = decoded.users.values().map(Vec::len).sum::<usize>();
        let codes: Vec<&str> = decoded.rejects.iter().map(|it| it.reject.code()).collect();
        assert_eq!(decoded.ignored, BTreeMap::from([(topics.user_events, 2)]));
        assert_eq!(folded, 1);
        assert_eq!(codes, ["unknown_type", "no_key", "missing_field"]);
        let decoded = decode(&settings, &[&profiles], vec![None]);
        assert!(decoded.ignored.is_empty(), "profiles have no types");
    }
}
