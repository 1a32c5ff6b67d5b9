//! Writes the demo's records to Kafka: the catalogue with a share of sold-out SKUs, profiles, several weeks of real
//! purchases shifted to end now, and further baskets and sell-outs while the roles run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::data::{self, Household, Product, Purchase};
use super::progress::bar;
use super::watch::Watch;
use crate::members::clock::wall_clock;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::{NewTopic, Producer};

/// Share of SKUs that are sold out from the start.
const SOLD_OUT: f64 = 0.03;
/// Households after which a SKU of a list is sold out. Lists share their best-sellers: were it every few, the lists that
/// are shown at the end would be half empty.
const SOLD_EVERY: usize = 20;
/// Records per acknowledged write.
const CHUNK: usize = 2_000;
const WEEK_MS: i64 = 7 * 86_400_000;

/// The demo's catalogue, households and purchases.
pub(super) struct Feed {
    products: Vec<Product>,
    /// SKU to its index in `products`.
    indices: BTreeMap<String, usize>,
    households: Vec<Household>,
    /// Purchases before the start, with shifted times.
    history: Vec<Purchase>,
    /// The last basket of each household, which is sent while the roles run.
    held_back: Vec<Purchase>,
    sold_out: BTreeSet<String>,
    rng: ChaCha8Rng,
    live_sent: u64,
}

/// All topics with their partitions. The embedded log keeps 5 MiB per partition, so the catalogue has 16.
pub(super) fn topics(topics: &Topics) -> Vec<NewTopic> {
    let compacted = [
        &topics.catalog,
        &topics.profile_changes,
        &topics.recall_updates,
    ];
    let policy = |name| {
        if compacted.contains(&name) {
            "compact"
        } else {
            "delete"
        }
    };
    topics
        .all()
        .iter()
        .map(|name| {
            let mut config = vec![("cleanup.policy", policy(name))];
            // Purchases have times of the past weeks; with the default retention a real broker would delete them.
            config.extend((*name == topics.user_events).then_some(("retention.ms", "-1")));
            NewTopic {
                name: name.to_string(),
                partitions: if *name == topics.catalog { 16 } else { 4 },
                config: config
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            }
        })
        .collect()
}

impl Feed {
    /// Reads the data of the first `households` that have demographics.
    ///
    /// The first household gets a profile alone, the second three purchases; the third has the most purchases.
    pub(super) fn read(
        data: &Path,
        households: usize,
        weeks: u32,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let products = data::products(data)?;
        let mut selected = data::households(data)?;
        selected.truncate(households);
        let users: BTreeSet<String> = selected.iter().map(|h| h.user.clone()).collect();
        let mut bought = data::purchases(data, |user| users.contains(user))?;
        let indices: BTreeMap<String, usize> = products
            .iter()
            .enumerate()
            .map(|(nth, p)| (p.sku.clone(), nth))
            .collect();
        bought.retain(|purchase| indices.contains_key(&purchase.sku));
        shift(&mut bought, weeks);
        let (history, held_back) = split(bought);
        let mut feed = Self {
            products,
            indices,
            households: selected,
            history,
            held_back,
            sold_out: BTreeSet::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            live_sent: 0,
        };
        feed.arrange();
        feed.sell_out();
        Ok(feed)
    }

