//! What all members of a run share: topics, namespace, configuration and catalogue.
//!
//! Invariant: every event requests a list, so that at rest every list must have seen every event.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use crate::plan::{Size, Stores};

/// Events kept per user: few, so that windows overflow.
pub const WINDOW: usize = 20;
/// Session timeout of the members, in seconds.
pub const SESSION: u64 = 6;
/// Categories of products; the last is forbidden below the age of 18.
pub const CATEGORIES: [&str; 6] = ["DAIRY", "BAKERY", "FRUIT", "BABY", "PETS", "WINE"];
/// Products, each with four SKUs.
pub const PRODUCTS: usize = 36;
pub const SKUS: usize = PRODUCTS * 4;

/// Names and places of a run.
pub struct Site {
    pub ns: String,
    pub dir: PathBuf,
    pub brokers: String,
    pub events: String,
    pub profiles: String,
    pub catalog: String,
    pub lanes: [String; 3],
    pub updates: String,
    pub dlq: String,
}

/// A product's name.
pub fn product(nth: usize) -> String {
    format!("PRODUCT {nth:02}")
}

/// A product's category.
pub fn category(nth: usize) -> &'static str {
    CATEGORIES[nth % CATEGORIES.len()]
}

/// A SKU's id.
pub fn sku(nth: usize) -> String {
    format!("sku-{nth:03}")
}

/// Category of each product name.
pub fn categories() -> BTreeMap<String, &'static str> {
    (0..PRODUCTS)
        .map(|nth| (product(nth), category(nth)))
        .collect()
}

impl Site {
    pub fn new(ns: &str, dir: &Path, brokers: &str) -> Self {
        let topic = |name: &str| format!("{ns}-{name}");
        Self {
            ns: ns.into(),
            dir: dir.into(),
            brokers: brokers.into(),
            events: topic("events"),
            profiles: topic("profiles"),
            catalog: topic("catalog"),
            lanes: [topic("urgent"), topic("live"), topic("backfill")],
            updates: topic("updates"),
            dlq: topic("dlq"),
        }
    }

    /// Consumer group of the fold.
    pub fn ingest_group(&self) -> String {
        format!("nearshore-ingest-{}", self.ns)
    }

    fn named(&self) -> [(&'static str, &String); 8] {
        let [urgent, live, backfill] = &self.lanes;
        [
            ("user_events", &self.events),
            ("profile_changes", &self.profiles),
            ("catalog", &self.catalog),
            ("regen_urgent", urgent),
            ("regen_live", live),
            ("regen_backfill", backfill),
            ("recall_updates", &self.updates),
            ("dlq", &self.dlq),
        ]
    }

    /// Creates the topics. Nothing is compacted during a run, because the checker reads all records.
    pub async fn topics(&self, size: &Size) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()?;
        let replicas = if size.brokers > 1 { 3 } else { 1 };
        let few = (size.partitions / 4).max(2);
        let topics = self.named().map(|(key, name)| {
            let (partitions, policy) = match key {
                "user_events" => (size.partitions, "delete"),
                "profile_changes" => (size.partitions, "compact"),
                "catalog" => (2, "compact"),
                "recall_updates" => (few, "compact,delete"),
                _ => (few, "delete"),
            };
            let stamp = match key {
                "user_events" | "profile_changes" | "catalog" => "LogAppendTime",
                _ => "CreateTime",
            };
            NewTopic::new(name, partitions, TopicReplication::Fixed(replicas))
                .set("cleanup.policy", policy)
                .set("min.compaction.lag.ms", "86400000")
                .set("message.timestamp.type", stamp)
        });
        let made = admin
            .create_topics(&topics, &AdminOptions::new())
            .await
            .context("topics")?;
        for topic in made {
            topic.map_err(|(name, code)| anyhow::anyhow!("topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Writes template and configuration; each member gets the address of Redis and its port from the environment.
    pub fn write(&self, size: &Size) -> anyhow::Result<PathBuf> {
        std::fs::write(
            self.dir.join("basket.j2"),
            include_str!("../../config/templates/basket.j2"),
        )?;
        let replicas = match size.stores {
            Stores::Sentinel => 1,
            Stores::Cluster => 0,
        };
        let mut text = format!(
            "namespace = \"{}\"\n[kafka]\nbrokers = \"{}\"\nsession_timeout = \"{SESSION}s\"\nack_timeout = \"10s\"\n\
             [redis]\nmin_replicas = {replicas}\n[state]\nwindow = {WINDOW}\nwrite_version = 4\n\
             [trigger]\nquiet_period = \"300ms\"\nclaim_every = \"300ms\"\nclaims_per_day = 1000000\n\
             [trigger.weights]\npurchase = 1.0\ncart = 1.0\nsearch = 1.0\nclick = 1.0\nview = 1.0\nimpression = 1.0\n\
             profile = 1.0\n[lanes]\nbatch_max = 16\nmax_wait = \"1h\"\n[fallback]\nevery = \"5s\"\nnames = 5\n\
             [[arms]]\nid = \"table\"\nepoch = 1\ntemplate = \"basket.j2\"\nmodel = \"table:{}ms\"\nnames = 3\n\
             weights = {{ model = 1.0 }}\nprompt_tokens = 256\n",
            self.ns,
            self.brokers,
            size.delay.as_millis(),
        );
        text += "[topics]\n";
        for (key, name) in self.named() {
            text += &format!("{key} = \"{name}\"\n");
        }
        for category in CATEGORIES {
            text += &format!(
                "[[rules]]\nid = \"avoids-{}\"\nwhen = {{ field = \"avoids\", in = [\"{category}\"] }}\n\
                 forbid = {{ categories = [\"{category}\"] }}\n",
                category.to_lowercase()
            );
        }
        text += "[[rules]]\nid = \"adults\"\nrequired = true\nwhen = { field = \"age\", below = 18 }\n\
                 forbid = { categories = [\"WINE\"] }\n";
        let path = self.dir.join("nearshore.toml");
        std::fs::write(&path, text)?;
        Ok(path)
    }
}
