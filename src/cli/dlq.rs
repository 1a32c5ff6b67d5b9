//! `dlq list` and `dlq replay`: commands about dead letters.

use std::process::ExitCode;

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::dlq as replay;
use crate::ops::dlq::{ReplayFate, ReplayOrder};
use crate::ops::visible::{visible, visible_json};
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
        /// Only dead letters of this stage, such as `map` for records of mapped topics.
        #[arg(long)]
        stage: Option<String>,
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
            stage,
            max_replays,
            dry_run,
            common,
        } => with_config(&common, |config| {
            let filter = Filter {
                code,
                stage,
                ..Filter::default()
            };
            let topic = config.topics.dlq.to_string();
            let order = ReplayOrder {
                topic,
                filter,
                replays_max: max_replays,
                dry_run,
                topics: config.topics.clone(),
                limits: config.limits(),
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
            out!("{}", visible_json(&dead_letter.json().to_string()));
        } else {
            out!("{}", line(&dead_letter));
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
    let key = match &dead_letter.key {
        Some(key) => format!("key {:?}", String::from_utf8_lossy(key)),
        // The broker refused the key, too.
        None if dead_letter.value_dropped.is_some() && dead_letter.code != "no_key" => {
            "key not kept".into()
        }
        None => "no key".into(),
    };
    let (place, code) = (visible(&place), visible(&dead_letter.code));
    format!("{place}  {code}  {key}  {}", visible(&dead_letter.message))
}

/// What `dlq replay` did.
#[derive(Serialize, JsonSchema)]
pub(super) struct SentBack {
    /// Records that were sent to their topics, or would be.
    sent: u64,
    /// Dead letters that the filter leaves out, or that repeat.
    left: u64,
    /// Dead letters that cannot be sent back.
    hindered: u64,
    /// Whether nothing was sent.
    dry_run: bool,
}

/// A dead letter, as `dlq list` prints it.
#[derive(JsonSchema)]
#[allow(dead_code)]
pub(super) struct DeadLetterLine {
    /// Its place in the dlq.
    position: String,
    /// Its timestamp in milliseconds.
    time: i64,
    /// Topic of the original record.
    topic: Option<String>,
    /// Partition of the original record.
    partition: Option<i32>,
    /// Offset of the original record.
    offset: Option<i64>,
    /// The consumer group that could not use it.
    group: String,
    /// The step that failed.
    stage: String,
    /// Why it is there: docs/errors.md.
    code: String,
    /// What is wrong with it.
    message: String,
    /// How often it was sent back.
    replays: u32,
    /// Size of a value that the broker refused.
    value_dropped: Option<u64>,
    /// The key.
    key: Option<Shown>,
    /// The value.
    value: Option<Shown>,
    /// Names and values of its headers.
    headers: Vec<(String, Shown)>,
}

/// Text, or bytes that are not UTF-8.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Shown {
    /// Text.
    Text(String),
    /// Other bytes.
    Bytes {
        /// In hexadecimal digits.
        hex: String,
    },
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
            note!("{}: {}", line(dead_letter), visible(&why));
        }
    };
    replay::replay(&config.kafka, order, on).await?;
    if json {
        out!(
            "{}",
            serde_json::to_string(&SentBack {
                sent,
                left,
                hindered,
                dry_run: order.dry_run,
            })?
        );
    } else {
        let verb = if order.dry_run {
            "would be sent back"
        } else {
            "sent back"
        };
        out!(
            "{sent} {verb}, {left} left out by the filter or as duplicates, {hindered} that cannot be sent back"
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use nearshore_core::user::record::{Record, Timestamp};

    use super::*;

    fn dead_letter(key: Option<&'static [u8]>, headers: &[(&str, &str)]) -> DeadLetter {
        let header = |(name, value): &(&str, &str)| {
            ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes()))
        };
        DeadLetter::read(&Record {
            position: "0/dlq/0:1".parse().expect("valid"),
            time: Timestamp(0),
            key: key.map(Bytes::from_static),
            value: None,
            headers: headers.iter().map(header).collect(),
        })
    }

    #[test]
    fn a_record_without_a_key_is_told_apart_from_one_with_an_empty_key() {
        let code = ("nearshore.error.code", "no_key");
        for (key, headers, expected) in [
            (None, vec![code], "unknown  no_key  no key  "),
            (Some(&b""[..]), vec![], "unknown    key \"\"  "),
            (Some(b"a\xff"), vec![], "unknown    key \"a\u{fffd}\"  "),
            (
                None,
                vec![("nearshore.value.dropped", "9")],
                "unknown    key not kept  ",
            ),
        ] {
            assert_eq!(line(&dead_letter(key, &headers)), expected);
        }
    }

    #[test]
    fn what_cannot_be_seen_in_a_dead_letter_is_escaped() {
        let message = (
            "__connect.errors.exception.message",
            "type \u{202e}\u{1b}[2J",
        );
        let line = line(&dead_letter(Some("\u{202e}".as_bytes()), &[message]));
        assert_eq!(
            line,
            "unknown    key \"\\u{202e}\"  type \\u{202e}\\u{1b}[2J"
        );
    }
}
