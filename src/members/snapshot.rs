//! The keeper role: holds the [`Snapshot`] up to date: catalogue stream, blocks, demand, fallback lists.
//!
//! Invariant: readers see whole snapshots, swapped in one step; a failure keeps the last one and is
//! counted. It has no consumer group: each process reads all of `catalog`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use nearshore_core::list::select;
use nearshore_core::ports::store::{self, Cell, Store};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::shop::demand::{self, Count, Demand};
use nearshore_core::shop::rules::{Rule, Segment, Table};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event;
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::{Tail, Tailed};

/// How often what is looked at; from configuration.
#[derive(Clone, Debug)]
pub struct LoaderSettings {
    /// Namespace whose counts and fallbacks these are.
    pub ns: String,
    /// Rules.
    pub rules: Vec<Rule>,
    /// Segments.
    pub segments: Vec<Segment>,
    /// How counts become demand.
    pub demand: demand::Policy,
    /// Limits of decoding.
    pub limits: event::Limits,
    /// How often a changed catalogue becomes a new snapshot.
    pub snapshot_every: Duration,
    /// How often blocks are read.
    pub blocks_every: Duration,
    /// How often shard versions are compared.
    pub demand_every: Duration,
    /// How often fallback lists are written; `None`: another process does.
    pub fallback_every: Option<Duration>,
    /// Names on a fallback list.
    pub fallback_names: usize,
    /// How SKUs under each of them are chosen.
    pub selection: select::Policy,
}

/// Counts of one namespace as last read, and the demand that follows from them.
struct Counts {
    shards: BTreeMap<u8, (u64, BTreeMap<Cell, u64>)>,
    demand: Arc<Demand>,
    /// Whether shards were read since the demand was built: kept over an error between the two.
    stale: bool,
}

impl Counts {
    fn new(settings: &LoaderSettings, catalogue: &Catalogue) -> Self {
        let none = std::iter::empty();
        Self {
            shards: BTreeMap::new(),
            stale: false,
            demand: Arc::new(Demand::build(
                none,
                catalogue,
                &settings.demand,
                Timestamp(0),
            )),
        }
    }

    /// Reads the shards that changed; whether any did since the demand was built.
    async fn reload<S: Store>(&mut self, store: &S, ns: &str) -> Result<bool, store::Error> {
        for (shard, version) in store.count_versions(ns).await? {
            let known = self.shards.get(&shard);
            if known.is_some_and(|(known, _)| *known == version) {
                continue;
            }
            let cells = store.counts(ns, shard, 0).await?;
            self.shards.insert(shard, (version, cells));
            self.stale = true;
        }
        Ok(self.stale)
    }

    fn rebuild(&mut self, settings: &LoaderSettings, catalogue: &Catalogue) {
        self.stale = false;
        let cells = || self.shards.values().flat_map(|(_, cells)| cells.iter());
        // As of the end of the newest bucket: a function of the counts alone, so that equal counts
        // give equal lists whenever they are read.
        let newest = cells().map(|(cell, _)| cell.bucket).max();
        let now = Timestamp(newest.map_or(0, |bucket| (bucket + 1).saturating_mul(BUCKET_MS)));
        let counts = cells().map(|(cell, n)| Count {
            sku: &cell.sku,
            kind: cell.kind,
            segment: &cell.segment,
            bucket: cell.bucket,
            n: *n,
        });
        self.demand = Arc::new(Demand::build(counts, catalogue, &settings.demand, now));
    }
}

/// The owner of the shop.
pub struct SnapshotLoader<S> {
    store: S,
    settings: LoaderSettings,
    catalogue: Catalogue,
    counts: Counts,
    /// Of the other namespaces that lists are made for here.
    others: BTreeMap<String, Counts>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    dirty: bool,
    /// Catalogue version of the last snapshot.
    shown: u64,
    ready: watch::Sender<bool>,
}

impl<S: Store> SnapshotLoader<S> {
    /// A keeper of an empty shop. The receiver turns true when the catalogue is read to the end seen at start.
    pub fn new(store: S, settings: LoaderSettings) -> (Self, watch::Receiver<bool>) {
        let (ready, is_ready) = watch::channel(false);
        let catalogue = Catalogue::default();
        let counts = Counts::new(&settings, &catalogue);
        let snapshot = snapshot(&settings, &catalogue, (&counts, &BTreeMap::new()));
        let loader = Self {
            store,
            settings,
            catalogue,
            counts,
            others: BTreeMap::new(),
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            dirty: false,
            shown: 0,
            ready,
        };
        (loader, is_ready)
    }

    /// The shop; every load gives the newest snapshot.
    pub fn snapshot(&self) -> Arc<ArcSwap<Snapshot>> {
        self.snapshot.clone()
    }

