//! The exact top N of the catalogue under a Llama: [`Model`] by [`Search`] over a candle network.
//!
//! Decides how a batch runs: what prompts share is computed once and kept for later batches, and users
//! are spread over threads in [groups](super::group), a group per thread where there are users enough.
//! Invariant: a user's answer is the same, bit for bit, alone, in any batch, on any number of threads. It
//! does not know how a pass is computed, nor whose names it scores.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::backend::{Cache, Network, Prefix, Row};
use super::calibration::CalibrationMeans;
use super::group::{Group, Share, Shared, Waiting};
use super::index::{self, Indexed, Indexer};
use super::mixture::{Mixed, Mixture};
use crate::clocks::{Clocks, Part};
use crate::cpu::forward::Pass;
use crate::cpu::smooth;
use crate::formats::loading::Loading;
use crate::formats::map::resident;
use crate::formats::open::open;
use crate::formats::text::Text;
use crate::thread::Pulse;
use crate::{Error, Info, Model, Options, Place};
use nearshore_core::names::scoring::{Calibration, Names, ScoreRequest, ScoreResponse};

/// Prefixes kept, most recently used first: one per arm's template, and some change.
const PREFIXES_MAX: usize = 4;

/// Sets of calibration prompts kept, most recently used first: one per arm, and some change.
const REFERENCES_MAX: usize = 8;

/// Tokens that a common beginning must have beyond the known ones to be worth a pass of its own.
const SHARED_MIN: usize = 16;

/// A Llama over a trie of names.
pub struct Constrained {
    pub(super) network: Network,
    pub(super) text: Arc<Text>,
    info: Info,
    loading: Loading,
    pub(super) names: Arc<Names>,
    pub(super) mixture: Mixture,
    pub(super) limits: Limits,
    /// Most recently used first.
    calibration: Vec<Arc<CalibrationMeans>>,
    pub(super) prefixes: Vec<Prefix>,
    /// The last batch's first prompt: what the next shares with it is a template.
    last: Vec<u32>,
    pool: rayon::ThreadPool,
    /// Users of a batch are spread over so many groups.
    groups_max: usize,
    pulse: Arc<Pulse>,
    clocks: Clocks,
}

/// What a generation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows of one pass, unless one user's wave alone has more.
    pub rows_max: usize,
    /// Bytes for keys and values of all users at once, unless one user alone needs more.
    pub kv_max: usize,
    /// Time of one call; who is not done by then gets no names.
    pub time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows_max: 512,
            kv_max: 1 << 30,
            time_max: Duration::from_secs(120),
        }
    }
}

impl Constrained {
    /// Loads a GGUF file or a Hugging Face folder.
    pub fn load(path: &Path, options: Options) -> Result<Self, Error> {
        let start = Instant::now();
        let before = resident();
        let model = open(path)?;
        let (text, info, mut loading) = (model.text()?, model.info()?, model.loading());
        let samples = smooth::samples(&text)?;
        let network = Network::new(&model, options, &samples)?;
        drop(model);
        loading.memory_bytes = resident().saturating_sub(before);
        loading.seconds = start.elapsed().as_secs_f64();
        let info = Info {
            dtype: network.dtype().into(),
            device: options.place.to_string(),
            ..info
        };
        // A device wants all users in one pass; on the CPU a group per thread shares nothing but weights.
        let threads = options.threads.max(1);
        let groups_max = match options.place {
            Place::Cpu => options.groups.unwrap_or(threads).clamp(1, threads),
            Place::Cuda(_) | Place::Tensors => 1,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|nth| format!("engine-{nth}"))
            .build();
        let pool = pool.map_err(|e| Error::Compute {
            what: "threads".into(),
            source: Box::new(e),
        })?;
        Ok(Self {
            network,
            loading,
            text: Arc::new(text),
            info,
            names: Arc::default(),
            mixture: Mixture::new(Arc::default()),
            limits: Limits::default(),
            calibration: Vec::new(),
            prefixes: Vec::new(),
            last: Vec::new(),
            pool,
            groups_max,
            pulse: Arc::default(),
            clocks: Clocks::default(),
        })
    }

