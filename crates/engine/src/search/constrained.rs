//! The exact best names of the catalogue under a decoder: [`Model`] by a search over a candle network.
//!
//! Decides how a batch runs: the common beginning of prompts is computed once and kept for later batches, and users are
//! distributed over threads in [groups](super::group), one group per thread if there are enough users. Invariant: a
//! user's response is equal, bit for bit, alone, in any batch and on any number of threads. It does not know how a pass
//! is computed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::backend::{Cache, Network, Prefix, Row};
use super::calibration::CalibrationMeans;
use super::group::{Finished, Group, Share, Shared, Waiting};
use super::index::{self, Indexed, Indexer};
use super::mixture::Mixture;
use super::prompts::Prompts;
use crate::clocks::{Clocks, Part};
use crate::cpu::forward::Pass;
use crate::cpu::smooth;
use crate::formats::loading::Loading;
use crate::formats::map::resident;
use crate::formats::open::{Opened, open, open_adapted};
use crate::formats::text::Text;
use crate::thread::Pulse;
use crate::{Error, Info, Model, Options, Place};
use nearshore_core::names::scoring::{Calibration, Names, Prompt, ScoreRequest, ScoreResponse};
use nearshore_core::names::writing::{WriteRequest, WriteResponse};

/// The most prefixes kept: one per arm's template, and some for templates that change.
const PREFIXES_MAX: usize = 4;

/// The most calibrations kept: one per arm, and some for arms that change.
const CALIBRATIONS_MAX: usize = 8;

/// The fewest new tokens of a common beginning that are worth a pass of their own.
const SHARED_MIN: usize = 16;

/// A decoder over a trie of names.
pub struct Constrained {
    pub(crate) network: Network,
    pub(crate) text: Arc<Text>,
    info: Info,
    loading: Loading,
    pub(super) names: Arc<Names>,
    pub(super) mixture: Mixture,
    pub(crate) limits: Limits,
    /// Most recently used first.
    calibrations: Vec<Arc<CalibrationMeans>>,
    /// Most recently used first.
    pub(crate) prefixes: Vec<Prefix>,
    /// Whole prompts of earlier batches.
    prompts: Prompts,
    /// First prompt of the last batch; a beginning that the next batch shares with it is a template.
    last_prompt: Vec<u32>,
    pub(crate) pool: rayon::ThreadPool,
    /// The most groups of a batch.
    pub(crate) groups_max: usize,
    pub(crate) pulse: Arc<Pulse>,
    clocks: Clocks,
}

/// Limits of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most rows of one pass, unless one user's wave alone has more.
    pub rows_max: usize,
    /// The most bytes for keys and values of all running users, unless one user alone needs more.
    pub kv_max: usize,
    /// The most bytes of keys and values of earlier prompts that are kept for later batches; with 0 only beginnings that
    /// whole batches share are kept. On a device none are.
    pub prompts_max: usize,
    /// The most time of one call; users that are not done by then get no names.
    pub time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows_max: 512,
            kv_max: 1 << 30,
            prompts_max: 0,
            time_max: Duration::from_secs(120),
        }
    }
}

/// Networks whose weights several engines share, by the path of their model. All have the same options.
#[derive(Default)]
pub struct Bases(BTreeMap<PathBuf, Network>);

impl Constrained {
    /// Loads a GGUF file or a Hugging Face folder.
    pub fn load(path: &Path, options: Options) -> Result<Self, Error> {
        Self::load_adapted(path, None, options)
    }

    /// Like [`load`](Self::load), with the folder of an adapter that is merged into the weights as they are read.
    pub fn load_adapted(
        path: &Path,
        adapter: Option<&Path>,
        options: Options,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let before = resident();
        let model = open_adapted(path, adapter)?;
        let text = model.text()?;
        let network = Network::new(&model, options, &smooth::samples(&text)?)?;
        Self::of(&model, text, network, options, (start, before))
    }

