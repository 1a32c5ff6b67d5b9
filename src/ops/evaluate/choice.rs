//! Fits how SKUs under a name are chosen, and measures it on the log: a part of what `nearshore align` does.
//!
//! Each choice is scored by a model that was fitted to the users of other folds, from what was known before it.
//! Invariant: what is fitted is used only where it puts first what was taken more often than the user's last SKU, else
//! the most popular, with an interval over 0; equal logs and seeds give equal models. It does not know files.

use std::collections::BTreeMap;

use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::learn::choice::ChoiceModel;
use nearshore_core::learn::choice::fit::{Samples, fit};
use nearshore_core::learn::choice::measure::{Again, Tally, Way, popular};
use nearshore_core::learn::choice::replay::{Bought, Choice, ReplayOptions, SkuTable, replay};
use nearshore_core::learn::split::{fold, uniform};
use nearshore_core::list::choice::{own_limits, sku_table};
use nearshore_core::list::select::best_chances;
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::Kind;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::align::{Among, TUNE_USERS_MIN};
use super::{History, millis};
use crate::config::Config;

/// How the choice is fitted and measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChoiceOptions {
    /// Seed of folds and samples.
    pub(crate) seed: u64,
    /// Number of folds.
    pub(crate) folds: usize,
    /// Most choices that are fitted to.
    pub(crate) samples_max: usize,
    /// Most choices that are measured.
    pub(crate) measured_max: usize,
    /// Most of them on which the probability of being the best is measured too, which takes a thousand times as long.
    pub(crate) best_max: usize,
}

impl ChoiceOptions {
    /// As `align` fits.
    pub(crate) fn new(seed: u64, folds: usize) -> Self {
        Self {
            seed,
            folds,
            samples_max: 12_000,
            measured_max: 200_000,
            best_max: 2_000,
        }
    }

    /// In a tenth of the time, for the demo.
    pub(crate) fn quick(self) -> Self {
        Self {
            samples_max: 3_000,
            measured_max: 20_000,
            best_max: 0,
            ..self
        }
    }
}

/// What was fitted and measured, for a person.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct ChoiceReport {
    /// Choices in the log.
    pub(crate) choices: usize,
    /// Choices that were fitted to.
    pub(crate) samples: usize,
    /// The measures of each way to choose.
    pub(crate) ways: BTreeMap<String, Way>,
    /// The same of four ways on fewer choices, with today's counts alone among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) with_best: BTreeMap<String, Way>,
    /// Hits at 1 of what was fitted over those of the user's last SKU, else the most popular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gain: Option<Interval>,
    /// What was fitted to all users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fitted: Option<ChoiceModel>,
    /// Why it is not used; empty if it is.
    pub(crate) reason: String,
}

impl ChoiceReport {
    /// The model, if it is to be used.
    pub(crate) fn model(&self) -> Option<&ChoiceModel> {
        self.fitted.as_ref().filter(|_| self.reason.is_empty())
    }
}

/// The user's last SKU, else the most popular.
const OWN_LAST: &str = "own last, else popular";
/// What is used without an artefact.
const DEFAULT: &str = "default";
/// What was fitted.
const FITTED: &str = "fitted";

/// The log as choices.
struct ChoiceLog<'a> {
    among: &'a Among<'a>,
    options: ChoiceOptions,
    table: SkuTable,
    bought: Vec<Bought>,
    replay: ReplayOptions,
    /// Number of choices.
    len: usize,
}

