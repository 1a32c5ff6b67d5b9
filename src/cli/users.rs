//! `get`, `inspect`, `block` and `unblock`: commands about one user or one product.

use std::borrow::Cow;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::Serialize;

use super::block_on;
use crate::config::Config;
use crate::files;
use crate::members::clock::wall_clock;
use crate::ops::namespace;
use crate::ops::visible::{visible, visible_json, visible_lines};
use nearshore_core::list::document::Document;
use nearshore_core::ports::store::{Block, Namespaces, Stock};
use nearshore_core::text::normalise;
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

pub(super) fn store(config: &Config) -> anyhow::Result<RedisStore> {
    RedisStore::new(config.redis.clone()).context("redis.url; see `nearshore check`")
}

pub(super) fn user_id(user: &str) -> anyhow::Result<UserId> {
    if user.is_empty() {
        bail!("the user id is empty; give an id");
    }
    Ok(UserId(user.into()))
}

/// Prints the list that a client sees: of the active namespace, without sold-out SKUs; exit code 1 if there is none.
pub(super) fn get(config: &Config, user: &str, json: bool) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    block_on(async {
        let store = store(config)?;
        let ns = served_namespace(config, &store).await?;
        let Some(list) = namespace::served(&store, &ns, &user).await? else {
            note!(
                "namespace {ns} has no list of user {} and no default fallback; is `nearshore run` up?",
                visible(&user.0)
            );
            return Ok(ExitCode::FAILURE);
        };
        if json {
            out!("{}", visible_json(&list.to_json()));
        } else {
            out_part!("{}", text(&list));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn source(list: &Document) -> &'static str {
    list.source.into()
}

fn text(list: &Document) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "list {} ({}, arm {})\n",
        visible(&list.list_id),
        source(list),
        visible(&list.arm)
    );
    for (nth, pu) in list.pus.iter().enumerate() {
        // Writing to a String cannot fail.
        let (name, skus) = (visible(&pu.name), visible(&pu.skus.join(" ")));
        let _ = writeln!(out, "{:>3}. {name:<40} {skus}", nth + 1);
    }
    out
}

/// Prints how the user's list was made; exit code 1 if nothing is stored of the user.
pub(super) fn inspect(config: &Config, user: &str, json: bool) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    block_on(async {
        let store = store(config)?;
        let inspector = namespace::Inspector::open(config, store).await?;
        let Some(view) = inspector.inspect(&user).await? else {
            note!("nothing is stored of user {}", visible(&user.0));
            return Ok(ExitCode::FAILURE);
        };
        if json {
            out!("{}", visible_json(&serde_json::to_string_pretty(&view)?));
        } else {
            out_part!("{}", view.text());
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Says why a product is not on the user's list.
pub(super) fn why_not(
    config: &Config,
    user: &str,
    product: &str,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    block_on(async {
        let store = store(config)?;
        let answer = namespace::why_not(config, store, &user, product).await?;
        if json {
            out!("{}", visible_json(&serde_json::to_string(&answer)?));
        } else {
            out_part!("{}", answer.text());
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints the list that the user would have with the events of a file; `-` is standard input.
pub(super) fn what_if(
    config: &Config,
    user: &str,
    events: &Path,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let user = user_id(user)?;
    let text = match events.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()).context("standard input")?,
        false => files::read(events)?,
    };
    block_on(async {
        let store = store(config)?;
        let found = namespace::what_if(config, store, &user, &text).await;
        let found = found.with_context(|| format!("--what-if {}", events.display()))?;
        match json {
            true => out!("{}", visible_json(&serde_json::to_string(&found)?)),
            false => out_part!("{}", found.text()),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The namespace that is served. While none is, it is the configured one, and a note says so.
pub(super) async fn served_namespace(
    config: &Config,
    store: &RedisStore,
) -> anyhow::Result<String> {
    if let Some(active) = store.active().await? {
        return Ok(active);
    }
    let ns = &config.namespace;
    note!(
        "no namespace is served: Redis has no key nearshore:active; namespace {ns} of the configuration is read instead"
    );
    Ok(ns.clone())
}

/// The id of a SKU or PU in its normal form, as the catalogue has it.
fn product_id(id: &str) -> anyhow::Result<Cow<'_, str>> {
    let normal = normalise(id);
    if normal.is_empty() {
        bail!("the id is empty; give the id of a SKU, or with --pu of a PU");
    }
    Ok(normal)
}

/// Takes a product off all lists.
pub(super) fn block(
    config: &Config,
    id: &str,
    pu: bool,
    reason: &str,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let id = &*product_id(id)?;
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
        print_result(json, &serde_json::to_value(&block)?, || {
            format!(
                "{id} is blocked: {} SKUs; reads leave it out now, new lists within seconds",
                block.skus.len()
            )
        });
        if !pu {
            warn_of_unknown(config, id).await;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Says if the catalogue does not have the blocked SKU. The block is in force before, and stays: its SKU may come
/// later.
async fn warn_of_unknown(config: &Config, id: &str) {
    match namespace::unknown_sku(config, id).await {
        Ok(None) => {}
        Ok(Some(what)) => note!(
            "warning: the block matches nothing now: {what}; it holds if the catalogue gets this SKU; to undo it: \
             nearshore unblock {id}"
        ),
        Err(error) => note!(
            "the block is in force; whether the catalogue has this SKU is not known: {error:#}"
        ),
    }
}

/// What `unblock` did.
#[derive(Serialize, JsonSchema)]
pub(super) struct Unblocked<'a> {
    /// The id of the SKU or PU.
    id: &'a str,
    /// Whether it was blocked.
    unblocked: bool,
}

/// Undoes a block; exit code 1 if there was none.
pub(super) fn unblock(config: &Config, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    block_on(async {
        let store = store(config)?;
        let by = std::env::var("USER").unwrap_or_else(|_| "unknown".into());
        let mut was_blocked = store.unblock(id, &by, wall_clock()).await?;
        let normal = product_id(id)?;
        if !was_blocked && normal != id {
            was_blocked = store.unblock(&normal, &by, wall_clock()).await?;
        }
        let result = Unblocked {
            id,
            unblocked: was_blocked,
        };
        print_result(json, &serde_json::to_value(result)?, || {
            if was_blocked {
                format!("{id} is unblocked; SKUs in stock are listed again")
            } else {
                format!("{id} was not blocked")
            }
        });
        Ok(if was_blocked {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// Prints a result: the value if JSON was asked for, or else the text.
pub(super) fn print_result(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    if json {
        out!("{}", visible_json(&value.to_string()));
    } else {
        out!("{}", visible_lines(&text()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_in_a_list_is_escaped() {
        let doc = r#"{"schema":1,"list_id":"0","arm":"a","source":"model","at":1,"segment":"default",
            "names":["TEA \u202e\u001b[2J"],"scores":[-1.0],"skus":[["s\u200b"]]}"#;
        let list = Document::parse(doc).expect("a list");
        let shown = text(&list);
        assert!(shown.contains("TEA \\u{202e}\\u{1b}[2J"), "{shown}");
        assert!(shown.contains("s\\u{200b}"), "{shown}");
    }
}
