//! The exact top N of the catalogue under a Llama: [`Model`] by [`Search`] over a candle network.
//!
//! Decides how a batch runs: what prompts share is computed once and kept for later batches, users
//! are spread over threads in groups, and all users of a group share each forward pass. Invariant: a
//! user's answer is the same, bit for bit, alone, in any batch, on any number of threads. It does not
//! know how a pass is computed, nor whose names it scores. The model's mean over reference prompts is
//! not subtracted yet: it is 0.

use std::path::Path;
use std::sync::Arc;

use super::attention::{Sight, Span};
use super::forward::{Network, Pass};
use super::kv::{Cache, Prefix};
use super::load::{self, Loaded};
use super::text::Text;
use super::thread::Pulse;
use super::{Answer, Ask, Error, Info, Model, Named, Names, Options, Term, smooth};
use crate::search::{Leaning, Question, Search, Wave};
use crate::trie::Trie;

/// Prefixes kept, most recently used first: one per arm's template, and some change.
const PREFIXES_MAX: usize = 4;

/// Tokens that a common beginning must have beyond the known ones to be worth a pass of its own.
const SHARED_MIN: usize = 16;

/// Prompt rows of one pass: as many as keep a layer's activations in the cache.
const PROMPT_ROWS: usize = 512;

/// Trie rows of one user in one pass; of a user alone, so that who else is there changes nothing.
const WAVE_ROWS: usize = 96;

/// A Llama over a trie of names.
pub struct Constrained {
    network: Network,
    text: Arc<Text>,
    info: Info,
    trie: Trie,
    prefixes: Vec<Prefix>,
    /// The last batch's first prompt: what the next shares with it is a template.
    last: Vec<u32>,
    pool: rayon::ThreadPool,
    pulse: Arc<Pulse>,
}

/// One user of a group.
struct User<'a> {
    ask: &'a Ask,
    tokens: Vec<u32>,
    search: Search<'a>,
    /// Hidden state behind the prompt.
    hidden: Vec<f32>,
    /// Per node asked for: the slots of its whole path.
    slots: Vec<Vec<u32>>,
    answer: Answer,
}

/// Users that share their passes, with a cache each.
struct Group<'a> {
    network: &'a Network,
    pulse: &'a Pulse,
    users: Vec<User<'a>>,
    caches: Vec<Cache>,
    threads: usize,
}

impl Constrained {
    /// Loads a GGUF file or a Hugging Face folder.
    pub fn load(path: &Path, options: Options) -> Result<Self, Error> {
        let Loaded {
            weights,
            text,
            info,
        } = load::load(path)?;
        let samples = smooth::samples(&text)?;
        let network = Network::new(weights, options, &samples).map_err(failed)?;
        let info = Info {
            dtype: network.dtype().into(),
            ..info
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.max(1))
            .thread_name(|nth| format!("engine-{nth}"))
            .build();
        let pool = pool.map_err(|e| Error::Compute {
            what: "threads".into(),
            source: Box::new(e),
        })?;
        Ok(Self {
            network,
            text: Arc::new(text),
            info,
            trie: Trie::default(),
            prefixes: Vec::new(),
            last: Vec::new(),
            pool,
            pulse: Arc::default(),
        })
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// Memory that the layers' weights take.
    pub fn bytes(&self) -> usize {
        self.network.bytes()
    }

    /// The pulse that each pass beats; give it to [`spawn_with`](super::thread::spawn_with).
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Logits of some tokens after `tokens`, by one pass without any sharing.
    pub fn logits(&self, tokens: &[u32], of: &[u32]) -> Result<Vec<f32>, Error> {
        let mut caches = [Cache::new(self.network.sizes())];
        let mut pass = Pass::default();
        pass.add_prompt(0, 0, tokens);
        let hidden = self
            .network
            .forward(&pass, &mut caches, 1)
            .map_err(failed)?;
        self.network.logits(&hidden, of).map_err(failed)
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
            let sizes = self.network.sizes();
            let cache = match known {
                Some((prefix, shared)) => Cache::after(sizes, &self.prefixes[prefix], shared),
                None => Cache::new(sizes),
            };
            let mut caches = [cache];
            let mut pass = Pass::default();
            pass.add_prompt(0, so_far, &first[so_far..common]);
            let threads = self.pool.current_num_threads();
            let network = &self.network;
            let computed = self
                .pool
                .install(|| network.forward(&pass, &mut caches, threads));
            computed.map_err(failed)?;
            self.pulse.beat();
            let [cache] = caches;
            self.prefixes
                .insert(0, cache.into_prefix(first[..common].to_vec()));
            self.prefixes.truncate(PREFIXES_MAX);
        } else if let Some((used, _)) = known {
            self.prefixes[..=used].rotate_right(1);
        }
        self.last = first.to_vec();
        Ok(())
    }

