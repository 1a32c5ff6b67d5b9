//! `tap`: follows the records of one user, live.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::users::user_id;
use super::{Common, block_on, with_config};
use crate::ops::tap::{Bounds, tap};
use crate::ops::visible::{visible, visible_json};

/// Arguments of `tap`.
#[derive(Debug, Args)]
pub(super) struct TapArgs {
    /// User id.
    #[arg(long, value_name = "USER")]
    user: String,
    /// End after so many records.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// End after so much time.
    #[arg(long = "for", value_name = "TIME", default_value = "10min", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    common: Common,
}

/// Runs the command.
pub(super) fn run(args: &TapArgs) -> anyhow::Result<ExitCode> {
    let user = user_id(&args.user)?;
    let json = args.common.json;
    with_config(&args.common, |config| {
        block_on(async {
            let bounds = Bounds {
                records: args.limit as usize,
                time: args.time,
            };
            let ready = || note!("following user {}; Ctrl-C ends it", visible(&user.0));
            let work = tap(&config, &user, bounds, ready, |seen| {
                match json {
                    true => out!("{}", visible_json(&serde_json::to_string(seen)?)),
                    false => out!("{}", seen.line()),
                }
                Ok(())
            });
            tokio::select! {
                seen = work => note!("{} records of user {}", seen?, visible(&user.0)),
                _ = tokio::signal::ctrl_c() => {}
            }
            Ok(ExitCode::SUCCESS)
        })
    })
}
