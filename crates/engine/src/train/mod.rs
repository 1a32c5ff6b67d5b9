//! Training of a model by the score that ranks names: adapters (LoRA) and full tuning.
//!
//! Decides the order of the work: cases are drawn in passes over all of them, gradients of some are summed to a step,
//! and every so many steps the *tune* cases, which nothing is learned from, are looked at. What had the least loss on
//! them is what is written. Invariant: equal cases, options and names give equal files on the CPU, bit for bit, also
//! where a process was killed in between; and what is written is never worse on the tune cases than the model before.
//! It does not know where cases come from.

mod adamw;
mod checkpoint;
mod loss;
mod network;
mod ops;
mod options;
#[cfg(test)]
mod reference;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use fixedbitset::FixedBitSet;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use loss::TuneCase;
pub use options::{Lora, Target, Trained, TuneOptions};

use crate::Error;
use crate::formats::open::open;
use crate::formats::text::Text;
use crate::search::index::sequences;
use adamw::{Moments, Sum};
use checkpoint::{Checkpoint, State};
use loss::Drawn;
use nearshore_core::learn::bootstrap::Random;
use nearshore_core::names::scoring::Prompt;
use nearshore_core::names::search::{Question, Search};
use nearshore_core::names::trie::{Permitted, Trie};
use network::Network;
use rows::Rows;

/// Why a model is not trained. What was written before stays.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The model cannot be loaded or computed.
    #[error(transparent)]
    Model(#[from] Error),
    /// The model or the options are not supported.
    #[error("{0}")]
    Refused(String),
    /// A case cannot be scored.
    #[error("case {case}: {what}")]
    Case {
        /// Number of the case.
        case: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The loss or its gradient is no number.
    #[error(
        "the {what} of step {step} is not a finite number: training stops; the last checkpoint, if one was written, stays. \
         Try a lower rate"
    )]
    Loss {
        /// Number of the step, counted from 1.
        step: usize,
        /// `loss`, `gradient` or `loss on tune cases`.
        what: &'static str,
    },
    /// A file of the output folder.
    #[error("{path}: {what}")]
    Checkpoint {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl From<candle_core::Error> for TuneError {
    fn from(source: candle_core::Error) -> Self {
        Self::Model(Error::Compute {
            what: "training".into(),
            source: Box::new(source),
        })
    }
}

/// A step that was done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Step {
    /// Its number, counted from 1; 0 is the first look at the tune cases.
    pub step: usize,
    /// Mean loss of its cases, in nats; 0 at the first look.
    pub loss: f64,
    /// Mean loss of the tune cases, where they were looked at.
    pub tune: Option<f64>,
}

/// What training did.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Tuned {
    /// Numbers that are trained.
    pub numbers: usize,
    /// Cases learned from.
    pub cases: usize,
    /// Cases that decide when to stop.
    pub tune_cases: usize,
    /// Steps done.
    pub steps: usize,
    /// Mean loss of the mixture alone on tune cases, in nats: what the model must beat to be worth anything.
    pub mixture: f64,
    /// Mean loss on tune cases before the first step, in nats.
    pub before: f64,
    /// The least mean loss on tune cases: that of what is written.
    pub after: f64,
    /// The step that had it.
    pub best_step: usize,
    /// Whether training ended because the tune cases no longer got better.
    pub stopped_early: bool,
}

/// A model, names and options, ready to train.
pub struct Tuner {
    path: PathBuf,
    revision: String,
    text: Text,
    names: Vec<String>,
    trie: Trie,
    network: Network,
    options: TuneOptions,
}

/// A case with its tokens.
struct Prepared<'a> {
    case: &'a TuneCase,
    tokens: Vec<u32>,
}

