//! `namespace list | diff | promote | retire | dump`: commands about namespaces.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::forget;
use crate::ops::namespace::{self, Asked, Bounds, Listing};
use crate::ops::visible::{visible, visible_json, visible_lines};
use nearshore_core::queue::replay::Moment;
use nearshore_redis::RedisStore;

/// Subcommands of `namespace`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print all namespaces: which one is served, and how far behind each is.
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
        /// First namespace, for example the one that is served.
        a: String,
        /// Second namespace, for example the one to be promoted.
        b: String,
        /// Users compared in each namespace.
        #[arg(long, default_value_t = 2000)]
        sample: u64,
        /// Take all users instead of a sample.
        #[arg(long, conflicts_with = "sample")]
        all: bool,
        /// Also write the comparison to this file as an HTML page.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Serve another namespace, if all checks pass; the previous one is still fed.
    #[command(
        after_help = "Examples:\n  nearshore namespace promote next --config nearshore.toml\n  \
            nearshore namespace promote next --config next.toml --served-config nearshore.toml\n  \
            nearshore namespace promote main --force      # back to the previous one at once, the evaluation is not asked\n\n\
            The evaluation ranks for held-out users of the log with the arms of both namespaces; the promotion is refused if\n\
            the new lists are worse. It reads the topics, which takes as long as `nearshore evaluate`."
    )]
    Promote {
        /// Namespace to serve.
        namespace: String,
        /// Promote even if a check fails, and do not ask the evaluation.
        #[arg(long)]
        force: bool,
        /// Configuration that the served namespace runs with, if it is not this one: the evaluation needs its arms.
        #[arg(long, value_name = "FILE", conflicts_with = "force")]
        served_config: Option<PathBuf>,
        /// Most records that its ingest group may not have folded yet.
        #[arg(long, default_value_t = 1000)]
        lag_max: u64,
        /// Largest share of users whose list trails or is missing, in addition to that share in the served namespace.
        #[arg(long, default_value_t = 0.01)]
        unserved_max: f64,
        /// Users sampled in each namespace.
        #[arg(long, default_value_t = 10_000)]
        sample: u64,
        /// Take all users instead of a sample.
        #[arg(long, conflicts_with = "sample")]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a namespace that is neither served nor fed, a few keys at a time.
    #[command(after_help = "Examples:\n  nearshore namespace retire old")]
    Retire {
        /// Namespace to delete.
        namespace: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the canonical dump: a line per user and per cell of the counts, sorted; the digest goes to stderr.
    #[command(
        after_help = "Examples:\n  nearshore namespace dump next > next.jsonl     # its sha256sum is the digest\n  nearshore namespace dump next --digest"
    )]
    Dump {
        /// Namespace to dump.
        namespace: String,
        /// Print only the digest.
        #[arg(long)]
        digest: bool,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
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
            block_on(diff(&config, &a, &b, sample, html.as_ref(), common.json))
        }),
        Command::Promote {
            namespace,
            force,
            served_config,
            lag_max,
            unserved_max,
            sample,
            all,
            common,
        } => with_namespace(&common, &namespace, |config| {
            let served = match &served_config {
                Some(path) => match super::config::load(Some(path)) {
                    Ok(served) => served,
                    Err(code) => return Ok(ExitCode::from(code)),
                },
                None => config.clone(),
            };
            let served = (!force).then_some(served);
            let bounds = Bounds {
                lag: lag_max,
                unserved: unserved_max,
                sample: (!all).then_some(sample),
            };
            block_on(promote(&config, &bounds, served, common.json))
        }),
        Command::Retire { namespace, common } => with_namespace(&common, &namespace, |config| {
            block_on(retire(&config, common.json))
        }),
        Command::Dump {
            namespace,
            digest,
            common,
        } => with_namespace(&common, &namespace, |config| {
            block_on(dump(&config, digest, common.json))
        }),
    }
}

