//! `nearshore bench engine`: measures the engine for `scripts/bench engine`, by requests in JSON lines.
//!
//! It decides what is timed, not how: each request runs as in production. Invariant: one line in, one line out, in
//! order; a request that fails is answered with its error, and the next one is read. It knows no other engines, medians
//! or tables: the script interleaves and compares.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use nearshore_core::names::scoring::{Names, Prompt, ScoreRequest, ScoreResponse};
use nearshore_engine::clocks::Spent;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::thread::threads;
use nearshore_engine::{Error, Model, Options, Place, Precision};

use super::one_of;

/// Any error; it is only printed.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Arguments of the hidden `nearshore bench engine`.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchArgs {
    /// GGUF file, or folder with config.json, safetensors and tokenizer.json.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Threads; by default one per core that the process may use.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Groups of users computed in parallel; by default one per thread.
    #[arg(long, value_name = "N")]
    pub groups: Option<usize>,
    /// Precision of weights.
    #[arg(long, value_parser = one_of::<Precision>(), default_value_t)]
    pub precision: Precision,
    /// Device: cpu or cuda:N.
    #[arg(long, value_name = "WHERE", default_value_t)]
    pub device: Place,
    /// Most rows of one forward pass.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub rows: usize,
    /// Memory in MiB for keys and values of all users of a batch.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub kv_max: usize,
}

/// A request, one per line.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum BenchRequest {
    /// Uses the names of this file as the catalogue.
    Names(PathBuf),
    /// Returns the tokens of a prompt, with the chat template applied.
    Tokens(Written),
    /// Computes prompts of token ids, without a search.
    Prefill(Vec<Vec<u32>>),
    /// Returns the logits of the tokens `of` after the tokens `after`.
    Logits { after: Vec<u32>, of: Vec<u32> },
    /// Searches the best names of each prompt.
    Search(SearchFor),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchFor {
    prompts: Vec<Written>,
    top: usize,
    batch: usize,
    /// Returns the names, too, not only their cost.
    #[serde(default)]
    names: bool,
    /// Waits for the device after each pass, so that its time is measured apart from the host's.
    #[serde(default)]
    waits: bool,
}

/// A prompt; a text alone is the user's turn.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Written {
    User(String),
    Parts(Prompt),
}

impl Written {
    fn prompt(&self) -> Prompt {
        match self {
            Self::User(user) => Prompt::from(user.as_str()),
            Self::Parts(prompt) => prompt.clone(),
        }
    }
}

/// What a search cost.
#[derive(Clone, Debug, Default, Serialize)]
struct Cost {
    seconds: f64,
    users: usize,
    /// Parts of `seconds`.
    spent: Spent,
    /// Seconds of the slowest batch.
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

/// Loads the model, writes a `ready` line, and answers requests until the input ends.
pub(super) fn run(
    args: &BenchArgs,
    input: impl BufRead,
    mut out: impl Write,
) -> Result<(), Failed> {
    let threads = threads(args.threads.unwrap_or_default());
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
            .and_then(|request| answer(&mut model, request));
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(model: &mut Constrained, request: BenchRequest) -> Result<Value, Failed> {
    let start = Instant::now();
    Ok(match request {
        BenchRequest::Names(path) => {
            let names = read_names(&path)?;
            let count = names.names.len();
            model.set_names(Arc::new(names))?;
            json!({ "names": count, "seconds": start.elapsed().as_secs_f64() })
        }
        BenchRequest::Tokens(prompt) => json!({ "tokens": model.text().prompt(&prompt.prompt())? }),
        BenchRequest::Prefill(prompts) => {
            model.prefill(&prompts)?;
            let tokens: usize = prompts.iter().map(Vec::len).sum();
            json!({ "tokens": tokens, "seconds": start.elapsed().as_secs_f64() })
        }
        BenchRequest::Logits { after, of } => json!({ "logits": model.logits(&after, &of)? }),
        BenchRequest::Search(search) => serde_json::to_value(cost(model, &search)?)?,
    })
}

fn cost(model: &mut Constrained, search: &SearchFor) -> Result<Cost, Error> {
    let request = |prompt: &Written| ScoreRequest {
        prompt: prompt.prompt(),
        n: search.top,
        ..ScoreRequest::default()
    };
    let mut cost = Cost::default();
    model.clocks().set_waits(search.waits);
    model.clocks().take();
    for batch in search.prompts.chunks(search.batch.max(1)) {
        let requests: Vec<ScoreRequest> = batch.iter().map(request).collect();
        let start = Instant::now();
        let responses = model.score(&requests)?;
        let seconds = start.elapsed().as_secs_f64();
        cost.seconds += seconds;
        cost.batch_seconds_max = cost.batch_seconds_max.max(seconds);
        for response in &responses {
            cost.add(response);
            if search.names {
                let named = response.named.iter().map(|named| (named.pu, named.score));
                cost.names.push(named.collect());
            }
        }
    }
    cost.spent = model.clocks().take();
    Ok(cost)
}

impl Cost {
    fn add(&mut self, response: &ScoreResponse) {
        self.users += 1;
        self.prompt_tokens += u64::from(response.prompt_tokens);
        self.shared_tokens += u64::from(response.shared_tokens);
        self.forwarded += u64::from(response.forwarded);
        self.waves += u64::from(response.waves);
        self.forwarded_each.push(response.forwarded);
    }
}

fn read_names(path: &Path) -> Result<Names, crate::files::Error> {
    let text = crate::files::read(path)?;
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
    fn a_request_is_one_line_of_json_and_an_unknown_one_is_refused() {
        let read = |line: &str| serde_json::from_str::<BenchRequest>(line);
        assert!(matches!(
            read(
                r#"{"search": {"prompts": ["a", {"user": "b", "assistant": "c:"}], "top": 5, "batch": 16}}"#
            ),
            Ok(BenchRequest::Search(SearchFor {
                top: 5,
                names: false,
                ..
            }))
        ));
        assert!(matches!(
            read(r#"{"prefill": [[1, 2], [3]]}"#),
            Ok(BenchRequest::Prefill(prompts)) if prompts.len() == 2
        ));
        assert!(read(r#"{"search": {"prompts": [], "top": 5, "batch": 1, "n": 2}}"#).is_err());
        assert!(read(r#"{"sing": 1}"#).is_err());
    }
}
