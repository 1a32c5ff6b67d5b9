//! Users that share their forward passes: from prompts to proven names.
//!
//! Decides the rhythm: newcomers' prompts are computed when there is room for their keys and values, then
//! each round forwards one wave of every user. Between rounds whoever was called off leaves, and when
//! the generation's time is over, all do. Invariant: a user's waves depend on the user alone, so the answer
//! is the same, bit for bit, whoever else is there. It does not know how a pass is computed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::admission::{Budget, passes};
use super::backend::{Cache, Network, Prefix, Row};
use super::calibration::{CalibrationMeans, Scratch, Wanted};
use super::constrained::{Limits, failed};
use super::mixture::told;
use crate::Error;
use crate::clocks::{Clocks, Part};
use crate::cpu::attention::{Sight, Span};
use crate::cpu::forward::Pass;
use crate::thread::Pulse;
use nearshore_core::names::scoring::{Ended, ScoreRequest, ScoreResponse, ScoredName};
use nearshore_core::names::search::{Question, Search, Wave};
use nearshore_core::names::trie::Trie;

/// Trie rows of one user in one pass, unless more names are wanted than that; of a user alone, so that who else
/// is there changes nothing.
const WAVE_ROWS: usize = 96;

/// What all groups of a batch share.
pub(super) struct Shared<'a> {
    pub network: &'a Network,
    pub trie: &'a Trie,
    pub prefixes: &'a [Prefix],
    pub pulse: &'a Pulse,
    pub clocks: &'a Clocks,
    pub limits: Limits,
    /// When the generation's time is over.
    pub end: Instant,
    /// Those who have not begun, oldest first.
    pub queue: Mutex<VecDeque<Waiting<'a>>>,
}

/// A user who has not begun.
pub(super) struct Waiting<'a> {
    /// Place in the batch.
    pub place: usize,
    pub request: &'a ScoreRequest,
    pub tokens: Vec<u32>,
    pub question: Question,
    /// See [`Mixed`](super::mixture::Mixed).
    pub totals: Vec<f64>,
    pub means: Option<Arc<CalibrationMeans>>,
}

/// One user of a group.
struct User<'a> {
    from: Waiting<'a>,
    search: Search<'a>,
    /// Hidden state behind the prompt; `None` before it is computed.
    hidden: Option<Row>,
    /// Per node asked for.
    paths: Vec<Path>,
    /// Asked for, not yet forwarded.
    wave: Option<Wave>,
    /// Logits of the wave's children and their means, not yet fed.
    scored: Option<(Vec<f32>, Vec<f32>)>,
    response: ScoreResponse,
}

/// From the prompt's end to a node.
#[derive(Clone, Default)]
struct Path {
    tokens: Vec<u32>,
    slots: Vec<u32>,
}

/// How a group runs.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Threads of each pass.
    pub threads: usize,
    /// Most users at once.
    pub users_max: usize,
    /// Bytes for keys and values.
    pub kv_max: usize,
}

/// Users that share their passes.
pub(super) struct Group<'a> {
    shared: &'a Shared<'a>,
    share: Share,
    /// Oldest first.
    users: Vec<User<'a>>,
    /// Keys and values of each of them.
    caches: Vec<Cache>,
    scratch: Vec<Scratch>,
    done: Vec<(usize, ScoreResponse)>,
}

