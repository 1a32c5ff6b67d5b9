//! `nearshore forget`: erases a user, proves the erase, exports and imports the list of erased users.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::users::{print_result, store, user_id};
use super::{Common, block_on};
use crate::config::Config;
use crate::ops::forget::{self, TraceOptions};
use crate::ops::visible::visible_json;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_redis::RedisStore;

/// Time between two searches.
const SEARCH_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `nearshore forget`.
#[derive(Debug, Args)]
pub(super) struct Forget {
    /// User id.
    #[arg(required_unless_present_any = ["export", "import"], conflicts_with_all = ["export", "import"])]
    user: Option<String>,
    /// Erase nothing: search every place that may hold something of the user, and print what is there. Exit code 1 if
    /// something is left that should not be.
    #[arg(long, requires = "user")]
    proof: bool,
    /// Search again until nothing is left, at most this long (30s, 1m).
    #[arg(long, value_name = "TIME", requires = "proof", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Also read the source topics from their beginning; this takes long for large topics.
    #[arg(long, requires = "proof")]
    scan: bool,
    /// Write all erased users with the times of their erases, a JSON object per line; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "proof"])]
    export: Option<PathBuf>,
    /// Restore tombstones that --export wrote, and remove older data from every namespace; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    import: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Runs the command.
pub(super) fn run(config: &Config, args: &Forget) -> anyhow::Result<ExitCode> {
    let json = args.common.json;
    let store = store(config)?;
    if let Some(path) = &args.export {
        return block_on(export(&store, path, json));
    }
    if let Some(path) = &args.import {
        return block_on(import(&store, path, json));
    }
    let user = user_id(args.user.as_deref().unwrap_or_default())?;
    if !args.proof {
        return block_on(erase(config, &store, &user, json));
    }
    let options = TraceOptions { scan: args.scan };
    let wait = args.wait.unwrap_or_default();
    block_on(prove(config, &store, &user, options, wait, json))
}

/// The tombstone that erases a user.
#[derive(Serialize, JsonSchema)]
pub(super) struct Forgotten<'a> {
    /// The user.
    user: &'a UserId,
    /// The topic of the tombstone.
    tombstone: &'a str,
    /// Its time.
    at: Timestamp,
}

/// What `forget --export` wrote.
#[derive(Serialize, JsonSchema)]
pub(super) struct Exported {
    /// Number of erased users.
    exported: u64,
}

async fn erase(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let at = forget::forget(config, store, user).await?;
    let topic = &config.topics.profile_changes;
    let result = Forgotten {
        user,
        tombstone: topic,
        at,
    };
    print_result(json, &serde_json::to_value(result)?, || {
        format!(
            "the tombstone of user {user} is on topic {topic}; ingest erases what is not later than it\n\
             to prove the erase: nearshore forget {user} --proof --wait 1m"
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn prove(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
    options: TraceOptions,
    wait: Duration,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let receipt = loop {
        let receipt = forget::find_traces(config, store, user, options).await?;
        if receipt.clean || start.elapsed() >= wait {
            break receipt;
        }
        let left = receipt.findings.iter();
        let left = left
            .filter(|it| it.verdict == forget::Verdict::Left)
            .count();
        note!("{left} places with something left; searching again");
        tokio::time::sleep(SEARCH_EVERY).await;
    };
    if json {
        out!("{}", visible_json(&serde_json::to_string_pretty(&receipt)?));
    } else {
        out_part!("{}", receipt.text());
    }
    Ok(ExitCode::from(u8::from(!receipt.clean)))
}

async fn export(store: &RedisStore, path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let to_stdout = path == Path::new("-");
    let written = if to_stdout {
        forget::export(store, &mut io::stdout().lock()).await?
    } else {
        // A temporary file first: an interrupted export must not replace a complete one.
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let cannot = || format!("cannot write {}", part.display());
        let mut out = BufWriter::new(File::create(&part).with_context(cannot)?);
        let written = forget::export(store, &mut out).await?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&part, path).with_context(cannot)?;
        written
    };
    if !to_stdout {
        let exported = Exported { exported: written };
        print_result(json, &serde_json::to_value(exported)?, || {
            format!("{written} erased users written to {}", path.display())
        });
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(store: &RedisStore, path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let cannot = || format!("cannot read {}", path.display());
    let (input, name): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
        (Box::new(io::stdin()), Path::new("standard input"))
    } else {
        (Box::new(File::open(path).with_context(cannot)?), path)
    };
    let imported = forget::import(store, BufReader::new(input), name).await?;
    // An export of no users is empty, too. But a copy that was cut off would let erased users come back.
    anyhow::ensure!(
        imported.read > 0,
        "{} is empty: no tombstone was restored; if users were ever erased, this is not the export of them",
        name.display()
    );
    print_result(json, &serde_json::to_value(imported)?, || {
        format!(
            "{} erased users read, {} tombstones raised, {} states cleaned",
            imported.read, imported.raised, imported.cleaned
        )
    });
    Ok(ExitCode::SUCCESS)
}