    fn tokens(&self, ask: &Ask) -> Result<Vec<u32>, Error> {
        let tokens = self.text.prompt(&ask.prompt)?;
        let limit = self.network.geometry().context;
        if tokens.len() + self.trie.depth() > limit {
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
    pub fn prefill(&self, prompts: &[Vec<u32>]) -> Result<(), Error> {
        let ask = Ask {
            prompt: String::new(),
            permitted: None,
            n: 0,
            terms: Vec::new(),
            weight: 1.0,
        };
        let users = prompts.iter().map(|prompt| (&ask, prompt.clone()));
        self.run(users.collect()).map(drop)
    }

    /// Answers users, in groups over the threads.
    fn run(&self, mut users: Vec<(&Ask, Vec<u32>)>) -> Result<Vec<Answer>, Error> {
        let threads = self.pool.current_num_threads();
        let groups = threads.min(users.len()).max(1);
        let mut work = Vec::with_capacity(groups);
        for left in (1..=groups).rev() {
            let rest = users.split_off(users.len().div_ceil(left));
            work.push(self.group(std::mem::replace(&mut users, rest), threads / groups));
        }
        let done: Vec<Result<Vec<Answer>, Error>> = self.pool.install(|| {
            use rayon::prelude::*;
            work.into_par_iter().map(Group::run).collect()
        });
        let answers: Result<Vec<_>, _> = done.into_iter().collect();
        Ok(answers?.into_iter().flatten().collect())
    }

    fn group<'a>(&'a self, users: Vec<(&'a Ask, Vec<u32>)>, threads: usize) -> Group<'a> {
        let sizes = self.network.sizes();
        let mut group = Group {
            network: &self.network,
            pulse: &self.pulse,
            caches: Vec::with_capacity(users.len()),
            users: Vec::with_capacity(users.len()),
            threads,
        };
        for (ask, tokens) in users {
            let cache = match nearest(&self.prefixes, &tokens[..tokens.len() - 1]) {
                Some((prefix, shared)) => Cache::after(sizes, &self.prefixes[prefix], shared),
                None => Cache::new(sizes),
            };
            let answer = Answer {
                prompt_tokens: tokens.len() as u32,
                shared_tokens: cache.known() as u32,
                ..Answer::default()
            };
            let search = Search::new(&self.trie, question(&self.trie, ask));
            let (hidden, slots) = (Vec::new(), Vec::new());
            group.users.push(User {
                ask,
                tokens,
                search,
                hidden,
                slots,
                answer,
            });
            group.caches.push(cache);
        }
        group
    }
}

impl Model for Constrained {
    fn set_names(&mut self, names: Arc<Names>) -> Result<(), Error> {
        let tokens: Result<Vec<_>, _> = names.names.iter().map(|n| self.text.name(n)).collect();
        self.trie = Trie::build(&tokens?, self.text.end());
        Ok(())
    }

    fn generate(&mut self, asks: &[Ask]) -> Result<Vec<Answer>, Error> {
        let prompts: Result<Vec<_>, _> = asks.iter().map(|ask| self.tokens(ask)).collect();
        let prompts = prompts?;
        // An ask of weight 0 computes nothing, so it shares nothing.
        let heard = asks
            .iter()
            .zip(&prompts)
            .filter(|(ask, _)| ask.weight != 0.0);
        let heard: Vec<&[u32]> = heard.map(|(_, prompt)| prompt.as_slice()).collect();
        self.share(&heard)?;
        self.run(asks.iter().zip(prompts).collect())
    }

    fn info(&self) -> Info {
        self.info.clone()
    }
}

impl Group<'_> {
    fn run(mut self) -> Result<Vec<Answer>, Error> {
        let mut from = 0;
        while from < self.users.len() {
            from = self.prefill(from)?;
        }
        loop {
            let waves: Vec<Option<Wave>> = self
                .users
                .iter_mut()
                .map(|user| user.search.next_wave(WAVE_ROWS))
                .collect();
            if waves.iter().all(Option::is_none) {
                break;
            }
            self.step(&waves)?;
        }
        Ok(self.users.into_iter().map(User::finish).collect())
    }

    /// Computes the prompts of users from `from` on, as many as fit into a pass; returns the next.
    fn prefill(&mut self, from: usize) -> Result<usize, Error> {
        let mut pass = Pass::default();
        let mut to = from;
        while to < self.users.len() {
            let (user, known) = (&mut self.users[to], self.caches[to].known());
            let rows = user.tokens.len() - known;
            if !pass.tokens.is_empty() && pass.tokens.len() + rows > PROMPT_ROWS {
                break;
            }
            if user.ask.weight != 0.0 {
                pass.add_prompt(to, known, &user.tokens[known..]);
                user.answer.waves += 1;
            }
            to += 1;
        }
        if !pass.tokens.is_empty() {
            let hidden = self.forward(&pass)?;
            let width = self.network.geometry().hidden;
            for (span, hidden) in pass.spans.iter().zip(hidden.chunks_exact(width)) {
                self.users[span.cache].hidden = hidden.to_vec();
            }
        }
        Ok(to)
    }

    /// Forwards one wave of each user that has one, and feeds the logits.
    fn step(&mut self, waves: &[Option<Wave>]) -> Result<(), Error> {
        let mut pass = Pass {
            nodes: true,
            ..Pass::default()
        };
        for (nth, wave) in waves.iter().enumerate() {
            if let Some(wave) = wave {
                let before = pass.tokens.len();
                self.users[nth].add_nodes(&mut pass, nth, &self.caches[nth], wave);
                let rows = (pass.tokens.len() - before) as u32;
                self.users[nth].answer.forwarded += rows;
                self.users[nth].answer.waves += u32::from(rows > 0);
            }
        }
        let hidden = if pass.tokens.is_empty() {
            Vec::new()
        } else {
            self.forward(&pass)?
        };
        let mut rows = hidden.chunks_exact(self.network.geometry().hidden);
        for (user, wave) in self.users.iter_mut().zip(waves) {
            let Some(wave) = wave else { continue };
            let mut logits = Vec::new();
            for node in &wave.nodes {
                let row = if node.chain.is_empty() {
                    user.hidden.as_slice()
                } else {
                    rows.next().expect("a row per chain was wanted")
                };
                logits.extend(self.network.logits(row, &node.children).map_err(failed)?);
            }
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(Error::Compute {
                    what: "logits".into(),
                    source: "the model's output is not finite".into(),
                });
            }
            user.search.feed(&logits);
        }
        Ok(())
    }

    fn forward(&mut self, pass: &Pass) -> Result<Vec<f32>, Error> {
        let hidden = self.network.forward(pass, &mut self.caches, self.threads);
        self.pulse.beat();
        hidden.map_err(failed)
    }
}

impl User<'_> {
    /// Adds the chains of a wave's nodes as rows; remembers the slots that they will have.
    fn add_nodes(&mut self, pass: &mut Pass, nth: usize, cache: &Cache, wave: &Wave) {
        let from = pass.tokens.len();
        for node in &wave.nodes {
            let mut path = match node.parent {
                Some(parent) => self.slots[parent as usize].clone(),
                None => Vec::new(),
            };
            for token in &node.chain {
                let slot = cache.slots() + pass.tokens.len() - from;
                pass.positions.push(cache.known() + path.len());
                path.push(slot as u32);
                pass.tokens.push(*token);
                pass.sights.push(Sight {
                    prompt: cache.known(),
                    slots: path.clone(),
                });
            }
            if !node.chain.is_empty() {
                pass.wanted.push(pass.tokens.len() - 1);
            }
            self.slots.push(path);
        }
        if pass.tokens.len() > from {
            pass.spans.push(Span {
                cache: nth,
                rows: from..pass.tokens.len(),
            });
        }
    }

