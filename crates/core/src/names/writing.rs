//! Texts that a model writes: how its tokens are chosen, the request, and what was written.
//!
//! Values only; the engine writes, and [`free`](super::free) reads what it wrote.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scoring::{Cancel, Ended, Prompt};

/// `arms.decoding`: how an arm's model that runs here chooses its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Decoding {
    /// Most tokens of a text.
    pub max_tokens: u32,
    /// Temperature of sampling; 0 takes the likeliest token.
    pub temperature: f64,
    /// Share of the probability, from the likeliest token on, that is sampled from.
    pub top_p: f64,
    /// Seed of sampling.
    pub seed: u32,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl Decoding {
    /// What is wrong with values that have the right type: the key, and what is allowed.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, key, what: String| {
            if !holds {
                problems.push((key, what));
            }
        };
        let Self {
            max_tokens,
            temperature,
            top_p,
            ..
        } = *self;
        must(max_tokens >= 1, "max_tokens", "must be at least 1".into());
        let is_warm = (0.0..=2.0).contains(&temperature);
        must(
            is_warm,
            "temperature",
            format!("{temperature} must be from 0 to 2"),
        );
        let is_share = top_p > 0.0 && top_p <= 1.0;
        must(
            is_share,
            "top_p",
            format!("{top_p} must be over 0 and at most 1"),
        );
        let idle = is_share && top_p < 1.0 && temperature == 0.0;
        let what = "has no effect with temperature = 0, which takes the likeliest token; leave it out, or set \
                    temperature";
        must(!idle, "top_p", what.into());
        problems
    }
}

/// A request for one text.
#[derive(Clone, Debug, Default)]
pub struct WriteRequest {
    /// The rendered prompt; the text continues the start of the assistant's turn.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// Cancels the request.
    pub cancel: Cancel,
}

/// What a model wrote for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteResponse {
    /// The text, without the start of the assistant's turn; empty unless complete.
    pub text: String,
    /// Whether the text ends at the limit of tokens, and not because the model ended it.
    pub is_cut: bool,
    /// How the request ended: complete with a text.
    pub ended: Ended,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt shared with others and computed once.
    pub shared_tokens: u32,
    /// Tokens written, the one that ended the text included.
    pub tokens: u32,
    /// Forward passes that this request took part in.
    pub passes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_are_told_by_their_keys() {
        let keys = |decoding: Decoding| -> Vec<&str> {
            let problems = decoding.problems().into_iter();
            problems.map(|(key, _)| key).collect()
        };
        let decoding = Decoding::default();
        assert_eq!(keys(decoding), [""; 0]);
        let sampled = Decoding {
            temperature: 0.7,
            top_p: 0.9,
            ..decoding
        };
        assert_eq!(keys(sampled), [""; 0]);
        let greedy = Decoding {
            temperature: 0.0,
            ..sampled
        };
        assert_eq!(keys(greedy), ["top_p"]);
        let wrong = Decoding {
            max_tokens: 0,
            temperature: f64::NAN,
            top_p: 0.0,
            seed: 0,
        };
        assert_eq!(keys(wrong), ["max_tokens", "temperature", "top_p"]);
    }
}
