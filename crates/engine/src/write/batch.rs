//! A group of texts that are written together: each step is one forward pass over the next token of every text, and over
//! the prompts of texts that are new.
//!
//! Decides which texts are in the batch: one that ended leaves its place, and its memory, to the next one of the queue
//! between two steps. Invariant: a token depends on its own text alone, because a row of a pass does; the memory of a
//! text is reserved when it starts, so that no text is given up for another. It does not know how a pass is computed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::choice::Choice;
use crate::Error;
use crate::clocks::{Clocks, Part};
use crate::cpu::forward::Pass;
use crate::formats::text::Text;
use crate::search::admission::Budget;
use crate::search::backend::{Cache, Network, Prefix, Row};
use crate::search::constrained::{failed, nearest};
use crate::thread::Pulse;
use nearshore_core::names::scoring::Ended;
use nearshore_core::names::writing::{WriteRequest, WriteResponse};

/// The most rows whose logits are in memory at once: each has one for every token of the vocabulary.
const LOGITS_MAX: usize = 64;

/// What all groups of a batch share, and each group's part of threads and memory.
pub(super) struct Common<'a> {
    pub network: &'a Network,
    pub text: &'a Text,
    /// Tokens that end a text.
    pub ends: &'a [u32],
    pub prefixes: &'a [Prefix],
    pub pulse: &'a Pulse,
    pub clocks: &'a Clocks,
    /// The most rows of one pass.
    pub rows_max: usize,
    /// The most bytes of a group for keys and values, unless one text alone needs more.
    pub kv_max: usize,
    /// Threads of a group.
    pub threads: usize,
    /// The most texts that a group writes at once.
    pub places: usize,
    /// The time at which the batch ends.
    pub end: Instant,
    /// Requests that have not started, oldest first.
    pub queue: Mutex<VecDeque<Waiting<'a>>>,
}

/// A request that has not started.
pub(super) struct Waiting<'a> {
    /// Position in the batch.
    pub place: usize,
    pub request: &'a WriteRequest,
    /// The prompt.
    pub tokens: Vec<u32>,
}

/// A text that is being written.
struct Writing<'a> {
    place: usize,
    request: &'a WriteRequest,
    /// The prompt, then what was written.
    tokens: Vec<u32>,
    prompt: usize,
    choice: Choice,
    /// Bytes of keys and values at its longest.
    reserved: usize,
    /// Whether the model ended it.
    is_ended: bool,
    response: WriteResponse,
}