    /// Follows the catalogue until cancelled or the stream ends.
    pub async fn run(
        mut self,
        mut tail: Tail,
        cancel: CancellationToken,
    ) -> Result<(), nearshore_core::ports::log::Error> {
        let mut snapshots = tokio::time::interval(self.settings.snapshot_every);
        // On a busy machine a snapshot may take longer than its period: ticks that were missed must not crowd
        // out the records, or the catalogue is never read to its end.
        snapshots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blocks = tokio::time::interval(self.settings.blocks_every);
        let mut demand = tokio::time::interval(self.settings.demand_every);
        let mut fallbacks = tokio::time::interval(
            self.settings
                .fallback_every
                .unwrap_or(Duration::from_secs(60)),
        );
        loop {
            // Each arm is cancel-safe: a tick or a message not taken is there at the next turn.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = snapshots.tick() => self.publish_snapshot(),
                _ = blocks.tick() => self.read_blocks().await,
                _ = demand.tick() => self.read_demand().await,
                _ = fallbacks.tick(), if self.settings.fallback_every.is_some() && *self.ready.borrow() => {
                    self.write_fallbacks().await;
                }
                told = tail.next() => match told? {
                    Tailed::Record(record) => self.apply(&record),
                    Tailed::Ready => self.become_ready().await,
                },
            }
        }
    }

    async fn become_ready(&mut self) {
        self.read_blocks().await;
        self.read_demand().await;
        self.dirty = true;
        self.publish_snapshot();
        if self.settings.fallback_every.is_some() {
            self.write_fallbacks().await;
        }
        self.ready.send_replace(true);
        tracing::info!(
            pus = self.catalogue.pus().len(),
            skus = self.catalogue.sku_len(),
            "catalogue read"
        );
    }

    fn apply(&mut self, record: &nearshore_core::user::record::Record) {
        match event::decode_sku(record, &self.settings.limits) {
            Ok((sku, value)) => {
                self.catalogue.apply(sku, value);
            }
            // The stock consumer sends it to `dlq` and counts it; here it is only not taken over.
            Err(reject) => tracing::debug!(position = %record.position, %reject, "left out"),
        }
    }

    async fn read_blocks(&mut self) {
        match self.store.blocks().await {
            Ok(blocks) => {
                metrics::blocks(blocks.len());
                let (pus, skus): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.pu);
                let ids = |blocks: Vec<nearshore_core::ports::store::Block>| {
                    blocks.into_iter().map(|b| b.id).collect()
                };
                self.catalogue.set_blocks(ids(pus), ids(skus));
            }
            Err(error) => failed("blocks", &error),
        }
    }

    async fn read_demand(&mut self) {
        match self.reload().await {
            Ok(changed) => self.dirty |= changed,
            Err(error) => failed("demand", &error),
        }
    }

    /// Reads the counts that changed, of every namespace that lists are made for; whether any did.
    async fn reload(&mut self) -> Result<bool, store::Error> {
        let mut changed = self.counts.reload(&self.store, &self.settings.ns).await?;
        if changed {
            self.counts.rebuild(&self.settings, &self.catalogue);
        }
        // Who writes fallbacks makes lists.
        if self.settings.fallback_every.is_none() {
            return Ok(changed);
        }
        let mut names: BTreeSet<String> = self.store.namespaces().await?.into_keys().collect();
        names.extend(self.store.active().await?);
        names.remove(&self.settings.ns);
        let before = self.others.len();
        self.others.retain(|ns, _| names.contains(ns));
        changed |= self.others.len() < before;
        for ns in names {
            let fresh = !self.others.contains_key(&ns);
            let new = || Counts::new(&self.settings, &self.catalogue);
            let counts = self.others.entry(ns.clone()).or_insert_with(new);
            if counts.reload(&self.store, &ns).await? || fresh {
                counts.rebuild(&self.settings, &self.catalogue);
                changed = true;
            }
        }
        Ok(changed)
    }

    fn publish_snapshot(&mut self) {
        let version = self.catalogue.version();
        if !std::mem::take(&mut self.dirty) && version == self.shown {
            return;
        }
        self.shown = version;
        // New products need a place in the demand's rows, which are indexed by PU.
        for counts in [&mut self.counts]
            .into_iter()
            .chain(self.others.values_mut())
        {
            if counts.demand.len() != self.catalogue.pus().len() {
                counts.rebuild(&self.settings, &self.catalogue);
            }
        }
        let (skus, pus) = (self.catalogue.sku_len(), self.catalogue.pus().len());
        metrics::catalogue(skus, pus, self.catalogue.sold_out());
        let counts = (&self.counts, &self.others);
        let snapshot = snapshot(&self.settings, &self.catalogue, counts);
        self.snapshot.store(Arc::new(snapshot));
    }

    async fn write_fallbacks(&self) {
        let snapshot = self.snapshot.load_full();
        let own = (&self.settings.ns, &snapshot);
        // One that was retired since must not get new keys.
        let known = match self.store.namespaces().await {
            Ok(known) => known,
            Err(error) => return failed("fallback", &error),
        };
        let others = snapshot
            .others
            .iter()
            .filter(|(ns, _)| known.contains_key(*ns));
        for (ns, snapshot) in [own].into_iter().chain(others) {
            for (segment, list) in snapshot.fallbacks.iter() {
                let json = list.to_json();
                if let Err(error) = self.store.set_fallback(ns, segment, &json).await {
                    return failed("fallback", &error);
                }
            }
        }
    }
}

fn failed(what: &str, error: &store::Error) {
    metrics::store_error(error);
    tracing::warn!(what, %error, "the last one is kept");
}

fn snapshot(
    settings: &LoaderSettings,
    catalogue: &Catalogue,
    (own, others): (&Counts, &BTreeMap<String, Counts>),
) -> Snapshot {
    let catalogue = Arc::new(catalogue.clone());
    let rules = Arc::new(Table::compile(
        &settings.rules,
        &settings.segments,
        &catalogue,
    ));
    let segments: Vec<String> = settings
        .segments
        .iter()
        .map(|segment| segment.id.clone())
        .collect();
    let with = |counts: &Counts| {
        let parts = (catalogue.clone(), rules.clone(), counts.demand.clone());
        let fallback = (settings.fallback_names, &settings.selection);
        Snapshot::new(parts, &segments, fallback)
    };
    let mut snapshot = with(own);
    let others = others
        .iter()
        .map(|(ns, counts)| (ns.clone(), Arc::new(with(counts))));
    snapshot.others = Arc::new(others.collect());
    snapshot
}