    fn finish(self) -> Answer {
        let masses = self.search.masses();
        let share = |(term, total): (&Term, &f64), pu: u32| {
            let mass = term.mass.get(pu as usize).copied().unwrap_or(0.0);
            (f64::from(mass).max(1e-30) / total.max(1e-30)).ln() as f32
        };
        let found = self.search.into_answer().into_iter();
        let named = found.map(|found| Named {
            pu: found.pu,
            score: found.score as f32,
            model: found.model as f32,
            terms: self
                .ask
                .terms
                .iter()
                .zip(&masses)
                .map(|term| share(term, found.pu))
                .collect(),
        });
        Answer {
            named: named.collect(),
            ..self.answer
        }
    }
}

impl Pass {
    /// Adds `tokens` of a prompt from `position` on; the last one's hidden state is wanted.
    pub fn add_prompt(&mut self, cache: usize, position: usize, tokens: &[u32]) {
        let from = self.tokens.len();
        for (nth, token) in tokens.iter().enumerate() {
            self.tokens.push(*token);
            self.positions.push(position + nth);
            self.sights.push(Sight {
                prompt: position + nth + 1,
                slots: Vec::new(),
            });
        }
        self.wanted.push(self.tokens.len() - 1);
        self.spans.push(Span {
            cache,
            rows: from..self.tokens.len(),
        });
    }
}

fn question<'a>(trie: &Trie, ask: &'a Ask) -> Question<'a> {
    Question {
        permitted: ask.permitted.as_ref().map(|pus| trie.by_leaf(pus)),
        n: ask.n,
        weight: f64::from(ask.weight),
        terms: (ask.terms.iter())
            .map(|term| Leaning {
                weight: f64::from(term.weight),
                mass: &term.mass,
            })
            .collect(),
    }
}

fn alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The prefix that shares most with `tokens`, and how much; `None` if none shares anything.
fn nearest(prefixes: &[Prefix], tokens: &[u32]) -> Option<(usize, usize)> {
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

fn failed(source: candle_core::Error) -> Error {
    Error::Compute {
        what: "forward pass".into(),
        source: Box::new(source),
    }
}