/// Texts that share their passes.
pub(super) struct Batch<'a> {
    common: &'a Common<'a>,
    /// Oldest first.
    texts: Vec<Writing<'a>>,
    /// Keys and values of each text.
    caches: Vec<Cache>,
    done: Vec<(usize, WriteResponse)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(common: &'a Common<'a>) -> Self {
        Self {
            common,
            texts: Vec::new(),
            caches: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Writes texts from the queue until it is empty; returns each response with its position in the batch.
    pub(super) fn run(mut self) -> Result<Vec<(usize, WriteResponse)>, Error> {
        loop {
            self.leave();
            if Instant::now() < self.common.end {
                self.admit();
            }
            if self.texts.is_empty() {
                return Ok(self.done);
            }
            self.step()?;
        }
    }

    /// Removes texts that are done, cancelled or late.
    fn leave(&mut self) {
        let is_late = Instant::now() >= self.common.end;
        let texts = std::mem::take(&mut self.texts).into_iter();
        let caches = std::mem::take(&mut self.caches);
        for (text, cache) in texts.zip(caches) {
            let ended = if text.request.cancel.is_cancelled() {
                Some(Ended::Cancelled)
            } else if text.is_done() {
                Some(Ended::Complete)
            } else {
                is_late.then_some(Ended::Late)
            };
            match ended {
                Some(ended) => self.done.push(text.finish(ended, self.common)),
                None => {
                    self.texts.push(text);
                    self.caches.push(cache);
                }
            }
        }
    }

    /// Starts texts for which there is a place and memory, oldest first.
    fn admit(&mut self) {
        let Common {
            network, prefixes, ..
        } = *self.common;
        let position = network.sizes().position();
        let mut budget = Budget {
            limit: self.common.kv_max,
            used: self.texts.iter().map(|text| text.reserved).sum(),
        };
        while self.texts.len() < self.common.places {
            let mut queue = (self.common.queue.lock()).unwrap_or_else(PoisonError::into_inner);
            let Some(next) = queue.front() else { return };
            // The last token of a prompt is never shared: its own pass gives the hidden state after the prompt.
            let known = nearest(prefixes, &next.tokens[..next.tokens.len() - 1]);
            let own = next.tokens.len() - known.map_or(0, |(_, known)| known);
            let own = (own + next.request.decoding.max_tokens as usize) * position;
            if !budget.admits(own, self.texts.len()) {
                return;
            }
            let Some(next) = queue.pop_front() else {
                return;
            };
            drop(queue);
            budget.used += own;
            let cache = match known {
                Some((prefix, known)) => network.cache_after(&prefixes[prefix], known),
                None => network.cache(),
            };
            self.texts.push(Writing::new(next, own, cache.known()));
            self.caches.push(cache);
        }
    }

    /// Computes one pass: of each text its next token, or as much of its prompt as there is room for.
    fn step(&mut self) -> Result<(), Error> {
        let mut pass = Pass::default();
        let mut ends = Vec::new();
        let mut has_prompts = false;
        for (nth, text) in self.texts.iter_mut().enumerate() {
            let room = self.common.rows_max - pass.tokens.len();
            if room == 0 {
                break;
            }
            let known = self.caches[nth].known();
            has_prompts |= known + 1 < text.tokens.len();
            let to = text.tokens.len().min(known + room);
            pass.add_prompt(nth, known, &text.tokens[known..to]);
            text.response.passes += 1;
            ends.push((nth, to == text.tokens.len()));
        }
        let rows = self.forward(&pass, has_prompts)?;
        let rows = ends.into_iter().zip(rows);
        let rows: Vec<(usize, Row)> = rows
            .filter_map(|((nth, is_end), row)| is_end.then_some((nth, row)))
            .collect();
        for rows in rows.chunks(LOGITS_MAX) {
            self.choose(rows)?;
        }
        Ok(())
    }

    /// Chooses the next token of each of these texts, whose last rows were computed.
    fn choose(&mut self, rows: &[(usize, Row)]) -> Result<(), Error> {
        let Common {
            network,
            clocks,
            threads,
            ..
        } = *self.common;
        let states: Vec<&Row> = rows.iter().map(|(_, row)| row).collect();
        let logits = clocks.time(Part::Logits, || network.all_logits(&states, threads));
        let logits = logits.map_err(failed)?;
        clocks.time(Part::Search, || {
            for ((nth, _), logits) in rows.iter().zip(logits) {
                let text = &mut self.texts[*nth];
                let token = text.choice.next(&logits).ok_or_else(|| Error::Compute {
                    what: "logits".into(),
                    source: "the model's output is not finite".into(),
                })?;
                text.is_ended = self.common.ends.contains(&token);
                text.tokens.push(token);
            }
            Ok(())
        })
    }

    fn forward(&mut self, pass: &Pass, has_prompts: bool) -> Result<Vec<Row>, Error> {
        let Common {
            network,
            clocks,
            threads,
            ..
        } = *self.common;
        let (part, wait) = match has_prompts {
            true => (Part::Prompts, Part::PromptsWait),
            false => (Part::Waves, Part::WavesWait),
        };
        let rows = clocks.time(part, || network.forward(pass, &mut self.caches, threads));
        if clocks.waits() {
            clocks.time(wait, || network.wait()).map_err(failed)?;
        }
        self.common.pulse.beat();
        rows.map_err(failed)
    }
}

impl<'a> Writing<'a> {
    fn new(waiting: Waiting<'a>, reserved: usize, shared: usize) -> Self {
        let Waiting {
            place,
            request,
            tokens,
        } = waiting;
        Self {
            place,
            request,
            prompt: tokens.len(),
            choice: Choice::new(request.decoding, &tokens),
            reserved,
            is_ended: false,
            response: WriteResponse {
                prompt_tokens: tokens.len() as u32,
                shared_tokens: shared as u32,
                ..WriteResponse::default()
            },
            tokens,
        }
    }

    /// Number of tokens written.
    fn len(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    fn is_done(&self) -> bool {
        self.is_ended || self.len() >= self.request.decoding.max_tokens as usize
    }

    /// Ends the text; returns its position in the batch and its response.
    fn finish(self, ended: Ended, common: &Common) -> (usize, WriteResponse) {
        let written = &self.tokens[self.prompt..];
        let text = match ended {
            Ended::Complete => {
                let end = written.len() - usize::from(self.is_ended);
                common.text.written(&written[..end])
            }
            Ended::Cancelled | Ended::Late | Ended::TooLong | Ended::Failed => String::new(),
        };
        let response = WriteResponse {
            text,
            is_cut: ended == Ended::Complete && !self.is_ended,
            ended,
            tokens: self.len() as u32,
            ..self.response
        };
        (self.place, response)
    }
}
