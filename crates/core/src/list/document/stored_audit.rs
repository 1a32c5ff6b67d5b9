//! An audit as the store keeps it beside its list: columns, with the digits that explain, compressed.
//!
//! Invariant: what is read from [`StoredAudit`] is the audit that was written, but for rounding: scores to 0.0001,
//! shares of terms to 0.001 and propensities to one part in a thousand. Text that an earlier release stored is JSON,
//! and is read as that. Candidates are left out: they are for evaluations, which read updates. It does not know where
//! it is stored.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Audit, Dropped, Model, NameAudit, SkuAudit, TextsAudit, Times, WrittenAudit};
use crate::user::record::{Fences, Offset, Partition, Position, Timestamp};

/// First byte of this form. JSON of earlier releases begins with a brace.
const COLUMNS: u8 = 1;

/// First byte of the form with what a model wrote behind the columns.
const WITH_WRITTEN: u8 = 2;

/// First byte of the form with what texts were read as behind that.
const WITH_TEXTS: u8 = 3;

/// Most bytes of an audit after decompression.
const BYTES_MAX: usize = 1 << 20;

/// Level of DEFLATE (RFC 1951): higher ones find next to nothing more in a kilobyte.
const LEVEL: u8 = 6;

/// An audit in the form of the store; empty where none is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredAudit(Vec<u8>);

/// Why bytes are no audit.
#[derive(Debug, thiserror::Error)]
pub enum StoredAuditError {
    /// Nothing is kept beside this list.
    #[error("no audit is kept beside this list; recall-updates has it")]
    NotKept,
    /// Another release wrote it.
    #[error("form {0} of an audit is unknown to this release; upgrade nearshore")]
    Form(u8),
    /// It is damaged.
    #[error("damaged audit: {0}")]
    Damaged(String),
    /// It is not the JSON of an earlier release.
    #[error("damaged audit: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<&str> for StoredAudit {
    /// JSON, as earlier releases stored it.
    fn from(json: &str) -> Self {
        Self(json.into())
    }
}

impl From<Vec<u8>> for StoredAudit {
    /// Bytes of the store; whether they are an audit is found when they are read.
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl StoredAudit {
    /// Packs an audit.
    pub fn pack(audit: &Audit) -> Self {
        let columns = Columns::of(audit);
        let (form, plain) = match (&audit.written, &audit.texts) {
            (None, None) => (COLUMNS, postcard::to_allocvec(&columns)),
            (Some(written), None) => (WITH_WRITTEN, postcard::to_allocvec(&(columns, written))),
            (written, Some(texts)) => {
                let all = (columns, written, texts);
                (WITH_TEXTS, postcard::to_allocvec(&all))
            }
        };
        let plain = plain.expect("numbers and texts");
        let mut bytes = vec![form];
        bytes.extend(miniz_oxide::deflate::compress_to_vec(&plain, LEVEL));
        Self(bytes)
    }

    /// The bytes to be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The audit.
    pub fn read(&self) -> Result<Audit, StoredAuditError> {
        let damaged = |error: &dyn ToString| StoredAuditError::Damaged(error.to_string());
        match self.0.split_first() {
            None => Err(StoredAuditError::NotKept),
            Some((b'{', _)) => Ok(serde_json::from_slice(&self.0)?),
            Some((form @ &(COLUMNS | WITH_WRITTEN | WITH_TEXTS), rest)) => {
                let plain = miniz_oxide::inflate::decompress_to_vec_with_limit(rest, BYTES_MAX)
                    .map_err(|error| damaged(&error))?;
                let (columns, rest): (Columns, &[u8]) =
                    postcard::take_from_bytes(&plain).map_err(|error| damaged(&error))?;
                let (written, texts) = match *form {
                    WITH_WRITTEN => {
                        let written = postcard::from_bytes(rest);
                        (Some(written.map_err(|error| damaged(&error))?), None)
                    }
                    WITH_TEXTS => {
                        let both: Result<(Option<WrittenAudit>, TextsAudit), _> =
                            postcard::from_bytes(rest);
                        let (written, texts) = both.map_err(|error| damaged(&error))?;
                        (written, Some(texts))
                    }
                    _ => (None, None),
                };
                let audit = columns.audit();
                let audit = audit.ok_or_else(|| damaged(&"columns of different lengths"))?;
                Ok(Audit {
                    written,
                    texts,
                    ..audit
                })
            }
            Some((form, _)) => Err(StoredAuditError::Form(*form)),
        }
    }

    /// The audit as JSON, for an update; `{}` if none is kept or it cannot be read.
    pub fn json(&self) -> Cow<'_, str> {
        if self.0.first() == Some(&b'{') {
            return String::from_utf8_lossy(&self.0);
        }
        let audit = self.read().ok();
        let text = audit.and_then(|audit| serde_json::to_string(&audit).ok());
        text.map_or(Cow::Borrowed("{}"), Cow::Owned)
    }
}

