//! Texts that a decoder writes, token by token: batched decoding with continuous batching.
//!
//! Decides how a batch runs: the common beginning of prompts is computed once, as for the search, and requests wait in
//! one queue, from which the threads take them in [groups](batch). Invariant: a request's text is equal, token by token,
//! alone, in any batch, at any place of the queue and on any number of threads (CPU). It does not know what a text is
//! for.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use crate::Error;
use crate::clocks::Part;
use crate::search::constrained::Constrained;
use nearshore_core::names::scoring::Ended;
use nearshore_core::names::writing::{WriteRequest, WriteResponse};

mod batch;
mod choice;

use batch::{Batch, Common, Waiting};

/// The fewest texts of a group: every group reads all weights for each token, which costs more than it gains for fewer.
const GROUP_MIN: usize = 8;

impl Constrained {
    /// Writes a text for each request; responses are in the order of the requests. A prompt that leaves no room for the
    /// text in the model's context costs no other request its text.
    pub(crate) fn write_texts(
        &mut self,
        requests: &[WriteRequest],
    ) -> Result<Vec<WriteResponse>, Error> {
        let end = Instant::now() + self.limits.time_max;
        let context = self.network.geometry().context;
        let tokens = || -> Result<Vec<Vec<u32>>, Error> {
            use rayon::prelude::*;
            let prompts = requests.par_iter();
            let prompts = prompts.map(|request| self.text.prompt(&request.prompt));
            prompts.collect()
        };
        let prompts = (self.clocks()).time(Part::Tokens, || self.pool.install(tokens))?;
        let mut responses = Vec::with_capacity(requests.len());
        let mut queue = VecDeque::with_capacity(requests.len());
        for (place, (request, tokens)) in requests.iter().zip(prompts).enumerate() {
            let prompt_tokens = tokens.len() as u32;
            let fits = tokens.len() + request.decoding.max_tokens as usize <= context;
            responses.push(WriteResponse {
                ended: if fits { Ended::Late } else { Ended::TooLong },
                prompt_tokens,
                ..WriteResponse::default()
            });
            if fits {
                queue.push_back(Waiting {
                    place,
                    request,
                    tokens,
                });
            }
        }
        let shared: Vec<&[u32]> = queue.iter().map(|waiting| &waiting.tokens[..]).collect();
        self.share(&shared)?;
        let groups = queue.len() / GROUP_MIN;
        let groups = groups.clamp(1, self.groups_max.max(1));
        let common = Common {
            network: &self.network,
            text: &self.text,
            ends: &self.text.ends(),
            prefixes: &self.prefixes,
            pulse: &self.pulse,
            clocks: self.clocks(),
            rows_max: self.limits.rows_max,
            kv_max: self.limits.kv_max / groups,
            threads: (self.pool.current_num_threads() / groups).max(1),
            places: queue.len().div_ceil(groups),
            end,
            queue: Mutex::new(queue),
        };
        let done: Vec<_> = self.pool.install(|| {
            use rayon::prelude::*;
            let groups = (0..groups).into_par_iter();
            groups.map(|_| Batch::new(&common).run()).collect()
        });
        for group in done {
            for (place, response) in group? {
                responses[place] = response;
            }
        }
        Ok(responses)
    }
}
