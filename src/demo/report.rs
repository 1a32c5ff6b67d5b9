//! Prints the demo's results: the summary of a check, three households in full, and next steps.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::feed::Feed;
use super::watch::Watch;
use crate::config::Config;
use crate::ops::namespace::{Inspector, served};
use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

/// The summary of a check, printed as one line of JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Purchases written to Kafka.
    pub events: u64,
    /// Households.
    pub users: usize,
    /// Households with a list of the arm.
    pub lists: usize,
    /// Households with a fallback instead.
    pub fallbacks: usize,
    /// Records in `dlq`.
    pub dlq: u64,
    /// SKUs on stored lists that a client filters out, because they sold out after the list was made.
    pub sold_out_filtered: usize,
    /// Median seconds from a purchase to the list that has seen it, over purchases sent while the roles ran.
    pub event_to_list_p50_s: f64,
    /// The 99th percentile of the same.
    pub event_to_list_p99_s: f64,
    /// Names on lists that are not in the catalogue.
    pub illegal_names: usize,
    /// Sold-out SKUs that a client would show; must be 0.
    pub sold_out_shown: usize,
    /// Names without a SKU after a client's filter.
    pub empty_names: usize,
    /// Recall@10 of the arm and of the routes that it must beat, on households that taught it nothing.
    pub recall_at_10: BTreeMap<&'static str, f64>,
    /// Seconds from start to summary.
    pub seconds: f64,
}

impl Summary {
    /// What the demo failed to do; empty if everything worked.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.lists < self.users {
            problems.push(format!(
                "{} of {} households have no list of the arm",
                self.users - self.lists,
                self.users
            ));
        }
        let recall = |route| self.recall_at_10.get(route).copied().unwrap_or_default();
        if recall("arm") < recall("demand") {
            problems.push(format!(
                "the arm's Recall@10 is {}, below that of demand, {}",
                recall("arm"),
                recall("demand")
            ));
        }
        if self.illegal_names > 0 {
            problems.push(format!(
                "{} names are not in the catalogue",
                self.illegal_names
            ));
        }
        if self.sold_out_shown > 0 {
            problems.push(format!(
                "{} sold-out SKUs would be shown",
                self.sold_out_shown
            ));
        }
        if self.sold_out_filtered == 0 {
            problems.push("no sold-out SKU was filtered out".into());
        }
        problems
    }
}

/// Reads every household's list as a client does, and compares it with the catalogue that the demo wrote.
pub(super) async fn check(
    store: &RedisStore,
    config: &Config,
    feed: &Feed,
    watch: &Watch,
) -> anyhow::Result<Summary> {
    let mut summary = Summary {
        event_to_list_p50_s: watch.quantile(0.5),
        event_to_list_p99_s: watch.quantile(0.99),
        dlq: dead_letters(config).await?,
        ..Summary::default()
    };
    for user in feed.users() {
        summary.users += 1;
        let user = UserId(user.as_str().into());
        let peek = store
            .peek(&config.namespace, std::slice::from_ref(&user))
            .await?;
        let stored = peek.into_iter().next().and_then(|peek| peek.list);
        let stored = stored.and_then(|list| Document::parse(&list.doc).ok());
        let shown = served(store, &config.namespace, &user).await?;
        let (Some(stored), Some(shown)) = (stored, shown) else {
            continue;
        };
        match shown.source {
            Source::Model | Source::Mixture => summary.lists += 1,
            Source::Fallback => summary.fallbacks += 1,
        }
        summary.sold_out_filtered += count(&stored) - count(&shown);
        for pu in &shown.pus {
            let known = pu
                .skus
                .iter()
                .all(|sku| feed.product(sku).is_some_and(|p| p.pu == pu.name));
            summary.illegal_names += usize::from(!known);
            summary.empty_names += usize::from(pu.skus.is_empty());
            summary.sold_out_shown += pu
                .skus
                .iter()
                .filter(|sku| feed.sold_out().contains(*sku))
                .count();
        }
    }
    Ok(summary)
}

fn count(list: &Document) -> usize {
    list.pus.iter().map(|pu| pu.skus.len()).sum()
}

async fn dead_letters(config: &Config) -> anyhow::Result<u64> {
    let extents = nearshore_kafka::Admin::new(&config.kafka)?
        .extents(&config.topics.dlq)
        .await?;
    Ok(extents
        .iter()
        .map(|extent| (extent.end.0 - extent.begin.0).unsigned_abs())
        .sum())
}

/// Prints three households in full.
pub(super) async fn show(
    store: &RedisStore,
    config: &Config,
    feed: &Feed,
    watch: &Watch,
) -> anyhow::Result<()> {
    let inspector = Inspector::open(config, store.clone()).await?;
    let known = ["a profile alone", "three purchases", "many purchases"];
    for (user, known) in feed.three().iter().zip(known) {
        out!("\n━━ household {user}, with {known} ━━");
        if let Some(view) = inspector.inspect(&UserId(user.as_str().into())).await? {
            out_part!("{}", view.text());
        }
    }
    out!(
        "\nfrom purchase to list, while the roles ran: median {:.1} s, 99 % within {:.1} s",
        watch.quantile(0.5),
        watch.quantile(0.99)
    );
    Ok(())
}

/// Prints what to look at next.
pub(super) fn next_steps(config: &Config, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("nearshore.toml");
    std::fs::write(&file, config.effective())?;
    let (listen, file) = (config.http.listen, file.display());
    out!("\nThe demo runs until Ctrl-C and sends a purchase every two seconds.");
    out!("  how a list was made      http://{listen}/inspect");
    out!("  metrics                  http://{listen}/metrics");
    out!("  one list                 nearshore get HOUSEHOLD --config {file}");
    out!("  the same in full         nearshore inspect HOUSEHOLD --config {file}");
    out!(
        "With your own data: nearshore check --config nearshore.toml; nearshore run --config nearshore.toml"
    );
    Ok(())
}