/// A text, as bytes if it is a number in hex: half as long.
#[derive(Serialize, Deserialize)]
enum Text<'a> {
    Plain(Cow<'a, str>),
    Hex(Vec<u8>),
}

/// The audit in columns, each of one kind of value: what is alike stands together.
#[derive(Serialize, Deserialize)]
struct Columns<'a> {
    list_id: Text<'a>,
    claim: u64,
    arm: Cow<'a, str>,
    epoch: u64,
    artefact: Text<'a>,
    model: Option<[Cow<'a, str>; 4]>,
    asked: Cow<'a, str>,
    template: Text<'a>,
    calibration: Text<'a>,
    prompt: Text<'a>,
    prompt_tokens: u32,
    places: Places<'a>,
    events_cut: u32,
    rules: Vec<Cow<'a, str>>,
    rules_unknown: Vec<Cow<'a, str>>,
    segment: Cow<'a, str>,
    demand: Cow<'a, str>,
    catalogue: u64,
    names: Names<'a>,
    dropped: Vec<(Cow<'a, str>, i64, super::Why)>,
    /// Source, due after it, then queued, generated and published, in milliseconds.
    times: [i64; 5],
}

/// Seen offsets and positions of events.
#[derive(Serialize, Deserialize)]
struct Places<'a> {
    partitions: Vec<(u32, Cow<'a, str>, i32)>,
    /// Place of the partition, and offset.
    seen: Vec<(u8, i64)>,
    /// Place of the partition, and offset less that of the event before.
    events: Vec<(u8, i64)>,
}

/// The names in columns.
#[derive(Serialize, Deserialize)]
struct Names<'a> {
    pus: Vec<Cow<'a, str>>,
    scores: Vec<i64>,
    /// Names of terms.
    terms: Vec<Cow<'a, str>>,
    /// For each term the share in each name, or none.
    shares: Vec<Option<i64>>,
    /// Number of SKUs of each name.
    shown: Vec<u32>,
    skus: Vec<Cow<'a, str>>,
    /// Logarithm of each SKU's propensity.
    propensities: Vec<Option<i64>>,
    /// Empty; once the places of names whose SKUs were all below epsilon.
    below: Vec<u32>,
}

fn rounded(value: f64, each: f64) -> i64 {
    (value * each).round() as i64 // Saturates; NaN becomes 0.
}

/// Digits of scores: those of the document.
const SCORE: f64 = 1e4;
/// Digits of shares of terms, and of the logarithm of a propensity.
const SHARE: f64 = 1e3;

impl<'a> Text<'a> {
    fn of(text: &'a str) -> Self {
        match hex::decode(text) {
            Ok(bytes) if hex::encode(&bytes) == text => Self::Hex(bytes),
            _ => Self::Plain(text.into()),
        }
    }

    fn into_text(self) -> String {
        match self {
            Self::Plain(text) => text.into_owned(),
            Self::Hex(bytes) => hex::encode(bytes),
        }
    }
}

fn texts(all: &[String]) -> Vec<Cow<'_, str>> {
    all.iter().map(|text| text.as_str().into()).collect()
}

