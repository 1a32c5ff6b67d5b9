//! What each option of the selection of samples changes: [`ablate`].
//!
//! Invariant: with and without an option, the same cases of the same users are ranked, by weights that were fitted to
//! users of other folds. It does not know how an option is meant.

use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::learn::gate::{
    BucketFit, Outcome, Sample, Terms, differences, fit_bucket, held_out,
};
use nearshore_core::list::terms::BUCKETS;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    AlignOptions, Among, Bias, Selection, cuts, everyone, gate, names, samples, with_bias,
};
use crate::config::Config;
use crate::ops::evaluate::History;

/// One option, on instead of off or off instead of on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Row {
    /// The option with its value; `without …` where it is on.
    pub(crate) option: String,
    /// Least visible history of the bucket; none for all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) visible: Option<usize>,
    /// Samples that were fitted to without and with the change.
    pub(crate) samples: [usize; 2],
    /// Recall@10 with the change less that without it.
    pub(crate) recall: Interval,
    /// The same of the mean log-probability of what was bought, in nats.
    pub(crate) nats: Interval,
}

/// What one selection is worth.
struct Fit {
    samples: [Vec<Sample>; BUCKETS.len()],
    fits: Vec<BucketFit>,
    bias: Bias,
}

/// The options, each with the selection that has it changed.
fn changes(from: Selection) -> [(String, Selection); 3] {
    let per_user = match from.per_user {
        Some(n) => (format!("without --samples-per-user {n}"), None),
        None => ("--samples-per-user 1".to_owned(), Some(1)),
    };
    let tail = match from.tail_weight {
        0.0 => ("--tail-weight 0.5".to_owned(), 0.5),
        weight => (format!("without --tail-weight {weight}"), 0.0),
    };
    let dedup = match from.dedup {
        true => ("without --dedup", false),
        false => ("--dedup", true),
    };
    [
        (
            per_user.0,
            Selection {
                per_user: per_user.1,
                ..from
            },
        ),
        (
            tail.0,
            Selection {
                tail_weight: tail.1,
                ..from
            },
        ),
        (
            dedup.0.to_owned(),
            Selection {
                dedup: dedup.1,
                ..from
            },
        ),
    ]
}

/// Changes each option of the selection, and compares.
pub(super) fn ablate(
    history: &History,
    config: &Config,
    options: &AlignOptions,
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Vec<Row>> {
    let among = everyone(history)?;
    let known = (history, config);
    let without = fit_by(known, (options, &among), progress)?;
    let mut rows = Vec::new();
    for (option, selection) in changes(options.selection) {
        let changed = AlignOptions {
            selection,
            ..options.clone()
        };
        let with = fit_by(known, (&changed, &among), progress)?;
        rows.extend(compare(&option, (&without, &with), (history, options)));
        progress(&option);
    }
    Ok(rows)
}

fn fit_by(
    (history, config): (&History, &Config),
    (options, among): (&AlignOptions, &Among<'_>),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Fit> {
    let cuts = cuts(history, options, among)?;
    let samples = samples(history, config, (options, among), &cuts, progress)?;
    let (samples, bias) = with_bias(samples, (history, options));
    let names: Vec<&str> = names(history).chain(["bias"]).collect();
    let fits = samples
        .par_iter()
        .map(|samples| fit_bucket(Terms { names: &names }, samples, &gate(options)))
        .collect();
    Ok(Fit {
        samples,
        fits,
        bias,
    })
}

/// The rows of an option: all together, then each bucket.
fn compare(
    option: &str,
    (without, with): (&Fit, &Fit),
    (history, options): (&History, &AlignOptions),
) -> Vec<Row> {
    let names: Vec<&str> = names(history).chain(["bias"]).collect();
    let (terms, gate) = (Terms { names: &names }, gate(options));
    let outcomes: Vec<[Vec<Outcome>; 2]> = (0..BUCKETS.len())
        .into_par_iter()
        .map(|nth| {
            let of = |fit: &Fit| {
                // The cases of one selection, with the bias of the other.
                let mut test = without.samples[nth].clone();
                for sample in &mut test {
                    if let Some(bias) = sample.values.last_mut() {
                        *bias = std::sync::Arc::clone(&fit.bias.of_fold[sample.fold]);
                    }
                }
                held_out(terms, &fit.fits[nth], (&fit.samples[nth], &test), &gate)
            };
            [of(without), of(with)]
        })
        .collect();
    let row = |visible: Option<usize>, buckets: std::ops::Range<usize>| {
        let all = |nth: usize| -> Vec<Outcome> {
            let of = outcomes[buckets.clone()].iter();
            of.flat_map(|both| both[nth].iter().copied()).collect()
        };
        let len = |fit: &Fit| fit.samples[buckets.clone()].iter().map(Vec::len).sum();
        let [recall, nats] = differences(&all(1), &all(0), &gate);
        Row {
            option: option.to_owned(),
            visible,
            samples: [len(without), len(with)],
            recall,
            nats,
        }
    };
    let each = (0..BUCKETS.len()).map(|nth| row(Some(BUCKETS[nth]), nth..nth + 1));
    std::iter::once(row(None, 0..BUCKETS.len()))
        .chain(each)
        .collect()
}
