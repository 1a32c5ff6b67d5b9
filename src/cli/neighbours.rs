//! `align --neighbours` and `get --neighbours`: the neighbours of SKUs, to files and Redis, and from Redis.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nearshore_core::learn::related::{Columns, NeighbourDoc, RelatedOptions};
use nearshore_core::ports::store::Stock;
use nearshore_core::text::normalise;
use nearshore_redis::RedisStore;

use super::block_on;
use super::users::{served_namespace, store};
use crate::config::Config;
use crate::ops::evaluate::History;
use crate::ops::evaluate::related::{NeighbourDocs, related};
use crate::ops::visible::{visible, visible_json};

/// Documents that are written to Redis at once.
const BATCH: usize = 500;

/// Arguments of `align` about neighbours.
#[derive(Clone, Debug, Args)]
pub(super) struct NeighbourArgs {
    /// Also counts which SKUs are bought instead of a SKU, and which with it, and writes that into the artefact.
    #[arg(long)]
    neighbours: bool,
    /// Purchases of a user that are at most so much later than the first of a basket are in it.
    #[arg(long, value_name = "TIME", default_value = "0s", requires = "neighbours", value_parser = humantime::parse_duration)]
    neighbours_span: Duration,
    /// Also writes the neighbours of all SKUs to this file, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "neighbours")]
    neighbours_out: Option<PathBuf>,
    /// Also writes the neighbours of all SKUs to Redis, into the namespace of the configuration.
    #[arg(long, requires = "neighbours")]
    neighbours_redis: bool,
    /// Time after which neighbours in Redis that no later run has written again are gone.
    #[arg(long, value_name = "TIME", default_value = "30days", requires = "neighbours_redis", value_parser = humantime::parse_duration)]
    neighbours_ttl: Duration,
    /// Fits nothing, and writes no artefact: only the file, or Redis.
    #[arg(long, requires = "neighbours")]
    neighbours_only: bool,
}

impl NeighbourArgs {
    /// Whether nothing else is to be done.
    pub(super) fn is_only(&self) -> bool {
        self.neighbours_only
    }

    /// Counts, writes what is asked for, and lets the artefact have it.
    pub(super) fn run(
        &self,
        history: &mut History,
        config: &Config,
        users_min: u32,
    ) -> anyhow::Result<()> {
        if !self.neighbours {
            return Ok(());
        }
        let docs = related(
            history,
            RelatedOptions {
                users_min,
                span_ms: i64::try_from(self.neighbours_span.as_millis()).unwrap_or(i64::MAX),
                ..RelatedOptions::default()
            },
        );
        note!(
            "neighbours of {} SKUs, {} by purchases of their own, in {:.1} s; k {}",
            docs.skus(),
            docs.own(),
            docs.took.as_secs_f64(),
            serde_json::to_string(&docs.ks)?
        );
        if let Some(path) = &self.neighbours_out {
            write(&docs, path)?;
        }
        if self.neighbours_redis {
            let store = store(config)?;
            block_on(put(&store, &config.namespace, (&docs, self.neighbours_ttl)))?;
        }
        if !self.neighbours_only {
            history.neighbours = Some(docs.lines());
        }
        Ok(())
    }
}

/// Writes the file beside its place and renames it, so that a reader sees all of it or nothing.
fn write(docs: &NeighbourDocs, path: &Path) -> anyhow::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let place = || format!("cannot write {}", part.display());
    let file = std::fs::File::create(&part).with_context(place)?;
    let mut file = std::io::BufWriter::new(file);
    for (_, doc) in docs.each() {
        writeln!(file, "{doc}").with_context(place)?;
    }
    file.flush().with_context(place)?;
    std::fs::rename(&part, path)
        .with_context(|| format!("cannot rename {} to {}", part.display(), path.display()))?;
    note!("written to {}", path.display());
    Ok(())
}

async fn put(
    store: &RedisStore,
    ns: &str,
    (docs, ttl): (&NeighbourDocs, Duration),
) -> anyhow::Result<()> {
    let mut batch: Vec<(&str, String)> = Vec::with_capacity(BATCH);
    let mut each = docs.each().peekable();
    while let Some(doc) = each.next() {
        batch.push(doc);
        if batch.len() == BATCH || each.peek().is_none() {
            store.put_neighbours(ns, &batch, ttl).await?;
            batch.clear();
        }
    }
    note!("written to Redis, namespace {ns}");
    Ok(())
}

/// Prints the neighbours of a SKU of the active namespace, without sold-out SKUs; exit code 1 if there are none.
pub(super) fn get(config: &Config, sku: &str, json: bool) -> anyhow::Result<ExitCode> {
    let sku = &*normalise(sku);
    block_on(async {
        let store = store(config)?;
        let ns = served_namespace(config, &store).await?;
        let Some(text) = store.neighbours(&ns, sku).await? else {
            note!(
                "namespace {ns} has no neighbours of SKU {}; write them with `nearshore align --neighbours \
                 --neighbours-redis`",
                visible(sku)
            );
            return Ok(ExitCode::FAILURE);
        };
        let mut doc = NeighbourDoc::parse(&text)?;
        let skus: Vec<String> = doc.skus().cloned().collect();
        let gone = store.sold_out(&skus).await?;
        let gone: BTreeSet<String> = skus
            .into_iter()
            .zip(gone)
            .filter_map(|(sku, gone)| gone.then_some(sku))
            .collect();
        doc.strip(|sku| gone.contains(sku));
        match json {
            true => out!("{}", visible_json(&doc.to_json())),
            false => out_part!("{}", shown(&doc)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The document as a table.
fn shown(doc: &NeighbourDoc) -> String {
    use std::fmt::Write;
    let mut out = format!("PU {}\n", visible(&doc.pu));
    let lists: [(&str, &Columns); 2] = [
        ("substitutes", &doc.substitutes),
        ("complements", &doc.complements),
    ];
    for (name, list) in lists {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name}:");
        let rows = list.skus.iter().zip(&list.scores).zip(&list.basis);
        for (nth, ((sku, score), basis)) in rows.enumerate() {
            let basis: &'static str = (*basis).into();
            let _ = writeln!(
                out,
                "{:>3}. {:<24} {score:>10.4} {basis}",
                nth + 1,
                visible(sku)
            );
        }
    }
    out
}
