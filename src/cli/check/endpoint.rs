//! Checks models that are elsewhere: whether the server answers, has the model, and writes; and the matchers of all models
//! that write.
//!
//! Invariant: it asks each server for its models and for one short answer, about no user.

use std::time::Instant;

use super::Item;
use crate::config::Config;
use crate::run::{client, matcher_of};
use nearshore_core::list::prompt::{Arm, Endpoint};
use nearshore_remote::Error;

/// What is asked; the answer is not looked at.
const PROMPT: &str = "Write one word.";

/// Most tokens of the answer.
const TOKENS: u32 = 8;

/// Checks the files of arms of the mode `free`.
pub(super) fn files(config: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    for arm in config.arms.iter().filter(|arm| arm.is_free()) {
        let item = format!("arm {}: matcher", arm.id);
        items.push(match matcher_of(config, arm) {
            Ok(model) => Item::ok(
                item,
                format!(
                    "theta {:.3} for a precision of {}",
                    model.theta, model.precision
                ),
            ),
            Err(error) => Item::fail(item, format!("{error:#}")),
        });
        if arm.endpoint.as_ref().is_some_and(Endpoint::tells_its_key) {
            let found = "the key is sent without TLS";
            let advice = "write https:// in endpoint.url, unless the network encrypts by itself";
            items.push(Item::warn(format!("arm {}: endpoint", arm.id), found).advise(advice));
        }
    }
    items
}

/// Asks the servers.
pub(super) async fn answers(config: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    for (arm, endpoint) in elsewhere(config) {
        let short = Endpoint {
            max_tokens: TOKENS,
            retries: 0,
            ..endpoint.clone()
        };
        let item = |what: &str| format!("arm {}: {what}", arm.id);
        let client = match client(config, (arm, &short)) {
            Ok(client) => client,
            Err(error) => {
                items.push(Item::fail(item("endpoint"), format!("{error:#}")));
                continue;
            }
        };
        match client.models().await {
            Ok(models) if models.contains(&arm.model) => {
                items.push(Item::ok(
                    item("endpoint"),
                    format!("{} has {}", endpoint.url, arm.model),
                ));
            }
            Ok(models) => {
                let found = format!("the server lists {models:?}, not {:?}", arm.model);
                let advice =
                    "a server of one model may take any name; else write one of these as model";
                items.push(Item::warn(item("endpoint"), found).advise(advice));
            }
            Err(error) => {
                items.push(failed(item("endpoint"), &error));
                continue;
            }
        }
        let start = Instant::now();
        items.push(match client.complete(PROMPT).await {
            Ok(answer) => {
                let (tokens, took) = (answer.completion_tokens, start.elapsed().as_secs_f64());
                Item::ok(
                    item("model writes"),
                    format!("{tokens} tokens in {took:.1} s"),
                )
            }
            Err(error) => failed(item("model writes"), &error),
        });
    }
    items
}

fn failed(item: String, error: &Error) -> Item {
    let found = match error.said() {
        Some(said) => format!("{error}; it said: {said}"),
        None => error.to_string(),
    };
    Item::fail(item, found)
}

fn elsewhere(config: &Config) -> impl Iterator<Item = (&Arm, &Endpoint)> {
    let arms = config.arms.iter();
    arms.filter_map(|arm| Some((arm, arm.endpoint.as_ref()?)))
}