impl Tuner {
    /// Loads a model in f32 on the CPU and indexes the catalogue's names.
    pub fn open(path: &Path, names: Vec<String>, options: TuneOptions) -> Result<Self, TuneError> {
        let model = open(path)?;
        let geometry = model.geometry();
        let problem = network::refuses(geometry)
            .or_else(|| write::refuses(&options.trained, path))
            .or_else(|| options.problem(geometry.layers));
        if let Some(problem) = problem {
            return Err(TuneError::Refused(problem));
        }
        let (text, revision) = (model.text()?, model.base_revision()?);
        let trie = Trie::build(&sequences(&text, &names)?);
        let base = model.without_layers()?;
        let mut network = Network::new(&base, &options.trained, &Device::Cpu, options.seed)?;
        drop(base);
        for nth in 0..model.geometry().layers {
            network.push(&model.layer(nth)?)?;
        }
        Ok(Self {
            path: path.to_owned(),
            revision,
            text,
            names,
            trie,
            network,
            options,
        })
    }

    /// The model's path score of each of `names` after a prompt, among `products`: what training changes.
    pub fn scores(
        &self,
        prompt: &Prompt,
        products: &[u32],
        names: &[u32],
    ) -> Result<Vec<f32>, TuneError> {
        let tokens = self.text.prompt(prompt)?;
        let rows = self.rows(&tokens, products, names);
        Ok(self.network.scores(&rows)?.to_vec1()?)
    }

