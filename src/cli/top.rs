//! `top`: what many processes do now, from their `/metrics`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Common, block_on, with_config};
use crate::ops::top::{Reading, Rounds};

/// Puts the cursor to the first place and clears what follows it.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Examples of its help.
pub(super) const EXAMPLES: &str = "Examples:\n  nearshore top --config nearshore.toml                     # the process of http.listen\n  nearshore top ingest-0:9464 ingest-1:9464 generate:9464   # a name that stands for several pods shows each\n  nearshore top generate:9464 --once --json | jq .total.lanes\n\nCtrl-C ends it. A process that does not answer is shown with the reason; the others go on.";

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Addresses of processes, host:port; without any that of http.listen.
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Time between two rounds, and most time for an answer.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Read two rounds, print the second, and end: with exit code 1 if no process answers.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs the command.
pub(super) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if args.every < Duration::from_millis(100) {
        note!("--every {:?} is too often; give at least 100ms", args.every);
        return Ok(ExitCode::from(2));
    }
    if !args.addresses.is_empty() {
        return block_on(watch(&args.addresses, args));
    }
    with_config(&args.common, |config| {
        block_on(watch(&[config.http.listen.to_string()], args))
    })
}

async fn watch(addresses: &[String], args: &TopArgs) -> anyhow::Result<ExitCode> {
    let mut rounds = Rounds::default();
    let mut every = tokio::time::interval(args.every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut nth = 0;
    loop {
        tokio::select! {
            _ = every.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
        let reading = tokio::select! {
            reading = rounds.read(addresses, args.every) => reading,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        nth += 1;
        if args.once && nth < 2 {
            continue;
        }
        show(&reading, args)?;
        if args.once {
            return Ok(ExitCode::from(u8::from(reading.answered == 0)));
        }
    }
}

fn show(reading: &Reading, args: &TopArgs) -> anyhow::Result<()> {
    if args.common.json {
        out!("{}", serde_json::to_string(reading)?);
        return Ok(());
    }
    let clear = match std::io::stdout().is_terminal() && !args.once {
        true => CLEAR,
        false => "",
    };
    out_part!("{clear}{}\n", reading.text());
    Ok(())
}
