//! The log of a shop as arguments of `evaluate` and `align`: files, or the topics of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::event::Accepted;

use super::block_on;
use crate::config::Config;
use crate::ops::evaluate::Problem;
use crate::ops::files::{self, Logs, LogsSource, Share, Topic};
use crate::ops::topics::{self, Within};

/// Where the log is.
#[derive(Clone, Debug, Args)]
pub(super) struct LogArgs {
    /// Files of user-events, in order of age; without any file the topics are read.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// Files of profile-changes.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    profiles: Vec<PathBuf>,
    /// Files of catalog.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    catalog: Vec<PathBuf>,
    /// Fail if a record cannot be used; without it such records are counted and the first few shown.
    #[arg(long)]
    strict: bool,
}

impl LogArgs {
    /// Whether the log is in files.
    pub(super) fn are_files(&self) -> bool {
        [&self.events, &self.profiles, &self.catalog]
            .iter()
            .any(|paths| !paths.is_empty())
    }

    /// The files.
    pub(super) fn source(&self) -> LogsSource {
        LogsSource {
            events: self.events.clone(),
            profiles: self.profiles.clone(),
            catalog: self.catalog.clone(),
        }
    }
}

impl LogArgs {
    /// The files; none if the topics are to be read.
    fn checked_source(&self) -> anyhow::Result<LogsSource> {
        let source = self.source();
        if source.is_empty() {
            return Ok(source);
        }
        for (missing, paths) in [("--events", &source.events), ("--catalog", &source.catalog)] {
            if paths.is_empty() {
                return Err(Problem::Files { missing }.into());
            }
        }
        Ok(source)
    }
}

/// Whether arguments or configuration are wrong.
pub(super) fn is_usage(error: &anyhow::Error) -> bool {
    if let Some(problem) = error.downcast_ref::<Problem>() {
        return problem.is_usage();
    }
    error.downcast_ref::<files::Error>().is_some()
}

/// Reads the log, and tells of records that cannot be used.
pub(super) fn read_logs(args: &LogArgs, config: &Config) -> anyhow::Result<Logs> {
    told(read(args, config)?, args)
}

/// Reads the records of users from the files of the arguments; a catalogue is not needed.
pub(super) fn read_events(args: &LogArgs, config: &Config) -> anyhow::Result<Vec<Accepted>> {
    Ok(told(read_files(&args.source(), config)?, args)?.records)
}

/// Reads the records of a share of the users, up to the ends of topics.
pub(super) fn read_share(
    args: &LogArgs,
    config: &Config,
    (share, ends): (Share, Option<&BTreeMap<String, i64>>),
) -> anyhow::Result<Logs> {
    let source = args.checked_source()?;
    if source.is_empty() {
        let within = Within {
            topics: &[Topic::Profiles, Topic::Events],
            ends,
            share: Some(share),
        };
        return told(read_topics(config, &within)?, args);
    }
    let source = LogsSource {
        catalog: Vec::new(),
        ..source
    };
    told(
        read_into(Logs::of_share(Some(share)), &source, config)?,
        args,
    )
}

/// Reads the catalogue alone, up to the ends of topics.
pub(super) fn read_catalogue(
    args: &LogArgs,
    config: &Config,
    ends: Option<&BTreeMap<String, i64>>,
) -> anyhow::Result<Catalogue> {
    let source = args.checked_source()?;
    if source.is_empty() {
        let within = Within {
            topics: &[Topic::Catalog],
            ends,
            share: None,
        };
        return Ok(told(read_topics(config, &within)?, args)?.catalogue);
    }
    let source = LogsSource {
        catalog: source.catalog,
        ..LogsSource::default()
    };
    Ok(told(read_files(&source, config)?, args)?.catalogue)
}

/// Tells of records that cannot be used; with --strict they are an error.
fn told(logs: Logs, args: &LogArgs) -> anyhow::Result<Logs> {
    for first in &logs.rejects.first {
        note!("{first}");
    }
    let refused = logs.rejects.total();
    if refused > 0 {
        note!(
            "{refused} records cannot be used and are left out; docs/errors.md says what each code means"
        );
    }
    if args.strict
        && let Some(first) = logs.rejects.first.first()
    {
        let first = first.clone();
        return Err(Problem::Rejects {
            count: refused,
            first,
        }
        .into());
    }
    Ok(logs)
}

/// Reads the log from the files of the arguments, or from the topics.
fn read(args: &LogArgs, config: &Config) -> anyhow::Result<Logs> {
    let source = args.checked_source()?;
    if source.is_empty() {
        let all = Within {
            topics: &topics::ALL,
            ends: None,
            share: None,
        };
        return read_topics(config, &all);
    }
    read_files(&source, config)
}

/// Reads topics of the configuration.
fn read_topics(config: &Config, within: &Within<'_>) -> anyhow::Result<Logs> {
    let decoding = topics::decoding(config);
    let bar = bar("reading", "{msg} {pos}/{len} records, {per_sec}");
    block_on(topics::read_within(config, &decoding, within, &bar))
}

/// Reads the log from files, whichever are given.
fn read_files(source: &LogsSource, config: &Config) -> anyhow::Result<Logs> {
    read_into(Logs::default(), source, config)
}

fn read_into(logs: Logs, source: &LogsSource, config: &Config) -> anyhow::Result<Logs> {
    let decoding = topics::decoding(config);
    let bar = bar("reading", "{bytes}/{total_bytes}, {elapsed}");
    let paths = source
        .events
        .iter()
        .chain(&source.profiles)
        .chain(&source.catalog);
    bar.set_length(
        paths
            .filter_map(|path| Some(path.metadata().ok()?.len()))
            .sum(),
    );
    let logs = logs.read(source, &decoding, &bar);
    bar.finish_and_clear();
    Ok(logs?)
}

/// A progress bar on stderr; without a terminal nothing is drawn.
pub(super) fn bar(what: &'static str, counts: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{prefix:>9}} {{wide_bar}} {counts}"));
    let bar = ProgressBar::new(0).with_prefix(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
