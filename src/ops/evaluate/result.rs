//! What an evaluation found: the values of `--json`, and the same as tables for a terminal.
//!
//! Invariant: everything but [`Times`] is a function of log, order and configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::user::record::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::history::History;
use super::measure::{Cell, Point, Summary, Targets};
use crate::ops::files::Logs;

/// The log that was read.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Log {
    /// Records of users.
    pub(crate) records: usize,
    /// Records that were refused, by code.
    pub(crate) rejects: BTreeMap<&'static str, u64>,
    /// Events of ignored types.
    pub(crate) ignored: u64,
    /// Users with a purchase of a known product.
    pub(crate) users: usize,
    /// Users without one.
    pub(crate) users_without_purchase: usize,
    /// Purchases of known products.
    pub(crate) purchases: usize,
    /// Purchases of SKUs or products that the catalogue does not have.
    pub(crate) purchases_unknown: u64,
    /// Products of the catalogue.
    pub(crate) products: usize,
    /// SKUs of the catalogue.
    pub(crate) skus: usize,
    /// First purchase.
    pub(crate) from: String,
    /// Last purchase.
    pub(crate) to: String,
}

impl Log {
    /// What reading says of a log.
    pub(super) fn of(logs: &Logs) -> Self {
        Self {
            records: logs.records.len(),
            rejects: logs.rejects.codes.clone(),
            ignored: logs.ignored,
            users: 0,
            users_without_purchase: 0,
            purchases: 0,
            purchases_unknown: 0,
            products: logs.catalogue.pus().len(),
            skus: logs.catalogue.sku_len(),
            from: String::new(),
            to: String::new(),
        }
    }

    /// What the replay adds.
    pub(super) fn replayed(self, history: &History) -> Self {
        let (from, to) = history.span.unwrap_or_default();
        Self {
            users: history.users.len(),
            users_without_purchase: history.idle,
            purchases: history.users.iter().map(|user| user.bought.len()).sum(),
            purchases_unknown: history.unknown,
            from: moment(from),
            to: moment(to),
            ..self
        }
    }
}

/// How it was measured.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Protocol {
    /// Seed of all that is random.
    pub(crate) seed: u64,
    /// Folds; 1 is one split.
    pub(crate) folds: usize,
    /// Days after a cut in which targets are bought.
    pub(crate) window_days: f64,
    /// Cut times.
    pub(crate) cuts: Vec<String>,
    /// Amounts of visible history.
    pub(crate) visible: Vec<String>,
    /// Train users, of the first fold.
    pub(crate) train_users: usize,
    /// Tune users, of the first fold.
    pub(crate) tune_users: usize,
    /// Test users, of the first fold.
    pub(crate) test_users: usize,
    /// Products whose log is withheld for the part on cold products.
    pub(crate) cold_products: usize,
    /// Test users whom a model is asked about, at the last cut.
    pub(crate) model_users: usize,
    /// Route that the others are compared with.
    pub(crate) baseline: String,
    /// Routes that know what was bought after the first cut: they have seen answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) informed: Vec<String>,
    /// Resamples of each interval.
    pub(crate) resamples: usize,
    /// Differences with an interval: of so many, one in twenty excludes 0 by chance.
    pub(crate) comparisons: usize,
}

/// How long it took. All else is the same in every run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Times {
    /// Seconds from log to result.
    pub(crate) seconds: f64,
    /// Milliseconds of one core that a route takes for a case.
    pub(crate) ms_per_user: BTreeMap<String, f64>,
}

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Evaluation {
    /// The log.
    pub(crate) log: Log,
    /// The protocol.
    pub(crate) protocol: Protocol,
    /// Names on lists that rules or stock forbid; must be 0.
    pub(crate) illegal: u64,
    /// Results by visible history and targets.
    pub(crate) cells: Vec<Cell>,
    /// Recall@10 by number of train users.
    pub(crate) curve: Vec<Point>,
    /// Results on products whose log was withheld.
    pub(crate) cold: Vec<Cell>,
    /// Times.
    pub(crate) times: Times,
}

/// A time as RFC 3339 text.
pub(crate) fn moment(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.to_string(),
        Err(_) => time.0.to_string(),
    }
}