    /// Like [`load_adapted`](Self::load_adapted) on the CPU, but the adapter is beside the weights, which engines of
    /// the same `bases` share. Each pass computes the adapter's two small products as well, in f32.
    ///
    /// Errors: also if `options` name a device, where weights are not shared.
    pub fn load_beside(
        path: &Path,
        adapter: Option<&Path>,
        options: Options,
        bases: &mut Bases,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let before = resident();
        let model = open_adapted(path, adapter)?;
        let text = model.text()?;
        let base = match bases.0.entry(path.to_owned()) {
            Entry::Occupied(base) => base.into_mut(),
            Entry::Vacant(place) => {
                let samples = smooth::samples(&text)?;
                place.insert(Network::new(&open(path)?, options, &samples)?)
            }
        };
        let network = base.beside(model.adapter(), options);
        let network = network.ok_or_else(|| Error::Compute {
            what: format!("model on {}", options.place),
            source: "weights are shared on the CPU alone".into(),
        })?;
        Self::of(&model, text, network, options, (start, before))
    }

    /// An engine of a network that is loaded; `since` are the time and the memory at the start.
    fn of(
        model: &Opened,
        text: Text,
        network: Network,
        options: Options,
        since: (Instant, u64),
    ) -> Result<Self, Error> {
        let (info, mut loading) = (model.info()?, model.loading(&text));
        loading.memory_bytes = resident().saturating_sub(since.1);
        loading.seconds = since.0.elapsed().as_secs_f64();
        let info = Info {
            dtype: network.dtype().into(),
            device: options.place.to_string(),
            ..info
        };
        // On a device one pass with all users is fastest; on the CPU groups on their own threads share only weights.
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
            calibrations: Vec::new(),
            prefixes: Vec::new(),
            prompts: Prompts::default(),
            last_prompt: Vec::new(),
            pool,
            groups_max,
            pulse: Arc::default(),
            clocks: Clocks::default(),
        })
    }

    /// Sets the limits of each batch.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = Limits {
            rows_max: limits.rows_max.max(1),
            ..limits
        };
        self.prompts = Prompts::new(limits.prompts_max, self.network.sizes().block());
        self
    }

    /// Bytes of keys and values of earlier prompts that are kept.
    pub fn prompts_bytes(&self) -> usize {
        self.prompts.bytes()
    }

    /// Number of nodes whose means are known, per calibration, most recently used first.
    pub fn means_known(&self) -> Vec<usize> {
        self.calibrations.iter().map(|means| means.len()).collect()
    }

    /// Figures of loading the model.
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

    /// Positions that the model was trained for: the most tokens of a prompt with what follows it.
    pub fn context(&self) -> usize {
        self.network.geometry().context
    }

    /// Bytes of the layers' weights.
    pub fn bytes(&self) -> usize {
        self.network.bytes()
    }

    /// The pulse that each pass beats, for [`spawn_with`](crate::thread::spawn_with).
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Runs a computation on the model's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// The time of batches by its parts, for measurements.
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// Logits of the tokens `of` after `tokens`, by one pass that shares nothing.
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

    /// Computes the common beginning of the prompts as a prefix, unless there is one.
    pub(crate) fn share(&mut self, prompts: &[&[u32]]) -> Result<(), Error> {
        let Some(first) = prompts.first() else {
            return Ok(());
        };
        let others = prompts.iter().skip(1).copied();
        let before = (!self.last_prompt.is_empty()).then_some(self.last_prompt.as_slice());
        // The last token of a prompt is never shared: its own pass gives the hidden state after the prompt.
        let common = others
            .chain(before)
            .map(|prompt| common_len(first, prompt))
            .min()
            .unwrap_or(0);
        let common = (prompts.iter().map(|prompt| prompt.len() - 1)).fold(common, usize::min);
        let known = nearest(&self.prefixes, &first[..common]);
        let known_len = known.map_or(0, |(_, shared)| shared);
        if common >= known_len + SHARED_MIN {
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
        self.last_prompt = first.to_vec();
        Ok(())
    }

    pub(super) fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
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

    /// Computes prompts only, as a batch whose users want no names, for measurements.
    #[doc(hidden)]
    pub fn prefill(&mut self, prompts: &[Vec<u32>]) -> Result<(), Error> {
        let request = ScoreRequest {
            n: 0,
            ..ScoreRequest::default()
        };
        let requests = vec![request; prompts.len()];
        self.run(&requests, prompts.to_vec()).map(drop)
    }

    /// Scores users in groups over the threads.
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
            queue.push_back(Waiting {
                place,
                request,
                tokens,
                question: self.mixture.question(request),
                means,
            });
        }
        let threads = self.pool.current_num_threads();
        let groups = self.groups_max.min(requests.len()).max(1);
        let shared = Shared {
            network: &self.network,
            trie: self.mixture.trie(),
            prefixes: &self.prefixes,
            prompts: &self.prompts,
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
        let done: Result<Vec<Finished>, Error> = done.into_iter().collect();
        let mut responses: Vec<(usize, ScoreResponse)> = Vec::with_capacity(requests.len());
        for finished in done? {
            responses.extend(finished.responses);
            let computed = finished.prompts.into_iter();
            computed.for_each(|prompt| self.prompts.insert(prompt));
        }
        responses.sort_by_key(|(place, _)| *place);
        let version = self.names.version;
        let versioned = |(_, response)| ScoreResponse {
            names: version,
            ..response
        };
        Ok(responses.into_iter().map(versioned).collect())
    }

    /// Returns the means of a calibration; computes its prompts when it is used for the first time.
    pub(super) fn calibration(
        &mut self,
        calibration: &Calibration,
    ) -> Result<Arc<CalibrationMeans>, Error> {
        let same = |means: &Arc<CalibrationMeans>| means.hash == calibration.hash;
        if let Some(at) = self.calibrations.iter().position(same) {
            self.calibrations[..=at].rotate_right(1);
            return Ok(Arc::clone(&self.calibrations[0]));
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
        self.calibrations.insert(0, Arc::clone(&means));
        self.calibrations.truncate(CALIBRATIONS_MAX);
        Ok(means)
    }

    /// Computes the rest of a prompt; returns the prompt as a prefix, and the hidden state after it.
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
        let hidden = hidden.expect("a shared prefix ends before the prompt does");
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
        // A request with model weight 0 computes no prompt, so it does not count for the common beginning.
        let computed = requests
            .iter()
            .zip(&prompts)
            .filter(|(request, _)| request.weight != 0.0);
        let computed: Vec<&[u32]> = computed.map(|(_, prompt)| prompt.as_slice()).collect();
        self.share(&computed)?;
        self.run(requests, prompts)
    }

    fn write(&mut self, requests: &[WriteRequest]) -> Result<Vec<WriteResponse>, Error> {
        self.write_texts(requests)
    }

    fn hidden(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error> {
        self.hidden_states(prompts)
    }

    fn info(&self) -> Info {
        self.info.clone()
    }
}

/// Length of the common beginning.
pub(crate) fn common_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The prefix that shares most tokens with `tokens`, and their number; `None` if none shares any.
pub(crate) fn nearest(prefixes: &[Prefix], tokens: &[u32]) -> Option<(usize, usize)> {
    let shared = prefixes
        .iter()
        .map(|prefix| common_len(&prefix.tokens, tokens))
        .enumerate();
    // Of equals the first, which is the most recently used; `max_by_key` returns the last one.
    shared
        .filter(|(_, shared)| *shared > 0)
        .rev()
        .max_by_key(|(_, shared)| *shared)
}

pub(crate) fn failed(source: candle_core::Error) -> Error {
    Error::Compute {
        what: "forward pass".into(),
        source: Box::new(source),
    }
}
