//! `nearshore evaluate`: replays a log through the production fold, stops held-out users at cut times, and scores what
//! the routes would have listed by what was bought after.
//!
//! Decides who teaches and who tests, where the cuts are, and what is measured. Invariant: equal logs, order and
//! configuration give equal results, times apart, on any number of threads; test users' records and all records from a
//! cut on change no list. It does not know where the log came from, nor how results are shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;
use indicatif::ProgressBar;
use nearshore_core::learn::bootstrap::Resampling;
use nearshore_core::learn::measures::top;
use nearshore_core::learn::product_table::ProductTable;
use nearshore_core::learn::split::{Part, Shares, fold, part, uniform};
use nearshore_core::user::record::Timestamp;
use rayon::prelude::*;

use crate::config::Config;
use crate::ops::files::Logs;

pub(crate) mod align;
mod aligned;
mod arms;
pub(crate) mod asked_cases;
mod case;
pub(crate) mod choice;
pub(crate) mod compare;
pub(crate) mod head;
mod history;
mod measure;
pub(crate) mod model;
pub(crate) mod namespaces;
pub(crate) mod off_policy;
mod problem;
pub(crate) mod product_table;
pub(crate) mod records;
mod references;
pub(crate) mod related;
mod result;
mod routes;
pub(crate) mod samples;
mod shop;
pub(crate) mod since;
#[cfg(test)]
mod tests;
pub(crate) mod tune;
pub(crate) mod vectors;

pub(in crate::ops) use arms::Plain;
pub(crate) use case::Visible;
pub(in crate::ops) use case::{Case, CaseMaker};
pub(crate) use history::{History, UserHistory};
pub(crate) use measure::{Cell, Point, Targets};
pub(crate) use problem::Problem;
use problem::{check, check_fields};
pub(crate) use result::{Evaluation, moment, text};
use shop::{Knowledge, Shop};

use measure::{Asked, Board, measure};
use result::{Log, Protocol, Times};
pub(crate) use routes::BASELINE;
use routes::{Aligned, Route};

const DAY: i64 = 86_400_000;

/// Share of tune and of test users with one split.
const SHARES: Shares = Shares {
    tune: 0.2,
    test: 0.2,
};

/// Numbers of train users of the learning curve, before all of them.
const CURVE: [usize; 6] = [0, 3, 10, 30, 100, 300];

/// Cases that are ranked at once.
const CHUNK: usize = 32;

/// What is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Cut times; if empty, they are chosen from the log.
    pub(crate) cuts: Vec<Timestamp>,
    /// Time after a cut in which targets are bought.
    pub(crate) window: Duration,
    /// Amounts of visible history.
    pub(crate) visible: Vec<Visible>,
    /// 1: one split into train, tune and test; else so many cross-fitted folds, at least 3.
    pub(crate) folds: usize,
    /// Seed of all that is random.
    pub(crate) seed: u64,
    /// Resamples of each interval.
    pub(crate) resamples: usize,
    /// Whether the learning curve is measured.
    pub(crate) curve: bool,
    /// Share of products whose log is withheld for the part on cold products; 0 leaves it out.
    pub(crate) cold: f64,
    /// Whether the mixture of all terms is fitted at each cut.
    pub(crate) align: bool,
    /// Test users whom a model is asked about at the last cut; 0 asks no model.
    pub(crate) model_users: usize,
    /// Folder of the encoder that makes vectors of texts.
    pub(crate) encoder: Option<PathBuf>,
    /// The model's table of products.
    pub(crate) table: Option<Arc<ProductTable>>,
    /// Route that all others are compared with.
    pub(crate) baseline: String,
}

/// Where progress is shown.
pub(crate) struct Progress {
    /// Counts cases ranked.
    pub(crate) bar: ProgressBar,
}

/// Runs an evaluation.
pub(crate) fn evaluate(
    logs: Logs,
    order: &Order,
    config: &Config,
    progress: &Progress,
) -> anyhow::Result<Evaluation> {
    let since = Instant::now();
    check_fields(&logs, config)?;
    let log = Log::of(&logs);
    let mut history = History::replay(logs, config);
    let log = log.replayed(&history);
    check(&history, &log)?;
    history.read_meaning(config)?;
    if let Some(folder) = &order.encoder {
        // Nothing is written, so a value of one user may have a vector. Chosen by how many users have it, a vector could
        // tell of what comes after a cut.
        let vectors = vectors::vectors(&history, &vectors::load(folder)?, 1)?;
        history.read_texts(vectors);
    }
    if let Some(table) = &order.table {
        history.read_table(Arc::clone(table));
    }
    let cuts = cuts(&history, order)?;
    let mut run = Run::new(&history, order, config, &cuts)?;
    for split in run.splits()? {
        for cut in 0..cuts.len() {
            run.measure(&split, cut, progress)?;
        }
    }
    progress.bar.finish_and_clear();
    run.evaluation(log, since.elapsed())
}

