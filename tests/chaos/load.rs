//! The load: a catalogue, then events, profiles, erases and bad records of many users, in an order that the seed
//! chooses.
//!
//! Invariant: some users are erased and have no later record; every record is written until the broker has acknowledged
//! it, so that what is missing at the end was not lost by the load.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

use crate::plan::Size;
use crate::site::{CATEGORIES, SKUS, Site, category, product, sku};

/// A record to be written.
pub struct Draft {
    pub events: bool,
    pub key: Option<String>,
    pub value: Option<Vec<u8>>,
}

/// A user's id: plain ones, and some that a key must encode.
pub fn user(nth: usize) -> String {
    match nth % 50 {
        7 => format!("ü{{{nth:05}}}"),
        21 => format!("a b:c%{nth:05}"),
        _ => format!("u{nth:05}"),
    }
}

/// All records of a run, in order.
pub fn drafts(size: &Size) -> Vec<Draft> {
    let mut rng = ChaCha8Rng::seed_from_u64(size.seed ^ 0x10ad);
    // One user in ten is erased for good at some record in the middle.
    let last: Vec<Option<usize>> = (0..size.users)
        .map(|nth| {
            let when = rng.random_range(size.events / 10..size.events * 9 / 10);
            (nth % 10 == 3).then_some(when)
        })
        .collect();
    let mut erased = vec![false; size.users];
    let mut drafts = Vec::with_capacity(size.events);
    for nth in 0..size.events {
        let index = if rng.random_bool(0.1) {
            rng.random_range(0..3) // the busy users
        } else {
            rng.random_range(0..size.users)
        };
        if erased[index] {
            continue;
        }
        if last[index].is_some_and(|when| nth >= when) {
            erased[index] = true;
            drafts.push(erase(index));
            continue;
        }
        drafts.push(match rng.random_range(0..1000) {
            0..6 => erase(index),
            6..12 => bad(index, &mut rng),
            12..80 => profile(index, nth, &mut rng),
            _ => event(index, &mut rng),
        });
    }
    // Users that were to be erased and were not chosen since.
    let rest = (0..size.users).filter(|nth| last[*nth].is_some() && !erased[*nth]);
    drafts.extend(rest.map(erase));
    drafts
}

fn erase(index: usize) -> Draft {
    Draft {
        events: false,
        key: Some(user(index)),
        value: None,
    }
}

fn of(events: bool, index: usize, value: &Value) -> Draft {
    Draft {
        events,
        key: Some(user(index)),
        value: Some(value.to_string().into_bytes()),
    }
}

fn profile(index: usize, nth: usize, rng: &mut ChaCha8Rng) -> Draft {
    let club = ["gold", "silver"][nth % 2];
    let mut value = json!({"n": nth, "club": club});
    if rng.random_bool(0.7) {
        value["age"] = json!(rng.random_range(8..80));
    }
    let avoids: Vec<&str> = (0..rng.random_range(0..3))
        .map(|_| CATEGORIES[rng.random_range(0..CATEGORIES.len())])
        .collect();
    if !avoids.is_empty() {
        value["avoids"] = json!(avoids);
    }
    of(false, index, &value)
}

fn event(index: usize, rng: &mut ChaCha8Rng) -> Draft {
    let kind = ["purchase", "view", "click", "cart", "impression", "search"];
    let kind = kind[rng.random_range(0..kind.len())];
    let mut value = json!({"type": kind, "ts": 1, "context": {"shop": "71"}});
    // The first SKUs are bought often, so that shards are contended; some SKUs are not in the catalogue.
    let nth = (rng.random::<f64>().powi(3) * (SKUS + 4) as f64) as usize;
    if kind == "search" {
        value["query"] = json!(format!("something {}", nth % 40));
    } else if rng.random_bool(0.05) {
        value["pu"] = json!(product(nth / 4));
    } else {
        value["sku"] = json!(sku(nth));
    }
    if kind == "purchase" {
        value["qty"] = json!(rng.random_range(0..5));
    }
    if rng.random_bool(0.5) {
        value["price"] = json!(f64::from(rng.random_range(10..2000_u32)) / 100.0);
    }
    of(true, index, &value)
}

