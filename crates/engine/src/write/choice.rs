//! The next token of a text, from the logits of the whole vocabulary: the likeliest one, or a sampled one.
//!
//! Decides by logits, the request's settings, its prompt and the number of tokens before alone. Invariant: equal prompts
//! and settings give equal choices, in any batch. It does not know networks or texts.

use nearshore_core::names::writing::Decoding;

/// What chooses the tokens of one text.
pub(super) struct Choice {
    decoding: Decoding,
    /// State of the generator: SplitMix64.
    state: u64,
}

impl Choice {
    /// The chooser of a text after a prompt. Sampling starts from seed and prompt, so that users with unlike prompts do
    /// not draw the same numbers.
    pub(super) fn new(decoding: Decoding, prompt: &[u32]) -> Self {
        let bytes = decoding.seed.to_le_bytes().into_iter();
        let bytes = bytes.chain(prompt.iter().flat_map(|token| token.to_le_bytes()));
        let state = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { decoding, state }
    }

    /// The next token; `None` if a logit is not finite.
    pub(super) fn next(&mut self, logits: &[f32]) -> Option<u32> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let best = likeliest(logits)?;
        match self.decoding.temperature > 0.0 {
            true => Some(self.sample(logits, logits[best as usize])),
            false => Some(best),
        }
    }

    fn sample(&mut self, logits: &[f32], max: f32) -> u32 {
        let temperature = self.decoding.temperature;
        let weight = |logit: &f32| (f64::from(logit - max) / temperature).exp();
        let weights: Vec<f64> = logits.iter().map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let top_p = self.decoding.top_p;
        let mut kept: Vec<(u32, f64)> = (0..).zip(weights).collect();
        if top_p < 1.0 {
            // Tokens below this share weigh less than `1 - top_p` together, so none of them is needed.
            let least = (1.0 - top_p) * sum / logits.len() as f64;
            kept.retain(|(_, weight)| *weight >= least);
            kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut before = 0.0;
            let mut needed = |(_, weight): &(u32, f64)| {
                let is_needed = before < top_p * sum;
                before += weight;
                is_needed
            };
            let count = kept.iter().take_while(|it| needed(it)).count();
            kept.truncate(count.max(1));
        }
        let all: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = self.number() * all;
        for (token, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Only rounding leaves something.
        kept.last().map_or(0, |(token, _)| *token)
    }

    /// A number from 0 to below 1.
    fn number(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The token with the greatest logit; of equals the first.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    for (token, logit) in (0..).zip(logits) {
        if best.is_none_or(|(_, most)| *logit > most) {
            best = Some((token, *logit));
        }
    }
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Decoding = Decoding {
        max_tokens: 9,
        temperature: 1.0,
        top_p: 1.0,
        seed: 7,
    };

    /// How often each token is chosen of many.
    fn counts(decoding: Decoding, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut choice = Choice::new(decoding, &[1, 2, 3]);
        for _ in 0..20_000 {
            counts[choice.next(logits).expect("finite") as usize] += 1;
        }
        counts
    }

    #[test]
    fn without_a_temperature_the_likeliest_token_is_taken_and_of_equals_the_first() {
        let mut choice = Choice::new(Decoding::default(), &[]);
        assert_eq!(choice.next(&[0.5, 2.0, -1.0, 2.0]), Some(1));
        assert_eq!(choice.next(&[-3.0]), Some(0));
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(choice.next(&[0.5, wrong]), None);
        }
        assert_eq!(choice.next(&[]), None);
    }

    #[test]
    fn tokens_are_sampled_by_their_probabilities_at_the_temperature() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        for (temperature, expected) in [(1.0, [0.6, 0.3, 0.1]), (0.5, [0.783, 0.196, 0.022])] {
            let counts = counts(
                Decoding {
                    temperature,
                    ..WARM
                },
                &logits,
            );
            for (count, expected) in counts.into_iter().zip(expected) {
                let share = count as f64 / 20_000.0;
                assert!((share - expected).abs() < 0.02, "{share} {expected}");
            }
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_likeliest_tokens_that_reach_it() {
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        for (top_p, kept) in [(0.4, 1), (0.6, 2), (0.76, 3), (0.95, 4)] {
            let counts = counts(Decoding { top_p, ..WARM }, &logits);
            let order = [1, 3, 2, 0];
            for (nth, token) in order.into_iter().enumerate() {
                assert_eq!(counts[token] > 0, nth < kept, "{top_p}: {counts:?}");
            }
            // What is kept keeps its proportions.
            if kept > 1 {
                let ratio = counts[1] as f64 / counts[3] as f64;
                assert!((ratio - 2.0).abs() < 0.15, "{top_p}: {ratio}");
            }
        }
    }

    #[test]
    fn seed_and_prompt_decide_what_is_drawn() {
        let drawn = |seed, prompt: &[u32]| -> Vec<u32> {
            let mut choice = Choice::new(Decoding { seed, ..WARM }, prompt);
            let next = || choice.next(&[0.0; 64]).expect("finite");
            std::iter::repeat_with(next).take(20).collect()
        };
        assert_eq!(drawn(1, &[5, 6]), drawn(1, &[5, 6]));
        assert_ne!(drawn(1, &[5, 6]), drawn(2, &[5, 6]));
        assert_ne!(drawn(1, &[5, 6]), drawn(1, &[6, 5]));
    }
}
