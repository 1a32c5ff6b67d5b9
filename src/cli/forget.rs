//! `nearshore forget`: erase a user, prove it, keep the list of erased users elsewhere.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::users::{say, store, user_id};
use super::{Common, block_on};
use crate::config::Config;
use crate::ops::forget::{self, Look};
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

/// How long to wait between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Arguments.
#[derive(Debug, Args)]
pub struct Forget {
    /// User id.
    #[arg(required_unless_present_any = ["export", "import"], conflicts_with_all = ["export", "import"])]
    user: Option<String>,
    /// Erase nothing: look at every place where something of the user may be, and print what is there. Exit code 1 if
    /// something is left that should not be.
    #[arg(long, requires = "user")]
    proof: bool,
    /// Look again until nothing is left, at most this long.
    #[arg(long, value_name = "TIME", requires = "proof", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Also read the source topics from their beginning; takes as long as they are.
    #[arg(long, requires = "proof")]
    scan: bool,
    /// Write all erased users with the times of their erases, a JSON object per line; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "proof"])]
    export: Option<PathBuf>,
    /// Restore tombstones that --export wrote, and take out of every namespace what is older; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    import: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Does what the arguments say.
pub fn run(config: &Config, args: &Forget) -> anyhow::Result<ExitCode> {
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
        return block_on(erase(config, &store, (&user, json)));
    }
    let how = Look { scan: args.scan };
    block_on(prove(
        config,
        &store,
        (&user, how, args.wait.unwrap_or_default(), json),
    ))
}

async fn erase(
    config: &Config,
    store: &RedisStore,
    (user, json): (&UserId, bool),
) -> anyhow::Result<ExitCode> {
    let at = forget::forget(config, store, user).await?;
    let topic = &config.topics.profile_changes;
    let told = json!({"user": user, "tombstone": topic.as_ref(), "at": at});
    say(json, &told, || {
        format!(
            "tombstone of user {user} is on {topic}; ingest erases what is not later than it\n\
             see it done: nearshore forget {user} --proof --wait 1m"
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn prove(
    config: &Config,
    store: &RedisStore,
    (user, how, wait, json): (&UserId, Look, Duration, bool),
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let receipt = loop {
        let receipt = forget::look(config, store, (user, how)).await?;
        if receipt.clean || start.elapsed() >= wait {
            break receipt;
        }
        let left = receipt.findings.iter();
        let left = left
            .filter(|it| it.verdict == forget::Verdict::Left)
            .count();
        eprintln!("{left} places with something left; looking again");
        tokio::time::sleep(LOOK_EVERY).await;
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&receipt)?);
    } else {
        print!("{}", receipt.text());
    }
    Ok(ExitCode::from(u8::from(!receipt.clean)))
}

async fn export(store: &RedisStore, path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let to_stdout = path == Path::new("-");
    let written = if to_stdout {
        forget::export(store, &mut io::stdout().lock()).await?
    } else {
        // Beside it first: an export that breaks off must not replace a whole one.
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
        say(json, &json!({"exported": written}), || {
            format!("{written} erased users in {}", path.display())
        });
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(store: &RedisStore, path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let cannot = || format!("cannot read {}", path.display());
    let input: Box<dyn Read + Send> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(cannot)?)
    };
    let done = forget::import(store, BufReader::new(input))
        .await
        .with_context(|| path.display().to_string())?;
    say(json, &serde_json::to_value(done)?, || {
        format!(
            "{} erased users read, {} tombstones raised, {} states cleaned",
            done.read, done.raised, done.cleaned
        )
    });
    Ok(ExitCode::SUCCESS)
}
