//! A group of users that share their forward passes, from prompts to proven names.
//!
//! Decides the order of the work: prompts of new users are computed when there is memory for their keys and values;
//! then each round computes one wave of every user. Between rounds cancelled users leave; when the batch's time is
//! over, all leave. Invariant: a user's waves depend on the user alone, so its response is equal, bit for bit, in any
//! group. It does not know how a pass is computed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::admission::{Budget, passes};
use super::backend::{Cache, Network, Prefix, Row};
use super::calibration::{CalibrationMeans, Scratch, Wanted};
use super::constrained::{Limits, failed};
use super::prompts::Prompts;
use crate::Error;
use crate::clocks::{Clocks, Part};
use crate::cpu::attention::{Sight, Span};
use crate::cpu::forward::Pass;
use crate::thread::Pulse;
use nearshore_core::names::scoring::{Ended, ScoreRequest, ScoreResponse, ScoredName};
use nearshore_core::names::search::{Question, Search, Wave};
use nearshore_core::names::sum::term_values;
use nearshore_core::names::trie::Trie;

/// The most trie rows of one user in one wave, unless it wants more names than that. The limit is per user, so that
/// other users change nothing.
const WAVE_ROWS: usize = 96;

/// The data that all groups of a batch share.
pub(super) struct Shared<'a> {
    pub network: &'a Network,
    pub trie: &'a Trie,
    pub prefixes: &'a [Prefix],
    pub prompts: &'a Prompts,
    pub pulse: &'a Pulse,
    pub clocks: &'a Clocks,
    pub limits: Limits,
    /// The time at which the batch ends.
    pub end: Instant,
    /// Users that have not started, oldest first.
    pub queue: Mutex<VecDeque<Waiting<'a>>>,
}

/// A user that has not started.
pub(super) struct Waiting<'a> {
    /// Position in the batch.
    pub place: usize,
    pub request: &'a ScoreRequest,
    pub tokens: Vec<u32>,
    pub question: Question,
    pub means: Option<Arc<CalibrationMeans>>,
}

/// One user of a group.
struct User<'a> {
    input: Waiting<'a>,
    search: Search<'a>,
    /// Hidden state after the prompt; `None` before it is computed.
    hidden: Option<Row>,
    /// The path of each node of the search, by the node's id.
    paths: Vec<Path>,
    /// The wave that is computed next.
    wave: Option<Wave>,
    /// Logits and means of the wave's children, until the search takes them.
    scored: Option<(Vec<f32>, Vec<f32>)>,
    response: ScoreResponse,
}

/// The tokens from the prompt's end to a node, and their slots in the cache.
#[derive(Clone, Default)]
struct Path {
    tokens: Vec<u32>,
    slots: Vec<u32>,
}

/// A group's share of threads, users and memory.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Number of threads of each pass.
    pub threads: usize,
    /// The most users that run at once.
    pub users_max: usize,
    /// The most bytes for keys and values.
    pub kv_max: usize,
}

/// Users that share their passes.
pub(super) struct Group<'a> {
    shared: &'a Shared<'a>,
    share: Share,
    /// Oldest first.
    users: Vec<User<'a>>,
    /// Keys and values of each user.
    caches: Vec<Cache>,
    scratch: Vec<Scratch>,
    done: Finished,
}

/// What a group has made.
#[derive(Default)]
pub(super) struct Finished {
    /// Each response with its position in the batch.
    pub responses: Vec<(usize, ScoreResponse)>,
    /// The computed prompts, if any are kept.
    pub prompts: Vec<Prefix>,
}