/// One way to divide the users, by their numbers.
struct Split {
    train: Vec<u32>,
    tune: Vec<u32>,
    test: Vec<u32>,
}

/// An evaluation under way.
struct Run<'a> {
    history: &'a History,
    order: &'a Order,
    config: &'a Config,
    cuts: &'a [Timestamp],
    routes: Vec<Box<dyn Route>>,
    permitting: Plain,
    cold: FixedBitSet,
    main: Board,
    cold_board: Board,
    curve: BTreeMap<usize, Board>,
    users: [usize; 3],
    /// Time and number of cases of each route.
    times: Vec<(Duration, u64)>,
}

impl<'a> Run<'a> {
    fn new(
        history: &'a History,
        order: &'a Order,
        config: &'a Config,
        cuts: &'a [Timestamp],
    ) -> anyhow::Result<Self> {
        let counted = routes::counting().into_iter();
        let mut routes: Vec<Box<dyn Route>> = counted
            .map(|route| Box::new(route) as Box<dyn Route>)
            .collect();
        let (texts, table) = (history.texts.is_some(), history.table.is_some());
        let reading = routes::reading().into_iter();
        let reading = reading.filter(|route| route.can_read(texts, table));
        routes.extend(reading.map(|route| Box::new(route) as Box<dyn Route>));
        routes.push(Box::new(Aligned));
        routes.extend(arms::routes(config, order.model_users > 0)?);
        if !routes.iter().any(|route| route.name() == order.baseline) {
            let known: Vec<&str> = routes.iter().map(|route| route.name()).collect();
            return Err(Problem::Baseline {
                name: order.baseline.clone(),
                known: known.join("; "),
            }
            .into());
        }
        let pus = history.catalogue.pus();
        let mut cold = FixedBitSet::with_capacity(pus.len());
        for (nth, pu) in pus.iter().enumerate() {
            cold.set(nth, uniform(order.seed, &pu.id) < order.cold);
        }
        Ok(Self {
            times: vec![Default::default(); routes.len()],
            history,
            order,
            config,
            cuts,
            routes,
            permitting: Plain::permitting(config)?,
            cold,
            main: Board::default(),
            cold_board: Board::default(),
            curve: BTreeMap::new(),
            users: [0; 3],
        })
    }

    /// Divides the users. With folds each user is in one test part, and the next fold tunes.
    fn splits(&mut self) -> Result<Vec<Split>, Problem> {
        let (seed, folds) = (self.order.seed, self.order.folds);
        let users = || (0..).zip(&self.history.users);
        let parts = |nth: usize| {
            let mut split = Split {
                train: Vec::new(),
                tune: Vec::new(),
                test: Vec::new(),
            };
            for (user, history) in users() {
                let part = match folds {
                    0 | 1 => part(seed, &history.id.0, SHARES),
                    _ => match (fold(seed, &history.id.0, folds) + folds - nth) % folds {
                        0 => Part::Test,
                        1 => Part::Tune,
                        _ => Part::Train,
                    },
                };
                match part {
                    Part::Train => split.train.push(user),
                    Part::Tune => split.tune.push(user),
                    Part::Test => split.test.push(user),
                }
            }
            split
        };
        let splits: Vec<Split> = (0..folds.max(1)).map(parts).collect();
        let all = self.history.users.len();
        for split in &splits {
            for (name, is_empty) in [
                ("train", split.train.is_empty()),
                ("tune", split.tune.is_empty()),
                ("test", split.test.is_empty()),
            ] {
                if is_empty {
                    return Err(Problem::Part {
                        part: name,
                        seed,
                        users: all,
                    });
                }
            }
        }
        if let Some(first) = splits.first() {
            self.users = [first.train.len(), first.tune.len(), first.test.len()];
        }
        Ok(splits)
    }