fn owned(all: Vec<Cow<'_, str>>) -> Vec<String> {
    all.into_iter().map(Cow::into_owned).collect()
}

impl<'a> Columns<'a> {
    fn of(audit: &'a Audit) -> Self {
        let model = |model: &'a Model| {
            let parts = [&model.name, &model.revision, &model.dtype, &model.device];
            parts.map(|part| part.as_str().into())
        };
        let dropped = |it: &'a Dropped| {
            let score = rounded(f64::from(it.score), SCORE);
            (it.pu.as_str().into(), score, it.why)
        };
        let Times {
            source,
            due,
            queued,
            generated,
            published,
        } = audit.times;
        let [queued, generated, published] =
            [queued, generated, published].map(|time| time.as_millis() as i64);
        Self {
            list_id: Text::of(&audit.list_id),
            claim: audit.claim,
            arm: audit.arm.as_str().into(),
            epoch: audit.epoch,
            artefact: Text::of(&audit.artefact),
            model: audit.model.as_ref().map(model),
            asked: audit.asked.as_str().into(),
            template: Text::of(&audit.template),
            calibration: Text::of(&audit.calibration),
            prompt: Text::of(&audit.prompt),
            prompt_tokens: audit.prompt_tokens,
            places: Places::of(audit),
            events_cut: audit.events_cut,
            rules: texts(&audit.rules),
            rules_unknown: texts(&audit.rules_unknown),
            segment: audit.segment.as_str().into(),
            demand: audit.demand.as_str().into(),
            catalogue: audit.catalogue,
            names: Names::of(&audit.names),
            dropped: audit.dropped.iter().map(dropped).collect(),
            times: [
                source.0,
                due.0.saturating_sub(source.0),
                queued,
                generated,
                published,
            ],
        }
    }

    /// `None` if the columns do not fit each other.
    fn audit(self) -> Option<Audit> {
        let [source, due, queued, generated, published] = self.times;
        let ms = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
        let (seen, events) = self.places.read()?;
        Some(Audit {
            list_id: self.list_id.into_text(),
            claim: self.claim,
            seen,
            arm: self.arm.into_owned(),
            epoch: self.epoch,
            artefact: self.artefact.into_text(),
            model: self.model.map(|parts| {
                let [name, revision, dtype, device] = parts.map(Cow::into_owned);
                Model {
                    name,
                    revision,
                    dtype,
                    device,
                }
            }),
            asked: self.asked.into_owned(),
            template: self.template.into_text(),
            calibration: self.calibration.into_text(),
            prompt: self.prompt.into_text(),
            prompt_tokens: self.prompt_tokens,
            events,
            events_cut: self.events_cut,
            rules: owned(self.rules),
            rules_unknown: owned(self.rules_unknown),
            segment: self.segment.into_owned(),
            demand: self.demand.into_owned(),
            catalogue: self.catalogue,
            selection: None,
            names: self.names.rows()?,
            dropped: self.dropped.into_iter().map(dropped).collect(),
            written: None,
            texts: None,
            times: Times {
                source: Timestamp(source),
                due: Timestamp(source.saturating_add(due)),
                queued: ms(queued),
                generated: ms(generated),
                published: ms(published),
            },
        })
    }
}

impl<'a> Places<'a> {
    fn of(audit: &'a Audit) -> Self {
        let of_seen = audit.seen.iter().map(|(partition, _)| partition);
        let of_events = audit.events.iter().map(|event| &event.partition);
        let partitions: BTreeSet<&Partition> = of_seen.chain(of_events).collect();
        let partitions: Vec<&Partition> = partitions.into_iter().collect();
        let place = |of: &Partition| partitions.binary_search(&of).unwrap_or_default() as u8;
        let mut before = 0;
        let events = audit.events.iter().map(|event| {
            let offset = event.offset.0;
            let more = offset - std::mem::replace(&mut before, offset);
            (place(&event.partition), more)
        });
        let seen = audit.seen.iter();
        Self {
            events: events.collect(),
            seen: seen.map(|(at, offset)| (place(at), offset.0)).collect(),
            partitions: partitions
                .iter()
                .map(|it| (it.incarnation, (&*it.topic).into(), it.number))
                .collect(),
        }
    }