impl<'a> Group<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, share: Share) -> Self {
        Self {
            shared,
            share,
            users: Vec::new(),
            caches: Vec::new(),
            scratch: Vec::new(),
            done: Finished::default(),
        }
    }

    /// Scores users from the queue until it is empty.
    pub(super) fn run(mut self) -> Result<Finished, Error> {
        loop {
            // Users leave first: that frees memory, and an empty group admits any user.
            self.leave();
            self.admit()?;
            if self.users.is_empty() {
                return Ok(self.done);
            }
            // New users that want no names are done already.
            self.leave();
            if !self.users.is_empty() {
                self.step()?;
            }
        }
    }

    /// Bytes of keys and values in use.
    fn used(&self) -> usize {
        let sizes = self.shared.network.sizes();
        self.caches.iter().map(|cache| cache.bytes(sizes)).sum()
    }

    /// Admits users for which there is memory, oldest first, and computes their prompts.
    fn admit(&mut self) -> Result<(), Error> {
        let first = self.users.len();
        let budget = |used| Budget {
            limit: self.share.kv_max,
            used,
        };
        let sizes = self.shared.network.sizes();
        let mut used = self.used();
        while self.users.len() < self.share.users_max {
            let mut queue = (self.shared.queue.lock()).unwrap_or_else(PoisonError::into_inner);
            let Some(next) = queue.front() else { break };
            let bytes = next.tokens.len() * sizes.position();
            if !budget(used).admits(bytes, self.users.len()) {
                break;
            }
            let next = queue.pop_front().expect("the queue has a front");
            drop(queue);
            used += bytes;
            let cache = self.cache(&next);
            self.users.push(User::new(next, self.shared, &cache));
            self.caches.push(cache);
        }
        self.prefill(first)
    }

    /// Creates the cache of a new user, with the longest known beginning of its prompt.
    fn cache(&self, user: &Waiting) -> Cache {
        let (network, prefixes) = (self.shared.network, self.shared.prefixes);
        // The last token of a prompt is never shared: its own pass gives the hidden state after the prompt.
        let head = &user.tokens[..user.tokens.len() - 1];
        let template = super::constrained::nearest(prefixes, head);
        let template = template.map(|(nth, known)| (&prefixes[nth], known));
        let earlier = self.shared.prompts.nearest(head);
        match template
            .into_iter()
            .chain(earlier)
            .max_by_key(|(_, known)| *known)
        {
            Some((prefix, known)) => network.cache_after(prefix, known),
            None => network.cache(),
        }
    }

    /// Computes the prompts of the users from `first` on, in passes of at most `rows_max` rows.
    fn prefill(&mut self, first: usize) -> Result<(), Error> {
        loop {
            let mut pass = Pass::default();
            let mut ends = Vec::new();
            for (nth, user) in self.users.iter_mut().enumerate().skip(first) {
                let room = self.shared.limits.rows_max - pass.tokens.len();
                if room == 0 {
                    break;
                }
                let known = self.caches[nth].known();
                if user.is_cancelled()
                    || user.input.request.weight == 0.0
                    || known == user.input.tokens.len()
                {
                    continue;
                }
                let to = user.input.tokens.len().min(known + room);
                pass.add_prompt(nth, known, &user.input.tokens[known..to]);
                user.response.waves += 1;
                ends.push((nth, to == user.input.tokens.len()));
            }
            if pass.tokens.is_empty() {
                return Ok(());
            }
            let hidden = self.forward(&pass)?;
            for ((nth, is_end), hidden) in ends.into_iter().zip(hidden) {
                if is_end {
                    self.users[nth].hidden = Some(hidden);
                }
            }
            if Instant::now() >= self.shared.end {
                return Ok(());
            }
        }
    }

    /// Removes users that are done, cancelled or late.
    fn leave(&mut self) {
        let is_late = Instant::now() >= self.shared.end;
        // After the deadline no wave is started: a list that is not proven is not returned.
        if !is_late {
            self.each(|user| {
                if user.wave.is_none() && !user.is_cancelled() {
                    let rows_max = WAVE_ROWS.max(user.input.request.n);
                    user.wave = user.search.next_wave(rows_max);
                }
            });
        }
        let running = std::mem::take(&mut self.users).into_iter();
        let caches = std::mem::take(&mut self.caches);
        for (user, cache) in running.zip(caches) {
            let ended = if user.is_cancelled() {
                Some(Ended::Cancelled)
            } else if user.search.is_proven() {
                Some(Ended::Complete)
            } else {
                is_late.then_some(Ended::Late)
            };
            match ended {
                Some(ended) => {
                    let (response, tokens) = user.finish(ended);
                    self.done.responses.push(response);
                    // A prompt that was not computed to its end is not worth its place.
                    if self.shared.prompts.keeps() && cache.known() == tokens.len() {
                        self.done.prompts.push(cache.into_prefix(tokens));
                    }
                }
                None => {
                    self.users.push(user);
                    self.caches.push(cache);
                }
            }
        }
    }

    /// Runs `work` for every user: in parallel if the group has several threads, as on a device.
    fn each(&mut self, work: impl Fn(&mut User<'a>) + Send + Sync) {
        self.shared.clocks.time(Part::Search, || {
            if self.share.threads > 1 {
                use rayon::prelude::*;
                self.users.par_iter_mut().for_each(work);
            } else {
                self.users.iter_mut().for_each(work);
            }
        });
    }

    /// Computes the waves of all users for which there is memory, and feeds their searches.
    fn step(&mut self) -> Result<(), Error> {
        let sizes = self.shared.network.sizes();
        let rows: Vec<usize> = self.users.iter().map(User::rows).collect();
        let needs: Vec<usize> = rows.iter().map(|rows| rows * sizes.position()).collect();
        let budget = Budget {
            limit: self.share.kv_max,
            used: self.used(),
        };
        let granted = budget.grants(&needs);
        let running: Vec<usize> = (0..self.users.len()).filter(|nth| granted[*nth]).collect();
        let rows: Vec<usize> = running.iter().map(|nth| rows[*nth]).collect();
        for pass in passes(&rows, self.shared.limits.rows_max) {
            self.wave(&running[pass])?;
        }
        Ok(())
    }

    /// Computes one wave of each of these users, and feeds the logits to their searches.
    fn wave(&mut self, users: &[usize]) -> Result<(), Error> {
        let mut pass = Pass {
            nodes: true,
            ..Pass::default()
        };
        for nth in users {
            self.users[*nth].add_nodes(&mut pass, *nth, &self.caches[*nth]);
        }
        let hidden = if pass.tokens.is_empty() {
            Vec::new()
        } else {
            self.forward(&pass)?
        };
        let network = self.shared.network;
        let mut rows = hidden.iter();
        let mut wanted = Vec::new();
        for nth in users {
            let user = &self.users[*nth];
            for node in user.wave.iter().flat_map(|wave| &wave.nodes) {
                let row = if node.chain.is_empty() {
                    user.hidden
                        .as_ref()
                        .expect("prompts are computed before waves")
                } else {
                    rows.next().expect("each chain has a wanted row")
                };
                wanted.push((row, node.children.as_slice()));
            }
        }
        let clocks = self.shared.clocks;
        let all = clocks.time(Part::Logits, || network.logits(&wanted));
        let all = all.map_err(failed)?;
        if !all.iter().all(|logit| logit.is_finite()) {
            return Err(Error::Compute {
                what: "logits".into(),
                source: "the model's output is not finite".into(),
            });
        }
        let mut logits = BTreeMap::new();
        let mut rest = all.as_slice();
        for nth in users {
            let nodes = self.users[*nth].wave.iter().flat_map(|wave| &wave.nodes);
            let (logits_of_user, others) =
                rest.split_at(nodes.map(|node| node.children.len()).sum());
            logits.insert(*nth, logits_of_user.to_vec());
            rest = others;
        }
        let mut means = self.means(users)?;
        for (nth, logits) in logits {
            let means = means.remove(&nth).unwrap_or_default();
            self.users[nth].scored = Some((logits, means));
        }
        self.each(|user| {
            if let Some((logits, means)) = user.scored.take() {
                user.wave = None;
                user.search.feed(&logits, &means);
            }
        });
        Ok(())
    }

    /// Returns, per user with a calibration, the means of the wave's children in the order of its logits.
    fn means(&mut self, users: &[usize]) -> Result<BTreeMap<usize, Vec<f32>>, Error> {
        let mut found = BTreeMap::new();
        let mut left: Vec<usize> = (users.iter().copied())
            .filter(|nth| self.users[*nth].input.means.is_some())
            .collect();
        while let Some(means) = left
            .first()
            .and_then(|nth| self.users[*nth].input.means.clone())
        {
            let same = |nth: &usize| {
                let other = self.users[*nth].input.means.as_ref();
                other.is_some_and(|other| Arc::ptr_eq(other, &means))
            };
            let (now, later): (Vec<usize>, Vec<usize>) = left.iter().partition(|nth| same(nth));
            left = later;
            let trie = self.shared.trie;
            let wanted: BTreeSet<Wanted> = (now.iter())
                .flat_map(|nth| self.users[*nth].wanted(trie))
                .collect();
            let network = self.shared.network;
            if !self.scratch.iter().any(|scratch| scratch.is_for(&means)) {
                self.scratch.push(Scratch::new(Arc::clone(&means), network));
            }
            let scratch = self
                .scratch
                .iter_mut()
                .find(|scratch| scratch.is_for(&means));
            let scratch = scratch.expect("it was just added");
            let rows_max = self.shared.limits.rows_max;
            let nodes = scratch.of(wanted, network, self.share.threads, rows_max)?;
            self.shared.pulse.beat();
            for nth in now {
                let means = self.users[nth].gather(|path, token| {
                    let node = &nodes[path];
                    let at = node.binary_search_by_key(&token, |(of, _)| *of);
                    node[at.expect("all children have means")].1
                });
                found.insert(nth, means);
            }
        }
        Ok(found)
    }

    fn forward(&mut self, pass: &Pass) -> Result<Vec<Row>, Error> {
        let (network, clocks) = (self.shared.network, self.shared.clocks);
        let (part, wait) = match pass.nodes {
            true => (Part::Waves, Part::WavesWait),
            false => (Part::Prompts, Part::PromptsWait),
        };
        let threads = self.share.threads;
        let hidden = clocks.time(part, || network.forward(pass, &mut self.caches, threads));
        if clocks.waits() {
            clocks.time(wait, || network.wait()).map_err(failed)?;
        }
        self.shared.pulse.beat();
        hidden.map_err(failed)
    }
}

