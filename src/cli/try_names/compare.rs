//! `nearshore try --compare`: scores the same prompts in two precisions and compares the lists.
//!
//! It decides what is compared: the names of both lists, their first names, the next token's distribution and, for
//! prompts with known outcomes, recall. Invariant: every value is a mean over prompts with the half width of its 95 %
//! interval. It does not judge which difference is acceptable.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Error, Prompt, TryArgs, bar, to_stdout};
use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse};
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options, Precision};

/// A mean over prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half width of its 95 % interval, by the normal approximation.
    pub within: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let within = 1.96 * (squares / (n - 1.0).max(1.0) / n).sqrt();
        Some(Self { mean, within })
    }
}

/// How the lists of two precisions differ.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Comparison {
    precision: String,
    reference: String,
    prompts: usize,
    top: usize,
    /// Share of the reference's names that are on the list.
    overlap: Option<Mean>,
    /// Share of prompts with the same first name.
    first: Option<Mean>,
    /// Kullback-Leibler divergence of the next token from the reference, nats.
    divergence: Option<Mean>,
    /// Share of the names that came true that are on the list.
    recall: Option<Mean>,
    /// The same for the reference's list.
    recall_reference: Option<Mean>,
    /// Recall minus that of the reference, per prompt.
    recall_difference: Option<Mean>,
}

/// What `try --compare --json` prints.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ComparisonLine<'a> {
    comparison: &'a Comparison,
}

/// Scores all prompts in both precisions and prints the comparison.
pub(super) fn run(
    args: &TryArgs,
    reference: Precision,
    names: &Arc<Names>,
    prompts: &[Prompt],
    out: &mut dyn Write,
) -> Result<(), Error> {
    let options = args.options();
    let other = Options {
        precision: reference,
        ..options
    };
    let tested = Answers::compute(args, options, names, prompts)?;
    let reference = Answers::compute(args, other, names, prompts)?;
    let comparison = compare(&tested, &reference, names, prompts, args.top);
    print(&comparison, args.json, out)
}

/// The lists and next-token distributions of one precision.
struct Answers {
    dtype: String,
    lists: Vec<Vec<u32>>,
    /// Natural-log probabilities of each prompt's next token.
    next: Vec<Vec<f32>>,
}

