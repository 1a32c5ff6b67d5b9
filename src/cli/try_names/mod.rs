//! `nearshore try`: scores the names of a file for the prompts of a file, without Kafka or Redis.
//!
//! It decides what is printed: results on standard output, progress on standard error, totals last. Invariant: prompts
//! are answered in the order of the file. It does not know users.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use schemars::JsonSchema;
use serde::Serialize;

use nearshore_core::names::scoring::{
    Calibration, Names, ScoreRequest, ScoreResponse, Term, Values,
};

use nearshore_core::names::writing::Decoding;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::thread::threads;
use nearshore_engine::{Edge, Isa, Model, Options, Place, Precision, on_this_machine};

use super::one_of;
use crate::files;
use crate::ops::visible::visible;

pub(super) mod compare;
pub(super) mod free;
mod input;
mod totals;

use input::Prompt;
use totals::Totals;

/// Arguments of `nearshore try`.
#[derive(Args, Clone, Debug)]
pub(super) struct TryArgs {
    /// GGUF file, or folder with config.json, safetensors and tokenizer.json; with --endpoint the server's name of the
    /// model.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// constrained: names are searched by the model; free: the model writes, here or at --endpoint, and names are matched.
    #[arg(long, value_name = "MODE", value_parser = ["constrained", "free"], default_value = "constrained")]
    pub mode: String,
    /// OpenAI-compatible server that has the model, for --mode free, as in http://127.0.0.1:8000/v1.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// File with the server's key.
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    pub api_key_file: Option<PathBuf>,
    /// File with the CA of the server's certificate.
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    pub ca_file: Option<PathBuf>,
    /// Model of `nearshore match --fit` for --mode free.
    #[arg(long, value_name = "FILE")]
    pub matcher: Option<PathBuf>,
    /// Most tokens of a text, for --mode free; by default 256.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Temperature of sampling for --mode free, 0 to 2; 0, the default, takes the likeliest token.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Share of the probability, from the likeliest token on, that a model here samples from; by default 1.
    #[arg(long, value_name = "P", conflicts_with = "endpoint")]
    pub top_p: Option<f64>,
    /// Seed of sampling for --mode free; by default 0.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u32>,
    /// Names of the catalogue, one per line.
    #[arg(long, value_name = "FILE")]
    pub names: PathBuf,
    /// Prompts: one per line, or JSON lines {"prompt": "..", "assistant": ".."}: the user's turn, and how the answer
    /// begins.
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Names per prompt.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Calibration prompts, in the format of --prompts: the model's mean over them is subtracted from its scores.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Demand per name, "name<TAB>mass" per line: a term `demand` of weight 1, the logarithm of the name's share.
    #[arg(long, value_name = "FILE")]
    pub demand: Option<PathBuf>,
    /// A further term: a file of "name<TAB>log-weight" lines; may be given more than once.
    #[arg(long = "term", value_name = "TERM=FILE")]
    pub terms: Vec<String>,
    /// Weight of the model's own term; with 0 the model is not run.
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub weight: f32,
    /// Show for each name every choice of tokens and the value of every term.
    #[arg(long)]
    pub explain: bool,
    /// Print one JSON object per prompt, and the totals as the last line.
    #[arg(long)]
    pub json: bool,
    /// Threads; by default one per core that the process may use.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Precision of weights.
    #[arg(long, value_parser = one_of::<Precision>(), default_value_t)]
    pub precision: Precision,
    /// Where the model runs: cpu, or cuda:N in a CUDA build.
    #[arg(long, value_name = "WHERE", default_value_t)]
    pub device: Place,
    /// Score in this precision, too, and print only how much the lists differ; also recall, for prompts that have the
    /// names that came true ("truth": [NAME, ...], see scripts/make-prompts).
    #[arg(long, value_parser = one_of::<Precision>(), value_name = "PRECISION")]
    pub compare: Option<Precision>,
    /// Best instruction set to use, to test what another machine would do.
    #[arg(long, value_parser = one_of::<Isa>(), hide = true)]
    pub isa: Option<Isa>,
    /// Prompts per batch.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
    /// Memory for keys and values of earlier batches' prompts, as engine.prompts_mb_max.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub keep_prompts: usize,
}

impl TryArgs {
    /// Options of the engine.
    pub(super) fn options(&self) -> Options {
        Options {
            threads: threads(self.threads.unwrap_or_default()),
            precision: self.precision,
            isa: self.isa,
            place: self.device,
            groups: None,
        }
    }
}

impl TryArgs {
    /// How tokens are chosen with --mode free.
    fn decoding(&self) -> Decoding {
        let default = Decoding::default();
        Decoding {
            max_tokens: self.max_tokens.unwrap_or(default.max_tokens),
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            seed: self.seed.unwrap_or(default.seed),
        }
    }