impl<'a> User<'a> {
    fn new(mut input: Waiting<'a>, shared: &'a Shared<'a>, cache: &Cache) -> Self {
        let response = ScoreResponse {
            prompt_tokens: input.tokens.len() as u32,
            shared_tokens: cache.known() as u32,
            ..ScoreResponse::default()
        };
        let search = Search::new(shared.trie, std::mem::take(&mut input.question));
        Self {
            search,
            hidden: None,
            paths: Vec::new(),
            wave: None,
            scored: None,
            response,
            input,
        }
    }

    fn is_cancelled(&self) -> bool {
        self.input.request.cancel.is_cancelled()
    }

    /// Number of rows of the next wave.
    fn rows(&self) -> usize {
        let nodes = self.wave.iter().flat_map(|wave| &wave.nodes);
        nodes.map(|node| node.chain.len()).sum()
    }

    /// Adds the chains of the wave's nodes as rows to a pass; records the slots that they get.
    fn add_nodes(&mut self, pass: &mut Pass, nth: usize, cache: &Cache) {
        let from = pass.tokens.len();
        for node in self.wave.iter().flat_map(|wave| &wave.nodes) {
            let mut path = match node.parent {
                Some(parent) => self.paths[parent as usize].clone(),
                None => Path::default(),
            };
            for token in &node.chain {
                let slot = cache.slots() + pass.tokens.len() - from;
                pass.positions.push(cache.known() + path.slots.len());
                path.slots.push(slot as u32);
                path.tokens.push(*token);
                pass.tokens.push(*token);
                pass.sights.push(Sight {
                    prompt: cache.known(),
                    slots: path.slots.clone(),
                });
            }
            if !node.chain.is_empty() {
                pass.wanted.push(pass.tokens.len() - 1);
            }
            self.paths.push(path);
        }
        let rows = pass.tokens.len() - from;
        if rows > 0 {
            pass.spans.push(Span {
                cache: nth,
                rows: from..pass.tokens.len(),
            });
            self.response.forwarded += rows as u32;
            self.response.waves += 1;
        }
    }