    /// Bounds each generation.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = Limits {
            rows_max: limits.rows_max.max(1),
            ..limits
        };
        self
    }

    /// Nodes whose means over calibration prompts are known, per set of prompts, last used first.
    pub fn means_known(&self) -> Vec<usize> {
        self.calibration.iter().map(|means| means.len()).collect()
    }

    /// What loading took.
    pub fn loading(&self) -> &Loading {
        &self.loading
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.network.geometry().vocabulary
    }

    /// Memory that the layers' weights take.
    pub fn bytes(&self) -> usize {
        self.network.bytes()
    }

    /// The pulse that each pass beats; give it to [`spawn_with`](super::thread::spawn_with).
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Runs a computation on the model's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Where batches' time goes, for measurements.
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// Logits of some tokens after `tokens`, by one pass without any sharing.
    pub fn logits(&self, tokens: &[u32], of: &[u32]) -> Result<Vec<f32>, Error> {
        let mut caches = [self.network.cache()];
        let mut pass = Pass::default();
        pass.add_prompt(0, 0, tokens);
        let hidden = self
            .network
            .forward(&pass, &mut caches, 1)
            .map_err(failed)?;
        let [hidden] = &hidden[..] else {
            unreachable!("one row was wanted")
        };
        self.network.logits(&[(hidden, of)]).map_err(failed)
    }

    /// Sees to it that what the prompts have in common is among the prefixes.
    fn share(&mut self, prompts: &[&[u32]]) -> Result<(), Error> {
        let Some(first) = prompts.first() else {
            return Ok(());
        };
        let others = prompts.iter().skip(1).copied();
        let before = (!self.last.is_empty()).then_some(self.last.as_slice());
        // The last token of a prompt is never shared: someone must compute what follows it.
        let common = others
            .chain(before)
            .map(|prompt| alike(first, prompt))
            .min()
            .unwrap_or(0);
        let common = (prompts.iter().map(|prompt| prompt.len() - 1)).fold(common, usize::min);
        let known = nearest(&self.prefixes, &first[..common]);
        let so_far = known.map_or(0, |(_, shared)| shared);
        if common >= so_far + SHARED_MIN {
            let network = &self.network;
            let cache = match known {
                Some((prefix, shared)) => network.cache_after(&self.prefixes[prefix], shared),
                None => network.cache(),
            };
            let (prefix, _) = self.compute(cache, first[..common].to_vec())?;
            self.prefixes.insert(0, prefix);
            self.prefixes.truncate(PREFIXES_MAX);
        } else if let Some((used, _)) = known {
            self.prefixes[..=used].rotate_right(1);
        }
        self.last = first.to_vec();
        Ok(())
    }

    pub(super) fn tokens(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let tokens = self.text.prompt(prompt)?;
        let limit = self.network.geometry().context;
        if tokens.len() + self.mixture.trie().depth() > limit {
            return Err(Error::TooLong {
                tokens: tokens.len(),
                limit,
            });
        }
        Ok(tokens)
    }

    /// Computes prompts of tokens and nothing after them, as a batch that asks for no names: for
    /// measurements.
    #[doc(hidden)]
    pub fn prefill(&mut self, prompts: &[Vec<u32>]) -> Result<(), Error> {
        let request = ScoreRequest {
            n: 0,
            ..ScoreRequest::default()
        };
        let requests = vec![request; prompts.len()];
        self.run(&requests, prompts.to_vec()).map(drop)
    }

    /// Scorer users, in groups over the threads.
    fn run(
        &mut self,
        requests: &[ScoreRequest],
        prompts: Vec<Vec<u32>>,
    ) -> Result<Vec<ScoreResponse>, Error> {
        let end = Instant::now() + self.limits.time_max;
        let mut queue = VecDeque::with_capacity(requests.len());
        for (place, (request, tokens)) in requests.iter().zip(prompts).enumerate() {
            let means = match &request.calibration {
                Some(calibration) if request.weight != 0.0 => Some(self.calibration(calibration)?),
                _ => None,
            };
            let Mixed { question, totals } = self.mixture.mix(request);
            queue.push_back(Waiting {
                place,
                request,
                tokens,
                question,
                totals,
                means,
            });
        }
        let threads = self.pool.current_num_threads();
        let groups = self.groups_max.min(requests.len()).max(1);
        let shared = Shared {
            network: &self.network,
            trie: self.mixture.trie(),
            prefixes: &self.prefixes,
            pulse: &self.pulse,
            clocks: &self.clocks,
            limits: self.limits,
            end,
            queue: Mutex::new(queue),
        };
        let share = Share {
            threads: threads / groups,
            users_max: requests.len().div_ceil(groups),
            kv_max: self.limits.kv_max / groups,
        };
        let done: Vec<_> = self.pool.install(|| {
            use rayon::prelude::*;
            let groups = (0..groups).into_par_iter();
            groups.map(|_| Group::new(&shared, share).run()).collect()
        });
        let done: Result<Vec<Vec<_>>, Error> = done.into_iter().collect();
        let mut responses: Vec<(usize, ScoreResponse)> = done?.into_iter().flatten().collect();
        responses.sort_by_key(|(place, _)| *place);
        let version = self.names.version;
        let versioned = |(_, response)| ScoreResponse {
            names: version,
            ..response
        };
        Ok(responses.into_iter().map(versioned).collect())
    }

    /// The means over a set of calibration prompts; the prompts are computed when the set is first seen.
    pub(super) fn calibration(
        &mut self,
        calibration: &Calibration,
    ) -> Result<Arc<CalibrationMeans>, Error> {
        let same = |means: &Arc<CalibrationMeans>| means.hash == calibration.hash;
        if let Some(at) = self.calibration.iter().position(same) {
            self.calibration[..=at].rotate_right(1);
            return Ok(Arc::clone(&self.calibration[0]));
        }
        let mut computed = Vec::with_capacity(calibration.prompts.len());
        for prompt in &calibration.prompts {
            let tokens = self.tokens(prompt)?;
            let network = &self.network;
            let cache = match nearest(&self.prefixes, &tokens[..tokens.len() - 1]) {
                Some((prefix, known)) => network.cache_after(&self.prefixes[prefix], known),
                None => network.cache(),
            };
            computed.push(self.compute(cache, tokens)?);
        }
        let means = Arc::new(CalibrationMeans::new(calibration, computed));
        self.calibration.insert(0, Arc::clone(&means));
        self.calibration.truncate(REFERENCES_MAX);
        Ok(means)
    }

    /// Computes the rest of a prompt; returns it as a prefix, and the hidden state behind it.
    pub(super) fn compute(&self, cache: Cache, tokens: Vec<u32>) -> Result<(Prefix, Row), Error> {
        let mut caches = [cache];
        let mut hidden = None;
        while caches[0].known() < tokens.len() {
            let known = caches[0].known();
            let to = tokens.len().min(known + self.limits.rows_max);
            let mut pass = Pass::default();
            pass.add_prompt(0, known, &tokens[known..to]);
            let threads = self.pool.current_num_threads();
            let network = &self.network;
            let forward = || network.forward(&pass, &mut caches, threads);
            let computed = (self.clocks).time(Part::Prompts, || self.pool.install(forward));
            hidden = computed.map_err(failed)?.pop();
            self.pulse.beat();
        }
        let [cache] = caches;
        let hidden = hidden.expect("a prompt is never shared to its end");
        Ok((cache.into_prefix(tokens), hidden))
    }
}