    /// Trains on `cases` and writes what was best to `folder`, which has checkpoints meanwhile. `each` is told of every
    /// step and may stop there; then nothing is returned, and the last checkpoint stays.
    pub fn run(
        &mut self,
        cases: &[TuneCase],
        folder: &Path,
        resume: bool,
        each: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Option<Tuned>, TuneError> {
        let prepared = self.prepare(cases)?;
        let (tune, taught): (Vec<Prepared>, Vec<Prepared>) =
            prepared.into_iter().partition(|one| one.case.is_tune);
        if tune.is_empty() || taught.is_empty() {
            return Err(TuneError::Refused(format!(
                "{} cases to learn from and {} tune cases: training needs both, for nothing else would stop a model from \
                 learning its cases by heart",
                taught.len(),
                tune.len()
            )));
        }
        std::fs::create_dir_all(folder).map_err(|e| checkpoint::failed(folder, e))?;
        let begun = self.begin(folder, resume, (cases, &tune), each)?;
        let ControlFlow::Continue((mut moments, mut kept)) = begun else {
            return Ok(None);
        };
        let mut order = Order::new(taught.len(), self.options.seed);
        while kept.state.step < self.options.steps && kept.state.worse < self.options.patience {
            let step = kept.state.step;
            let loss = self.step(step, &taught, &mut order, &mut moments)?;
            kept.state.step += 1;
            let is_last = kept.state.step == self.options.steps;
            let is_look = kept
                .state
                .step
                .is_multiple_of(self.options.checkpoint_every)
                || is_last;
            let tune = match is_look {
                true => Some(self.look(&mut kept, &tune)?),
                false => None,
            };
            if is_look {
                kept.write(folder, self.network.parameters(), &moments)?;
            }
            let step = kept.state.step;
            if each(Step { step, loss, tune }).is_break() {
                return Ok(None);
            }
        }
        self.write(folder, &kept)?;
        for (var, best) in self.network.parameters().vars.iter().zip(&kept.best) {
            var.set(best)?;
        }
        let numbers = self.network.parameters().vars.iter();
        Ok(Some(Tuned {
            numbers: numbers.map(|var| var.elem_count()).sum(),
            cases: taught.len(),
            tune_cases: tune.len(),
            steps: kept.state.step,
            mixture: tune.iter().map(|one| one.case.mixture_loss()).sum::<f64>()
                / tune.len() as f64,
            before: f64::from_bits(kept.state.before),
            after: f64::from_bits(kept.state.best),
            best_step: kept.state.best_step,
            stopped_early: kept.state.step < self.options.steps,
        }))
    }

    fn prepare<'a>(&self, cases: &'a [TuneCase]) -> Result<Vec<Prepared<'a>>, TuneError> {
        let mut prepared = Vec::with_capacity(cases.len());
        for (nth, case) in cases.iter().enumerate() {
            if let Some(what) = case.problem(self.names.len()) {
                return Err(TuneError::Case { case: nth, what });
            }
            let tokens = self.text.prompt(&case.prompt)?;
            let limit = self.network.geometry().context;
            if tokens.len() + self.trie.depth() > limit {
                let tokens = tokens.len();
                return Err(Error::TooLong { tokens, limit }.into());
            }
            prepared.push(Prepared { case, tokens });
        }
        Ok(prepared)
    }

    /// Reads the checkpoint, or looks at the tune cases for the first time.
    fn begin(
        &self,
        folder: &Path,
        resume: bool,
        (cases, tune): (&[TuneCase], &[Prepared]),
        each: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), (Moments, Checkpoint)>, TuneError> {
        let parameters = self.network.parameters();
        let mut moments = Moments::new(&parameters.vars)?;
        let run = self.fingerprint(cases);
        let device = self.network.device();
        let path = folder.join(checkpoint::FILE);
        if !resume && path.exists() {
            let what = "is there: resume from it, or give another folder";
            return Err(checkpoint::failed(&path, what));
        }
        if let Some(kept) = Checkpoint::read(folder, &run, parameters, &mut moments, device)? {
            return Ok(ControlFlow::Continue((moments, kept)));
        }
        let before = self.tune_loss(tune, 0)?;
        let state = State {
            run,
            before: before.to_bits(),
            best: before.to_bits(),
            ..State::default()
        };
        let best = self.numbers()?;
        let first = Step {
            step: 0,
            loss: 0.0,
            tune: Some(before),
        };
        if each(first).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let kept = Checkpoint { state, best };
        kept.write(folder, parameters, &moments)?;
        Ok(ControlFlow::Continue((moments, kept)))
    }

    /// One step; returns the mean loss of its cases.
    fn step(
        &self,
        nth: usize,
        cases: &[Prepared],
        order: &mut Order,
        moments: &mut Moments,
    ) -> Result<f64, TuneError> {
        let (options, vars) = (&self.options, &self.network.parameters().vars);
        let failed = |what| TuneError::Loss {
            step: nth + 1,
            what,
        };
        let (mut sum, mut total) = (Sum::new(vars)?, 0.0);
        let places = nth * options.batch..(nth + 1) * options.batch;
        let drawn: Vec<(usize, &Prepared)> =
            places.map(|at| (at, &cases[order.case(at)])).collect();
        let learned = |(at, case): &(usize, &Prepared)| -> Result<_, TuneError> {
            let loss = self.loss(case, &mut draws(options.seed, *at as u64))?;
            let number = f64::from(loss.to_scalar::<f32>()?);
            match number.is_finite() {
                true => Ok((number, loss.backward()?)),
                false => Err(failed("loss")),
            }
        };
        for some in at_once(&drawn) {
            let learned: Vec<_> = some.par_iter().map(learned).collect();
            // In the order of the cases, whichever ended first.
            for one in learned {
                let (number, gradients) = one?;
                total += number;
                sum.add(vars, &gradients)?;
            }
        }
        let (gradients, length) = sum.mean(options.batch, options.clip)?;
        if !length.is_finite() {
            return Err(failed("gradient"));
        }
        moments.step(vars, &gradients, (nth, options.rate_at(nth), options.decay))?;
        Ok(total / options.batch as f64)
    }

    /// Looks at the tune cases, and keeps the numbers if they are the best.
    fn look(&self, kept: &mut Checkpoint, tune: &[Prepared]) -> Result<f64, TuneError> {
        let loss = self.tune_loss(tune, kept.state.step)?;
        if loss < f64::from_bits(kept.state.best) {
            kept.state.best = loss.to_bits();
            kept.state.best_step = kept.state.step;
            kept.state.worse = 0;
            kept.best = self.numbers()?;
        } else {
            kept.state.worse += 1;
        }
        Ok(loss)
    }

    fn numbers(&self) -> Result<Vec<Tensor>, TuneError> {
        let vars = self.network.parameters().vars.iter();
        let copies: Result<Vec<Tensor>, _> = vars.map(|var| var.as_tensor().copy()).collect();
        Ok(copies?.iter().map(Tensor::detach).collect())
    }

    /// The mean loss of the tune cases, each with the same draws every time.
    fn tune_loss(&self, tune: &[Prepared], step: usize) -> Result<f64, TuneError> {
        let mut sum = 0.0;
        let numbered: Vec<(usize, &Prepared)> = tune.iter().enumerate().collect();
        for some in at_once(&numbered) {
            let losses = some
                .par_iter()
                .map(|(nth, case)| -> Result<f32, TuneError> {
                    let mut random = draws(self.options.seed, u64::MAX - *nth as u64);
                    Ok(self.loss(case, &mut random)?.to_scalar()?)
                });
            for loss in losses.collect::<Vec<_>>() {
                sum += f64::from(loss?);
            }
        }
        let what = "loss on tune cases";
        match sum.is_finite() {
            true => Ok(sum / tune.len() as f64),
            false => Err(TuneError::Loss { step, what }),
        }
    }

    fn loss(&self, case: &Prepared, random: &mut Random) -> Result<Tensor, TuneError> {
        let drawn = Drawn::new(case.case, &self.options, random);
        let products = &case.case.products;
        let names = drawn.places.iter().map(|place| products[*place as usize]);
        let rows = self.rows(&case.tokens, products, &names.collect::<Vec<_>>());
        let paths = self.network.scores(&rows)?;
        Ok(drawn.loss(&paths, self.options.weight)?)
    }

    fn rows(&self, tokens: &[u32], products: &[u32], names: &[u32]) -> Rows {
        let mut permitted = FixedBitSet::with_capacity(self.names.len());
        permitted.extend(products.iter().map(|pu| *pu as usize));
        let permitted = Some(Arc::new(Permitted::new(&self.trie, &permitted)));
        let question = Question {
            permitted,
            ..Question::default()
        };
        Rows::new(
            &self.trie,
            &Search::new(&self.trie, question),
            tokens,
            names,
        )
    }

    /// Hash of all that decides what is written.
    fn fingerprint(&self, cases: &[TuneCase]) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: String| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(format!("{} {:?}", self.revision, self.options));
        self.names.iter().for_each(|name| add(name.clone()));
        cases.iter().for_each(|case| add(format!("{case:?}")));
        hex::encode(hash.finalize())
    }

    fn write(&self, folder: &Path, kept: &Checkpoint) -> Result<(), TuneError> {
        let base = write::Base {
            path: &self.path,
            revision: &self.revision,
            layers: self.network.geometry().layers,
        };
        let names = self.network.parameters().names.iter().cloned();
        let tensors: BTreeMap<String, &Tensor> = names.zip(&kept.best).collect();
        write::write_trained(folder, &base, &self.options.trained, tensors)
    }
}