    fn read(self) -> Option<(Fences, Vec<Position>)> {
        let partition = |(incarnation, topic, number): (u32, Cow<'_, str>, i32)| Partition {
            incarnation,
            topic: (&*topic).into(),
            number,
        };
        let partitions: Vec<Partition> = self.partitions.into_iter().map(partition).collect();
        let position = |(place, offset): (u8, i64)| {
            Some(Position {
                partition: partitions.get(usize::from(place))?.clone(),
                offset: Offset(offset),
            })
        };
        let mut last = 0_i64;
        let event = |(place, more): (u8, i64)| {
            last = last.checked_add(more)?;
            position((place, last))
        };
        let events: Option<Vec<Position>> = self.events.into_iter().map(event).collect();
        let seen: Option<Fences> = self.seen.into_iter().map(position).collect();
        Some((seen?, events?))
    }
}

fn dropped((pu, score, why): (Cow<'_, str>, i64, super::Why)) -> Dropped {
    Dropped {
        pu: pu.into_owned(),
        score: (score as f64 / SCORE) as f32,
        why,
    }
}

impl<'a> Names<'a> {
    fn of(names: &'a [NameAudit]) -> Self {
        let terms = names.iter().flat_map(|name| name.terms.keys());
        let terms: BTreeSet<&String> = terms.collect();
        let share = |term: &String, name: &NameAudit| {
            let share = name.terms.get(term);
            share.map(|share| rounded(f64::from(*share), SHARE))
        };
        let shares = |term| names.iter().map(move |name| share(term, name));
        let skus = || names.iter().flat_map(|name| &name.skus);
        let scores = names.iter().map(|name| f64::from(name.score));
        Self {
            pus: names.iter().map(|name| name.pu.as_str().into()).collect(),
            scores: scores.map(|score| rounded(score, SCORE)).collect(),
            shares: terms.iter().flat_map(|term| shares(*term)).collect(),
            terms: terms.iter().map(|term| term.as_str().into()).collect(),
            shown: names.iter().map(|name| name.skus.len() as u32).collect(),
            skus: skus().map(|sku| sku.sku.as_str().into()).collect(),
            propensities: skus()
                .map(|sku| Some(rounded(sku.ee?.ln(), SHARE)))
                .collect(),
            below: Vec::new(),
        }
    }

    /// `None` if the columns do not fit each other.
    fn rows(self) -> Option<Vec<NameAudit>> {
        let names = self.pus.len();
        let fits = self.scores.len() == names
            && self.shown.len() == names
            && self.shares.len() == self.terms.len() * names
            && self.skus.len() == self.propensities.len();
        let mut skus = self.skus.into_iter().zip(self.propensities);
        let row = |(place, pu): (usize, Cow<'_, str>)| {
            let share = |(nth, term): (usize, &Cow<'_, str>)| {
                let share = (*self.shares.get(nth * names + place)?)?;
                Some((term.to_string(), (share as f64 / SHARE) as f32))
            };
            let terms: BTreeMap<String, f32> =
                self.terms.iter().enumerate().filter_map(share).collect();
            let shown = skus.by_ref().take(*self.shown.get(place)? as usize);
            let sku = |(sku, propensity): (Cow<'_, str>, Option<i64>)| SkuAudit {
                sku: sku.into_owned(),
                ee: propensity.map(|log| (log as f64 / SHARE).exp()),
            };
            Some(NameAudit {
                pu: pu.into_owned(),
                score: (*self.scores.get(place)? as f64 / SCORE) as f32,
                terms,
                skus: shown.map(sku).collect(),
                candidates: None,
            })
        };
        let rows = self.pus.into_iter().enumerate().map(row).collect();
        if fits { rows } else { None }
    }
}

#[cfg(test)]
#[path = "stored_audit_tests.rs"]
mod tests;
