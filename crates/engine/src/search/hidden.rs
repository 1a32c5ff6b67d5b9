//! Hidden states after prompts, without a search.
//!
//! Decides how prompts are distributed: on the CPU one prompt per thread, on a device one after another. Invariant: a
//! prompt has the same hidden state, bit by bit, alone, in any batch and on any number of threads (CPU). It does not
//! know what hidden states are for.

use rayon::prelude::*;

use super::constrained::{Constrained, failed, nearest};
use crate::Error;
use crate::cpu::forward::Pass;
use nearshore_core::names::scoring::Prompt;

impl Constrained {
    /// The hidden state, after the last norm, at the end of each prompt.
    pub(super) fn hidden_states(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error> {
        let tokens = prompts.iter().map(|prompt| self.tokens(prompt));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>()?;
        // A text that goes on begins like no other prompt: it must not shorten what those share.
        let templated = prompts.iter().zip(&tokens);
        let templated = templated.filter(|(prompt, _)| !prompt.user.is_empty());
        let templated: Vec<&[u32]> = templated.map(|(_, tokens)| &tokens[..]).collect();
        self.share(&templated)?;
        let threads = self.pool.current_num_threads();
        if self.groups_max == 1 || tokens.len() == 1 {
            let all = tokens.iter();
            return self
                .pool
                .install(|| all.map(|it| self.hidden_state(it, threads)).collect());
        }
        let all = tokens.par_iter();
        self.pool
            .install(|| all.map(|it| self.hidden_state(it, 1)).collect())
    }

    fn hidden_state(&self, tokens: &[u32], threads: usize) -> Result<Vec<f32>, Error> {
        let wrong = |source: &'static str| Error::Compute {
            what: "hidden state".into(),
            source: source.into(),
        };
        let Some((_, head)) = tokens.split_last() else {
            return Err(wrong("the prompt has no tokens"));
        };
        let mut caches = [match nearest(&self.prefixes, head) {
            Some((prefix, known)) => self.network.cache_after(&self.prefixes[prefix], known),
            None => self.network.cache(),
        }];
        let mut hidden = None;
        while caches[0].known() < tokens.len() {
            let known = caches[0].known();
            let to = tokens.len().min(known + self.limits.rows_max);
            let mut pass = Pass::default();
            pass.add_prompt(0, known, &tokens[known..to]);
            let computed = self.network.forward(&pass, &mut caches, threads);
            hidden = computed.map_err(failed)?.pop();
            self.pulse.beat();
        }
        let row = hidden.ok_or_else(|| wrong("no row was computed"))?;
        let numbers = row.numbers().map_err(failed)?;
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers),
            false => Err(wrong("the model's output is not finite")),
        }
    }
}
