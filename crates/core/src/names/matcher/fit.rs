//! Fits a model to labelled texts, and measures it on others.
//!
//! Decides which texts are held out: all texts of one product together. The rest is scored fold by fold, by weights of
//! the other folds; calibration and theta are from these scores. Invariant: theta and all measures are of texts that the
//! weights behind them never saw, and equal examples and seeds give the same model, in any order of the examples. It
//! does not know where labels come from.

use std::collections::BTreeMap;
use std::hash::Hasher;

use fnv::FnvHasher;

use super::calibrate::{Calibration, threshold};
use super::evidence::{COUNT, Candidate, NONE_COUNT};
use super::form::Form;
use super::lexicon::Lexicon;
use super::logit::{self, Group};
use super::measure::{Measures, Outcome};
use super::model::{Model, ranked};
use super::{Answer, Matcher, Memory};

/// Fewest texts that are fitted to: fewer than these cannot tell a precision.
const TEXTS_MIN: usize = 100;

/// A labelled text.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The text.
    pub text: String,
    /// Its vector, if vectors are used.
    pub vector: Option<Vec<f32>>,
    /// The product that it means; absent if that is not sold.
    pub product: Option<u32>,
    /// Its kind, for measures.
    pub kind: String,
}

/// How a model is fitted.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// Precision for which theta is chosen.
    pub precision: f64,
    /// Share of texts that are held out.
    pub held_out: f64,
    /// Number of folds.
    pub folds: u64,
    /// Seed of folds and of what is held out.
    pub seed: u64,
    /// Hash of the encoder whose vectors the examples have.
    pub encoder: Option<String>,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            precision: 0.9,
            held_out: 0.3,
            folds: 5,
            seed: 1,
            encoder: None,
        }
    }
}

/// A fitted model with its measures.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The model.
    pub model: Model,
    /// Measures of the texts that were held out.
    pub all: Measures,
    /// The same for each kind of texts.
    pub kinds: BTreeMap<String, Measures>,
    /// Number of texts that the weights were fitted to.
    pub fitted_to: usize,
}

/// Why nothing can be fitted.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// Too few texts.
    #[error(
        "{found} labelled texts to fit to, at least {TEXTS_MIN} are needed; add labels, or hold out fewer"
    )]
    Few {
        /// Number of texts.
        found: usize,
    },
    /// No text means a product that is sold.
    #[error(
        "no labelled text means a product of this catalogue; labels and catalogue must be of one shop"
    )]
    NoneSold,
}

/// A labelled text with what speaks for each product.
struct Case<'a> {
    example: &'a Example,
    candidates: Vec<Candidate>,
    none: [f64; NONE_COUNT],
    /// A number that is the same for all texts of a product, as if drawn.
    draw: u64,
}