/// Cases that are computed side by side, one a thread: a pass is a chain of steps most of which use one thread, and each
/// case keeps all of its activations until its gradient is known.
fn at_once<T>(cases: &[T]) -> std::slice::Chunks<'_, T> {
    cases.chunks(rayon::current_num_threads())
}

/// Draws of one case of a step.
fn draws(seed: u64, at: u64) -> Random {
    Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at)
}

/// The order of cases: each pass has all of them, in an order of its own.
struct Order {
    seed: u64,
    pass: usize,
    cases: Vec<usize>,
}

impl Order {
    fn new(many: usize, seed: u64) -> Self {
        let mut order = Self {
            seed,
            pass: 0,
            cases: (0..many).collect(),
        };
        order.shuffle();
        order
    }

    fn case(&mut self, at: usize) -> usize {
        let pass = at / self.cases.len();
        if pass != self.pass {
            self.pass = pass;
            self.shuffle();
        }
        self.cases[at % self.cases.len()]
    }

    /// The order of the pass, from that of the numbers: a resumed run has no other pass before it.
    fn shuffle(&mut self) {
        let mut random = Random::new(self.seed.wrapping_add(self.pass as u64));
        self.cases.sort_unstable();
        for nth in (1..self.cases.len()).rev() {
            self.cases.swap(nth, random.below(nth + 1));
        }
    }
}