impl Answers {
    fn compute(
        args: &TryArgs,
        options: Options,
        names: &Arc<Names>,
        prompts: &[Prompt],
    ) -> Result<Self, Error> {
        let mut model = Constrained::load(&args.model, options)?;
        model.set_names(Arc::clone(names))?;
        let mut answers = Self {
            dtype: model.info().dtype,
            lists: Vec::new(),
            next: Vec::new(),
        };
        let bar = bar(prompts.len());
        for batch in prompts.chunks(args.batch.max(1)) {
            let requests: Vec<ScoreRequest> = batch
                .iter()
                .map(|prompt| prompt.request(args.top))
                .collect();
            let list =
                |response: ScoreResponse| response.named.iter().map(|named| named.pu).collect();
            answers
                .lists
                .extend(model.score(&requests)?.into_iter().map(list));
            let next_tokens = || -> Result<Vec<Vec<f32>>, Error> {
                let prompts = batch.par_iter();
                prompts.map(|prompt| next(&model, prompt)).collect()
            };
            answers.next.extend(model.install(next_tokens)?);
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        Ok(answers)
    }
}

/// Natural-log probabilities of the token after the prompt, over the whole vocabulary.
fn next(model: &Constrained, prompt: &Prompt) -> Result<Vec<f32>, Error> {
    let tokens = model.text().prompt(&prompt.prompt)?;
    let vocabulary: Vec<u32> = (0..model.vocabulary() as u32).collect();
    let mut logits = model.logits(&tokens, &vocabulary)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    logits
        .iter_mut()
        .for_each(|logit| *logit -= max + sum.ln() as f32);
    Ok(logits)
}

fn compare(
    tested: &Answers,
    reference: &Answers,
    names: &Names,
    prompts: &[Prompt],
    top: usize,
) -> Comparison {
    let lists = || tested.lists.iter().zip(&reference.lists);
    let overlap: Vec<f64> = lists()
        .map(|(tested, reference)| share(reference, tested))
        .collect();
    let first =
        lists().map(|(tested, reference)| f64::from(u8::from(tested.first() == reference.first())));
    let divergence = tested.next.iter().zip(&reference.next).map(|(q, p)| {
        let terms = p
            .iter()
            .zip(q)
            .map(|(p, q)| f64::from(*p).exp() * f64::from(p - q));
        terms.sum::<f64>()
    });
    let index = |name: &String| {
        names
            .names
            .iter()
            .position(|known| known == name)
            .map(|pu| pu as u32)
    };
    let truths: Vec<Vec<u32>> = (prompts.iter())
        .map(|prompt| prompt.truth.iter().filter_map(index).collect())
        .collect();
    let recalls = |lists: &[Vec<u32>]| -> Vec<f64> {
        let with_truth = lists
            .iter()
            .zip(&truths)
            .filter(|(_, truth)| !truth.is_empty());
        with_truth.map(|(list, truth)| share(truth, list)).collect()
    };
    let (recall, recall_reference) = (recalls(&tested.lists), recalls(&reference.lists));
    let pairs = recall.iter().zip(&recall_reference);
    let difference: Vec<f64> = pairs
        .map(|(tested, reference)| tested - reference)
        .collect();
    Comparison {
        precision: tested.dtype.clone(),
        reference: reference.dtype.clone(),
        prompts: prompts.len(),
        top,
        overlap: Mean::of(&overlap),
        first: Mean::of(&first.collect::<Vec<_>>()),
        divergence: Mean::of(&divergence.collect::<Vec<_>>()),
        recall: Mean::of(&recall),
        recall_reference: Mean::of(&recall_reference),
        recall_difference: Mean::of(&difference),
    }
}

/// Share of `wanted` that is in `list`; 1 if nothing is wanted.
fn share(wanted: &[u32], list: &[u32]) -> f64 {
    let list: BTreeSet<&u32> = list.iter().collect();
    let found = wanted.iter().filter(|pu| list.contains(pu)).count();
    if wanted.is_empty() {
        1.0
    } else {
        found as f64 / wanted.len() as f64
    }
}

fn print(comparison: &Comparison, json: bool, out: &mut dyn Write) -> Result<(), Error> {
    to_stdout(|| {
        if json {
            serde_json::to_writer(&mut *out, &ComparisonLine { comparison })?;
            writeln!(out)?;
            return out.flush();
        }
        let Comparison {
            precision,
            reference,
            prompts,
            top,
            ..
        } = comparison;
        writeln!(
            out,
            "{precision} against {reference}, {prompts} prompts, mean ± 95 %:"
        )?;
        let rows = [
            (format!("overlap of the first {top}"), comparison.overlap),
            ("same first name".into(), comparison.first),
            (
                "divergence of the next token, nats".into(),
                comparison.divergence,
            ),
            (format!("recall@{top}"), comparison.recall),
            (
                format!("recall@{top} of the reference"),
                comparison.recall_reference,
            ),
            ("difference of recall".into(), comparison.recall_difference),
        ];
        for (what, mean) in rows {
            if let Some(Mean { mean, within }) = mean {
                writeln!(out, "  {what:<36} {mean:>9.5} ± {within:.5}")?;
            }
        }
        out.flush()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_a_list_with_itself_and_with_another_gives_known_values() {
        let answers = |lists: [[u32; 2]; 2], next: f32| Answers {
            dtype: "x".into(),
            lists: lists.map(Vec::from).to_vec(),
            next: vec![vec![next.ln(), (1.0 - next).ln()]; 2],
        };
        let names = Names {
            version: 1,
            names: ["a", "b", "c"].map(String::from).to_vec(),
        };
        let prompt = |truth: &[&str]| Prompt {
            prompt: "".into(),
            truth: truth.iter().map(|name| (*name).to_owned()).collect(),
        };
        let prompts = [prompt(&["a", "c"]), prompt(&[])];
        let one = answers([[0, 1], [1, 2]], 0.5);
        let two = answers([[0, 2], [2, 1]], 0.25);
        let same = compare(&one, &one, &names, &prompts, 2);
        assert_eq!(
            same.overlap,
            Some(Mean {
                mean: 1.0,
                within: 0.0
            })
        );
        assert_eq!(same.divergence.map(|mean| mean.mean), Some(0.0));
        let other = compare(&two, &one, &names, &prompts, 2);
        assert_eq!(other.overlap.map(|mean| mean.mean), Some(0.75));
        assert_eq!(other.first.map(|mean| mean.mean), Some(0.5));
        assert_eq!(other.recall.map(|mean| mean.mean), Some(1.0));
        assert_eq!(other.recall_difference.map(|mean| mean.mean), Some(0.5));
        let exact = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((other.divergence.expect("two").mean - exact).abs() < 1e-6);
    }
}
