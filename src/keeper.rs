//! The keeper role: holds the [`Shop`] up to date: catalogue stream, blocks, demand, fallback lists.
//!
//! Invariant: readers see whole snapshots, swapped in one step; a failure keeps the last one and is
//! counted. It has no consumer group: each process reads all of `catalog`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::demand::{self, Count, Demand};
use crate::event;
use crate::ingest::BUCKET_MS;
use crate::log::{Tail, Tailed};
use crate::metrics;
use crate::record::Timestamp;
use crate::rules::{Rule, Segment, Table};
use crate::select;
use crate::shop::Shop;
use crate::store::{Cell, Store};

/// How often what is looked at; from configuration.
#[derive(Clone, Debug)]
pub struct Settings {
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

/// The owner of the shop.
pub struct Keeper<S> {
    store: S,
    settings: Settings,
    catalogue: Catalogue,
    shards: BTreeMap<u8, (u64, BTreeMap<Cell, u64>)>,
    demand: Arc<Demand>,
    shop: Arc<ArcSwap<Shop>>,
    dirty: bool,
    /// Catalogue version of the last snapshot.
    shown: u64,
    ready: watch::Sender<bool>,
}

impl<S: Store> Keeper<S> {
    /// A keeper of an empty shop. The receiver turns true when the catalogue is read to the end seen at start.
    pub fn new(store: S, settings: Settings) -> (Self, watch::Receiver<bool>) {
        let (ready, is_ready) = watch::channel(false);
        let catalogue = Catalogue::default();
        let demand = Arc::new(Demand::build(
            std::iter::empty(),
            &catalogue,
            &settings.demand,
            Timestamp(0),
        ));
        let shop = snapshot(&settings, &catalogue, &demand);
        let keeper = Self {
            store,
            settings,
            catalogue,
            shards: BTreeMap::new(),
            demand,
            shop: Arc::new(ArcSwap::from_pointee(shop)),
            dirty: false,
            shown: 0,
            ready,
        };
        (keeper, is_ready)
    }

    /// The shop; every load gives the newest snapshot.
    pub fn shop(&self) -> Arc<ArcSwap<Shop>> {
        self.shop.clone()
    }

    /// Follows the catalogue until cancelled or the stream ends.
    pub async fn run(
        mut self,
        mut tail: Tail,
        cancel: CancellationToken,
    ) -> Result<(), crate::log::Error> {
        let mut snapshots = tokio::time::interval(self.settings.snapshot_every);
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

    fn apply(&mut self, record: &crate::record::Record) {
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
                let ids =
                    |blocks: Vec<crate::store::Block>| blocks.into_iter().map(|b| b.id).collect();
                self.catalogue.set_blocks(ids(pus), ids(skus));
            }
            Err(error) => failed("blocks", &error),
        }
    }

    async fn read_demand(&mut self) {
        match self.reload_shards().await {
            Ok(true) => {
                self.rebuild_demand();
                self.dirty = true;
            }
            Ok(false) => {}
            Err(error) => failed("demand", &error),
        }
    }

    async fn reload_shards(&mut self) -> Result<bool, crate::store::Error> {
        let versions = self.store.count_versions(&self.settings.ns).await?;
        let mut changed = false;
        for (shard, version) in versions {
            if self
                .shards
                .get(&shard)
                .is_some_and(|(known, _)| *known == version)
            {
                continue;
            }
            let cells = self.store.counts(&self.settings.ns, shard, 0).await?;
            self.shards.insert(shard, (version, cells));
            changed = true;
        }
        Ok(changed)
    }

    fn rebuild_demand(&mut self) {
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
        self.demand = Arc::new(Demand::build(
            counts,
            &self.catalogue,
            &self.settings.demand,
            now,
        ));
    }

    fn publish_snapshot(&mut self) {
        let version = self.catalogue.version();
        if !std::mem::take(&mut self.dirty) && version == self.shown {
            return;
        }
        self.shown = version;
        // New products need a place in the demand's rows, which are indexed by PU.
        if self.demand.len() != self.catalogue.pus().len() {
            self.rebuild_demand();
        }
        let (skus, pus) = (self.catalogue.sku_len(), self.catalogue.pus().len());
        metrics::catalogue(skus, pus, self.catalogue.sold_out());
        self.shop.store(Arc::new(snapshot(
            &self.settings,
            &self.catalogue,
            &self.demand,
        )));
    }

    async fn write_fallbacks(&self) {
        let shop = self.shop.load_full();
        for (segment, list) in shop.fallbacks.iter() {
            if let Err(error) = self
                .store
                .set_fallback(&self.settings.ns, segment, &list.to_json())
                .await
            {
                return failed("fallback", &error);
            }
        }
    }
}

fn failed(what: &str, error: &crate::store::Error) {
    metrics::store_error(error);
    tracing::warn!(what, %error, "the last one is kept");
}

fn snapshot(settings: &Settings, catalogue: &Catalogue, demand: &Arc<Demand>) -> Shop {
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
    let fallback = (settings.fallback_names, &settings.selection);
    Shop::new((catalogue, rules, demand.clone()), &segments, fallback)
}

/// Whether times of this clock are to be trusted is nobody's concern here: only to wait and measure.
pub fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }))
}
