//! The lists of a namespace whose audits say which SKUs each name could have shown.
//!
//! Invariant: a list that is written again is one list, and keeps the audit that says most; an erased user has none. It
//! does not know what was shown of a list, nor what was bought.

use std::collections::BTreeMap;
use std::path::Path;

use indicatif::ProgressBar;
use nearshore_core::learn::off_policy::{Candidate, Candidates, Weighing};
use nearshore_core::list::document::{NameAudit, SkuAudit, Stage, Update};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Fences, Record, Timestamp};

use crate::ops::files::{self, Topic};

/// A list that can be judged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoggedList {
    /// Its id.
    pub(super) list_id: String,
    /// Its claim and stage: of one claim the later stage replaces the other.
    pub(super) claim: (u64, Stage),
    /// From when on it stood.
    pub(super) at: Timestamp,
    /// What it has seen, where events have the positions of the topics.
    pub(super) seen: Option<Fences>,
    /// The policy by which its SKUs were chosen.
    pub(super) selection: Weighing,
    /// Its names.
    pub(super) names: Vec<LoggedName>,
}

/// A name of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoggedName {
    /// PU id.
    pub(super) pu: String,
    /// Ids of the listed candidates.
    pub(super) skus: Vec<String>,
    /// The candidates.
    pub(super) candidates: Candidates,
    /// The SKUs shown: numbers of candidates, with their propensities.
    pub(super) places: Vec<(usize, f64)>,
}

/// How events of the log tell what a list has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// By positions: events and updates are those of the topics. A list stood from the time of the record that caused it.
    Positions,
    /// By times: they come from files. A list stood from the time of its update.
    Times,
}

/// The lists of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Updates {
    namespace: String,
    clock: Clock,
    /// Lists of each user, in the order of claims and stages.
    pub(super) lists: BTreeMap<UserId, Vec<LoggedList>>,
    /// Lists of an arm, with or without candidates.
    pub(super) read: u64,
    /// Records that this release cannot read.
    pub(super) refused: u64,
    /// Names that were left out, because their audits do not fit their candidates.
    pub(super) unfit: u64,
}

impl Updates {
    /// No list yet.
    pub(crate) fn new(namespace: &str, clock: Clock) -> Self {
        Self {
            namespace: namespace.to_owned(),
            clock,
            lists: BTreeMap::new(),
            read: 0,
            refused: 0,
            unfit: 0,
        }
    }

    /// Number of lists with candidates.
    pub(super) fn len(&self) -> usize {
        self.lists.values().map(Vec::len).sum()
    }

    /// Adds a record of `recall-updates`; one of another namespace is ignored.
    pub(crate) fn add(&mut self, record: &Record) {
        let key = record.key.as_deref().map(std::str::from_utf8);
        let Some(Ok(Some((ns, user)))) = key.map(|key| key.map(|key| key.split_once('/'))) else {
            self.refused += 1;
            return;
        };
        if ns != self.namespace {
            return;
        }
        let user = UserId(user.into());
        let Some(value) = &record.value else {
            self.lists.remove(&user);
            return;
        };
        match Update::parse(value) {
            Ok(update) => self.add_update(user, update, record.occurred()),
            Err(_) => self.refused += 1,
        }
    }

    /// Adds the rows of a file: records of `recall-updates` with `key`, `value` and `timestamp`, or as kcat prints them.
    pub(crate) fn read_file(&mut self, path: &Path) -> Result<(), files::Error> {
        let bar = ProgressBar::hidden();
        // Rows with a key and a value become records in the same way, whatever their topic.
        files::read(
            path,
            (Topic::Events, 0),
            &bar,
            &mut |row| match row.record {
                Ok(record) => self.add(&record),
                Err(_) => self.refused += 1,
            },
        )
    }

    fn add_update(&mut self, user: UserId, update: Update, published: Timestamp) {
        if !update.doc.source.is_exposure() {
            return;
        }
        self.read += 1;
        let Some(selection) = update.audit.selection else {
            return;
        };
        let names = update.audit.names.iter().map(logged);
        let all: Vec<Option<LoggedName>> = names.collect();
        self.unfit += all.iter().filter(|name| name.is_none()).count() as u64;
        let list = LoggedList {
            list_id: update.doc.list_id,
            claim: (update.claim, update.doc.source.stage()),
            at: match self.clock {
                Clock::Positions => update.doc.at,
                Clock::Times => published,
            },
            seen: (self.clock == Clock::Positions).then_some(update.seen),
            selection,
            names: all.into_iter().flatten().collect(),
        };
        let lists = self.lists.entry(user).or_default();
        let place = lists.partition_point(|other| other.claim < list.claim);
        // The first record of a list has the whole of it; a later one may have lost products that became forbidden.
        if lists
            .get(place)
            .is_none_or(|other| other.claim != list.claim)
        {
            lists.insert(place, list);
        }
    }
}

/// A name of an audit; `None` if a SKU shown is not among the candidates, or has no propensity.
fn logged(name: &NameAudit) -> Option<LoggedName> {
    let told = name.candidates.as_ref()?;
    let lengths = [told.share.len(), told.best.len()];
    if lengths != [told.skus.len(); 2] {
        return None;
    }
    let numbers: BTreeMap<&str, usize> = told.skus.iter().map(String::as_str).zip(0..).collect();
    let place = |shown: &SkuAudit| Some((*numbers.get(&*shown.sku)?, shown.ee?));
    let places: Option<Vec<(usize, f64)>> = name.skus.iter().map(place).collect();
    let listed = told.share.iter().zip(&told.best);
    Some(LoggedName {
        pu: name.pu.clone(),
        skus: told.skus.clone(),
        places: places?,
        candidates: Candidates {
            listed: listed
                .map(|(share, best)| Candidate {
                    share: *share,
                    best: *best,
                })
                .collect(),
            others: told.others.clone(),
        },
    })
}
