//! `namespace list | diff | promote | retire | dump`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::namespace::{self, Bounds, Listing};
use nearshore_core::queue::replay::Moment;
use nearshore_redis::RedisStore;

/// Subcommands of `namespace`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print all namespaces: which is served, how far each is.
    #[command(
        after_help = "Examples:\n  nearshore namespace list\n  nearshore namespace list --json | jq -r .namespace"
    )]
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Compare the lists of two namespaces: overlap, order, coverage, new and lost products, by segment.
    #[command(
        after_help = "Examples:\n  nearshore namespace diff main next\n  nearshore namespace diff main next --all --html diff.html"
    )]
    Diff {
        /// The one that is served, say.
        a: String,
        /// The one that may take its place.
        b: String,
        /// Users of each that are looked at.
        #[arg(long, default_value_t = 2000)]
        sample: u64,
        /// Look at all users.
        #[arg(long, conflicts_with = "sample")]
        all: bool,
        /// Write a page, too.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Make a namespace the served one, if it is good enough; the one that was is fed on.
    #[command(
        after_help = "Examples:\n  nearshore namespace promote next\n  nearshore namespace promote main --force      # go back at once"
    )]
    Promote {
        /// The namespace.
        namespace: String,
        /// Whatever the checks say.
        #[arg(long)]
        force: bool,
        /// Most records that its ingest may have still to do.
        #[arg(long, default_value_t = 1000)]
        lag_max: u64,
        /// Largest share of users whose list trails or is missing, beyond the share in the served namespace
        #[arg(long, default_value_t = 0.01)]
        unserved_max: f64,
        /// Users looked at.
        #[arg(long, default_value_t = 10_000)]
        sample: u64,
        /// Look at all users.
        #[arg(long, conflicts_with = "sample")]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a namespace that is neither served nor fed, in small steps.
    #[command(after_help = "Examples:\n  nearshore namespace retire old")]
    Retire {
        /// The namespace.
        namespace: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the canonical dump: a line per user and per cell of the counts, sorted; the digest goes to stderr.
    #[command(
        after_help = "Examples:\n  nearshore namespace dump next > next.jsonl     # its sha256sum is the digest\n  nearshore namespace dump next --digest"
    )]
    Dump {
        /// The namespace.
        namespace: String,
        /// Print only the digest.
        #[arg(long)]
        digest: bool,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { common } => {
            with_config(&common, |config| block_on(list(&config, common.json)))
        }
        Command::Diff {
            a,
            b,
            sample,
            all,
            html,
            common,
        } => with_config(&common, |config| {
            let sample = (!all).then_some(sample);
            block_on(diff(
                &config,
                (&a, &b),
                (sample, html.as_ref(), common.json),
            ))
        }),
        Command::Promote {
            namespace,
            force,
            lag_max,
            unserved_max,
            sample,
            all,
            common,
        } => with(&common, &namespace, |config| {
            let bounds = Bounds {
                lag: lag_max,
                unserved: unserved_max,
                sample: (!all).then_some(sample),
            };
            block_on(promote(&config, (&bounds, force), common.json))
        }),
        Command::Retire { namespace, common } => with(&common, &namespace, |config| {
            block_on(retire(&config, common.json))
        }),
        Command::Dump {
            namespace,
            digest,
            common,
        } => with(&common, &namespace, |config| {
            block_on(dump(&config, digest, common.json))
        }),
    }
}

/// Runs a command about one namespace, or exits with 2 if that is no name.
fn with(
    common: &Common,
    namespace: &str,
    then: impl FnOnce(Config) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    with_config(common, |mut config| {
        if !super::name_namespace(&mut config, namespace) {
            return Ok(ExitCode::from(2));
        }
        then(config)
    })
}

fn store(config: &Config) -> anyhow::Result<RedisStore> {
    RedisStore::new(config.redis.clone()).context("redis.url; see `nearshore check`")
}

async fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let all = namespace::list(config, &store(config)?).await?;
    if all.is_empty() && !json {
        eprintln!("no namespace was ever filled");
    }
    for listing in &all {
        match json {
            true => println!("{}", serde_json::to_string(listing)?),
            false => println!("{}", line(listing)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(listing: &Listing) -> String {
    let mark = if listing.active { "*" } else { " " };
    let unknown = || "?".to_owned();
    let lag = listing.lag.map_or_else(unknown, |lag| lag.to_string());
    let fed = match listing.members {
        None => unknown(),
        Some(0) => "not fed".into(),
        Some(members) => format!("fed by {members}"),
    };
    let stage = listing
        .stage
        .map_or(String::new(), |stage| format!(", backfill {stage}"));
    let made = match listing.note.created_at.0 {
        0 => String::new(),
        _ => format!(", since {}", Moment(listing.note.created_at)),
    };
    format!(
        "{mark} {:<32} {fed}, lag {lag}{stage}{made}",
        listing.namespace
    )
}

async fn diff(
    config: &Config,
    (a, b): (&str, &str),
    (sample, html, json): (Option<u64>, Option<&PathBuf>, bool),
) -> anyhow::Result<ExitCode> {
    let found = namespace::diff(&store(config)?, (a, b), sample).await?;
    if let Some(path) = html {
        std::fs::write(path, found.html()?).with_context(|| path.display().to_string())?;
    }
    match json {
        true => println!("{}", serde_json::to_string(&found)?),
        false => print!("{}", found.text()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn promote(
    config: &Config,
    (bounds, force): (&Bounds, bool),
    json: bool,
) -> anyhow::Result<ExitCode> {
    let ns = &config.namespace;
    let (checks, promoted) = namespace::promote(config, &store(config)?, (bounds, force)).await?;
    if json {
        println!(
            "{}",
            json!({"namespace": ns, "promoted": promoted, "checks": checks})
        );
    } else {
        for check in &checks {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            println!("{mark} {:<16} {}", check.check, check.found);
        }
        match (promoted, checks.is_empty()) {
            (true, true) => println!("{ns} is served already"),
            (true, false) => println!(
                "{ns} is served from now on; clients follow within {:?}",
                config.backfill.active_ttl
            ),
            (false, _) => println!("{ns} is not promoted; --force does it all the same"),
        }
    }
    Ok(match promoted {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn retire(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let ns = &config.namespace;
    let retired = namespace::retire(config, &store(config)?, |said| eprintln!("{said}")).await?;
    if json {
        println!("{}", json!({"namespace": ns, "keys": retired.keys}));
    } else {
        println!(
            "{ns} is gone: {} keys deleted\nits place in the log stays with its consumer group; to delete that, too:\n  \
             kafka-consumer-groups.sh --bootstrap-server {} --delete --group {}",
            retired.keys,
            config.kafka.brokers,
            crate::members::ingest::group(ns)
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn dump(config: &Config, digest: bool, json: bool) -> anyhow::Result<ExitCode> {
    let (ns, store) = (&config.namespace, store(config)?);
    let dump = match digest {
        true => namespace::dump(&store, ns, &mut std::io::sink()).await?,
        false => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            let dump = namespace::dump(&store, ns, &mut out).await?;
            out.flush()?;
            dump
        }
    };
    let said = match json {
        true => json!({"namespace": ns, "sha256": dump.digest, "users": dump.users, "cells": dump.cells}).to_string(),
        false if digest => dump.digest.clone(),
        false => format!("sha256 {} of {} users and {} cells", dump.digest, dump.users, dump.cells),
    };
    match digest {
        true => println!("{said}"),
        false => eprintln!("{said}"),
    }
    Ok(ExitCode::SUCCESS)
}
