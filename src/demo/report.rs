//! What the demo says at its end: the check's facts, three households in full, and how to go on.

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

/// The check's facts, printed as one line of JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Purchases put into Kafka.
    pub events: u64,
    /// Households asked for.
    pub users: usize,
    /// Of them, with a list of the model.
    pub lists: usize,
    /// Of them, with a fallback instead.
    pub fallbacks: usize,
    /// Records in `dlq`.
    pub dlq: u64,
    /// SKUs on stored lists that a client does not show, because they sold out after the list was made.
    pub sold_out_filtered: usize,
    /// Median of seconds from a purchase to the list that has seen it; of purchases made while the roles ran.
    pub event_to_list_p50_s: f64,
    /// The same at 99 %.
    pub event_to_list_p99_s: f64,
    /// Names on lists that the catalogue does not have.
    pub illegal_names: usize,
    /// SKUs that a client would show though they are sold out; must be 0.
    pub sold_out_shown: usize,
    /// Names left without a SKU when a client has filtered.
    pub empty_names: usize,
    /// From start to summary.
    pub seconds: f64,
}

impl Summary {
    /// Whether the demo did what it promises.
    pub fn well(&self) -> bool {
        self.complaint() == "nothing"
    }

    /// What it did not do.
    pub fn complaint(&self) -> String {
        let mut wrong = Vec::new();
        if self.lists < self.users {
            wrong.push(format!(
                "{} of {} households have no list of the model",
                self.users - self.lists,
                self.users
            ));
        }
        if self.illegal_names > 0 {
            wrong.push(format!(
                "{} names are not in the catalogue",
                self.illegal_names
            ));
        }
        if self.sold_out_shown > 0 {
            wrong.push(format!(
                "{} sold-out SKUs would be shown",
                self.sold_out_shown
            ));
        }
        if self.sold_out_filtered == 0 {
            wrong.push("nothing sold out was filtered".into());
        }
        if wrong.is_empty() {
            "nothing".into()
        } else {
            wrong.join("; ")
        }
    }
}

/// Reads every household's list as a client does, and compares it with what the demo knows of its shop.
pub async fn check(
    store: &RedisStore,
    (config, feed, watch): (&Config, &Feed, &Watch),
) -> anyhow::Result<Summary> {
    let mut summary = Summary {
        event_to_list_p50_s: watch.quantile(0.5),
        event_to_list_p99_s: watch.quantile(0.99),
        dlq: letters(config).await?,
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
            Source::Model => summary.lists += 1,
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

async fn letters(config: &Config) -> anyhow::Result<u64> {
    let extents = nearshore_kafka::Admin::new(&config.kafka)?
        .extents(&config.topics.dlq)
        .await?;
    Ok(extents
        .iter()
        .map(|extent| (extent.end.0 - extent.begin.0).unsigned_abs())
        .sum())
}

/// Three households in full, on stdout.
pub async fn show(
    store: &RedisStore,
    (config, feed, watch): (&Config, &Feed, &Watch),
) -> anyhow::Result<()> {
    let inspector = Inspector::open(config, store.clone()).await?;
    let known = [
        "by profile alone",
        "by three purchases",
        "by many purchases",
    ];
    for (user, known) in feed.three().iter().zip(known) {
        println!("\n━━ household {user}, known {known} ━━");
        if let Some(view) = inspector.inspect(&UserId(user.as_str().into())).await? {
            print!("{}", view.text());
        }
    }
    println!(
        "\nevent to list, of purchases made while the roles ran: {:.1} s at the median, {:.1} s at 99 %",
        watch.quantile(0.5),
        watch.quantile(0.99)
    );
    Ok(())
}

/// Where to look next.
pub fn how_to_go_on(config: &Config, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("nearshore.toml");
    std::fs::write(&file, config.effective())?;
    let (listen, file) = (config.http.listen, file.display());
    println!("\nIt stays up until Ctrl-C; a purchase comes in every two seconds.");
    println!("  why a list is as it is   http://{listen}/inspect");
    println!("  metrics                  http://{listen}/metrics");
    println!("  one list                 nearshore get HOUSEHOLD --config {file}");
    println!("  the same in full         nearshore inspect HOUSEHOLD --config {file}");
    println!(
        "On your own data: nearshore check --config nearshore.toml; nearshore run --config nearshore.toml"
    );
    Ok(())
}