/// Fits a model. The work is a function of the set of examples.
pub fn fit(matcher: &Matcher, examples: &[Example], options: &FitOptions) -> Result<Fitted, Unfit> {
    let mut drawn: Vec<(u64, &Example)> = examples
        .iter()
        .map(|example| (draw(example, options.seed), example))
        .collect();
    drawn.sort_by(|a, b| (a.0, &a.1.text).cmp(&(b.0, &b.1.text)));
    let bound = (options.held_out.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
    let (held_out, inside): (Vec<_>, Vec<_>) = drawn.into_iter().partition(|it| it.0 < bound);
    if inside.len() < TEXTS_MIN {
        return Err(Unfit::Few {
            found: inside.len(),
        });
    }
    if !inside.iter().any(|(_, example)| example.product.is_some()) {
        return Err(Unfit::NoneSold);
    }
    let folds = options.folds.max(2);
    let names = matcher.names();
    // What a word stands for is learned from other texts than those whose evidence it is.
    let mut cases: Vec<Case<'_>> = Vec::with_capacity(inside.len());
    for fold in 0..folds {
        let (own, others): (Vec<_>, Vec<_>) = inside
            .iter()
            .copied()
            .partition(|it| fold_of(it.0, folds) == fold);
        cases.extend(self::cases(matcher, &learned(&names, &others), own));
    }
    let lexicon = learned(&names, &inside);
    let held_out = self::cases(matcher, &lexicon, held_out);
    let pairs = scored_by_others(&cases, folds);
    let weights = logit::fit(&groups(cases.iter()));
    let calibration = Calibration::fit(&pairs);
    let model = Model::new(&weights, options.encoder.clone(), calibration).with_lexicon(lexicon);
    let calibrated: Vec<(f64, bool)> = pairs
        .iter()
        .map(|(chance, right)| (model.calibrated(*chance), *right))
        .collect();
    let model = model.with_theta(threshold(&calibrated, options.precision), options.precision);
    let outcomes: Vec<Outcome> = held_out
        .iter()
        .map(|case| outcome(case, &model.answer(&case.candidates, &case.none), &model))
        .collect();
    let mut kinds: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in &outcomes {
        kinds.entry(outcome.kind.clone()).or_default().push(outcome);
    }
    let measured = kinds
        .into_iter()
        .map(|(kind, of)| (kind, Measures::of(of.iter().copied())));
    Ok(Fitted {
        all: Measures::of(outcomes.iter()),
        kinds: measured.collect(),
        fitted_to: inside.len(),
        model,
    })
}

/// The fold of a draw; independent of what is held out.
fn fold_of(draw: u64, folds: u64) -> u64 {
    draw.rotate_left(32) % folds
}

/// What words of texts stand for, by the names of the products that they mean.
fn learned(names: &BTreeMap<u32, Vec<&[String]>>, examples: &[(u64, &Example)]) -> Lexicon {
    let meaning = |(_, example): &(u64, &Example)| {
        let names = names.get(&example.product?)?;
        Some((Form::of(&example.text).words, names))
    };
    let texts: Vec<_> = examples.iter().filter_map(meaning).collect();
    let pairs = texts
        .iter()
        .flat_map(|(text, names)| names.iter().map(move |name| (&text[..], *name)));
    Lexicon::learn(pairs)
}

/// What speaks for each product, per example.
fn cases<'a>(
    matcher: &Matcher,
    lexicon: &Lexicon,
    examples: Vec<(u64, &'a Example)>,
) -> Vec<Case<'a>> {
    let mut memory = Memory::default();
    let case = |(draw, example): (u64, &'a Example)| {
        let text = (example.text.as_str(), example.vector.as_deref());
        let (candidates, none) = matcher.candidates(lexicon, text, &mut memory);
        Case {
            example,
            candidates,
            none,
            draw,
        }
    };
    examples.into_iter().map(case).collect()
}

/// Chance and rightness of the first product of each text, by weights of the folds that it is not in.
fn scored_by_others(cases: &[Case<'_>], folds: u64) -> Vec<(f64, bool)> {
    let mut pairs = Vec::with_capacity(cases.len());
    for fold in 0..folds {
        let (own, others): (Vec<&Case<'_>>, Vec<_>) = cases
            .iter()
            .partition(|case| fold_of(case.draw, folds) == fold);
        let weights = logit::fit(&groups(others.into_iter()));
        for case in own {
            let answer = ranked(&case.candidates, &case.none, &weights);
            if let Some((product, chance)) = answer.ranked.first() {
                pairs.push((*chance, Some(*product) == case.example.product));
            }
        }
    }
    pairs
}

fn groups<'a>(cases: impl Iterator<Item = &'a Case<'a>>) -> Vec<Group<COUNT, NONE_COUNT>> {
    cases
        .filter(|case| !case.candidates.is_empty())
        .map(|case| Group {
            rows: case
                .candidates
                .iter()
                .map(|candidate| candidate.evidence)
                .collect(),
            none: case.none,
            target: case.example.product.and_then(|product| {
                case.candidates
                    .iter()
                    .position(|candidate| candidate.product == product)
            }),
        })
        .collect()
}

fn outcome(case: &Case<'_>, answer: &Answer, model: &Model) -> Outcome {
    let right = case.example.product;
    Outcome {
        kind: case.example.kind.clone(),
        sold: right.is_some(),
        place: right.and_then(|right| {
            answer
                .ranked
                .iter()
                .position(|(product, _)| *product == right)
        }),
        probability: answer.probability,
        accepted: model.accepts(answer).is_some(),
        any: answer.ranked.iter().map(|(_, chance)| chance).sum(),
    }
}

/// A number by seed and product; by the text where no product is sold.
fn draw(example: &Example, seed: u64) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write_u64(seed);
    match example.product {
        Some(product) => hasher.write_u32(product),
        None => hasher.write(example.text.as_bytes()),
    }
    // FNV alone spreads short inputs badly over its upper bits.
    let mut mixed = hasher.finish();
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}