/// A record that cannot be used.
fn bad(index: usize, rng: &mut ChaCha8Rng) -> Draft {
    let (events, value): (bool, Option<&str>) = match rng.random_range(0..9) {
        0 => (true, None),
        1 => (true, Some("{\"type\":\"purchase\"")),
        2 => (true, Some("[1,2,3]")),
        3 => (true, Some("{\"type\":\"gaze\",\"sku\":\"sku-001\"}")),
        4 => (true, Some("{\"type\":\"click\"}")),
        5 => (
            true,
            Some("{\"type\":\"purchase\",\"sku\":\"sku-001\",\"qty\":-1}"),
        ),
        6 => (false, Some("\"a profile\"")),
        7 => (false, Some("{\"age\":")),
        _ => {
            return Draft {
                events: true,
                key: None,
                value: Some(b"{\"type\":\"view\",\"sku\":\"sku-001\"}".to_vec()),
            };
        }
    };
    Draft {
        events,
        key: Some(user(index)),
        value: value.map(|text| text.as_bytes().to_vec()),
    }
}

/// A producer that waits for acknowledgements.
pub struct Writer {
    producer: BaseProducer,
}

impl Writer {
    pub fn new(brokers: &str) -> anyhow::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("message.timeout.ms", "300000")
            .set("partitioner", "murmur2_random")
            .create()?;
        Ok(Self { producer })
    }

    fn put(&self, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) -> anyhow::Result<()> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        record.key = key;
        record.payload = value;
        self.producer
            .send(record)
            .map_err(|(error, _)| anyhow::Error::from(error).context(topic.to_owned()))?;
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until everything is acknowledged.
    fn settle(&self) -> anyhow::Result<()> {
        let settled = self.producer.flush(Duration::from_secs(300));
        settled.context("the load was not acknowledged")
    }

    /// Writes the whole catalogue; one SKU in nine is sold out, and one is deleted.
    pub fn catalogue(&self, site: &Site) -> anyhow::Result<()> {
        for nth in 0..SKUS {
            let pu = nth / 4;
            let value = json!({
                "pu": product(pu),
                "category": category(pu),
                "stock": if nth % 9 == 8 { 0 } else { 10 },
                "price": 2.5,
            });
            self.put(
                &site.catalog,
                Some(sku(nth).as_bytes()),
                Some(value.to_string().as_bytes()),
            )?;
        }
        self.put(&site.catalog, Some(sku(5).as_bytes()), None)?;
        self.settle()
    }

    /// Writes the load, evenly over its time; the number of records. It blocks, so it needs its own thread.
    pub fn run(
        &self,
        site: &Site,
        (drafts, load): (&[Draft], Duration),
        written: &AtomicUsize,
    ) -> anyhow::Result<usize> {
        let start = Instant::now();
        for (nth, draft) in drafts.iter().enumerate() {
            let due = load.mul_f64(nth as f64 / drafts.len() as f64);
            if let Some(wait) = due.checked_sub(start.elapsed()) {
                self.producer.poll(wait);
                #[expect(clippy::disallowed_methods, reason = "the pace of the load")]
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
            let topic = if draft.events {
                &site.events
            } else {
                &site.profiles
            };
            let key = draft.key.as_deref().map(str::as_bytes);
            self.put(topic, key, draft.value.as_deref())?;
            written.store(nth + 1, Ordering::SeqCst);
            // Stock changes, too.
            if nth % 50 == 49 {
                let which = nth / 50 % SKUS;
                let value = json!({
                    "pu": product(which / 4), "category": category(which / 4),
                    "stock": (nth / 50 / SKUS + which) % 3, "price": 2.5,
                });
                let value = value.to_string();
                self.put(
                    &site.catalog,
                    Some(sku(which).as_bytes()),
                    Some(value.as_bytes()),
                )?;
            }
        }
        self.settle()?;
        Ok(drafts.len())
    }
}