    /// The nodes of the wave with all their children, permitted or not.
    fn wanted(&self, trie: &Trie) -> Vec<Wanted> {
        let nodes = self.wave.iter().flat_map(|wave| &wave.nodes);
        let wanted = nodes.map(|node| Wanted {
            path: self.paths[node.id as usize].tokens.clone(),
            children: trie
                .children(&node.node)
                .filter_map(|child| trie.first_token(&child))
                .collect(),
        });
        wanted.collect()
    }

    /// Collects `value` of each child of the wave, by the path of its node and its token.
    fn gather(&self, value: impl Fn(&Vec<u32>, u32) -> f32) -> Vec<f32> {
        let nodes = self.wave.iter().flat_map(|wave| &wave.nodes);
        let values = nodes.flat_map(|node| {
            let path = &self.paths[node.id as usize].tokens;
            node.children.iter().map(move |token| (path, *token))
        });
        values.map(|(path, token)| value(path, token)).collect()
    }

    /// Ends the user; returns its position in the batch with its response, and its prompt's tokens.
    fn finish(self, ended: Ended) -> ((usize, ScoreResponse), Vec<u32>) {
        let Waiting {
            place,
            request,
            tokens,
            ..
        } = self.input;
        let found = match ended {
            Ended::Complete => self.search.into_answer(),
            Ended::Cancelled | Ended::Late | Ended::TooLong | Ended::Failed => Vec::new(),
        };
        let named = found.into_iter().map(|found| ScoredName {
            pu: found.pu,
            score: found.score as f32,
            model: found.model as f32,
            terms: term_values(&request.terms, found.pu),
        });
        let response = ScoreResponse {
            named: named.collect(),
            ended,
            ..self.response
        };
        ((place, response), tokens)
    }
}
