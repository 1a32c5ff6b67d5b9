//! `dlq list` and `dlq replay`: commands about dead letters.

use std::process::ExitCode;

use clap::Subcommand;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::dlq as replay;
use crate::ops::dlq::{ReplayFate, ReplayOrder};
use nearshore_kafka::dlq::{DeadLetter, Filter};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the last dead letters, oldest first: where each came from and why it was rejected.
    #[command(
        after_help = "Examples:\n  nearshore dlq list --limit 20\n  nearshore dlq list --json | jq -r .code | sort | uniq -c"
    )]
    List {
        /// Most dead letters to print.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Send dead letters back to their topics, each once; an interrupted replay resumes.
    #[command(
        after_help = "Examples:\n  nearshore dlq replay --dry-run\n  nearshore dlq replay --code malformed_json --max-replays 2"
    )]
    Replay {
        /// Only dead letters with this error code.
        #[arg(long)]
        code: Option<String>,
        /// Only dead letters that were replayed fewer times than this.
        #[arg(long, default_value_t = 2)]
        max_replays: u32,
        /// Print what would be sent; send nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { limit, common } => with_config(&common, |config| {
            block_on(list(&config, limit, common.json))
        }),
        Command::Replay {
            code,
            max_replays,
            dry_run,
            common,
        } => with_config(&common, |config| {
            let filter = Filter {
                code,
                ..Filter::default()
            };
            let topic = config.topics.dlq.to_string();
            let order = ReplayOrder {
                topic,
                filter,
                replays_max: max_replays,
                dry_run,
            };
            block_on(send_back(&config, &order, common.json))
        }),
    }
}

async fn list(config: &Config, limit: usize, json: bool) -> anyhow::Result<ExitCode> {
    for dead_letter in
        replay::list(&config.kafka, &config.topics.dlq, &Filter::default(), limit).await?
    {
        if json {
            println!("{}", dead_letter.json());
        } else {
            println!("{}", line(&dead_letter));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(dead_letter: &DeadLetter) -> String {
    let place = match (
        &dead_letter.topic,
        dead_letter.partition,
        dead_letter.offset,
    ) {
        (Some(topic), Some(partition), Some(offset)) => format!("{topic}/{partition}:{offset}"),
        _ => "unknown".into(),
    };
    let key = dead_letter
        .key
        .as_deref()
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    format!(
        "{place}  {}  key {key:?}  {}",
        dead_letter.code, dead_letter.message
    )
}

async fn send_back(config: &Config, order: &ReplayOrder, json: bool) -> anyhow::Result<ExitCode> {
    let (mut sent, mut left, mut hindered) = (0u64, 0u64, 0u64);
    let on = |dead_letter: &DeadLetter, fate: &ReplayFate| match fate {
        ReplayFate::Replayed => sent += 1,
        ReplayFate::Left => left += 1,
        ReplayFate::Duplicate => left += 1,
        ReplayFate::Hindered(_) | ReplayFate::Refused(_) => {
            hindered += 1;
            let why = match fate {
                ReplayFate::Hindered(hindrance) => hindrance.to_string(),
                ReplayFate::Refused(why) => why.clone(),
                ReplayFate::Replayed | ReplayFate::Left | ReplayFate::Duplicate => String::new(),
            };
            eprintln!("{}: {why}", line(dead_letter));
        }
    };
    replay::replay(&config.kafka, order, on).await?;
    if json {
        println!(
            "{}",
            serde_json::json!({"sent": sent, "left": left, "hindered": hindered, "dry_run": order.dry_run})
        );
    } else {
        let verb = if order.dry_run {
            "would be sent back"
        } else {
            "sent back"
        };
        println!(
            "{sent} {verb}, {left} left out by the filter or as duplicates, {hindered} that cannot be sent back"
        );
    }
    Ok(ExitCode::SUCCESS)
}
