//! The log of a shop in memory: the decoded records of its users and its catalogue, from files or from the topics.
//!
//! Invariant: every record went through the decoders of production. One that they refuse is counted by its code and the
//! first few are named, with file and line or position. It does not know what the log is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use nearshore_core::learn::split::fold;
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::naming::{self, Naming};
use nearshore_core::user::event::{
    Accepted, Format, Limits, Reject, Sku, Source, UserId, decode_user, event_type, key_user,
};
use nearshore_core::user::record::{Record, Timestamp};

use super::{Error, Row, Topic, read};

/// Rejects that are named.
const NAMED: usize = 5;

/// Seed of shares: another one than anybody's folds have.
const SHARE_SEED: u64 = 0x7061_7274;

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

    /// Counts one.
    pub(crate) fn add(&mut self, place: impl FnOnce() -> String, reject: &Reject) {
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
    /// Events of types in `events.ignore`, and records that were mapped to nothing.
    pub(crate) ignored: u64,
    /// Latest record of each SKU; `None` for one that was deleted.
    skus: BTreeMap<String, (Timestamp, Option<Sku>)>,
    /// One copy of each user id.
    users: BTreeSet<UserId>,
    /// Which users are kept; all without it.
    share: Option<Share>,
}

/// A share of the users, by the hash of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Number of the share, from 0.
    pub(crate) nth: u32,
    /// How many shares there are.
    pub(crate) of: u32,
}

impl Share {
    /// Whether a user is in it.
    fn has(self, user: &str) -> bool {
        fold(SHARE_SEED, user, self.of as usize) == self.nth as usize
    }
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
    /// A log of a share of the users. A record without a key that can be used is of the first.
    pub(crate) fn of_share(share: Option<Share>) -> Self {
        Self {
            share,
            ..Self::default()
        }
    }

    /// Whether a record is of a user of this log, as far as its key says so.
    fn is_ours(&self, record: &Record, source: Source) -> bool {
        self.share.is_none_or(|share| {
            let user = key_user(record, source);
            user.map_or(share.nth == 0, |user| share.has(&user))
        })
    }

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
        mut self,
        source: &LogsSource,
        decoding: &Decoding,
        bar: &ProgressBar,
    ) -> Result<Self, Error> {
        let logs = &mut self;
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
        Ok(self.finished())
    }

    fn add_row(&mut self, path: &Path, topic: Topic, row: Row, decoding: &Decoding) {
        let place = || format!("{}:{}", path.display(), row.line);
        match row.record {
            Ok(record) => self.add(topic, &[record], decoding, place),
            Err(reject) => self.refuse(place, &reject),
        }
    }

    /// Adds what one record of a topic is, all of it or nothing; `place` names it in a reject.
    pub(crate) fn add(
        &mut self,
        topic: Topic,
        records: &[Record],
        decoding: &Decoding,
        place: impl FnOnce() -> String,
    ) {
        if let Err(reject) = self.decode(topic, records, decoding) {
            self.rejects.add(place, &reject);
        }
    }

    /// Adds what one record of a topic is, all of it; the error says why it cannot be used, and then nothing is added.
    pub(crate) fn decode(
        &mut self,
        topic: Topic,
        records: &[Record],
        decoding: &Decoding,
    ) -> Result<(), Reject> {
        match topic {
            Topic::Catalog | Topic::Titles => self.add_skus(records, decoding),
            Topic::Profiles => {
                // What a mapping made is plain, whatever format our own topic has.
                let plain = records
                    .first()
                    .is_some_and(|record| decoding.is_mapped(record));
                let format = match plain {
                    true => Format::Plain,
                    false => decoding.topics.profile_format,
                };
                self.add_of_users(records, Source::Profiles(format), decoding)
            }
            Topic::Events | Topic::Rows => self.add_of_users(records, Source::Events, decoding),
        }
    }

    /// Counts a record that was refused before it was decoded.
    pub(crate) fn refuse(&mut self, place: impl FnOnce() -> String, reject: &Reject) {
        // Nobody knows whose it was: one of the processes that share a log counts it.
        if self.share.is_none_or(|share| share.nth == 0) {
            self.rejects.add(place, reject);
        }
    }

    fn add_skus(&mut self, records: &[Record], decoding: &Decoding) -> Result<(), Reject> {
        let skus = records.iter().map(|record| {
            let named = decoding.naming.as_deref();
            let (sku, value) = naming::decode_sku(named, record, &decoding.limits)?;
            Ok((sku, (record.occurred(), value)))
        });
        for (sku, new) in skus.collect::<Result<Vec<_>, Reject>>()? {
            self.add_sku(sku, new);
        }
        Ok(())
    }

    fn add_of_users(
        &mut self,
        records: &[Record],
        source: Source,
        decoding: &Decoding,
    ) -> Result<(), Reject> {
        let ours = records.iter().filter(|record| self.is_ours(record, source));
        let ours: Vec<&Record> = ours.collect();
        if ours.is_empty() && !records.is_empty() {
            return Ok(());
        }
        let mut all = Vec::with_capacity(ours.len());
        for record in ours {
            match decode_user(record, source, &decoding.limits) {
                Ok(accepted) => all.push(accepted),
                Err(_) if decoding.ignores(source, record) => {}
                Err(reject) => return Err(reject),
            }
        }
        self.ignored += u64::from(all.is_empty());
        for mut accepted in all {
            accepted.user = self.shared(accepted.user);
            self.records.push(accepted);
        }
        Ok(())
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
    /// Whether a record came from a topic of the shop's own.
    fn is_mapped(&self, record: &Record) -> bool {
        let topic = &record.position.partition.topic;
        self.topics.inputs.get(topic).is_some()
    }

    /// Whether a record that cannot be used is an event of a type that the shop ignores.
    fn ignores(&self, source: Source, record: &Record) -> bool {
        source == Source::Events
            && !self.ignore.is_empty()
            && event_type(record, &self.limits).is_some_and(|kind| self.ignore.contains(&kind))
    }
}
