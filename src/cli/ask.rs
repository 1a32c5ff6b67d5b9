//! `refresh` and `sweep`: ask for lists on the backfill lane.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::sweep::{Asker, Why, Wish};
use nearshore_core::user::event::UserId;
use nearshore_kafka::Producer;
use nearshore_redis::RedisStore;

/// Arguments of `refresh`: filters add up.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).multiple(true)
    .args(["users", "all", "arm", "segment", "older_than", "pu"])))]
pub struct RefreshArgs {
    /// These users.
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// Every user with a state.
    #[arg(long, conflicts_with = "users")]
    all: bool,
    /// Only users of this arm.
    #[arg(long)]
    arm: Option<String>,
    /// Only users of this segment.
    #[arg(long)]
    segment: Option<String>,
    /// Only lists older than this (7days, 12h), and users without one.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only lists that show this product, by id or name: after it was renamed, say.
    #[arg(long)]
    pu: Option<String>,
    /// Also over lists that an arm of a higher epoch made: to go back to an older arm.
    #[arg(long)]
    force: bool,
    /// Namespace, instead of the configured one.
    #[arg(long)]
    namespace: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Asks for lists anew, from present state.
pub fn refresh(args: RefreshArgs) -> anyhow::Result<ExitCode> {
    if args.users.iter().any(String::is_empty) {
        eprintln!("the user id is empty");
        return Ok(ExitCode::from(2));
    }
    with_config(&args.common, |mut config| {
        let names = |arms: &[nearshore_core::list::prompt::Arm]| -> Vec<String> {
            arms.iter().map(|arm| arm.id.clone()).collect()
        };
        let segments = config.segments.iter().map(|segment| segment.id.clone());
        let segments: Vec<String> = segments.chain(["default".into()]).collect();
        for (option, asked, known) in [
            ("--arm", &args.arm, names(&config.arms)),
            ("--segment", &args.segment, segments),
        ] {
            if let Some(asked) = asked.as_ref().filter(|asked| !known.contains(asked)) {
                eprintln!(
                    "{option} {asked:?}: there is none; configured: {}",
                    known.join(", ")
                );
                return Ok(ExitCode::from(2));
            }
        }
        if !named(&mut config, args.namespace.as_deref()) {
            return Ok(ExitCode::from(2));
        }
        let wish = Wish {
            users: args
                .users
                .iter()
                .map(|user| UserId(user.as_str().into()))
                .collect(),
            arm: args.arm.clone(),
            segment: args.segment.clone(),
            older_than: args.older_than,
            pu: args.pu.clone(),
            force: args.force,
        };
        ask(&config, &Why::Refresh(wish), args.common.json)
    })
}

/// Asks for a list for each user whose list trails their state.
pub fn sweep(common: &Common, namespace: Option<&str>) -> anyhow::Result<ExitCode> {
    with_config(common, |mut config| {
        if !named(&mut config, namespace) {
            return Ok(ExitCode::from(2));
        }
        ask(&config, &Why::Sweep, common.json)
    })
}

fn named(config: &mut Config, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|name| super::name_namespace(config, name))
}

fn ask(config: &Config, why: &Why, json: bool) -> anyhow::Result<ExitCode> {
    block_on(async {
        let store = RedisStore::new(config.redis.clone());
        let store = store.context("redis.url; see `nearshore check`")?;
        let producer = Producer::new(&config.kafka)?;
        let asked = Asker::new(&store, &producer, config).all(why).await?;
        match json {
            true => println!(
                "{}",
                json!({"seen": asked.seen, "requested": asked.requested})
            ),
            false => println!(
                "{} users seen, {} lists requested on {}",
                asked.seen, asked.requested, config.topics.regen_backfill
            ),
        }
        Ok(ExitCode::SUCCESS)
    })
}