    /// Measures one split at one cut: all, the learning curve, cold products.
    fn measure(&mut self, split: &Split, cut: usize, progress: &Progress) -> anyhow::Result<()> {
        let history = self.history;
        let all: Vec<&UserHistory> = split
            .train
            .iter()
            .map(|nth| &history.users[*nth as usize])
            .collect();
        let mut shop = self.shop(all.clone(), cut, false);
        let tuned = self.tuned(split);
        let fitted = self.align_all(&tuned, &mut shop, progress)?;
        let mut board = std::mem::take(&mut self.main);
        self.rank(&mut board, (split, cut), (&shop, true), progress)?;
        self.main = board;
        if self.order.curve {
            let mut by_hash = all.clone();
            let place = |user: &UserHistory| uniform(self.order.seed.wrapping_add(1), &user.id.0);
            by_hash.sort_by(|a, b| place(a).total_cmp(&place(b)).then_with(|| a.id.cmp(&b.id)));
            for size in CURVE.into_iter().filter(|size| *size < all.len()) {
                let mut shop = self.shop(by_hash[..size].to_vec(), cut, false);
                shop.aligned = self.align_few(&by_hash[..size], &shop, progress)?;
                let mut board = self.curve.remove(&size).unwrap_or_default();
                self.rank(&mut board, (split, cut), (&shop, false), progress)?;
                self.curve.insert(size, board);
            }
        }
        if self.cold.count_ones(..) > 0 {
            let mut shop = self.shop(all, cut, true);
            shop.aligned = self.align_cold(&tuned, fitted.as_ref(), &shop)?;
            let mut board = std::mem::take(&mut self.cold_board);
            self.rank(&mut board, (split, cut), (&shop, false), progress)?;
            self.cold_board = board;
        }
        Ok(())
    }

    fn shop(&self, users: Vec<&UserHistory>, cut: usize, cold: bool) -> Shop {
        let knowledge = Knowledge {
            history: self.history,
            config: self.config,
            users,
            cut: self.cuts[cut],
            window: millis(self.order.window),
            cold: cold.then_some(&self.cold),
        };
        knowledge.shop()
    }

    /// Ranks the cases of the test users by all routes; by those that are slow only where `slow` is set.
    fn rank(
        &mut self,
        board: &mut Board,
        (split, cut): (&Split, usize),
        (shop, slow): (&Shop, bool),
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let cases = self.cases(split, shop);
        let popular: Vec<Vec<u32>> = cases
            .par_iter()
            .map(|(_, case)| {
                top(&shop.household_weeks, 40, |it| {
                    case.permitted.contains(it as usize)
                })
            })
            .collect();
        let number = u16::try_from(cut).unwrap_or(u16::MAX);
        let all: Vec<usize> = (0..cases.len()).collect();
        let few: Vec<usize> = match slow && cut + 1 == self.cuts.len() {
            true => self.few(&cases),
            false => Vec::new(),
        };
        for (nth, route) in self.routes.iter().enumerate() {
            if !route.can_rank(shop) {
                continue;
            }
            let asked = if route.is_slow() { &few } else { &all };
            progress.bar.inc_length(asked.len() as u64);
            let one = |chunk: &[usize]| -> anyhow::Result<_> {
                let since = Instant::now();
                let chosen: Vec<&Case> = chunk.iter().map(|ix| &cases[*ix].1).collect();
                let ranked = route.rank(&chosen, shop)?;
                let took = since.elapsed();
                let measured = chunk.iter().zip(&ranked).map(|(ix, ranked)| {
                    let case = &cases[*ix].1;
                    (*ix, measure(case, number, ranked, (shop, &popular[*ix])))
                });
                let measured: Vec<_> = measured.collect();
                progress.bar.inc(chunk.len() as u64);
                Ok((measured, took))
            };
            let chunks: anyhow::Result<Vec<_>> = match route.is_slow() {
                true => asked.chunks(CHUNK).map(one).collect(),
                false => asked.par_chunks(CHUNK).map(one).collect(),
            };
            for (measured, took) in chunks? {
                self.times[nth].0 += took;
                self.times[nth].1 += measured.len() as u64;
                for (ix, measured) in measured {
                    let (visible, case) = &cases[ix];
                    board.add((*visible, nth), case, measured);
                }
            }
        }
        Ok(())
    }

