//! The snapshot loader: keeps the serving [`Snapshot`] up to date from the catalogue stream, blocks and demand, and
//! writes the fallback lists.
//!
//! Invariant: readers see whole snapshots, swapped in one step. A failure is counted, and the serving snapshot stays.
//! The loader has no consumer group: each process reads all of `catalog`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::map::{MappedTail, Read};
use crate::metrics;
use nearshore_core::list::fallback::{
    FallbackSettings, SnapshotParts, is_storable, serving_snapshot,
};
use nearshore_core::list::select;
use nearshore_core::ports::store::{self, Block, Cell, Store};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::shop::demand::{self, Count, Demand};
use nearshore_core::shop::merchant::{self, Merchant};
use nearshore_core::shop::naming::{self, Naming};
use nearshore_core::shop::rules::{
    Needs, Rule, Segment, Table, Unmatched, UnmatchedKind, unmatched, unmatched_blocks,
    unmatched_merchant,
};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event;
use nearshore_core::user::record::{Position, Record, Timestamp};

/// What the snapshot is made of and how often each part is reloaded, from configuration.
#[derive(Clone, Debug)]
pub struct LoaderSettings {
    /// Namespace whose counts are read and whose fallback lists are written.
    pub ns: String,
    /// Rules to be compiled for the catalogue.
    pub rules: Vec<Rule>,
    /// The need filter: its categories are looked for in the catalogue.
    pub needs: Needs,
    /// Segments of users.
    pub segments: Vec<Segment>,
    /// How counts become demand.
    pub demand: demand::Policy,
    /// The merchant's boosts, pins and most names of one category, to be compiled for the catalogue.
    pub merchant: merchant::Policy,
    /// Limits of decoding.
    pub limits: event::Limits,
    /// Products of SKUs that have only titles.
    pub naming: Option<Arc<Naming>>,
    /// How often a changed catalogue becomes a new snapshot.
    pub snapshot_every: Duration,
    /// How often blocks are read.
    pub blocks_every: Duration,
    /// How often shard versions are compared.
    pub demand_every: Duration,
    /// How often fallback lists are written. `None`: another process writes them.
    pub fallback_every: Option<Duration>,
    /// Number of names on a fallback list.
    pub fallback_names: usize,
    /// How the SKUs under each name are chosen.
    pub selection: select::Policy,
}

/// Counts of one namespace as last read, and the demand built from them.
struct Counts {
    /// Cells of each shard, with the version of the shard.
    shards: BTreeMap<u8, (u64, BTreeMap<Cell, u64>)>,
    demand: Arc<Demand>,
    /// Whether shards were read since the demand was built. It survives an error between the two.
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

    /// Reads the shards that changed. Returns whether any was read since the demand was built.
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

