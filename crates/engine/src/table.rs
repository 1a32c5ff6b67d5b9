//! A [`Model`] that scores names by hash, for tests and simulations.
//!
//! Decides a score for any prompt and name, always the same. Invariant: it keeps the contract of [`Model`]
//! ([`check`](super::contract::check)); names are leaves under one node. It knows no tokens, so the counts of a
//! response are of characters and batches.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Info, Model};
use crate::search::index::{Indexed, Indexer, bare};
use nearshore_core::names::scoring::{
    Ended, Names, Prompt, ScoreRequest, ScoreResponse, ScoredName,
};
use nearshore_core::names::search::log_softmax;
use nearshore_core::names::sum::term_values;
use nearshore_core::names::writing::{WriteRequest, WriteResponse};

/// Numbers of a hidden state.
const WIDTH: usize = 8;

/// A table of scores: a hash of prompt and name.
#[derive(Default)]
pub struct Table {
    names: Arc<Names>,
    delay: Duration,
}

impl Table {
    /// Makes each batch take this long.
    #[must_use]
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn response(&self, request: &ScoreRequest) -> ScoreResponse {
        let permits = |pu: &usize| {
            if request.cancel.is_cancelled() {
                return false;
            }
            request
                .permitted
                .as_ref()
                .is_none_or(|permitted| permitted.contains(*pu))
        };
        let permitted: Vec<usize> = (0..self.names.names.len()).filter(permits).collect();
        let mut model: Vec<f64> = (permitted.iter())
            .map(|pu| f64::from(hashed(&request.prompt, &self.names.names[*pu])))
            .collect();
        if request.weight == 0.0 {
            model.fill(0.0);
        } else {
            log_softmax(&mut model);
        }
        let values = |pu: &usize| term_values(&request.terms, *pu as u32);
        let terms: Vec<Vec<f32>> = permitted.iter().map(values).collect();
        let scores: Vec<f64> = (0..permitted.len())
            .map(|nth| {
                let terms = request.terms.iter().zip(&terms[nth]);
                let weighted =
                    terms.map(|(term, value)| f64::from(term.weight) * f64::from(*value));
                f64::from(request.weight) * model[nth] + weighted.sum::<f64>()
            })
            .collect();
        let mut order: Vec<usize> = (0..permitted.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(request.n);
        let named = order.into_iter().map(|nth| ScoredName {
            pu: permitted[nth] as u32,
            score: scores[nth] as f32,
            model: model[nth] as f32,
            terms: terms[nth].clone(),
        });
        ScoreResponse {
            named: named.collect(),
            ended: if request.cancel.is_cancelled() {
                Ended::Cancelled
            } else {
                Ended::Complete
            },
            names: self.names.version,
            prompt_tokens: {
                let Prompt { user, assistant } = &request.prompt;
                (user.chars().count() + assistant.chars().count()) as u32
            },
            shared_tokens: 0,
            forwarded: 0,
            waves: u32::from(request.weight != 0.0),
            written: None,
        }
    }
}

impl Table {
    /// The names, best first, one a line, which count as one token each.
    fn text(&self, request: &WriteRequest) -> WriteResponse {
        let scored = self.response(&ScoreRequest {
            prompt: request.prompt.clone(),
            n: usize::MAX,
            cancel: request.cancel.clone(),
            ..ScoreRequest::default()
        });
        let bound = request.decoding.max_tokens as usize;
        let names = scored.named.iter().take(bound);
        let names = names.map(|named| self.names.names[named.pu as usize].as_str());
        let lines: Vec<&str> = names.collect();
        WriteResponse {
            is_cut: lines.len() < scored.named.len(),
            ended: scored.ended,
            prompt_tokens: scored.prompt_tokens,
            shared_tokens: 0,
            tokens: lines.len() as u32,
            passes: lines.len() as u32,
            text: lines.join("\n"),
        }
    }
}

impl Model for Table {
    fn indexer(&self) -> Indexer {
        bare()
    }

    fn swap(&mut self, indexed: Indexed) {
        self.names = indexed.names;
    }

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<ScoreResponse>, Error> {
        if !self.delay.is_zero() {
            #[expect(
                clippy::disallowed_methods,
                reason = "stands for the time that a model computes"
            )]
            std::thread::sleep(self.delay);
        }
        Ok(requests
            .iter()
            .map(|request| self.response(request))
            .collect())
    }

    fn write(&mut self, requests: &[WriteRequest]) -> Result<Vec<WriteResponse>, Error> {
        let text = |request: &WriteRequest| self.text(request);
        Ok(requests.iter().map(text).collect())
    }

    fn hidden(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error> {
        let of = |prompt: &Prompt| {
            let numbers = (0..WIDTH).map(|nth| hashed(prompt, &nth.to_string()) / 4.0 - 1.0);
            numbers.collect()
        };
        Ok(prompts.iter().map(of).collect())
    }

    fn info(&self) -> Info {
        Info {
            name: "table".into(),
            revision: "0".into(),
            dtype: "f32".into(),
            device: "cpu".into(),
        }
    }
}

/// FNV-1a of prompt and name, as a logit in 0..8.
fn hashed(prompt: &Prompt, name: &str) -> f32 {
    let Prompt { user, assistant } = prompt;
    // No text has these bytes, so they are borders that no text can move.
    let bytes = user.bytes().chain([0xfe]).chain(assistant.bytes());
    let bytes = bytes.chain([0xff]).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 40) as f32 / (1 << 21) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;

    #[test]
    fn a_table_keeps_the_contract_of_a_model() {
        contract::check(&mut Table::default()).expect("the contract is kept");
    }
}