/// Runs a command about one namespace; exit code 2 if the name is not valid.
fn with_namespace(
    common: &Common,
    namespace: &str,
    then: impl FnOnce(Config) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    with_config(common, |mut config| {
        if !super::use_namespace(&mut config, namespace) {
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
        note!("there is no namespace yet; `nearshore run` or `nearshore backfill` fills one");
    }
    for listing in &all {
        match json {
            true => out!("{}", visible_json(&serde_json::to_string(listing)?)),
            false => out!("{}", visible(&line(listing))),
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
    a: &str,
    b: &str,
    sample: Option<u64>,
    html: Option<&PathBuf>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let difference = namespace::diff(&store(config)?, a, b, sample).await?;
    if let Some(path) = html {
        std::fs::write(path, difference.html()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match json {
        true => out!("{}", visible_json(&serde_json::to_string(&difference)?)),
        false => out_part!("{}", visible_lines(&difference.text())),
    }
    Ok(ExitCode::SUCCESS)
}

/// What `namespace promote` did.
#[derive(Serialize, JsonSchema)]
pub(super) struct Promoted<'a> {
    /// The namespace that was to be served.
    namespace: &'a str,
    /// Whether it is served now.
    promoted: bool,
    /// What was compared before.
    checks: &'a [namespace::Check],
}

/// What `namespace retire` deleted.
#[derive(Serialize, JsonSchema)]
pub(super) struct Retired<'a> {
    /// The namespace.
    namespace: &'a str,
    /// Number of keys that were deleted.
    keys: u64,
}

/// The digest of a namespace.
#[derive(Serialize, JsonSchema)]
pub(super) struct Dumped<'a> {
    /// The namespace.
    namespace: &'a str,
    /// SHA-256 of the dump.
    sha256: &'a str,
    /// Users in it.
    users: u64,
    /// Counts in it.
    cells: u64,
}

async fn promote(
    config: &Config,
    bounds: &Bounds,
    served: Option<Config>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let ns = &config.namespace;
    let (store, force) = (store(config)?, served.is_none());
    let asked = match served {
        Some(served) => Some(Asked {
            served,
            erased: forget::erased(&store).await?,
        }),
        None => None,
    };
    let bounds = (bounds, asked.as_ref());
    let (checks, promoted) = namespace::promote(config, &store, bounds, force).await?;
    if json {
        let promoted = Promoted {
            namespace: ns,
            promoted,
            checks: &checks,
        };
        out!("{}", serde_json::to_string(&promoted)?);
    } else {
        for check in &checks {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            out!("{mark} {:<16} {}", check.check, check.found);
        }
        match (promoted, checks.is_empty()) {
            (true, true) => out!("namespace {ns} is already served"),
            (true, false) => out!(
                "namespace {ns} is served now; clients follow within {:?}",
                config.backfill.active_ttl
            ),
            (false, _) => {
                out!("namespace {ns} is not promoted: a check failed; --force promotes it anyway")
            }
        }
    }
    Ok(match promoted {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn retire(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let ns = &config.namespace;
    let retired = namespace::retire(config, &store(config)?, |message| note!("{message}")).await?;
    if json {
        let retired = Retired {
            namespace: ns,
            keys: retired.keys,
        };
        out!("{}", serde_json::to_string(&retired)?);
    } else {
        out!(
            "namespace {ns} is deleted: {} keys\nits consumer group still holds its positions; to delete the group too:\n  \
             kafka-consumer-groups.sh --bootstrap-server {} --delete --group {}",
            retired.keys,
            config.kafka.brokers,
            crate::members::ingest::group(&config.kafka, ns)
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
    let result = match json {
        true => serde_json::to_string(&Dumped {
            namespace: ns,
            sha256: &dump.digest,
            users: dump.users,
            cells: dump.cells,
        })?,
        false if digest => dump.digest.clone(),
        false => format!(
            "sha256 {} of {} users and {} cells",
            dump.digest, dump.users, dump.cells
        ),
    };
    match digest {
        true => out!("{result}"),
        false => note!("{result}"),
    }
    Ok(ExitCode::SUCCESS)
}
