//! The replayed log: each user's records in time order, what each adds to demand, and what was bought.
//!
//! Invariant: counts are those that the plan of production makes from these records, and records keep the order that
//! they have in a user's window: by time, then position ([`Records`]). It does not know cuts nor parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use nearshore_core::learn::log::{Line, UserLog};
use nearshore_core::learn::product_table::ProductTable;
use nearshore_core::list::terms::Texts;
use nearshore_core::shop::catalogue::{Catalogue, PuIx, SkuIx};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::shop::demand::{BUCKET_MS, Demand};
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::text::vectors::Vectors;
use nearshore_core::user::event::{Accepted, Change, Kind, UserId};
use nearshore_core::user::plan::{PlanContext, plan};
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::LoadedUser;
use rayon::prelude::*;

use super::product_table::SharedTable;
use super::records::{Records, by_user};
use super::shop::snapshot;
use crate::config::Config;
use crate::members::generate::{BoundTexts, KNOWN_MIN};
use crate::ops::files::Logs;
use crate::run::text_parts;

/// What one event adds to demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CountLine {
    pub(crate) sku: SkuIx,
    pub(crate) kind: CountKind,
    /// Index into [`History::segments`].
    pub(crate) segment: u16,
    pub(crate) bucket: i64,
    pub(crate) time: Timestamp,
    pub(crate) n: u64,
}

/// One user.
pub(crate) struct UserHistory {
    pub(crate) id: UserId,
    /// All records, by time.
    pub(crate) records: Records,
    /// Purchases of known products, by time.
    pub(crate) bought: Vec<Line>,
    pub(crate) counts: Vec<CountLine>,
}

/// The log of all users with a purchase of a known product.
pub(crate) struct History {
    /// By id.
    pub(crate) users: Vec<UserHistory>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) rules: Arc<Table>,
    /// Names of segments.
    pub(crate) segments: Vec<String>,
    /// Times of the first and the last purchase.
    pub(crate) span: Option<(Timestamp, Timestamp)>,
    /// Purchases of products that the catalogue does not have.
    pub(crate) unknown: u64,
    /// Users without a purchase.
    pub(crate) idle: usize,
    /// Vectors of the catalogue's names and of profile values, once an encoder has made them.
    pub(crate) texts: Option<Arc<Texts>>,
    /// The model's table of products, once it is built or read.
    pub(crate) table: Option<SharedTable>,
    /// Reads the texts of users, if the configuration has a matcher of them.
    pub(crate) meaning: Option<Arc<BoundTexts>>,
    /// Documents of the neighbours of SKUs, once they are counted.
    pub(crate) neighbours: Option<String>,
}

impl UserHistory {
    /// The user's purchases before a time.
    pub(crate) fn log(&self, until: Timestamp) -> UserLog {
        let lines = self.bought.partition_point(|line| line.at < until.0);
        UserLog {
            id: self.id.0.clone(),
            lines: self.bought[..lines].to_vec(),
        }
    }
}

impl History {
    /// Replays a log through the plan of production.
    pub(crate) fn replay(logs: Logs, config: &Config) -> Self {
        Self::of(by_user(logs.records), logs.catalogue, config)
    }

    /// Replays the records of users, who are in the order of their ids.
    pub(crate) fn of(users: Vec<(UserId, Records)>, catalogue: Catalogue, config: &Config) -> Self {
        let catalogue = Arc::new(catalogue);
        let rules = Table::compile(&config.rules, &config.segments, &catalogue);
        let empty = Demand::build([], &catalogue, &config.demand, Timestamp(0));
        let rules = Arc::new(rules);
        let snapshot = snapshot(&catalogue, &rules, empty, config);
        let replayed: Vec<(UserHistory, Vec<String>, u64)> = users
            .into_par_iter()
            .map(|(id, records)| replay_user(id, records, &snapshot, config))
            .collect();
        let mut history = Self {
            users: Vec::new(),
            catalogue,
            rules,
            segments: Vec::new(),
            span: None,
            unknown: 0,
            idle: 0,
            texts: None,
            meaning: None,
            table: None,
            neighbours: None,
        };
        let mut segments: BTreeMap<String, u16> = BTreeMap::new();
        for (mut user, own_segments, unknown) in replayed {
            history.unknown += unknown;
            if user.bought.is_empty() {
                history.idle += 1;
                continue;
            }
            let renamed: Vec<u16> = own_segments
                .into_iter()
                .map(|name| {
                    let next = u16::try_from(segments.len()).unwrap_or(u16::MAX);
                    *segments.entry(name).or_insert(next)
                })
                .collect();
            for line in &mut user.counts {
                line.segment = renamed[usize::from(line.segment)];
            }
            history.widen(&user.bought);
            history.users.push(user);
        }
        let mut names: Vec<(u16, String)> =
            segments.into_iter().map(|(name, ix)| (ix, name)).collect();
        names.sort();
        history.segments = names.into_iter().map(|(_, name)| name).collect();
        history
    }

