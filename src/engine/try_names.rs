//! `nearshore try`: names and prompts from files through a model, without Kafka or Redis.
//!
//! Decides what is printed: one line per prompt on standard output, progress on standard error, the
//! totals last. Invariant: prompts are answered in the order of the file. It does not know users.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::compare;
use super::constrained::Constrained;
use super::thread::default_threads;
use super::{Answer, Ask, Isa, Model, Names, Options, Precision};

/// Arguments of `nearshore try`.
#[derive(Args, Clone, Debug)]
pub struct TryArgs {
    /// GGUF file, or folder with config.json, safetensors and tokenizer.json
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Names of the catalogue, one per line
    #[arg(long, value_name = "FILE")]
    pub names: PathBuf,
    /// Prompts: one per line, or JSON lines with a "prompt"
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Names per prompt
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// One JSON object per prompt, and the totals as the last
    #[arg(long)]
    pub json: bool,
    /// Threads; all cores but one if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How weights are kept and multiplied
    #[arg(long, value_enum, default_value_t)]
    pub precision: Precision,
    /// Answer in this precision too, and print only how far the lists differ; recall as well for
    /// prompts that say what came true ("truth": [NAME, ...], see scripts/make-prompts)
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub compare: Option<Precision>,
    /// The richest instructions that may be used, to try what another machine would do
    #[arg(long, value_enum, hide = true)]
    pub isa: Option<Isa>,
    /// Prompts per batch
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,
}

impl TryArgs {
    /// How the model is run.
    pub fn options(&self) -> Options {
        Options {
            threads: self.threads.unwrap_or_else(default_threads).max(1),
            precision: self.precision,
            isa: self.isa,
        }
    }
}

/// Why a try did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file, or `standard output`.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A line of the prompts that is no prompt.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: String,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] super::Error),
}

/// What is counted over all prompts.
#[derive(Clone, Debug, Default, Serialize)]
struct Totals {
    prompts: usize,
    users_per_second: f64,
    prompt_tokens: u64,
    shared_tokens: u64,
    forwarded_tokens: u64,
    waves: u64,
    seconds: f64,
    load_seconds: f64,
    names: usize,
    threads: usize,
}

#[derive(Serialize)]
struct Line<'a> {
    prompt: usize,
    names: Vec<Name<'a>>,
    prompt_tokens: u32,
    shared_tokens: u32,
    forwarded_tokens: u32,
    waves: u32,
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
    log_prob: f32,
}

/// Runs the command; results go to standard output.
pub fn run(args: &TryArgs) -> Result<(), Error> {
    let stdout = io::stdout().lock();
    run_to(args, &mut io::BufWriter::new(stdout))
}

/// As [`run`], to any writer.
pub fn run_to(args: &TryArgs, out: &mut dyn Write) -> Result<(), Error> {
    let names: Vec<String> = (read(&args.names)?.lines())
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    let prompts = prompts(&args.prompts, &read(&args.prompts)?)?;
    let threads = args.options().threads;
    let names = Arc::new(Names { version: 1, names });
    if let Some(reference) = args.compare {
        return compare::run(args, reference, (&names, &prompts), out);
    }
    let start = Instant::now();
    let mut model = Constrained::load(&args.model, args.options())?;
    model.set_names(Arc::clone(&names))?;
    let mut totals = Totals {
        load_seconds: start.elapsed().as_secs_f64(),
        names: names.names.len(),
        threads,
        ..Totals::default()
    };
    let bar = bar(prompts.len());
    let start = Instant::now();
    for batch in prompts.chunks(args.batch.max(1)) {
        let asks: Vec<Ask> = batch.iter().map(|prompt| prompt.ask(args.top)).collect();
        for answer in model.generate(&asks)? {
            totals.add(&answer);
            let line = Line::new(totals.prompts, &answer, &names.names);
            print(out, args.json, &line)?;
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    totals.seconds = start.elapsed().as_secs_f64();
    totals.users_per_second = totals.prompts as f64 / totals.seconds.max(1e-9);
    totals.print(out, args.json)
}

/// A prompt, and what came true after it, if that is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What is said.
    pub text: String,
    /// Names.
    pub truth: Vec<String>,
}

impl Prompt {
    /// Asks for the best `n` names.
    pub fn ask(&self, n: usize) -> Ask {
        Ask {
            prompt: self.text.clone(),
            n,
            ..Ask::default()
        }
    }
}

/// Progress over prompts.
pub fn bar(prompts: usize) -> ProgressBar {
    let bar = ProgressBar::new(prompts as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} prompts, {per_sec}") {
        bar.set_style(style);
    }
    bar
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.display().to_string(),
        source,
    })
}