impl<'a> Group<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, share: Share) -> Self {
        Self {
            shared,
            share,
            users: Vec::new(),
            caches: Vec::new(),
            scratch: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Scorer users from the queue until it is empty; each answer with its place in the batch.
    pub(super) fn run(mut self) -> Result<Vec<(usize, ScoreResponse)>, Error> {
        loop {
            // First: who is done makes room, and an empty group admits anyone.
            self.leave();
            self.admit()?;
            if self.users.is_empty() {
                return Ok(self.done);
            }
            // Newcomers who ask for nothing are done already.
            self.leave();
            if !self.users.is_empty() {
                self.step()?;
            }
        }
    }

    fn used(&self) -> usize {
        let sizes = self.shared.network.sizes();
        self.caches.iter().map(|cache| cache.bytes(sizes)).sum()
    }

    /// Takes in who fits, oldest first, and computes their prompts.
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
            let next = queue.pop_front().expect("it was just seen");
            drop(queue);
            used += bytes;
            let cache = self.cache(&next);
            self.users.push(User::new(next, self.shared, &cache));
            self.caches.push(cache);
        }
        self.prefill(first)
    }

    /// Keys and values for a newcomer, with the longest known beginning of the prompt.
    fn cache(&self, from: &Waiting) -> Cache {
        let (network, prefixes) = (self.shared.network, self.shared.prefixes);
        // The last token of a prompt is never shared: someone must compute what follows it.
        let head = &from.tokens[..from.tokens.len() - 1];
        match super::constrained::nearest(prefixes, head) {
            Some((prefix, known)) => network.cache_after(&prefixes[prefix], known),
            None => network.cache(),
        }
    }

    /// Computes the prompts of users from `first` on, in passes of at most so many rows as the limits say.
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
                if user.is_gone()
                    || user.from.request.weight == 0.0
                    || known == user.from.tokens.len()
                {
                    continue;
                }
                let to = user.from.tokens.len().min(known + room);
                pass.add_prompt(nth, known, &user.from.tokens[known..to]);
                user.response.waves += 1;
                ends.push((nth, to == user.from.tokens.len()));
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

    /// Lets those go who are done, called off or late.
    fn leave(&mut self) {
        let late = Instant::now() >= self.shared.end;
        // At the deadline no wave is begun: what is not proven is no list.
        if !late {
            self.each(|user| {
                if user.wave.is_none() && !user.is_gone() {
                    let rows_max = WAVE_ROWS.max(user.from.request.n);
                    user.wave = user.search.next_wave(rows_max);
                }
            });
        }
        let running = std::mem::take(&mut self.users).into_iter();
        let caches = std::mem::take(&mut self.caches);
        for (user, cache) in running.zip(caches) {
            let ended = if user.is_gone() {
                Some(Ended::Cancelled)
            } else if user.search.is_proven() {
                Some(Ended::Complete)
            } else {
                late.then_some(Ended::Late)
            };
            match ended {
                Some(ended) => self.done.push(user.finish(ended)),
                None => {
                    self.users.push(user);
                    self.caches.push(cache);
                }
            }
        }
    }

    /// Does the same for every user: side by side where the group has threads to spare, as on a device.
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

    /// Forwards the waves of all for whom there is room, and feeds them.
    fn step(&mut self) -> Result<(), Error> {
        let sizes = self.shared.network.sizes();
        let rows: Vec<usize> = self.users.iter().map(User::rows).collect();
        let wants: Vec<usize> = rows.iter().map(|rows| rows * sizes.position()).collect();
        let budget = Budget {
            limit: self.share.kv_max,
            used: self.used(),
        };
        let granted = budget.grants(&wants);
        let going: Vec<usize> = (0..self.users.len()).filter(|nth| granted[*nth]).collect();
        let rows: Vec<usize> = going.iter().map(|nth| rows[*nth]).collect();
        for pass in passes(&rows, self.shared.limits.rows_max) {
            self.wave(&going[pass])?;
        }
        Ok(())
    }

    /// Forwards one wave of each of these users, and feeds the logits.
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
                    user.hidden.as_ref().expect("prompts come before waves")
                } else {
                    rows.next().expect("a row per chain was wanted")
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
            let (own, others) = rest.split_at(nodes.map(|node| node.children.len()).sum());
            logits.insert(*nth, own.to_vec());
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

    /// Per user with a calibration the means of the wave's children, in the order of its logits.
    fn means(&mut self, users: &[usize]) -> Result<BTreeMap<usize, Vec<f32>>, Error> {
        let mut found = BTreeMap::new();
        let mut left: Vec<usize> = (users.iter().copied())
            .filter(|nth| self.users[*nth].from.means.is_some())
            .collect();
        while let Some(means) = left
            .first()
            .and_then(|nth| self.users[*nth].from.means.clone())
        {
            let same = |nth: &usize| {
                let own = self.users[*nth].from.means.as_ref();
                own.is_some_and(|own| Arc::ptr_eq(own, &means))
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
            let scratch = scratch.expect("it was just put there");
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
    fn new(mut from: Waiting<'a>, shared: &'a Shared<'a>, cache: &Cache) -> Self {
        let response = ScoreResponse {
            prompt_tokens: from.tokens.len() as u32,
            shared_tokens: cache.known() as u32,
            ..ScoreResponse::default()
        };
        let search = Search::new(shared.trie, std::mem::take(&mut from.question));
        Self {
            search,
            hidden: None,
            paths: Vec::new(),
            wave: None,
            scored: None,
            response,
            from,
        }
    }

    fn is_gone(&self) -> bool {
        self.from.request.cancel.is_cancelled()
    }

    /// Rows of the wave that waits.
    fn rows(&self) -> usize {
        let nodes = self.wave.iter().flat_map(|wave| &wave.nodes);
        nodes.map(|node| node.chain.len()).sum()
    }

    /// Adds the chains of the wave's nodes as rows; remembers the slots that they will have.
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

    /// The nodes of the wave, with all their children.
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

    /// A value per child of the wave, by its node's path and its token.
    fn gather(&self, value: impl Fn(&Vec<u32>, u32) -> f32) -> Vec<f32> {
        let nodes = self.wave.iter().flat_map(|wave| &wave.nodes);
        let values = nodes.flat_map(|node| {
            let path = &self.paths[node.id as usize].tokens;
            node.children.iter().map(move |token| (path, *token))
        });
        values.map(|(path, token)| value(path, token)).collect()
    }

    fn finish(self, ended: Ended) -> (usize, ScoreResponse) {
        let Waiting {
            place,
            request,
            totals,
            ..
        } = self.from;
        let found = match ended {
            Ended::Complete => self.search.into_answer(),
            Ended::Cancelled | Ended::Late | Ended::TooLong => Vec::new(),
        };
        let named = found.into_iter().map(|found| ScoredName {
            pu: found.pu,
            score: found.score as f32,
            model: found.model as f32,
            baseline: found.baseline as f32,
            terms: told(&request.terms, &totals, found.pu),
        });
        let response = ScoreResponse {
            named: named.collect(),
            ended,
            ..self.response
        };
        (place, response)
    }
}
