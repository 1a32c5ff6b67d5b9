//! `nearshore import`: brings history from files into the topics.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::logs::bar;
use super::users::print_result;
use super::{Common, block_on, with_config};
use crate::ops::files::Topic;
use crate::ops::import::{Imported, Order, Stopped, import};

/// Examples of its help.
pub(super) const EXAMPLES: &str = "Examples:\n  nearshore import --catalog skus.csv --profiles users.jsonl --events 2025.parquet 2026.parquet --dry-run\n  nearshore import --events orders.jsonl --config nearshore.toml\n  nearshore import --topic segment --rows export.jsonl   # rows of the shop's own, by the mapping of [[inputs]]\n\nFiles end in .jsonl, .csv or .parquet, in the shape that `nearshore evaluate` reads; every event needs a timestamp. An import that is\nrun twice counts twice.";

/// Arguments of `nearshore import`.
#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// Files of user-events, in order of age.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// Files of profile-changes.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    profiles: Vec<PathBuf>,
    /// Files of catalog.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    catalog: Vec<PathBuf>,
    /// Files of the shop's own records, which the mapping of --topic makes records of ours.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "topic")]
    rows: Vec<PathBuf>,
    /// Topic of [[inputs]] whose mapping is used for --rows.
    #[arg(long, requires = "rows")]
    topic: Option<String>,
    /// Check all rows and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Leave out rows that cannot be used; without it nothing is written if there is one.
    #[arg(long)]
    skip_bad: bool,
    /// Go on after this line of the only file, up to which an import that stopped has written.
    #[arg(long, value_name = "LINE", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    common: Common,
}

impl ImportArgs {
    fn order(&self) -> anyhow::Result<Order> {
        let of = |topic, paths: &[PathBuf]| {
            paths
                .iter()
                .map(move |path| (topic, path.clone()))
                .collect::<Vec<_>>()
        };
        // Products and profiles first, so that ingest knows them when the events come.
        let files = [
            of(Topic::Catalog, &self.catalog),
            of(Topic::Profiles, &self.profiles),
            of(Topic::Events, &self.events),
            of(Topic::Rows, &self.rows),
        ]
        .concat();
        anyhow::ensure!(
            !files.is_empty(),
            "no file: give --events, --profiles, --catalog, or --topic and --rows"
        );
        anyhow::ensure!(
            self.after == 0 || files.len() == 1,
            "--after is a line of one file; give only that file, and the others in another call"
        );
        Ok(Order {
            files,
            mapped: self.topic.as_deref().map(Into::into),
            after: self.after,
            leave_out: self.skip_bad,
            dry_run: self.dry_run,
        })
    }
}

/// Runs the command.
pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let order = args.order()?;
    with_config(&args.common, |config| {
        if let Some(topic) = order.mapped.as_deref() {
            let known: Vec<&str> = config.inputs.iter().map(|input| &*input.topic).collect();
            anyhow::ensure!(
                known.contains(&topic),
                "--topic {topic} is none of those that [[inputs]] maps: {}",
                known.join(", ")
            );
        }
        let bar = bar("importing", "{bytes}/{total_bytes}, {elapsed}");
        let sizes = order
            .files
            .iter()
            .filter_map(|(_, path)| Some(path.metadata().ok()?.len()));
        bar.set_length(sizes.sum());
        let imported = block_on(import(&config, &order, &bar));
        bar.finish_and_clear();
        let imported = imported.inspect_err(|error| {
            if let Some(stopped) = error.downcast_ref::<Stopped>() {
                note!(
                    "to go on: the same file alone with --after {}, then the files behind it",
                    stopped.line
                );
            }
        })?;
        print(&imported, args);
        let refused = !imported.rejects.is_empty() && !args.skip_bad;
        Ok(ExitCode::from(u8::from(refused)))
    })
}

fn print(imported: &Imported, args: &ImportArgs) {
    for first in &imported.first_rejects {
        note!("{first}");
    }
    let bad: u64 = imported.rejects.values().sum();
    if bad > 0 {
        let what = match args.skip_bad {
            true => "are left out",
            false => "cannot be used, so nothing is written; --skip-bad leaves them out",
        };
        note!("{bad} rows {what}; docs/errors.md says what each code means");
    }
    print_result(args.common.json, &json!(imported), || {
        let topics = imported
            .topics
            .iter()
            .map(|(topic, n)| format!("{n} records for {topic}"));
        let topics: Vec<String> = topics.collect();
        let what = match imported.written {
            true => "written",
            false => "nothing is written",
        };
        format!("{} rows, {}: {what}", imported.rows, topics.join(", "))
    });
}
