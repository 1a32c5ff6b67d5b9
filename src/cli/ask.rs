//! `refresh` and `sweep`: request lists on the backfill lane.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::sweep::{ListRequester, Purpose, RefreshFilter};
use nearshore_core::user::event::UserId;
use nearshore_kafka::Producer;
use nearshore_redis::RedisStore;

/// Arguments of `refresh`; a user is selected if all filters match.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).multiple(true)
    .args(["users", "all", "arm", "segment", "older_than", "pu"])))]
pub(super) struct RefreshArgs {
    /// Only this user; may be given more than once.
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
    /// Only lists older than this (7days, 12h), and users without a list.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only lists that show this product, by id or name; for example after it was renamed.
    #[arg(long)]
    pu: Option<String>,
    /// Also replace lists that an arm of a higher epoch made; needed to go back to an older arm.
    #[arg(long)]
    force: bool,
    /// Namespace to use instead of the configured one.
    #[arg(long)]
    namespace: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Requests new lists, made from the present state.
pub(super) fn refresh(args: RefreshArgs) -> anyhow::Result<ExitCode> {
    if args.users.iter().any(String::is_empty) {
        note!("--user \"\": the user id is empty; give an id");
        return Ok(ExitCode::from(2));
    }
    with_config(&args.common, |mut config| {
        let names = |arms: &[nearshore_core::list::prompt::Arm]| -> Vec<String> {
            arms.iter().map(|arm| arm.id.clone()).collect()
        };
        let segments = config.segments.iter().map(|segment| segment.id.clone());
        let segments: Vec<String> = segments.chain(["default".into()]).collect();
        for (option, value, known) in [
            ("--arm", &args.arm, names(&config.arms)),
            ("--segment", &args.segment, segments),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !known.contains(value)) {
                note!(
                    "{option} {value:?} is not configured; give one of: {}",
                    known.join(", ")
                );
                return Ok(ExitCode::from(2));
            }
        }
        if !namespace_is_valid(&mut config, args.namespace.as_deref()) {
            return Ok(ExitCode::from(2));
        }
        let filter = RefreshFilter {
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
        request_lists(&config, &Purpose::Refresh(filter), args.common.json)
    })
}

/// Requests a list for each user whose list trails their state.
pub(super) fn sweep(common: &Common, namespace: Option<&str>) -> anyhow::Result<ExitCode> {
    with_config(common, |mut config| {
        if !namespace_is_valid(&mut config, namespace) {
            return Ok(ExitCode::from(2));
        }
        request_lists(&config, &Purpose::Sweep, common.json)
    })
}

fn namespace_is_valid(config: &mut Config, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|name| super::use_namespace(config, name))
}

/// What `refresh` and `sweep` requested.
#[derive(Serialize, JsonSchema)]
pub(super) struct Requested {
    /// Users that were looked at.
    seen: u64,
    /// Lists that were requested.
    requested: u64,
}

fn request_lists(config: &Config, purpose: &Purpose, json: bool) -> anyhow::Result<ExitCode> {
    block_on(async {
        let store = RedisStore::new(config.redis.clone());
        let store = store.context("redis.url; see `nearshore check`")?;
        let producer = Producer::new(&config.kafka)?;
        let counts = ListRequester::new(&store, &producer, config)
            .all(purpose)
            .await?;
        match json {
            true => out!(
                "{}",
                serde_json::to_string(&Requested {
                    seen: counts.seen,
                    requested: counts.requested,
                })?
            ),
            false => out!(
                "{} users seen, {} lists requested on {}",
                counts.seen,
                counts.requested,
                config.topics.regen_backfill
            ),
        }
        Ok(ExitCode::SUCCESS)
    })
}
