//! Compares the arms of two namespaces on held-out users of the log: [`compare_namespaces`].
//!
//! Decides who is held out, and the cut: after all that an artefact of either arm has learned, if enough of the log is
//! left then. Each user is given the list of the arm that serves this user in each namespace. Invariant: equal logs and
//! configurations give equal results. It does not know which namespace is served.

use std::collections::BTreeMap;
use std::time::Duration;

use nearshore_core::learn::bootstrap::{Interval, Resampling, mean, paired};
use nearshore_core::learn::measures::{recall, top};
use nearshore_core::learn::split::uniform;
use nearshore_core::list::prompt::Arm;
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::user::record::Timestamp;
use rayon::prelude::*;

use super::problem::check;
use super::result::Log;
use super::routes::{Ranked, Route};
use super::shop::Shop;
use super::{
    CHUNK, Case, CaseMaker, DAY, History, Knowledge, Plain, Problem, UserHistory, Visible, arms,
    moment,
};
use crate::config::Config;
use crate::ops::files::Logs;

/// Names of the lists that are compared.
const LIST: usize = 10;

/// Seed of the split.
const SEED: u64 = 1;

/// Share of users who are held out.
const HELD_OUT: f64 = 0.4;

/// Held-out users where an arm asks a model: each takes the model's time.
const MODEL_USERS: usize = 100;

/// Longest time after the cut in which targets are bought, in milliseconds.
const WINDOW: i64 = 56 * DAY;

/// Least time after an artefact's end that is enough to judge it, in milliseconds.
const LEAST: i64 = 7 * DAY;

/// The arms of a namespace, and the configuration that has their files.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    /// The namespace.
    pub(crate) namespace: &'a str,
    /// Its configuration.
    pub(crate) config: &'a Config,
}

/// What the arms of two namespaces are worth to the same users.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compared {
    /// Recall@10 of the first namespace's arms.
    pub(crate) first: Interval,
    /// The same of the second.
    pub(crate) second: Interval,
    /// The second less the first.
    pub(crate) second_less_first: Interval,
    /// The cut.
    pub(crate) cut: String,
    /// Arms that know what was bought after the cut.
    pub(crate) informed: Vec<String>,
}

/// The arms of one side, by id.
struct Side {
    arms: Vec<Arm>,
    seed: String,
    routes: BTreeMap<String, Box<dyn Route>>,
}

impl Side {
    fn load(served: Served<'_>) -> anyhow::Result<Self> {
        let config = Config {
            arms: arms_for(served.namespace, &served.config.arms).into_owned(),
            ..served.config.clone()
        };
        let routes = arms::routes(&config, true)?;
        let ids = config.arms.iter().map(|arm| arm.id.clone());
        let mut by_name: BTreeMap<String, Box<dyn Route>> = routes
            .into_iter()
            .map(|route| (route.name().to_owned(), route))
            .collect();
        let routes = ids.filter_map(|id| {
            let route = by_name.remove(&format!("arm {id}"))?;
            Some((id, route))
        });
        Ok(Self {
            routes: routes.collect(),
            seed: config.arm_seed.clone(),
            arms: config.arms,
        })
    }

    fn knows_until(&self) -> Option<Timestamp> {
        let routes = self.routes.values();
        routes.filter_map(|route| route.knows_until()).max()
    }

    fn is_slow(&self) -> bool {
        self.routes.values().any(|route| route.is_slow())
    }
}