/// Fits the choice, and measures it.
pub(crate) fn choice(
    history: &History,
    config: &Config,
    (among, options): (&Among<'_>, ChoiceOptions),
) -> ChoiceReport {
    let log = ChoiceLog::new(history, config, (among, options));
    let samples = log.samples();
    if samples.samples.is_empty() {
        return ChoiceReport {
            choices: log.len,
            reason: "no purchase of one SKU among several of its product".into(),
            ..ChoiceReport::default()
        };
    }
    let held_out: Vec<Option<usize>> = (0..options.folds).map(Some).chain([None]).collect();
    let mut models: Vec<ChoiceModel> = held_out
        .into_par_iter()
        .map(|fold| fit(&samples, fold))
        .collect();
    let all = models.pop().unwrap_or_default();
    let (tally, with_best) = log.measured(&models);
    let gain = tally.gain(options.seed);
    let mut report = ChoiceReport {
        choices: log.len,
        samples: samples.samples.len(),
        ways: tally.ways(),
        with_best: with_best.ways(),
        gain: Some(gain),
        fitted: Some(all),
        reason: String::new(),
    };
    let nats = |way: &str| report.ways.get(way).map_or(0.0, |way| way.all.nats);
    report.reason = match gain {
        gain if gain.users < TUNE_USERS_MIN => {
            format!(
                "only {} users chose, fewer than {TUNE_USERS_MIN}",
                gain.users
            )
        }
        gain if !gain.above_zero() => {
            "it is no better than the user's last SKU, else the most popular".into()
        }
        _ if nats(FITTED) >= nats(DEFAULT) => {
            "its shares are no likelier than those of the default".into()
        }
        _ => String::new(),
    };
    report
}

impl<'a> ChoiceLog<'a> {
    fn new(
        history: &History,
        config: &Config,
        (among, options): (&'a Among<'a>, ChoiceOptions),
    ) -> Self {
        let mut bought = Vec::new();
        for (nth, user) in (0..).zip(&among.users) {
            let lines = user.counts.iter().filter(|line| {
                line.kind == CountKind::Event(Kind::Purchase) && line.time < among.until
            });
            bought.extend(lines.map(|line| Bought {
                at: line.time.0,
                user: nth,
                sku: line.sku.0,
                pieces: u32::try_from(line.n).unwrap_or(u32::MAX),
            }));
        }
        bought.sort_unstable();
        let (own_skus, own_purchases) = own_limits();
        let mut log = Self {
            among,
            options,
            table: sku_table(&history.catalogue),
            bought,
            replay: ReplayOptions {
                half_life_ms: millis(config.demand.half_life),
                own_skus,
                own_purchases,
            },
            len: 0,
        };
        log.len = log.replay(|_| ());
        log
    }

    fn replay(&self, each: impl FnMut(&Choice<'_>)) -> usize {
        replay(&self.table, &self.bought, self.replay, each)
    }

    /// Fold of a user.
    fn fold(&self, user: u32) -> usize {
        let id = &self.among.users[user as usize].id.0;
        fold(self.options.seed, id, self.options.folds)
    }

    /// A number from 0 to 1 for each choice, by which samples are taken: as many as are wanted on average.
    fn is_among(&self, choice: &Choice<'_>, most: usize) -> bool {
        let id = &self.among.users[choice.user as usize].id.0;
        let at = uniform(self.options.seed, &format!("{id} {}", choice.nth));
        at * (self.len as f64) < most as f64
    }

    fn samples(&self) -> Samples {
        let mut samples = Samples::default();
        self.replay(|choice| {
            if self.is_among(choice, self.options.samples_max) {
                samples.add(choice, self.fold(choice.user));
            }
        });
        samples
    }

    /// The measures, and those of few choices with the probability of being the best among the ways.
    fn measured(&self, models: &[ChoiceModel]) -> (Tally, Tally) {
        let (mut all, mut few, mut again) = (Tally::default(), Tally::default(), Again::default());
        let default = ChoiceModel::default();
        self.replay(|choice| {
            if !self.is_among(choice, self.options.measured_max) {
                return;
            }
            let popular = popular(choice);
            let own_last = again.own_last(choice, &popular);
            let candidates = choice.candidates();
            let shares = |model: &ChoiceModel| {
                model
                    .shares(&candidates)
                    .into_iter()
                    .map(f64::from)
                    .collect()
            };
            let (fitted, default): (Vec<f64>, Vec<f64>) =
                (shares(&models[self.fold(choice.user)]), shares(&default));
            let is_own = all.add(OWN_LAST, choice, &own_last);
            let is_fitted = all.add(FITTED, choice, &fitted);
            all.compare(choice.user, is_fitted, is_own);
            all.add("popular", choice, &popular);
            all.add(DEFAULT, choice, &default);
            if self.is_among(choice, self.options.best_max) {
                few.add("best by counts", choice, &best_chances(&choice.pieces()));
                few.add(OWN_LAST, choice, &own_last);
                few.add("popular", choice, &popular);
                few.add(FITTED, choice, &fitted);
            }
        });
        (all, few)
    }
}
