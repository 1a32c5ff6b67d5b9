//! The engine under a stopwatch, for `scripts/bench engine`: a program that is asked in JSON lines.
//!
//! Decides what is timed and nothing of how: each question runs the engine's own way. Invariant: one
//! line in, one line out, in order; a question that fails is answered with its error and the next one
//! is taken. It does not know peers, medians or tables: whoever asks interleaves and compares.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse};
use nearshore_engine::clocks::Spent;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::thread::default_threads;
use nearshore_engine::{Error, Model, Options, Place, Precision};

use super::one_of;

/// Any failure: it is only printed.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Arguments of the hidden `nearshore bench engine`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// GGUF file or folder
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Threads; all cores but one if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Groups of users side by side; one per thread if not given
    #[arg(long, value_name = "N")]
    pub groups: Option<usize>,
    /// How weights are kept and multiplied
    #[arg(long, value_parser = one_of::<Precision>(), default_value_t)]
    pub precision: Precision,
    /// cpu or cuda:N
    #[arg(long, value_name = "WHERE", default_value_t)]
    pub device: Place,
    /// Most rows of one pass
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub rows: usize,
    /// MiB for keys and values of all users at once
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub kv_max: usize,
}

/// A question, one per line.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Question {
    /// Makes these names the catalogue.
    Names(PathBuf),
    /// The tokens of a prompt, chat template applied.
    Tokens(String),
    /// Computes prompts of token ids and nothing after them.
    Prefill(Vec<Vec<u32>>),
    /// Logits of some tokens after others.
    Logits { after: Vec<u32>, of: Vec<u32> },
    /// The best names of each prompt.
    Search(SearchFor),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchFor {
    prompts: Vec<String>,
    top: usize,
    batch: usize,
    /// Names themselves come back, not only what they cost.
    #[serde(default)]
    names: bool,
    /// A device is waited for behind each pass, so that its time is told from the host's.
    #[serde(default)]
    waits: bool,
}

/// What a search cost.
#[derive(Clone, Debug, Default, Serialize)]
struct Cost {
    seconds: f64,
    users: usize,
    /// Where `seconds` went.
    spent: Spent,
    /// Slowest batch.
    batch_seconds_max: f64,
    prompt_tokens: u64,
    shared_tokens: u64,
    forwarded: u64,
    waves: u64,
    /// Per user, in the order of the prompts.
    forwarded_each: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<Vec<(u32, f32)>>,
}

/// Loads the model, says so, and answers lines until there are no more.
pub fn run(args: &BenchArgs, input: impl BufRead, mut out: impl Write) -> Result<(), Failed> {
    let threads = args.threads.unwrap_or_else(default_threads).max(1);
    let start = Instant::now();
    let options = Options {
        threads,
        precision: args.precision,
        place: args.device,
        groups: args.groups,
        ..Options::default()
    };
    let limits = Limits {
        rows_max: args.rows,
        kv_max: args.kv_max << 20,
        ..Limits::default()
    };
    let mut model = Constrained::load(&args.model, options)?.limited(limits);
    let ready = json!({
        "ready": model.info(),
        "threads": threads,
        "seconds": start.elapsed().as_secs_f64(),
    });
    writeln!(out, "{ready}")?;
    out.flush()?;
    for line in input.lines() {
        let answer = serde_json::from_str(&line?)
            .map_err(Failed::from)
            .and_then(|question| answer(&mut model, question));
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(model: &mut Constrained, question: Question) -> Result<Value, Failed> {
    let start = Instant::now();
    Ok(match question {
        Question::Names(path) => {
            let names = read_names(&path)?;
            let many = names.names.len();
            model.set_names(Arc::new(names))?;
            json!({ "names": many, "seconds": start.elapsed().as_secs_f64() })
        }
        Question::Tokens(prompt) => json!({ "tokens": model.text().prompt(&prompt)? }),
        Question::Prefill(prompts) => {
            model.prefill(&prompts)?;
            let tokens: usize = prompts.iter().map(Vec::len).sum();
            json!({ "tokens": tokens, "seconds": start.elapsed().as_secs_f64() })
        }
        Question::Logits { after, of } => json!({ "logits": model.logits(&after, &of)? }),
        Question::Search(search) => serde_json::to_value(cost(model, &search)?)?,
    })
}

fn cost(model: &mut Constrained, search: &SearchFor) -> Result<Cost, Error> {
    let ask = |prompt: &String| ScoreRequest {
        prompt: prompt.clone(),
        n: search.top,
        ..ScoreRequest::default()
    };
    let mut cost = Cost::default();
    model.clocks().set_waits(search.waits);
    model.clocks().take();
    for batch in search.prompts.chunks(search.batch.max(1)) {
        let asks: Vec<ScoreRequest> = batch.iter().map(ask).collect();
        let start = Instant::now();
        let answers = model.score(&asks)?;
        let seconds = start.elapsed().as_secs_f64();
        cost.seconds += seconds;
        cost.batch_seconds_max = cost.batch_seconds_max.max(seconds);
        for answer in &answers {
            cost.add(answer);
            if search.names {
                let named = answer.named.iter().map(|named| (named.pu, named.score));
                cost.names.push(named.collect());
            }
        }
    }
    cost.spent = model.clocks().take();
    Ok(cost)
}

impl Cost {
    fn add(&mut self, answer: &ScoreResponse) {
        self.users += 1;
        self.prompt_tokens += u64::from(answer.prompt_tokens);
        self.shared_tokens += u64::from(answer.shared_tokens);
        self.forwarded += u64::from(answer.forwarded);
        self.waves += u64::from(answer.waves);
        self.forwarded_each.push(answer.forwarded);
    }
}

fn read_names(path: &Path) -> std::io::Result<Names> {
    let text = std::fs::read_to_string(path)?;
    let names = text.lines().filter(|line| !line.is_empty());
    Ok(Names {
        version: 1,
        names: names.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_line_of_json_and_an_unknown_one_is_refused() {
        let read = |line: &str| serde_json::from_str::<Question>(line);
        assert!(matches!(
            read(r#"{"search": {"prompts": ["a"], "top": 5, "batch": 16}}"#),
            Ok(Question::Search(SearchFor {
                top: 5,
                names: false,
                ..
            }))
        ));
        assert!(matches!(
            read(r#"{"prefill": [[1, 2], [3]]}"#),
            Ok(Question::Prefill(prompts)) if prompts.len() == 2
        ));
        assert!(read(r#"{"search": {"prompts": [], "top": 5, "batch": 1, "n": 2}}"#).is_err());
        assert!(read(r#"{"sing": 1}"#).is_err());
    }
}
