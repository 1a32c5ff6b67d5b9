//! What the shop knows at a cut: the serving snapshot and the tables, from the records of train users before it.
//!
//! Invariant: nothing of a held-out user, and nothing at or after the cut, is in it. Demand is built as the snapshot
//! loader of production does, from the counts of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use nearshore_core::learn::log::{Line, Purchases, UserLog};
use nearshore_core::learn::neighbours::NeighbourTable;
use nearshore_core::learn::repeat::RepeatTable;
use nearshore_core::learn::tables;
use nearshore_core::learn::walk::WalkTable;
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::meant::TextContext;
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::terms::{Texts, Weights};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::shop::demand::{BUCKET_MS, Count, Demand, Policy};
use nearshore_core::shop::merchant::Merchant;
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::Kind;
use nearshore_core::user::record::Timestamp;

use super::history::{CountLine, History, UserHistory};
use super::product_table::SharedTable;
use crate::config::Config;
use crate::members::generate::BoundTexts;

/// Fewest users of a pair of neighbours, as `align` has it by default.
const USERS_MIN: u32 = 3;

/// The kind of counts that has a cell for each purchase.
const PIECES: CountKind = CountKind::Event(Kind::Purchase);

/// A shop at a cut.
pub(crate) struct Shop {
    /// Catalogue, rules and the demand of production.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The cut: nothing from this time on is known.
    pub(crate) cut: Timestamp,
    /// Log share of each product in the pieces bought.
    pub(crate) pieces: Arc<[f32]>,
    /// The same in purchases, each line counting once.
    pub(crate) lines: Arc<[f32]>,
    /// The same, a user counting once per SKU and 7-day bucket; a product is the sum of its SKUs.
    pub(crate) buyers: Arc<[f32]>,
    /// The same, a user counting once per product and 7-day bucket.
    pub(crate) household_weeks: Arc<[f32]>,
    /// Logarithm of the mean share, by household-weeks, of the products of each product's category.
    pub(crate) category: Vec<f32>,
    /// What is bought again when.
    pub(crate) repeat: RepeatTable,
    /// What is bought together.
    pub(crate) neighbours: NeighbourTable,
    /// What buyers of the same products ever bought.
    pub(crate) walk: WalkTable,
    /// Products whose log is withheld.
    pub(crate) cold: Option<FixedBitSet>,
    /// Vectors of texts; they are of the catalogue, not of the log.
    pub(crate) texts: Option<Arc<Texts>>,
    /// Reads the texts of users.
    pub(crate) meaning: Option<Arc<BoundTexts>>,
    /// The model's table of products; it is of the catalogue, too.
    pub(crate) table: Option<SharedTable>,
    /// Weights and tables that `align` makes of train and tune users before the cut.
    pub(crate) aligned: Option<(Weights, Learned)>,
}

/// What of a user's purchases counts once: user, SKU or product, bucket; `None` counts every line.
type CountedOnce<'a> = dyn Fn(u32, &CountLine) -> Option<(u32, u32, i64)> + 'a;

/// What a shop is made of.
pub(crate) struct Knowledge<'a> {
    pub(crate) history: &'a History,
    pub(crate) config: &'a Config,
    /// Train users.
    pub(crate) users: Vec<&'a UserHistory>,
    pub(crate) cut: Timestamp,
    /// Length of the window in which targets are bought, in milliseconds.
    pub(crate) window: i64,
    /// Products whose log is withheld.
    pub(crate) cold: Option<&'a FixedBitSet>,
}

impl Shop {
    /// How the texts of users are read.
    pub(super) fn meaning(&self) -> Option<TextContext<'_>> {
        self.meaning.as_ref().map(|meaning| meaning.context())
    }
}

