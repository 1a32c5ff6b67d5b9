//! Commands about users and products: get, inspect, block, unblock.

use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;

use super::block_on;
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::ops::namespace;
use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::store::{Block, Namespaces, Stock};
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

pub(super) fn store(config: &Config) -> anyhow::Result<RedisStore> {
    RedisStore::new(config.redis.clone()).context("redis.url; see `nearshore check`")
}

pub(super) fn user_id(user: &str) -> anyhow::Result<UserId> {
    if user.is_empty() {
        bail!("the user id is empty");
    }
    Ok(UserId(user.into()))
}

/// What a client sees: the list of the active namespace, sold-out SKUs filtered; exit 1 if there is none.
pub fn get(config: &Config, user: &str, json: bool) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    block_on(async {
        let store = store(config)?;
        let ns = store
            .active()
            .await?
            .unwrap_or_else(|| config.namespace.clone());
        let Some(list) = namespace::served(&store, &ns, &user).await? else {
            eprintln!("no list for user {user} in namespace {ns}, nor a default fallback");
            return Ok(ExitCode::FAILURE);
        };
        if json {
            println!("{}", list.to_json());
        } else {
            print!("{}", text(&list));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn source(list: &Document) -> &'static str {
    match list.source {
        Source::Model => "model",
        Source::Fallback => "fallback",
    }
}

fn text(list: &Document) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "list {} ({}, arm {})\n",
        list.list_id,
        source(list),
        list.arm
    );
    for (nth, pu) in list.pus.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:>3}. {:<40} {}", nth + 1, pu.name, pu.skus.join(" "));
    }
    out
}

/// How the list came about.
pub fn inspect(config: &Config, user: &str, json: bool) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    block_on(async {
        let store = store(config)?;
        let inspector = namespace::Inspector::open(config, store).await?;
        let Some(view) = inspector.look(&user).await? else {
            eprintln!("nothing is known of user {user}");
            return Ok(ExitCode::FAILURE);
        };
        if json {
            println!("{}", serde_json::to_string_pretty(&view)?);
        } else {
            print!("{}", view.text());
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Takes a product out for everyone.
pub fn block(
    config: &Config,
    id: &str,
    (pu, reason): (bool, &str),
    json: bool,
) -> anyhow::Result<ExitCode> {
    block_on(async {
        let store = store(config)?;
        let skus = if pu {
            namespace::skus_of(config, id).await?
        } else {
            vec![id.to_string()]
        };
        let block = Block {
            id: id.into(),
            pu,
            skus,
            reason: reason.into(),
            by: std::env::var("USER").unwrap_or_else(|_| "unknown".into()),
            at: wall_clock(),
        };
        store.block(&block).await?;
        say(json, &serde_json::to_value(&block)?, || {
            format!(
                "{id} is out: {} SKUs, effective now for reads, within seconds for new lists",
                block.skus.len()
            )
        });
        Ok(ExitCode::SUCCESS)
    })
}

/// Undoes a block; exit 1 if there was none.
pub fn unblock(config: &Config, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    block_on(async {
        let store = store(config)?;
        let by = std::env::var("USER").unwrap_or_else(|_| "unknown".into());
        let was = store.unblock(id, &by, wall_clock()).await?;
        say(json, &json!({"id": id, "unblocked": was}), || {
            if was {
                format!("{id} is back, where in stock")
            } else {
                format!("{id} was not blocked")
            }
        });
        Ok(if was {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

pub(super) fn say(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    if json {
        println!("{value}");
    } else {
        println!("{}", text());
    }
}
