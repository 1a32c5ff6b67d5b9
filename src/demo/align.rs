//! The demo's arm: aligned on the weeks before the demo's own, and shown beside the routes that it must beat.
//!
//! A quarter of the households teaches nothing: what they bought in the demo's weeks says what the arm is worth.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use super::data::{self, Purchase};
use super::progress::bar;
use crate::config::Config;
use crate::ops::evaluate::align::{AlignOptions, Among, fit, write_folder};
use crate::ops::evaluate::choice::{ChoiceOptions, choice};
use crate::ops::evaluate::compare::{Held, RouteRecall, compare};
use crate::ops::evaluate::{History, UserHistory};
use crate::ops::files::{Decoding, Logs, Topic};
use nearshore_core::learn::split::fold;
use nearshore_core::list::terms::artefact::Optional;
use nearshore_core::user::record::{Offset, Partition, Position, Record, Timestamp};

const WEEK_MS: i64 = 7 * 86_400_000;

/// Weeks before the demo's that the arm learns from: more would make the demo slower, and its lists hardly better.
const LEARN_WEEKS: u32 = 30;

/// Households are divided into so many parts, of which one teaches nothing.
const PARTS: usize = 4;

/// The arm's artefact, and what it is worth.
pub(super) struct DemoArm {
    /// Name of the artefact's folder, in the demo's folder.
    pub artefact: String,
    /// The arm first, then what it must beat.
    pub routes: Vec<RouteRecall>,
}

/// Aligns an arm on the purchases before the last `weeks`, and writes its artefact into `folder`.
pub(super) fn align(
    data: &Path,
    config: &Config,
    folder: &Path,
    weeks: u32,
) -> anyhow::Result<DemoArm> {
    let bar = bar("learning from earlier weeks", 11);
    let (logs, end) = logs(data, config, weeks)?;
    bar.inc(1);
    let history = History::replay(logs, config);
    bar.inc(1);
    let options = AlignOptions {
        window: i64::from(weeks) * WEEK_MS,
        // As few samples as there may be: the demo has three minutes.
        scores_max: 0,
        ..AlignOptions::default()
    };
    let cut = Timestamp(end - options.window);
    let teaches = |user: &&UserHistory| fold(options.seed, &user.id.0, PARTS) != 0;
    let (train, test): (Vec<&UserHistory>, Vec<&UserHistory>) =
        history.users.iter().partition(teaches);
    let fitted = fit(
        &history,
        config,
        (
            &options,
            Some(Among {
                users: train.clone(),
                until: cut,
            }),
        ),
        &|_| bar.inc(1),
    )?;
    let among = Among {
        users: train.clone(),
        until: cut,
    };
    let held = Held { train, test, cut };
    let routes = compare(&history, config, (&fitted, &options), held)?;
    let how = ChoiceOptions::new(options.seed, options.folds).quick();
    let chosen = choice(&history, config, (&among, how));
    bar.inc(1);
    let optional = Optional {
        choice: chosen.model(),
        ..Optional::default()
    };
    let (files, mut report) = fitted.artefact(&options, optional);
    report.choice = Some(chosen);
    let written = write_folder(folder, &files, &report)?;
    bar.finish();
    let name = written.file_name().unwrap_or_default();
    Ok(DemoArm {
        artefact: name.to_string_lossy().into_owned(),
        routes,
    })
}

/// The shop's log of the demo's weeks and those before, through the decoders of production; and the end of it.
fn logs(data: &Path, config: &Config, weeks: u32) -> anyhow::Result<(Logs, i64)> {
    let decoding = Decoding {
        topics: config.topics.clone(),
        limits: config.limits(),
        ignore: config.events.ignored(),
        naming: None,
    };
    let mut logs = Logs::default();
    let mut offset = 0;
    let mut add = |topic: Topic, key: &str, value: String, time: i64| {
        let record = record(topic, (key, value), (time, offset));
        offset += 1;
        logs.add(topic, &[record], &decoding, || format!("record {offset}"));
    };
    let mut bought = data::purchases(data, |_| true)?;
    let end = bought.last().map_or(0, |purchase| purchase.time) + 1;
    bought.retain(|purchase| purchase.time > end - i64::from(weeks + LEARN_WEEKS) * WEEK_MS);
    let start = bought.first().map_or(1, |purchase| purchase.time) - 1;
    for product in data::products(data)? {
        add(
            Topic::Catalog,
            &product.sku,
            product.record(20).to_string(),
            start,
        );
    }
    for household in data::households(data)? {
        add(
            Topic::Profiles,
            &household.user,
            household.profile().to_string(),
            start,
        );
    }
    for purchase in &bought {
        add(
            Topic::Events,
            &purchase.user,
            event(purchase),
            purchase.time,
        );
    }
    Ok((logs.finished(), end))
}

fn event(purchase: &Purchase) -> String {
    json!({"type": "purchase", "sku": purchase.sku, "qty": purchase.qty}).to_string()
}

fn record(topic: Topic, (key, value): (&str, String), (time, offset): (i64, i64)) -> Record {
    Record {
        position: Position {
            partition: Partition {
                incarnation: 0,
                topic: topic.name().into(),
                number: 0,
            },
            offset: Offset(offset),
        },
        time: Timestamp(time),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
    }
}

/// Recall@10 by route, four digits.
pub(super) fn recalls(routes: &[RouteRecall]) -> BTreeMap<&'static str, f64> {
    let digits = |of: &RouteRecall| (of.recall.mean * 1e4).round() / 1e4;
    routes.iter().map(|of| (of.route, digits(of))).collect()
}

/// The routes side by side.
pub(super) fn table(routes: &[RouteRecall]) -> String {
    use std::fmt::Write;
    let mut out = String::from(
        "Recall@10 of households that taught the arm nothing, by what they bought in the demo's weeks:\n",
    );
    for of in routes {
        let (recall, more) = (&of.recall, &of.arm_less_route);
        let _ = write!(
            out,
            "  {:<34} {:.3} [{:.3}, {:.3}]",
            describe(of.route),
            recall.mean,
            recall.low,
            recall.high
        );
        if of.route != "arm" {
            let _ = write!(
                out,
                "   the arm {:+.3} [{:+.3}, {:+.3}]",
                more.mean, more.low, more.high
            );
        }
        out.push('\n');
    }
    out
}

fn describe(route: &str) -> &str {
    match route {
        "arm" => "the arm: all terms, aligned",
        "demand" => "demand: what most buyers bought",
        "repeat" => "demand + repeat: what is due again",
        "neighbours" => "demand + neighbours (lift)",
        other => other,
    }
}