/// Ranks for held-out users by the arm that each has in either namespace.
///
/// Errors: [`Problem`] if the log has nothing to compare by; an arm whose files cannot be read.
pub(crate) fn compare_namespaces(
    logs: Logs,
    [first, second]: [Served<'_>; 2],
) -> anyhow::Result<Compared> {
    let config = second.config;
    let sides = [Side::load(first)?, Side::load(second)?];
    let log = Log::of(&logs);
    let history = History::replay(logs, config);
    let log = log.replayed(&history);
    check(&history, &log)?;
    let known = sides.iter().filter_map(Side::knows_until).max();
    let (cut, window) = cut(&history, known)?;
    let (train, test) = split(&history);
    let knowledge = Knowledge {
        history: &history,
        config,
        users: train,
        cut,
        window,
        cold: None,
    };
    let shop = knowledge.shop();
    let plain = Plain::permitting(config)?;
    let context = plain.context();
    let maker = CaseMaker {
        shop: &shop,
        context: &context,
        window: config.state.window,
        visible: &[Visible::More],
        until: cut.after(Duration::from_millis(window.unsigned_abs())),
        ns: second.namespace,
    };
    let held_out = test.into_par_iter();
    let cases = held_out.map(|(nth, user)| maker.cases(nth, user));
    let cases = cases.collect::<Vec<_>>().into_iter().flatten();
    let mut cases: Vec<Case> = cases.map(|(_, case)| case).collect();
    if sides.iter().any(Side::is_slow) {
        cases.truncate(MODEL_USERS);
    }
    if cases.is_empty() {
        return Err(Problem::NoTarget.into());
    }
    let mut found: Vec<Vec<f64>> = Vec::new();
    for side in &sides {
        found.push(recalls(side, &cases, &history, &shop)?);
    }
    let how = Resampling::default();
    let of = |nth: usize| cases.iter().map(|case| case.user).zip(found[nth].iter());
    let triples = of(1)
        .zip(&found[0])
        .map(|((user, new), old)| (user, *new, *old));
    let informed = sides.iter().flat_map(|side| &side.routes);
    let informed = informed.filter(|(_, route)| route.knows_until() > Some(cut));
    Ok(Compared {
        first: mean(of(0).map(|(user, value)| (user, *value)), how),
        second: mean(of(1).map(|(user, value)| (user, *value)), how),
        second_less_first: paired(triples, how),
        cut: moment(cut),
        informed: informed.map(|(id, _)| id.clone()).collect(),
    })
}

/// Recall of each case by the arm that its user has.
fn recalls(
    side: &Side,
    cases: &[Case],
    history: &History,
    shop: &Shop,
) -> anyhow::Result<Vec<f64>> {
    let mut found = vec![0.0; cases.len()];
    for (id, route) in &side.routes {
        let is_theirs = |case: &Case| {
            let user = &history.users[case.user as usize].id.0;
            arm_of(user, &side.seed, &side.arms).is_some_and(|arm| arm.id == *id)
        };
        let own: Vec<usize> = (0..cases.len())
            .filter(|nth| is_theirs(&cases[*nth]))
            .collect();
        let one = |chunk: &[usize]| -> anyhow::Result<Vec<(usize, f64)>> {
            let chosen: Vec<&Case> = chunk.iter().map(|nth| &cases[*nth]).collect();
            let ranked = route.rank(&chosen, shop)?;
            let of = chunk.iter().zip(&chosen).zip(ranked);
            let of = of.map(|((nth, case), ranked)| (*nth, recall_of(case, &ranked)));
            Ok(of.collect())
        };
        let chunks: anyhow::Result<Vec<_>> = match route.is_slow() {
            true => own.chunks(CHUNK).map(one).collect(),
            false => own.par_chunks(CHUNK).map(one).collect(),
        };
        for (nth, value) in chunks?.into_iter().flatten() {
            found[nth] = value;
        }
    }
    Ok(found)
}

fn recall_of(case: &Case, ranked: &Ranked) -> f64 {
    let list = match ranked {
        Ranked::Scores(scores) => top(scores, LIST, |pu| case.permitted.contains(pu as usize)),
        Ranked::List(list) => list.clone(),
    };
    // A case has a target: CaseMaker makes none without.
    recall(&list, &case.targets, LIST).unwrap_or_default()
}

/// Train users, and held-out users with their numbers, these in the order of a hash.
fn split(history: &History) -> (Vec<&UserHistory>, Vec<(u32, &UserHistory)>) {
    let place = |user: &UserHistory| uniform(SEED, &user.id.0);
    let users = (0..).zip(&history.users);
    let (mut test, train): (Vec<_>, Vec<_>) = users.partition(|(_, user)| place(user) < HELD_OUT);
    test.sort_by(|a, b| {
        place(a.1)
            .total_cmp(&place(b.1))
            .then_with(|| a.1.id.cmp(&b.1.id))
    });
    (train.into_iter().map(|(_, user)| user).collect(), test)
}

/// The cut, and the length of the window after it: a third of the log at most. A cut after what artefacts know is
/// preferred where a week of the log is left then.
fn cut(history: &History, known: Option<Timestamp>) -> Result<(Timestamp, i64), Problem> {
    let (start, end) = history.span.unwrap_or_default();
    let window = WINDOW.min((end.0 - start.0) / 3);
    if window < DAY {
        return Err(Problem::Span {
            days: (end.0 - start.0) / DAY,
            from: moment(start),
            to: moment(end),
            window: 1,
            suggested: 1,
        });
    }
    let cut = Timestamp(end.0 + 1 - window);
    let later = known.filter(|known| *known > cut && end.0 - known.0 >= LEAST);
    let cut = later.unwrap_or(cut);
    Ok((cut, end.0 + 1 - cut.0))
}
