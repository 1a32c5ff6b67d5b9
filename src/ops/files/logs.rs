//! The log of a shop in memory: the decoded records of its users and its catalogue, from files or from the topics.
//!
//! Invariant: every record went through the decoders of production. One that they refuse is counted by its code and the
//! first few are named, with file and line or position. It does not know what the log is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::naming::Naming;
use nearshore_core::user::event::{
    Accepted, Limits, Reject, Sku, Source, UserId, decode_sku, decode_user, event_type,
};
use nearshore_core::user::record::{Record, Timestamp};

use super::{Error, Row, Topic, read};

/// Rejects that are named.
const NAMED: usize = 5;

/// Files of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogsSource {
    /// Files of `user-events`.
    pub(crate) events: Vec<PathBuf>,
    /// Files of `profile-changes`.
    pub(crate) profiles: Vec<PathBuf>,
    /// Files of `catalog`.
    pub(crate) catalog: Vec<PathBuf>,
}

impl LogsSource {
    /// Whether no file is named.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.profiles.is_empty() && self.catalog.is_empty()
    }
}

/// Records that the decoders refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rejects {
    /// Number by code.
    pub(crate) codes: BTreeMap<&'static str, u64>,
    /// The first ones, each with its place and the reason.
    pub(crate) first: Vec<String>,
}

impl Rejects {
    /// Number of all.
    pub(crate) fn total(&self) -> u64 {
        self.codes.values().sum()
    }

    fn add(&mut self, place: impl FnOnce() -> String, reject: &Reject) {
        *self.codes.entry(reject.code()).or_default() += 1;
        if self.first.len() < NAMED {
            self.first
                .push(format!("{}: {reject} ({})", place(), reject.code()));
        }
    }
}

/// A shop's log.
#[derive(Default)]
pub(crate) struct Logs {
    /// Records of users in the order read.
    pub(crate) records: Vec<Accepted>,
    /// The catalogue at the end of the log.
    pub(crate) catalogue: Catalogue,
    /// What was refused.
    pub(crate) rejects: Rejects,
    /// Events of types in `events.ignore`.
    pub(crate) ignored: u64,
    /// Latest record of each SKU; `None` for one that was deleted.
    skus: BTreeMap<String, (Timestamp, Option<Sku>)>,
    /// One copy of each user id.
    users: BTreeSet<UserId>,
}

/// How records are decoded.
pub(crate) struct Decoding {
    /// Names of the topics, and the format of profiles.
    pub(crate) topics: Topics,
    /// Limits of a record.
    pub(crate) limits: Limits,
    /// Types of events that are ignored.
    pub(crate) ignore: BTreeSet<String>,
    /// Products of SKUs that have only titles.
    pub(crate) naming: Option<Arc<Naming>>,
}

impl Logs {
    /// Leaves out the records of erased users up to their erases, as the fold does; returns how many.
    pub(crate) fn leave_out(&mut self, erased: &BTreeMap<UserId, Timestamp>) -> usize {
        let before = self.records.len();
        let stays = |record: &Accepted| {
            let erased_at = erased.get(&record.user);
            erased_at.is_none_or(|erased_at| record.time > *erased_at)
        };
        self.records.retain(stays);
        before - self.records.len()
    }

    /// Reads files; `bar` counts their bytes.
    pub(crate) fn read(
        source: &LogsSource,
        decoding: &Decoding,
        bar: &ProgressBar,
    ) -> Result<Self, Error> {
        let mut logs = Self::default();
        let catalog = match decoding.naming {
            Some(_) => Topic::Titles,
            None => Topic::Catalog,
        };
        for (topic, paths) in [
            (catalog, &source.catalog),
            (Topic::Profiles, &source.profiles),
            (Topic::Events, &source.events),
        ] {
            for (number, path) in paths.iter().enumerate() {
                let number = i32::try_from(number).unwrap_or(i32::MAX);
                read(path, (topic, number), bar, &mut |row| {
                    logs.add_row(path, topic, row, decoding);
                })?;
            }
        }
        Ok(logs.finished())
    }

    fn add_row(&mut self, path: &Path, topic: Topic, row: Row, decoding: &Decoding) {
        let place = || format!("{}:{}", path.display(), row.line);
        match row.record {
            Ok(record) => self.add(topic, &record, decoding, place),
            Err(reject) => self.rejects.add(place, &reject),
        }
    }

    /// Adds one record of a topic; `place` names it in a reject.
    pub(crate) fn add(
        &mut self,
        topic: Topic,
        record: &Record,
        decoding: &Decoding,
        place: impl FnOnce() -> String,
    ) {
        let source = match topic {
            Topic::Catalog | Topic::Titles => {
                let named = decoding.naming.as_ref().map(|naming| naming.fill(record));
                return match decode_sku(named.as_deref().unwrap_or(record), &decoding.limits) {
                    Ok((sku, value)) => self.add_sku(sku, (record.occurred(), value)),
                    Err(reject) => self.rejects.add(place, &reject),
                };
            }
            Topic::Profiles => Source::Profiles(decoding.topics.profile_format),
            Topic::Events => Source::Events,
        };
        match decode_user(record, source, &decoding.limits) {
            Ok(mut accepted) => {
                accepted.user = self.shared(accepted.user);
                self.records.push(accepted);
            }
            Err(_) if decoding.ignores(source, record) => self.ignored += 1,
            Err(reject) => self.rejects.add(place, &reject),
        }
    }

    /// Keeps the later record of a SKU; of two at one time that which was read later.
    fn add_sku(&mut self, sku: String, new: (Timestamp, Option<Sku>)) {
        match self.skus.get(&sku) {
            Some((time, _)) if *time > new.0 => {}
            _ => {
                self.skus.insert(sku, new);
            }
        }
    }

    fn shared(&mut self, user: UserId) -> UserId {
        if let Some(known) = self.users.get(&user) {
            return known.clone();
        }
        self.users.insert(user.clone());
        user
    }

    /// Builds the catalogue once all records are added. Its order is that of the SKUs' ids, whatever was read first.
    pub(crate) fn finished(mut self) -> Self {
        let skus = std::mem::take(&mut self.skus);
        let skus = skus.into_values().filter_map(|(_, sku)| sku);
        self.catalogue = Catalogue::load(skus.collect());
        self.users.clear();
        self
    }
}

impl Decoding {
    /// Whether a record that cannot be used is an event of a type that the shop ignores.
    fn ignores(&self, source: Source, record: &Record) -> bool {
        source == Source::Events
            && !self.ignore.is_empty()
            && event_type(record, &self.limits).is_some_and(|kind| self.ignore.contains(&kind))
    }
}