    /// Moves the household with the most purchases to the third place, and leaves the first household no purchase and
    /// the second one three.
    fn arrange(&mut self) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for purchase in &self.history {
            *counts.entry(&purchase.user).or_default() += 1;
        }
        let most = counts
            .iter()
            .max_by_key(|(_, n)| **n)
            .map(|(user, _)| (*user).to_string());
        let third = most.and_then(|user| self.households.iter().position(|h| h.user == user));
        if let Some(third) = third
            && self.households.len() > 2
        {
            self.households.swap(2, third);
        }
        let (none, three) = (self.user(0), self.user(1));
        self.held_back.retain(|p| p.user != none && p.user != three);
        self.history.retain(|p| p.user != none);
        let mut left = 3;
        self.history.retain(|p| {
            let keep = p.user != three || left > 0;
            left -= usize::from(p.user == three && left > 0);
            keep
        });
    }

    fn sell_out(&mut self) {
        for product in &self.products {
            if self.rng.random_bool(SOLD_OUT) {
                self.sold_out.insert(product.sku.clone());
            }
        }
    }

    fn user(&self, nth: usize) -> String {
        self.households
            .get(nth)
            .map(|h| h.user.clone())
            .unwrap_or_default()
    }

    /// Ids of all households.
    pub(super) fn users(&self) -> Vec<String> {
        self.households.iter().map(|h| h.user.clone()).collect()
    }

    /// Three households: with a profile alone, with three purchases, with many.
    pub(super) fn three(&self) -> [String; 3] {
        [self.user(0), self.user(1), self.user(2)]
    }

    /// SKUs that are sold out now.
    pub(super) fn sold_out(&self) -> &BTreeSet<String> {
        &self.sold_out
    }

    /// The product of a SKU.
    pub(super) fn product(&self, sku: &str) -> Option<&Product> {
        self.indices.get(sku).map(|&index| &self.products[index])
    }

    /// Purchases sent while the roles ran.
    pub(super) fn live_sent(&self) -> u64 {
        self.live_sent
    }

    /// Writes the catalogue.
    pub(super) async fn catalogue(
        &self,
        producer: &Producer,
        topics: &Topics,
    ) -> anyhow::Result<()> {
        let records = self.products.iter().map(|product| {
            let stock = if self.sold_out.contains(&product.sku) {
                0
            } else {
                20
            };
            record(
                &topics.catalog,
                &product.sku,
                Some(product.record(stock).to_string()),
                None,
            )
        });
        send(producer, "catalogue", self.products.len(), records).await
    }

    /// Writes profiles, then purchases in time order; returns the number of purchases.
    pub(super) async fn history(
        &self,
        producer: &Producer,
        topics: &Topics,
    ) -> anyhow::Result<u64> {
        let start = self.history.first().map_or(wall_clock().0, |p| p.time) - 1;
        let profiles = self.households.iter().map(|household| {
            let value = household.profile().to_string();
            record(
                &topics.profile_changes,
                &household.user,
                Some(value),
                Some(Timestamp(start)),
            )
        });
        send(producer, "profiles", self.households.len(), profiles).await?;
        let events = self
            .history
            .iter()
            .map(|p| event(topics, p, Timestamp(p.time)));
        send(producer, "purchases", self.history.len(), events).await?;
        Ok(self.history.len() as u64)
    }

    /// Sends the baskets held back, spread over `time`, and sells out SKUs that are on lists.
    pub(super) async fn live(
        &mut self,
        producer: &Producer,
        topics: &Topics,
        time: Duration,
        watch: &mut Watch,
    ) -> anyhow::Result<()> {
        let mut baskets: BTreeMap<String, Vec<Purchase>> = BTreeMap::new();
        for purchase in self.held_back.drain(..) {
            baskets
                .entry(purchase.user.clone())
                .or_default()
                .push(purchase);
        }
        let bar = bar("live baskets", baskets.len());
        let pause = time / u32::try_from(baskets.len().max(1)).unwrap_or(u32::MAX);
        for (nth, (user, basket)) in baskets.into_iter().enumerate() {
            let now = wall_clock();
            producer
                .send(basket.iter().map(|p| event(topics, p, now)).collect())
                .await?;
            self.live_sent += basket.len() as u64;
            watch.bought(&user, now);
            if nth % SOLD_EVERY == 0 {
                self.sell_one(producer, topics, &user, watch).await?;
            }
            bar.inc(1);
            watch.listen(pause).await?;
        }
        bar.finish();
        Ok(())
    }

    /// Sells out one SKU of a user's list, after the list was made.
    async fn sell_one(
        &mut self,
        producer: &Producer,
        topics: &Topics,
        user: &str,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        let listed: Vec<String> = watch.skus_of(user);
        let Some(sku) = listed.choose(&mut self.rng).cloned() else {
            return Ok(());
        };
        let Some(product) = self.product(&sku) else {
            return Ok(());
        };
        let value = product.record(0).to_string();
        producer
            .send(vec![record(&topics.catalog, &sku, Some(value), None)])
            .await?;
        self.sold_out.insert(sku);
        Ok(())
    }

    /// Sends one purchase every two seconds until `stop`, so that pages and metrics change.
    pub(super) async fn trickle(
        &mut self,
        producer: &Producer,
        topics: &Topics,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        loop {
            tokio::select! {
                () = &mut *stop => return Ok(()),
                _ = tick.tick() => {
                    let Some(purchase) = self.history.choose(&mut self.rng).cloned() else {
                        continue;
                    };
                    producer.send(vec![event(topics, &purchase, wall_clock())]).await?;
                    self.live_sent += 1;
                }
            }
        }
    }
}

/// Keeps the last weeks and shifts them so that they end now.
fn shift(bought: &mut Vec<Purchase>, weeks: u32) {
    let Some(end) = bought.last().map(|p| p.time) else {
        return;
    };
    bought.retain(|p| p.time > end - i64::from(weeks) * WEEK_MS);
    // They end a minute before now, so that purchases sent while the roles run are later.
    let by = wall_clock().0 - 60_000 - end;
    for purchase in bought {
        purchase.time += by;
    }
}

/// Separates the last basket of each household from all earlier ones: (earlier, last).
fn split(bought: Vec<Purchase>) -> (Vec<Purchase>, Vec<Purchase>) {
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for purchase in &bought {
        last.insert(purchase.user.clone(), purchase.time);
    }
    bought
        .into_iter()
        .partition(|p| last.get(&p.user) != Some(&p.time))
}

fn event(topics: &Topics, purchase: &Purchase, time: Timestamp) -> Outgoing {
    let value = json!({
        "type": "purchase",
        "sku": purchase.sku,
        "qty": purchase.qty,
        "price": purchase.paid.max(0.0) / f64::from(purchase.qty),
        "ts": time.0,
    });
    record(
        &topics.user_events,
        &purchase.user,
        Some(value.to_string()),
        Some(time),
    )
}

fn record(topic: &Arc<str>, key: &str, value: Option<String>, time: Option<Timestamp>) -> Outgoing {
    Outgoing {
        topic: topic.clone(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: value.map(Bytes::from),
        headers: Vec::new(),
        time,
    }
}

async fn send(
    producer: &Producer,
    what: &'static str,
    len: usize,
    records: impl Iterator<Item = Outgoing>,
) -> anyhow::Result<()> {
    let bar = bar(what, len);
    let mut records = records.peekable();
    while records.peek().is_some() {
        let chunk: Vec<Outgoing> = records.by_ref().take(CHUNK).collect();
        let n = chunk.len() as u64;
        producer.send(chunk).await?;
        bar.inc(n);
    }
    bar.finish();
    Ok(())
}