impl Knowledge<'_> {
    /// Builds the shop.
    pub(crate) fn shop(&self) -> Shop {
        let History {
            catalogue, rules, ..
        } = self.history;
        let counts = self.counts();
        let demand = self.demand(&counts);
        let logs = |demand: Demand| -> Arc<[f32]> {
            // No segment has this name: the shares of all users.
            demand.mass("").iter().map(|share| share.ln()).collect()
        };
        let weighed = |key: &CountedOnce<'_>| logs(self.demand(&self.weighed(&counts, key)));
        let household_weeks =
            weighed(&|user, line| Some((user, catalogue.pu_of(line.sku).0, line.bucket)));
        let purchases = self.purchases();
        Shop {
            snapshot: Arc::new(snapshot(catalogue, rules, demand, self.config)),
            cut: self.cut,
            pieces: logs(self.demand(&pieces(&counts))),
            lines: weighed(&|_, _| None),
            buyers: weighed(&|user, line| Some((user, line.sku.0, line.bucket))),
            category: self.category(&household_weeks),
            household_weeks,
            repeat: tables::repeat(&purchases, self.cut.0, self.window),
            neighbours: tables::neighbours(&purchases, self.cut.0, USERS_MIN),
            walk: tables::walk(&purchases, self.cut.0, USERS_MIN),
            cold: self.cold.cloned(),
            texts: self.history.texts.clone(),
            meaning: self.history.meaning.clone(),
            table: self.history.table.clone(),
            aligned: None,
        }
    }

    /// The same without what only the routes of counting read: of millions of purchases that is most of the work.
    pub(crate) fn plain_shop(&self) -> Shop {
        let History {
            catalogue, rules, ..
        } = self.history;
        let demand = self.demand(&self.counts());
        Shop {
            snapshot: Arc::new(snapshot(catalogue, rules, demand, self.config)),
            cut: self.cut,
            pieces: Arc::default(),
            lines: Arc::default(),
            buyers: Arc::default(),
            household_weeks: Arc::default(),
            category: Vec::new(),
            repeat: RepeatTable::default(),
            neighbours: NeighbourTable::default(),
            walk: WalkTable::default(),
            cold: self.cold.cloned(),
            texts: self.history.texts.clone(),
            meaning: self.history.meaning.clone(),
            table: self.history.table.clone(),
            aligned: None,
        }
    }

    /// The mean share of the products of a category, for each product; products without logs do not count.
    fn category(&self, shares: &[f32]) -> Vec<f32> {
        let pus = self.history.catalogue.pus();
        let mut sums: BTreeMap<Option<&str>, (f64, f64)> = BTreeMap::new();
        for (nth, (pu, share)) in (0..).zip(pus.iter().zip(shares)) {
            if !self.is_cold(nth) {
                let (sum, n) = sums.entry(pu.category.as_deref()).or_default();
                *sum += f64::from(*share).exp();
                *n += 1.0;
            }
        }
        let mean = |category: Option<&str>| sums.get(&category).map_or(0.0, |(sum, n)| sum / n);
        let of = pus
            .iter()
            .map(|pu| mean(pu.category.as_deref()).max(1e-12).ln() as f32);
        of.collect()
    }

    fn is_cold(&self, product: u32) -> bool {
        self.cold
            .is_some_and(|cold| cold.contains(product as usize))
    }

    /// The counts of train users before the cut, with the user's number.
    fn counts(&self) -> Vec<(u32, CountLine)> {
        let catalogue = &self.history.catalogue;
        let mut counts = Vec::new();
        for (nth, user) in self.users.iter().enumerate() {
            let before = user
                .counts
                .iter()
                .filter(|line| line.time < self.cut && !self.is_cold(catalogue.pu_of(line.sku).0));
            counts.extend(before.map(|line| (nth as u32, *line)));
        }
        counts
    }

    /// Purchases that count once each, or once per key.
    fn weighed(&self, counts: &[(u32, CountLine)], key: &CountedOnce<'_>) -> Vec<(u32, CountLine)> {
        let mut seen = BTreeSet::new();
        let bought = counts.iter().filter(|(_, line)| line.kind == PIECES);
        let once =
            bought.filter(|(user, line)| key(*user, line).is_none_or(|key| seen.insert(key)));
        once.map(|(user, line)| (*user, CountLine { n: 1, ..*line }))
            .collect()
    }

    /// Demand as the snapshot loader builds it: decayed to the end of the newest bucket.
    fn demand(&self, counts: &[(u32, CountLine)]) -> Demand {
        let newest = counts.iter().map(|(_, line)| line.bucket).max();
        let now = Timestamp(newest.map_or(0, |bucket| (bucket + 1).saturating_mul(BUCKET_MS)));
        let mut cells: Vec<CountLine> = counts
            .iter()
            .map(|(_, line)| CountLine {
                time: Timestamp(0),
                ..*line
            })
            .collect();
        let key = |line: &CountLine| (line.sku, line.kind, line.segment, line.bucket);
        cells.sort_unstable();
        cells.dedup_by(|later, kept| {
            let same = key(later) == key(kept);
            kept.n += if same { later.n } else { 0 };
            same
        });
        let catalogue = &self.history.catalogue;
        let counts = cells.iter().map(|line| Count {
            sku: &catalogue.sku(line.sku).sku,
            kind: line.kind,
            segment: &self.history.segments[usize::from(line.segment)],
            bucket: line.bucket,
            n: line.n,
        });
        // Frozen counts are for comparing lists; here the cut says what is read.
        let policy = Policy {
            as_of: None,
            ..self.config.demand.clone()
        };
        Demand::build(counts, catalogue, &policy, now)
    }

    fn purchases(&self) -> Purchases {
        let users = self.users.iter().map(|user| UserLog {
            id: user.id.0.clone(),
            lines: self.warm(&user.bought),
        });
        Purchases::new(self.history.catalogue.pus().len(), users)
    }

    /// Purchases before the cut whose log is not withheld.
    fn warm(&self, bought: &[Line]) -> Vec<Line> {
        let before = bought.iter().filter(|line| line.at < self.cut.0);
        before
            .filter(|line| !self.is_cold(line.product))
            .copied()
            .collect()
    }
}

/// Counts of pieces alone: without buyers demand is that of pieces.
fn pieces(counts: &[(u32, CountLine)]) -> Vec<(u32, CountLine)> {
    counts
        .iter()
        .filter(|(_, line)| line.kind == PIECES)
        .copied()
        .collect()
}

/// A serving snapshot of these parts, as the snapshot loader builds it.
pub(super) fn snapshot(
    catalogue: &Arc<Catalogue>,
    rules: &Arc<Table>,
    demand: Demand,
    config: &Config,
) -> Snapshot {
    let segments: Vec<String> = config.segments.iter().map(|it| it.id.clone()).collect();
    let parts = SnapshotParts {
        catalogue: Arc::clone(catalogue),
        rules: Arc::clone(rules),
        demand: Arc::new(demand),
        merchant: Arc::new(Merchant::compile(&config.merchant, catalogue)),
    };
    let settings = FallbackSettings {
        segments: &segments,
        names: config.fallback.names,
        selection: &config.selection,
    };
    serving_snapshot(parts, settings)
}