    fn cases(&self, split: &Split, shop: &Shop) -> Vec<(usize, Case)> {
        let context = self.permitting.context();
        let maker = CaseMaker {
            shop,
            context: &context,
            window: self.config.state.window,
            visible: &self.order.visible,
            until: shop.cut.after(self.order.window),
            ns: &self.config.namespace,
        };
        let users = split.test.par_iter();
        let of = users.map(|nth| maker.cases(*nth, &self.history.users[*nth as usize]));
        of.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    /// The cases of the first users by hash, for routes that take long.
    fn few(&self, cases: &[(usize, Case)]) -> Vec<usize> {
        let place = |user: u32| {
            let id = &self.history.users[user as usize].id.0;
            uniform(self.order.seed.wrapping_add(2), id)
        };
        let mut users: Vec<u32> = cases.iter().map(|(_, case)| case.user).collect();
        users.sort_unstable();
        users.dedup();
        users.sort_by(|a, b| place(*a).total_cmp(&place(*b)).then(a.cmp(b)));
        users.truncate(self.order.model_users);
        users.sort_unstable();
        let chosen = |ix: &usize| users.binary_search(&cases[*ix].1.user).is_ok();
        (0..cases.len()).filter(chosen).collect()
    }

    /// Names of routes that know what was bought after the first cut.
    fn informed(&self) -> Vec<String> {
        let first = self.cuts.iter().min();
        let routes = self.routes.iter();
        let informed = routes.filter(|route| route.knows_until().as_ref() > first);
        informed.map(|route| route.name().to_owned()).collect()
    }

    fn evaluation(self, log: Log, took: Duration) -> anyhow::Result<Evaluation> {
        let names: Vec<String> = self
            .routes
            .iter()
            .map(|route| route.name().to_owned())
            .collect();
        let visible: Vec<String> = self.order.visible.iter().map(ToString::to_string).collect();
        let asked = Asked {
            baseline: (names.iter().position(|name| *name == self.order.baseline)).unwrap_or(0),
            routes: &names,
            visible: &visible,
            how: Resampling {
                seed: self.order.seed,
                resamples: self.order.resamples,
            },
        };
        let cells = self.main.cells(&asked);
        if cells.is_empty() {
            return Err(Problem::NoTarget.into());
        }
        let mut curve: Vec<Point> = Vec::new();
        for (users, board) in &self.curve {
            curve.extend(board.points(&asked, *users));
        }
        if self.order.curve {
            curve.extend(self.main.points(&asked, self.users[0]));
        }
        let cold = self.cold_board.cells(&asked);
        let compared = |cells: &[Cell]| -> usize {
            let all = cells.iter().flat_map(|cell| &cell.routes);
            all.filter(|route| route.difference.is_some()).count()
        };
        let points = curve
            .iter()
            .filter(|point| point.difference.is_some())
            .count();
        let protocol = Protocol {
            seed: self.order.seed,
            folds: self.order.folds.max(1),
            window_days: millis(self.order.window) as f64 / DAY as f64,
            cuts: self.cuts.iter().map(|cut| moment(*cut)).collect(),
            visible,
            train_users: self.users[0],
            tune_users: self.users[1],
            test_users: self.users[2],
            cold_products: self.cold.count_ones(..),
            model_users: self.order.model_users,
            baseline: self.order.baseline.clone(),
            informed: self.informed(),
            resamples: self.order.resamples,
            comparisons: compared(&cells) + compared(&cold) + points,
        };
        let times = names
            .iter()
            .zip(&self.times)
            .filter(|(_, (_, cases))| *cases > 0);
        let per_case = times.map(|(name, (took, cases))| {
            (name.clone(), took.as_secs_f64() * 1000.0 / *cases as f64)
        });
        Ok(Evaluation {
            log,
            protocol,
            illegal: self.main.illegal() + self.cold_board.illegal(),
            cells,
            curve,
            cold,
            times: Times {
                seconds: took.as_secs_f64(),
                ms_per_user: per_case.collect(),
            },
        })
    }
}

/// The cuts in time order: those of the order, or up to three whose windows end at the end of the log and before.
fn cuts(history: &History, order: &Order) -> Result<Vec<Timestamp>, Problem> {
    let (start, end) = history.span.unwrap_or_default();
    let window = millis(order.window);
    let mut cuts = order.cuts.clone();
    cuts.sort();
    cuts.dedup();
    if let Some(cut) = cuts.iter().find(|cut| **cut <= start || **cut > end) {
        return Err(Problem::Cut {
            cut: moment(*cut),
            from: moment(start),
            to: moment(end),
        });
    }
    if !cuts.is_empty() {
        return Ok(cuts);
    }
    // As much before the first cut as after it, so that there is something to learn from.
    let fits = |cut: i64| cut - start.0 >= window;
    let all = (1..=3)
        .map(|nth| end.0 + 1 - nth * window)
        .filter(|cut| fits(*cut));
    let mut cuts: Vec<Timestamp> = all.map(Timestamp).collect();
    cuts.sort();
    if cuts.is_empty() {
        let days = (end.0 - start.0) / DAY;
        return Err(Problem::Span {
            days,
            from: moment(start),
            to: moment(end),
            window: window / DAY,
            suggested: (days / 3).max(1),
        });
    }
    Ok(cuts)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