    /// Refuses numbers that the configuration of an arm refuses, too.
    fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Usage(what.to_owned()));
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            let weight = self.weight;
            return wrong(&format!("--weight {weight}: give a number of at least 0"));
        }
        if self.weight == 0.0 && self.demand.is_none() && self.terms.is_empty() {
            return wrong("--weight 0 without --demand or --term: all names would score the same");
        }
        let only_free = [
            ("--endpoint", self.endpoint.is_some()),
            ("--matcher", self.matcher.is_some()),
            ("--max-tokens", self.max_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        let given = only_free.into_iter().find(|(_, is_given)| *is_given);
        if let Some((argument, _)) = given.filter(|_| self.mode != "free") {
            return wrong(&format!("{argument} is only for --mode free"));
        }
        if let Some((key, what)) = self.decoding().problems().into_iter().next() {
            let argument = key.replace('_', "-");
            return wrong(&format!("--{argument}: {what}"));
        }
        if self.top == 0 {
            return wrong("--top 0: give a number of at least 1");
        }
        self.named_terms().map(drop)
    }

    /// The further terms: name and file.
    fn named_terms(&self) -> Result<Vec<(&str, &Path)>, Error> {
        // The names of a score's other parts.
        let mut known = BTreeSet::from(["model", "demand"]);
        let mut named = Vec::new();
        for term in &self.terms {
            let form = || {
                Error::Usage(format!(
                    "--term {term}: give TERM=FILE, for example repeat=bought.tsv"
                ))
            };
            let (name, path) = term.split_once('=').ok_or_else(form)?;
            if name.is_empty() || path.is_empty() {
                return Err(form());
            }
            if !known.insert(name) {
                let what = format!(
                    "--term {term}: the score has a part {name:?} already; choose another name"
                );
                return Err(Error::Usage(what));
            }
            named.push((name, Path::new(path)));
        }
        Ok(named)
    }
}

/// Why a try did not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Standard output cannot be written.
    #[error("{path}: {source}")]
    File {
        /// `standard output`.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A line that cannot be read.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: String,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A file that is not text, or empty.
    #[error(transparent)]
    Text(#[from] files::Error),
    /// An argument with a wrong value.
    #[error("{0}")]
    Usage(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] nearshore_engine::Error),
    /// The server with the model failed.
    #[error("{error}{said}")]
    Remote {
        /// What failed.
        error: nearshore_remote::Error,
        /// What the server said of it.
        said: String,
    },
}

impl Error {
    /// Whether the arguments are wrong, rather than the files that they name.
    pub(super) fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::File { .. }
            | Self::Text(_)
            | Self::Line { .. }
            | Self::Engine(_)
            | Self::Remote { .. } => false,
        }
    }

    fn remote(error: nearshore_remote::Error) -> Self {
        let said = error.said().map(|said| format!("; it said: {said}"));
        let said = said.unwrap_or_default();
        Self::Remote { error, said }
    }
}

/// The last line of `try --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct TotalsLine<'a> {
    totals: &'a Totals,
}

/// The names of one prompt.
#[derive(Serialize, JsonSchema)]
pub(super) struct Line<'a> {
    prompt: usize,
    names: Vec<Name<'a>>,
    prompt_tokens: u32,
    shared_tokens: u32,
    forwarded_tokens: u32,
    waves: u32,
}

#[derive(Serialize, JsonSchema)]
struct Name<'a> {
    name: &'a str,
    /// Sum of the weighted terms.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<Explained>,
}

/// The parts of a score, in nats.
#[derive(Serialize, JsonSchema)]
struct Explained {
    /// The model's term, before its weight: the sum of the edges.
    model: f32,
    /// Value of each other term, before its weight.
    terms: BTreeMap<&'static str, f32>,
    /// Choices of the model on the path of the name's tokens.
    edges: Vec<Edge>,
}

/// Runs the command; results go to standard output, progress and totals to standard error.
pub(super) fn run(args: &TryArgs) -> Result<(), Error> {
    let stdout = io::stdout().lock();
    run_to(args, &mut io::BufWriter::new(stdout))
}

