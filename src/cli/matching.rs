//! `nearshore match`: fits the matcher of free texts and products, measures it, and matches texts.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nearshore_core::names::matcher::{FitOptions, Fitted, Measures, Model};
use nearshore_engine::encoder::Encoder;
use schemars::JsonSchema;
use serde::Serialize;

use crate::files;
use crate::ops::evaluate::vectors;
use crate::ops::words::Problem;
use crate::ops::words::matching::{Matched, Shop, fitted, model, text};

/// Examples of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  nearshore match --catalog skus.jsonl --labels labels.jsonl                     # measures, on texts that are held out
  nearshore match --catalog skus.jsonl --labels labels.jsonl --fit match.json --precision 0.95
  nearshore match --catalog skus.jsonl --model match.json --texts queries.txt    # a line each: product or nothing
  echo 'potatoe chps' | nearshore match --catalog skus.jsonl --model match.json --texts - --json

Labels are JSON lines or CSV: text, pu (name or id; absent if the product is not sold) and kind (optional, measured apart).
How theta is chosen, and what may be promised: docs/words.md.";

/// Arguments of `match`.
#[derive(Clone, Debug, Args)]
pub(super) struct MatchArgs {
    /// Files of SKUs (JSON lines, CSV): pu, and optional pu_id and title. Names and titles are what texts are matched
    /// with.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    catalog: Vec<PathBuf>,
    /// Files of other names of products: pu and alias.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    aliases: Vec<PathBuf>,
    /// Files of labelled texts: a model is fitted to them, and measured on those that are held out.
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "model")]
    labels: Vec<PathBuf>,
    /// With --labels: file that the fitted model is written to.
    #[arg(long, value_name = "FILE", requires = "labels")]
    fit: Option<PathBuf>,
    /// Model that was fitted before.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "labels",
        requires = "texts"
    )]
    model: Option<PathBuf>,
    /// File of texts to match, one a line; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Folder of a sentence encoder: texts are compared by meaning, too.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// With --labels: share of answers that must be right; theta is chosen for it.
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share)]
    precision: f64,
    /// With --labels: share of texts that is held out.
    #[arg(long, value_name = "SHARE", default_value = "0.3", value_parser = share)]
    held_out: f64,
    /// With --labels: seed of what is held out.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Products that are shown for each text with --json.
    #[arg(long, value_name = "N", default_value_t = 3)]
    top: usize,
    /// Print the result as JSON; of texts a line each.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &MatchArgs) -> anyhow::Result<ExitCode> {
    match run_with(args) {
        Err(error) if error.downcast_ref::<Problem>().is_some() => {
            note!("nearshore: {}", super::chain(&error));
            Ok(ExitCode::from(2))
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn run_with(args: &MatchArgs) -> anyhow::Result<()> {
    let encoder = args.encoder.as_deref().map(vectors::load).transpose()?;
    let encoder = encoder.as_ref();
    let known = args.model.as_deref().map(model).transpose()?;
    if let Some(model) = &known {
        fits(model, encoder)?;
    }
    let shop = Shop::read(&args.catalog, &args.aliases)?;
    let matcher = shop.matcher(encoder)?;
    note!(
        "{} products, {} names and titles",
        shop.len(),
        matcher.len()
    );
    let model = match known {
        Some(model) => model,
        None => {
            let examples = shop.labels(&args.labels, encoder)?;
            let options = FitOptions {
                precision: args.precision,
                held_out: args.held_out,
                seed: args.seed,
                encoder: encoder.map(|encoder| encoder.hash().to_owned()),
                ..FitOptions::default()
            };
            let mut fitted = fitted(&matcher, &examples, &options)?;
            fitted.model = fitted.model.fitted_for(shop.names());
            report(args, &fitted)?;
            fitted.model
        }
    };
    let Some(path) = &args.texts else {
        return Ok(());
    };
    let texts = texts(path)?;
    let matched = shop.matched((&matcher, &model), &texts, (encoder, args.top))?;
    for one in &matched {
        match args.json {
            true => out!("{}", serde_json::to_string(one)?),
            false => out!("{}", line(one)),
        }
    }
    Ok(())
}

/// A model and an encoder fit if the model's evidence was of this encoder's vectors.
fn fits(model: &Model, encoder: Option<&Encoder>) -> Result<(), Problem> {
    let found = encoder.map(Encoder::hash);
    let what = match (model.encoder.as_deref(), found) {
        (wanted, found) if wanted == found => return Ok(()),
        (Some(_), None) => "the model was fitted with an encoder; name it by --encoder",
        (None, Some(_)) => "the model was fitted without an encoder; leave --encoder out",
        _ => "the model was fitted with another encoder; fit it again with this one",
    };
    Err(Problem::Whole(what.to_owned()))
}

/// What fitting the matcher gave.
#[derive(Serialize, JsonSchema)]
pub(super) struct FitReport<'a> {
    /// Labelled texts that it was fitted to.
    fitted_to: usize,
    /// Least probability of an answer.
    theta: f64,
    /// The precision that was asked for.
    precision: f64,
    /// What it does on texts that were held out.
    held_out: &'a Measures,
    /// The same by kind of text.
    kinds: &'a BTreeMap<String, Measures>,
}

fn report(args: &MatchArgs, fitted: &Fitted) -> anyhow::Result<()> {
    if let Some(path) = &args.fit {
        std::fs::write(path, fitted.model.write())
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        let model = &fitted.model;
        out!(
            "{}",
            serde_json::to_string(&FitReport {
                fitted_to: fitted.fitted_to,
                theta: model.theta,
                precision: model.precision,
                held_out: &fitted.all,
                kinds: &fitted.kinds,
            })?
        );
        return Ok(());
    }
    out!("{}", text(fitted));
    if fitted.model.theta > 1.0 {
        out!(
            "no theta reaches a precision of {}: nothing is answered; add labels, or state less",
            fitted.model.precision
        );
    }
    Ok(())
}

/// The lines of a file, or of standard input.
fn texts(path: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input")?;
        text
    } else {
        files::read(path).map_err(Problem::from)?
    };
    Ok(text.lines().map(str::to_owned).collect())
}

fn line(one: &Matched) -> String {
    let pu = one.pu.as_deref().unwrap_or("-");
    format!("{:.3}\t{pu}\t{}", one.probability, one.text)
}

/// A share, above 0 and below 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("a number above 0 and below 1".into()),
    }
}