/// The tables for a terminal.
pub(crate) fn text(of: &Evaluation) -> String {
    let mut text = String::new();
    let (log, how) = (&of.log, &of.protocol);
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "{} purchases of {} users, {} to {}; {} products, {} SKUs\n\
         cuts {}; targets: bought in the {} days after\n\
         users: {} train, {} tune, {} test{}; seed {}; intervals 95 %, {} resamples by user; {} comparisons\n",
        log.purchases,
        log.users,
        log.from,
        log.to,
        log.products,
        log.skus,
        how.cuts.join(", "),
        how.window_days,
        how.train_users,
        how.tune_users,
        how.test_users,
        if how.folds > 1 {
            format!(", in each of {} folds", how.folds)
        } else {
            String::new()
        },
        how.seed,
        how.resamples,
        how.comparisons,
    );
    for route in &how.informed {
        let _ = writeln!(
            text,
            "{route} was learned from purchases after the first cut and has seen answers: its figures are too good; \
             give a --cut after the artefact's time, or align on a shorter log\n"
        );
    }
    for cell in &of.cells {
        table(&mut text, cell, "", &of.times.ms_per_user);
    }
    for cell in &of.cold {
        let title = format!("cold products ({} without logs), ", how.cold_products);
        table(&mut text, cell, &title, &of.times.ms_per_user);
    }
    curve(&mut text, of);
    let _ = writeln!(
        text,
        "names on lists that rules or stock forbid: {}",
        of.illegal
    );
    text
}

fn table(text: &mut String, cell: &Cell, title: &str, times: &BTreeMap<String, f64>) {
    let targets = match cell.targets {
        Targets::All => "all targets",
        Targets::New => "new-to-user targets",
    };
    let next = cell
        .routes
        .first()
        .map_or(0.0, |route| route.next_popular.mean);
    let _ = writeln!(
        text,
        "{title}{} products visible, {targets}: {} users, {} cases; exclusive: next 20 popular {}\n\
         {:<26} {:>5}  {:<19} {:>5} {:>6} {:>6} {:>5} {:>5}  {:<24} {:>7}",
        cell.visible,
        cell.users,
        cell.cases,
        share(next),
        "route",
        "R@5",
        "R@10",
        "R@20",
        "NDCG",
        "nats",
        "cov.",
        "excl.",
        "R@10 - baseline",
        "ms/user",
    );
    for route in &cell.routes {
        let _ = writeln!(
            text,
            "{:<26} {:>5}  {:<19} {:>5} {:>6} {:>6} {:>5} {:>5}  {:<24} {:>7}",
            name(route, cell),
            share(route.recall[0].mean),
            interval(&route.recall[1]),
            share(route.recall[2].mean),
            share(route.ndcg.mean),
            route
                .nats
                .map_or("–".into(), |nats| format!("{:.3}", nats.mean)),
            share(route.coverage),
            share(route.exclusive.mean),
            route.difference.as_ref().map_or("baseline".into(), signed),
            times
                .get(&route.route)
                .map_or("–".into(), |ms| format!("{ms:.2}")),
        );
    }
    text.push('\n');
}

/// The route, with its number of cases where it was asked of a part of them.
fn name(route: &Summary, cell: &Cell) -> String {
    match route.recall[1].cases {
        cases if cases == cell.cases => route.route.clone(),
        cases => format!("{} ({cases})", route.route),
    }
}

fn curve(text: &mut String, of: &Evaluation) {
    let mut places: Vec<(String, Targets)> = Vec::new();
    let mut sizes: Vec<usize> = of.curve.iter().map(|point| point.train_users).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for point in &of.curve {
        let place = (point.visible.clone(), point.targets);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    for (visible, targets) in places {
        let targets_text = if targets == Targets::All {
            "all"
        } else {
            "new-to-user"
        };
        let sizes_text: String = sizes.iter().map(|size| format!(" {size:>6}")).collect();
        let _ = writeln!(
            text,
            "R@10 by train users, {visible} products visible, {targets_text} targets\n{:<26}{sizes_text}",
            "route"
        );
        let here = |point: &&Point| point.visible == visible && point.targets == targets;
        let mut routes: Vec<&str> = Vec::new();
        for point in of.curve.iter().filter(here) {
            if !routes.contains(&point.route.as_str()) {
                routes.push(&point.route);
            }
        }
        for route in routes {
            let _ = write!(text, "{route:<26}");
            for size in &sizes {
                let mut points = of.curve.iter().filter(here);
                let found = points.find(|point| point.route == route && point.train_users == *size);
                let shown = found.map_or("–".into(), |point| share(point.recall.mean));
                let _ = write!(text, " {shown:>6}");
            }
            text.push('\n');
        }
        text.push('\n');
    }
}

/// A share without its leading 0: `.169`.
fn share(value: f64) -> String {
    let text = format!("{value:.3}");
    match text.strip_prefix('0') {
        Some(rest) => rest.to_owned(),
        None => text.replace("-0.", "-."),
    }
}

fn interval(of: &Interval) -> String {
    format!("{} [{}, {}]", share(of.mean), share(of.low), share(of.high))
}

fn signed(of: &Interval) -> String {
    let plus = |value: f64| {
        let text = share(value);
        if text.starts_with('-') {
            text
        } else {
            format!("+{text}")
        }
    };
    format!("{} [{}, {}]", plus(of.mean), plus(of.low), plus(of.high))
}