impl Model for Constrained {
    fn indexer(&self) -> Indexer {
        index::tokenised(Arc::clone(&self.text))
    }

    fn swap(&mut self, indexed: Indexed) {
        self.names = indexed.names;
        self.mixture = Mixture::new(indexed.trie);
    }

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<ScoreResponse>, Error> {
        let tokens = || -> Result<Vec<Vec<u32>>, Error> {
            use rayon::prelude::*;
            let prompts = requests
                .par_iter()
                .map(|request| self.tokens(&request.prompt));
            prompts.collect()
        };
        let prompts = (self.clocks).time(Part::Tokens, || self.pool.install(tokens));
        let prompts = prompts?;
        // An ask of weight 0 computes nothing, so it shares nothing.
        let heard = requests
            .iter()
            .zip(&prompts)
            .filter(|(request, _)| request.weight != 0.0);
        let heard: Vec<&[u32]> = heard.map(|(_, prompt)| prompt.as_slice()).collect();
        self.share(&heard)?;
        self.run(requests, prompts)
    }

    fn info(&self) -> Info {
        self.info.clone()
    }
}

fn alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The prefix that shares most with `tokens`, and how much; `None` if none shares anything.
pub(super) fn nearest(prefixes: &[Prefix], tokens: &[u32]) -> Option<(usize, usize)> {
    let shared = prefixes
        .iter()
        .map(|prefix| alike(&prefix.tokens, tokens))
        .enumerate();
    // The first of equals: the most recently used.
    shared
        .filter(|(_, shared)| *shared > 0)
        .rev()
        .max_by_key(|(_, shared)| *shared)
}

pub(super) fn failed(source: candle_core::Error) -> Error {
    Error::Compute {
        what: "forward pass".into(),
        source: Box::new(source),
    }
}