/// Like [`run`], with results to any writer.
pub(super) fn run_to(args: &TryArgs, out: &mut dyn Write) -> Result<(), Error> {
    args.check()?;
    if args.mode == "free" {
        return free::run(args, out);
    }
    let prompts = input::prompts(&args.prompts)?;
    let session = Session::new(args)?;
    if let Some(reference) = args.compare {
        return compare::run(args, reference, &session.names, &prompts, out);
    }
    let start = Instant::now();
    let limits = Limits {
        prompts_max: args.keep_prompts << 20,
        ..Limits::default()
    };
    let mut model = Constrained::load(&args.model, args.options())?.limited(limits);
    let loaded = start.elapsed().as_secs_f64();
    for warning in &model.loading().warnings {
        note!("{}: {warning}", args.model.display());
    }
    model.set_names(Arc::clone(&session.names))?;
    if args.device == Place::Cpu {
        note!("{}", on_this_machine(args.precision, args.isa));
    }
    let mut totals = Totals::new(&model, args.options());
    totals.load_seconds = loaded;
    totals.trie_seconds = start.elapsed().as_secs_f64() - loaded;
    totals.names = session.names.names.len();
    let bar = bar(prompts.len());
    for batch in prompts.chunks(args.batch.max(1)) {
        let requests: Vec<ScoreRequest> =
            batch.iter().map(|prompt| session.request(prompt)).collect();
        let start = Instant::now();
        let responses = model.score(&requests)?;
        totals.seconds += start.elapsed().as_secs_f64();
        for (request, response) in requests.iter().zip(&responses) {
            totals.add(response);
            let explained = session.explain(&mut model, request, response)?;
            let line = Line::new(totals.prompts, response, explained, &session.names.names);
            print(out, args.json, &line)?;
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    totals.finish();
    if args.json {
        to_stdout(|| {
            serde_json::to_writer(&mut *out, &TotalsLine { totals: &totals })?;
            writeln!(out)?;
            out.flush()
        })
    } else {
        note!("{totals}");
        Ok(())
    }
}

/// What all prompts share.
struct Session<'a> {
    args: &'a TryArgs,
    names: Arc<Names>,
    terms: Vec<Term>,
    calibration: Option<Arc<Calibration>>,
}

impl<'a> Session<'a> {
    fn new(args: &'a TryArgs) -> Result<Self, Error> {
        let names = input::names(&args.names)?;
        let mut terms = Vec::new();
        if let Some(path) = &args.demand {
            terms.push(Term {
                name: "demand",
                weight: 1.0,
                values: Values::Shared(input::log_demand(path, &names)?.into()),
            });
        }
        for (name, path) in args.named_terms()? {
            terms.push(Term {
                // Term names are leaked: there is one per argument, and they are needed until the process ends.
                name: name.to_owned().leak(),
                weight: 1.0,
                values: Values::Sparse(input::log_weights(path, &names)?.into()),
            });
        }
        let calibration = match &args.calibration {
            None => None,
            Some(path) => {
                let prompts = input::prompts(path)?.into_iter();
                Some(Arc::new(Calibration {
                    hash: "try".into(),
                    prompts: prompts.map(|prompt| prompt.prompt).collect(),
                }))
            }
        };
        let names = Arc::new(Names { version: 1, names });
        Ok(Self {
            args,
            names,
            terms,
            calibration,
        })
    }

    fn request(&self, prompt: &Prompt) -> ScoreRequest {
        ScoreRequest {
            terms: self.terms.clone(),
            weight: self.args.weight,
            calibration: self.calibration.clone(),
            ..prompt.request(self.args.top)
        }
    }

    /// The parts of each name's score, with --explain.
    fn explain(
        &self,
        model: &mut Constrained,
        request: &ScoreRequest,
        response: &ScoreResponse,
    ) -> Result<Vec<Option<Explained>>, Error> {
        if !self.args.explain {
            return Ok(response.named.iter().map(|_| None).collect());
        }
        let pus: Vec<u32> = response.named.iter().map(|named| named.pu).collect();
        let edges = model.explain(request, &pus)?;
        let explained = response.named.iter().zip(edges).map(|(named, edges)| {
            let names = self.terms.iter().map(|term| term.name);
            Some(Explained {
                model: named.model,
                terms: names.zip(named.terms.iter().copied()).collect(),
                edges,
            })
        });
        Ok(explained.collect())
    }
}

/// A progress bar over prompts.
pub(super) fn bar(prompts: usize) -> ProgressBar {
    let bar = ProgressBar::new(prompts as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} prompts, {per_sec}") {
        bar.set_style(style);
    }
    bar
}

fn print(out: &mut dyn Write, json: bool, line: &Line) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, line)?;
            writeln!(out)?;
        } else {
            writeln!(out, "prompt {}", line.prompt)?;
            for (nth, name) in line.names.iter().enumerate() {
                let (place, text, score) = (nth + 1, visible(name.name), name.score);
                writeln!(out, "{place:>4}. {text:<40} {score:>8.4}")?;
                if let Some(explained) = &name.explained {
                    explained.print(out)?;
                }
            }
        }
        out.flush()
    };
    to_stdout(write)
}

/// Runs `write`; an error names standard output.
pub(super) fn to_stdout(write: impl FnOnce() -> io::Result<()>) -> Result<(), Error> {
    write().map_err(|source| Error::File {
        path: "standard output".into(),
        source,
    })
}

impl Explained {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "      model {:.4}", self.model)?;
        for (name, value) in &self.terms {
            write!(out, "; {name} {value:.4}")?;
        }
        writeln!(out)?;
        for edge in &self.edges {
            let (model, choices) = (edge.model, edge.choices);
            let text = format!("{:?}", edge.text);
            writeln!(out, "      {model:>8.4}  {text:<24} of {choices:>5}")?;
        }
        Ok(())
    }
}

impl<'a> Line<'a> {
    fn new(
        prompt: usize,
        response: &ScoreResponse,
        explained: Vec<Option<Explained>>,
        names: &'a [String],
    ) -> Self {
        let named = response.named.iter().zip(explained);
        let named = named.map(|(named, explained)| Name {
            name: &names[named.pu as usize],
            score: named.score,
            explained,
        });
        Self {
            prompt,
            names: named.collect(),
            prompt_tokens: response.prompt_tokens,
            shared_tokens: response.shared_tokens,
            forwarded_tokens: response.forwarded,
            waves: response.waves,
        }
    }
}