    /// Builds the demand from the counts.
    fn rebuild(&mut self, settings: &LoaderSettings, catalogue: &Catalogue) {
        self.stale = false;
        let cells = || self.shards.values().flat_map(|(_, cells)| cells.iter());
        // The time is the end of the newest bucket. Demand is then a function of the counts alone, and equal counts
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

/// Ids of blocked PUs or SKUs.
type Ids = BTreeSet<String>;

/// The only writer of the serving snapshot.
pub struct SnapshotLoader<S> {
    store: S,
    settings: LoaderSettings,
    catalogue: Catalogue,
    counts: Counts,
    /// Counts of the other namespaces that this process makes lists for.
    others: BTreeMap<String, Counts>,
    serving: Arc<ArcSwap<Snapshot>>,
    /// Whether the serving snapshot lacks something besides a new catalogue version.
    dirty: bool,
    /// Catalogue version of the serving snapshot.
    serving_version: u64,
    /// Blocked PUs and SKUs, as read last.
    blocked: (Ids, Ids),
    /// What matches nothing in the serving catalogue and was logged; of which version of it, and of which blocks.
    unmatched: BTreeSet<Unmatched>,
    searched: Option<(u64, Ids, Ids)>,
    ready: watch::Sender<bool>,
}

impl<S: Store> SnapshotLoader<S> {
    /// Creates a loader with an empty snapshot. The receiver turns true when the catalogue is read to the end seen at
    /// start.
    pub fn new(store: S, settings: LoaderSettings) -> (Self, watch::Receiver<bool>) {
        let (ready, is_ready) = watch::channel(false);
        let catalogue = Catalogue::default();
        let counts = Counts::new(&settings, &catalogue);
        let empty = build(&settings, &catalogue, &counts, &BTreeMap::new());
        let loader = Self {
            store,
            settings,
            catalogue,
            counts,
            others: BTreeMap::new(),
            serving: Arc::new(ArcSwap::from_pointee(empty)),
            dirty: false,
            serving_version: 0,
            blocked: Default::default(),
            unmatched: BTreeSet::new(),
            searched: None,
            ready,
        };
        (loader, is_ready)
    }

    /// The serving snapshot; every load returns the newest one.
    pub fn snapshot(&self) -> Arc<ArcSwap<Snapshot>> {
        self.serving.clone()
    }

    /// Follows the catalogue stream until it is cancelled or the stream fails.
    pub async fn run(
        mut self,
        tail: impl Into<MappedTail>,
        cancel: CancellationToken,
    ) -> Result<(), nearshore_core::ports::log::Error> {
        let mut tail = tail.into();
        let mut snapshots = tokio::time::interval(self.settings.snapshot_every);
        // On a busy machine a snapshot may take longer than its period. Missed ticks must not delay the records, or the
        // catalogue is never read to its end.
        snapshots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blocks = tokio::time::interval(self.settings.blocks_every);
        let mut demand = tokio::time::interval(self.settings.demand_every);
        let mut fallbacks = tokio::time::interval(
            self.settings
                .fallback_every
                .unwrap_or(Duration::from_secs(60)),
        );
        loop {
            // Each arm is cancel-safe: a tick or record that is not received now is received in the next turn.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = snapshots.tick() => self.publish_snapshot(),
                _ = blocks.tick() => self.read_blocks().await,
                _ = demand.tick() => self.read_demand().await,
                _ = fallbacks.tick(), if self.settings.fallback_every.is_some() && *self.ready.borrow() => {
                    self.write_fallbacks().await;
                }
                tailed = tail.next() => match tailed? {
                    Read::Records(position, records) => self.apply(&position, &records),
                    Read::Refused(position, reject) => skip(&position, &reject),
                    Read::Ready => self.become_ready().await,
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
        self.find_unmatched();
        tracing::info!(
            pus = self.catalogue.pus().len(),
            skus = self.catalogue.sku_len(),
            "catalogue read to the end seen at start; the snapshot is served"
        );
    }

    /// Applies all that one record of the topic became, or nothing of it.
    fn apply(&mut self, position: &Position, records: &[Record]) {
        let limits = &self.settings.limits;
        let each = records
            .iter()
            .map(|record| naming::decode_sku(self.settings.naming.as_deref(), record, limits));
        match each.collect::<Result<Vec<_>, _>>() {
            Ok(all) => {
                for (sku, value) in all {
                    self.catalogue.apply(sku, value);
                }
            }
            Err(reject) => skip(position, &reject),
        }
    }

    async fn read_blocks(&mut self) {
        match self.store.blocks().await {
            Ok(blocks) => {
                metrics::blocks(blocks.len());
                self.blocked = ids(blocks);
                let (pus, skus) = self.blocked.clone();
                self.catalogue.set_blocks(pus, skus);
            }
            Err(error) => self.reload_failed("blocks", &error, self.settings.blocks_every),
        }
    }

    async fn read_demand(&mut self) {
        match self.reload_counts().await {
            Ok(changed) => self.dirty |= changed,
            Err(error) => self.reload_failed("demand", &error, self.settings.demand_every),
        }
    }

    /// Counts a failed reload and says what is served until the next one.
    fn reload_failed(&self, part: &str, error: &store::Error, every: Duration) {
        metrics::store_error(error);
        let version = self.serving_version;
        tracing::warn!(target: "redis", %error, "reload of {part} failed; still serving snapshot {version}; next try in {every:?}");
    }

    /// Reads the counts that changed, of every namespace that lists are made for. Returns whether any changed.
    async fn reload_counts(&mut self) -> Result<bool, store::Error> {
        let mut changed = self.counts.reload(&self.store, &self.settings.ns).await?;
        if changed {
            self.counts.rebuild(&self.settings, &self.catalogue);
        }
        // A process that writes fallback lists also makes lists, of every namespace.
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
            let is_new = !self.others.contains_key(&ns);
            let empty = || Counts::new(&self.settings, &self.catalogue);
            let counts = self.others.entry(ns.clone()).or_insert_with(empty);
            if counts.reload(&self.store, &ns).await? || is_new {
                counts.rebuild(&self.settings, &self.catalogue);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Swaps in a new snapshot if anything changed.
    fn publish_snapshot(&mut self) {
        let version = self.catalogue.version();
        if !std::mem::take(&mut self.dirty) && version == self.serving_version {
            return;
        }
        self.serving_version = version;
        // Rows of the demand are indexed by PU, so a new product needs one.
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
        metrics::repeated_pus(
            self.catalogue
                .repeated_labels()
                .values()
                .map(Vec::len)
                .sum(),
        );
        let snapshot = build(&self.settings, &self.catalogue, &self.counts, &self.others);
        self.serving.store(Arc::new(snapshot));
        if *self.ready.borrow() {
            self.find_unmatched();
        }
    }

    /// Counts the rules, needs, blocks, boosts and pins that match nothing in the whole catalogue, and logs those that
    /// are new.
    fn find_unmatched(&mut self) {
        let (pus, skus) = &self.blocked;
        let searched = (self.catalogue.rules_version(), pus.clone(), skus.clone());
        if self.searched.as_ref() == Some(&searched) {
            return;
        }
        self.searched = Some(searched);
        let settings = &self.settings;
        let mut found = unmatched(&settings.rules, &settings.needs, &self.catalogue);
        let blocks = unmatched_blocks(
            pus.iter().map(String::as_str),
            skus.iter().map(String::as_str),
            &self.catalogue,
        );
        found.extend(blocks);
        found.extend(unmatched_merchant(&settings.merchant, &self.catalogue));
        for it in &found {
            if !self.unmatched.contains(it) {
                let (kind, id, what) = (<&str>::from(it.kind), &it.id, &it.what);
                let otherwise = it.kind.otherwise();
                tracing::warn!(
                    "{kind} {id:?} matches nothing of the catalogue, in whole or in part: {what}; correct it, or \
                     {otherwise}"
                );
            }
        }
        for kind in UnmatchedKind::OF_CATALOGUE {
            let ids = found.iter().filter(|it| it.kind == kind).map(|it| &it.id);
            metrics::unmatched(kind, ids.collect::<BTreeSet<_>>().len());
        }
        self.unmatched = found.into_iter().collect();
    }

    /// Writes the fallback lists of every namespace to the store.
    async fn write_fallbacks(&self) {
        if let Err(error) = self.try_write_fallbacks().await {
            metrics::store_error(&error);
            let every = self.settings.fallback_every.unwrap_or_default();
            tracing::warn!(target: "redis", %error, "fallback lists not written; Redis has the previous ones; next try in {every:?}");
        }
    }

    async fn try_write_fallbacks(&self) -> Result<(), store::Error> {
        let snapshot = self.serving.load_full();
        let settings_ns = (&self.settings.ns, &snapshot);
        // A namespace that was retired meanwhile must not get new keys.
        let known = self.store.namespaces().await?;
        let others = snapshot
            .others
            .iter()
            .filter(|(ns, _)| known.contains_key(*ns));
        for (ns, snapshot) in [settings_ns].into_iter().chain(others) {
            let lists = snapshot.fallbacks.iter();
            for (segment, list) in lists.filter(|(_, list)| is_storable(list)) {
                let json = list.to_json();
                self.store.set_fallback(ns, segment, &json).await?;
            }
        }
        Ok(())
    }
}

/// The stock role writes it to `dlq` and counts it.
fn skip(position: &Position, reject: &event::Reject) {
    tracing::debug!(%position, %reject, "catalogue record skipped");
}

/// The snapshot of a namespace as stored now, for a command: a catalogue with the blocks and counts of the store.
pub(crate) async fn stored_snapshot<S: Store>(
    store: &S,
    settings: &LoaderSettings,
    (mut catalogue, ns): (Catalogue, &str),
) -> Result<Snapshot, store::Error> {
    let (pus, skus) = ids(store.blocks().await?);
    catalogue.set_blocks(pus, skus);
    let mut counts = Counts::new(settings, &catalogue);
    counts.reload(store, ns).await?;
    counts.rebuild(settings, &catalogue);
    Ok(build(settings, &catalogue, &counts, &BTreeMap::new()))
}

/// The ids of blocked PUs and of blocked SKUs.
fn ids(blocks: Vec<Block>) -> (Ids, Ids) {
    let (pus, skus): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.pu);
    let ids = |blocks: Vec<Block>| blocks.into_iter().map(|block| block.id).collect();
    (ids(pus), ids(skus))
}

/// Builds the snapshot of the loader's namespace, and with it those of the other namespaces: the same catalogue and
/// rules with the demand of their counts.
fn build(
    settings: &LoaderSettings,
    catalogue: &Catalogue,
    counts: &Counts,
    others: &BTreeMap<String, Counts>,
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
    let merchant = Arc::new(Merchant::compile(&settings.merchant, &catalogue));
    let with_demand_of = |counts: &Counts| {
        let parts = SnapshotParts {
            catalogue: catalogue.clone(),
            rules: rules.clone(),
            demand: counts.demand.clone(),
            merchant: merchant.clone(),
        };
        let fallbacks = FallbackSettings {
            segments: &segments,
            names: settings.fallback_names,
            selection: &settings.selection,
        };
        serving_snapshot(parts, fallbacks)
    };
    let mut snapshot = with_demand_of(counts);
    let others = others
        .iter()
        .map(|(ns, counts)| (ns.clone(), Arc::new(with_demand_of(counts))));
    snapshot.others = Arc::new(others.collect());
    snapshot
}
