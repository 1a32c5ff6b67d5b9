//! `dlq list` and `dlq replay`.

use std::process::ExitCode;

use clap::Subcommand;

use super::{Common, block_on, with_config};
use crate::log::dlq;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print dead letters, oldest first: where they came from and what is wrong with them.
    #[command(after_help = "Examples:\n  nearshore dlq list --limit 20\n  nearshore dlq list --json | jq -r .code | sort | uniq -c")]
    List {
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Send dead letters to their topics again; resumable, for the place is kept in a consumer group.
    #[command(after_help = "Examples:\n  nearshore dlq replay --dry-run\n  nearshore dlq replay --code malformed_json --max-replays 2")]
    Replay {
        /// Only letters with this error code.
        #[arg(long)]
        code: Option<String>,
        /// Only letters that were replayed fewer times than this.
        #[arg(long, default_value_t = 2)]
        max_replays: u32,
        /// Say what would be sent, send nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { limit, common } => with_config(&common, |config| {
            block_on(async {
                for letter in dlq::list(&config.kafka, &config.topics.dlq, limit).await? {
                    if common.json {
                        println!("{}", serde_json::to_string(&letter)?);
                    } else {
                        println!("{letter}");
                    }
                }
                Ok(ExitCode::SUCCESS)
            })
        }),
        Command::Replay { code, max_replays, dry_run, common } => with_config(&common, |config| {
            block_on(async {
                let filter = dlq::Filter { code, max_replays, dry_run };
                let done = dlq::replay(&config.kafka, &config.topics.dlq, &filter).await?;
                if common.json {
                    println!("{}", serde_json::to_string(&done)?);
                } else {
                    let verb = if dry_run { "would be sent" } else { "sent" };
                    println!("{} {verb}, {} left out by the filter", done.sent, done.skipped);
                }
                Ok(ExitCode::SUCCESS)
            })
        }),
    }
}