/// Lines that start with `{` are JSON objects, others are prompts as they stand.
fn prompts(path: &Path, text: &str) -> Result<Vec<Prompt>, Error> {
    let mut prompts = Vec::new();
    for (nth, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        if !line.starts_with('{') {
            let (text, truth) = (line.to_owned(), Vec::new());
            prompts.push(Prompt { text, truth });
            continue;
        }
        let wrong = |what: String| Error::Line {
            path: path.display().to_string(),
            line: nth + 1,
            what,
        };
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let prompt = value.get("prompt").and_then(|prompt| prompt.as_str());
        let truth = value.get("truth").and_then(|truth| truth.as_array());
        let truth = truth.into_iter().flatten().filter_map(|name| name.as_str());
        prompts.push(Prompt {
            text: prompt
                .ok_or_else(|| wrong("no \"prompt\"".into()))?
                .to_owned(),
            truth: truth.map(str::to_owned).collect(),
        });
    }
    Ok(prompts)
}

fn print(out: &mut dyn Write, json: bool, line: &Line) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, line)?;
            writeln!(out)?;
        } else {
            writeln!(out, "prompt {}", line.prompt)?;
            for (nth, name) in line.names.iter().enumerate() {
                writeln!(
                    out,
                    "{:>4}. {:<40} {:>8.4}",
                    nth + 1,
                    name.name,
                    name.log_prob
                )?;
            }
        }
        out.flush()
    };
    written(write)
}

/// Names standard output in an error of `write`.
pub fn written(write: impl FnOnce() -> io::Result<()>) -> Result<(), Error> {
    write().map_err(|source| Error::File {
        path: "standard output".into(),
        source,
    })
}

impl<'a> Line<'a> {
    fn new(prompt: usize, answer: &Answer, names: &'a [String]) -> Self {
        let named = answer.named.iter().map(|named| Name {
            name: &names[named.pu as usize],
            log_prob: named.score,
        });
        Self {
            prompt,
            names: named.collect(),
            prompt_tokens: answer.prompt_tokens,
            shared_tokens: answer.shared_tokens,
            forwarded_tokens: answer.forwarded,
            waves: answer.waves,
        }
    }
}

impl Totals {
    fn add(&mut self, answer: &Answer) {
        self.prompts += 1;
        self.prompt_tokens += u64::from(answer.prompt_tokens);
        self.shared_tokens += u64::from(answer.shared_tokens);
        self.forwarded_tokens += u64::from(answer.forwarded);
        self.waves += u64::from(answer.waves);
    }

    fn print(&self, out: &mut dyn Write, json: bool) -> Result<(), Error> {
        written(|| {
            if json {
                serde_json::to_writer(&mut *out, &serde_json::json!({ "totals": self }))?;
                writeln!(out)?;
            } else {
                let Self {
                    prompts,
                    users_per_second,
                    seconds,
                    threads,
                    names,
                    ..
                } = self;
                writeln!(
                    out,
                    "{prompts} prompts over {names} names in {seconds:.2} s on {threads} threads: \
                     {users_per_second:.2} users/s"
                )?;
                writeln!(
                    out,
                    "{} prompt tokens, {} of them shared; {} trie tokens forwarded in {} waves; \
                     model loaded in {:.2} s",
                    self.prompt_tokens,
                    self.shared_tokens,
                    self.forwarded_tokens,
                    self.waves,
                    self.load_seconds
                )?;
            }
            out.flush()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_lines_or_json_and_a_bad_line_is_named() {
        let path = Path::new("p");
        let text = "one\n\n{\"prompt\": \"two\\nlines\", \"truth\": [\"a\"]}\n";
        let read = prompts(path, text).expect("valid");
        let texts: Vec<&str> = read.iter().map(|prompt| prompt.text.as_str()).collect();
        assert_eq!(texts, ["one", "two\nlines"]);
        assert_eq!(
            (read[0].truth.len(), &read[1].truth[..]),
            (0, &["a".to_owned()][..])
        );
        let bad = prompts(path, "one\n{\"prompt\": 3}\n").expect_err("no text");
        assert_eq!(bad.to_string(), "p:2: no \"prompt\"");
        assert!(prompts(path, "{\n").is_err());
    }
}