    /// Lets the term `meant` read the texts of users.
    pub(crate) fn read_meaning(&mut self, config: &Config) -> anyhow::Result<()> {
        let Some(parts) = text_parts(config)? else {
            return Ok(());
        };
        let known = parts
            .model
            .known(self.catalogue.pus().iter().map(|pu| &*pu.name));
        anyhow::ensure!(
            known.is_none_or(|known| known >= KNOWN_MIN),
            "text.matcher was fitted for another catalogue; fit it again with `nearshore match`"
        );
        self.meaning = Some(Arc::new(BoundTexts::of(&parts, &self.catalogue)));
        Ok(())
    }

    /// Lets terms read texts by these vectors.
    pub(crate) fn read_texts(&mut self, vectors: Vectors) {
        let texts = Texts::bind(vec![Arc::new(vectors)], &self.catalogue);
        self.texts = texts.map(Arc::new);
    }

    /// Lets the term `table` read this table.
    pub(crate) fn read_table(&mut self, table: Arc<ProductTable>) {
        self.table = Some(SharedTable::new(table, &self.catalogue));
    }

    fn widen(&mut self, bought: &[Line]) {
        if let (Some(first), Some(last)) = (bought.first(), bought.last()) {
            let (first, last) = (Timestamp(first.at), Timestamp(last.at));
            let (start, end) = self.span.unwrap_or((first, last));
            self.span = Some((start.min(first), end.max(last)));
        }
    }
}

/// Returns the user, the names of their segments, and the number of purchases of unknown products.
fn replay_user(
    id: UserId,
    stored: Records,
    snapshot: &Snapshot,
    config: &Config,
) -> (UserHistory, Vec<String>, u64) {
    let catalogue = &snapshot.catalogue;
    let records = stored.read(&id);
    let context = PlanContext {
        snapshot,
        policy: &config.trigger,
        ns: &config.namespace,
        window: config.state.window,
        triggers: false,
        history_before: Timestamp(i64::MAX),
        units_max: config.demand.units_max,
        complete_since: &BTreeMap::new(),
    };
    let planned = plan(LoadedUser::default(), &records, None, &context);
    let mut segments: Vec<String> = Vec::new();
    let mut counts = Vec::new();
    for counted in planned.counted {
        let Some(sku) = catalogue.by_sku(&counted.sku) else {
            continue;
        };
        let segment = segments.iter().position(|known| *known == counted.segment);
        let segment = segment.unwrap_or_else(|| {
            segments.push(counted.segment);
            segments.len() - 1
        });
        counts.push(CountLine {
            sku,
            kind: counted.kind,
            segment: u16::try_from(segment).unwrap_or(u16::MAX),
            bucket: counted.time.0.div_euclid(BUCKET_MS),
            time: counted.time,
            n: counted.n,
        });
    }
    let (mut bought, mut unknown) = (Vec::new(), 0);
    for record in &records {
        if let Some(found) = purchase(record, catalogue) {
            match found {
                Some(pu) => bought.push(Line {
                    at: record.time.0,
                    product: pu.0,
                }),
                None => unknown += 1,
            }
        }
    }
    // A year of a shop is most of the memory: nothing has room for more than there is.
    counts.shrink_to_fit();
    bought.shrink_to_fit();
    let user = UserHistory {
        id,
        records: stored,
        bought,
        counts,
    };
    (user, segments, unknown)
}

/// The product of a purchase, if the catalogue has it; `None` if the record is no purchase.
pub(super) fn purchase(record: &Accepted, catalogue: &Catalogue) -> Option<Option<PuIx>> {
    match &record.change {
        Change::Event(event) if event.kind == Kind::Purchase => {
            Some(catalogue.pu_of_item(&event.item))
        }
        Change::Event(_) | Change::Profile(_) | Change::Erase => None,
    }
}
