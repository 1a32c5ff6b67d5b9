//! `nearshore try --mode free`: what a model writes for each prompt, here or elsewhere, which names it means, and what is
//! rejected.
//!
//! Invariant: prompts are answered in the order of the file, and all names of the file may be offered. A server is asked
//! one prompt after the other; here prompts are written in batches. It decides nothing: reading, matching and filling up
//! are those of generate.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use super::input::Prompt;
use super::{Error, Session, TryArgs, input, to_stdout};
use crate::files;
use crate::ops::visible::visible;
use nearshore_core::list::prompt::Endpoint;
use nearshore_core::names::free::{Words, read, respond};
use nearshore_core::names::matcher::{Memory, Model};
use nearshore_core::names::scoring::{Ended, ScoreResponse};
use nearshore_core::names::writing::{WriteRequest, WriteResponse};
use nearshore_core::names::written::{Reject, Written};
use nearshore_engine::Model as _;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_remote::Client;

/// What was written for a prompt.
struct Text {
    /// The start of the answer in the prompt, and what follows it.
    text: String,
    is_cut: bool,
    prompt_tokens: u32,
    tokens: u32,
}

/// What a model wrote for one prompt, and what it means.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Line<'a> {
    prompt: usize,
    text: &'a str,
    is_cut: bool,
    chatter: usize,
    matched: Vec<Matched<'a>>,
    rejected: Vec<Unmatched<'a>>,
    names: Vec<Name<'a>>,
    prompt_tokens: u32,
    completion_tokens: u32,
}

#[derive(Serialize, JsonSchema)]
struct Matched<'a> {
    text: &'a str,
    name: &'a str,
    probability: f64,
}

#[derive(Serialize, JsonSchema)]
struct Unmatched<'a> {
    text: &'a str,
    why: Reject,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<(&'a str, f64)>,
}

#[derive(Serialize, JsonSchema)]
struct Name<'a> {
    name: &'a str,
    score: f32,
}

/// Runs the command; results go to `out`.
pub(super) fn run(args: &TryArgs, out: &mut dyn Write) -> Result<(), Error> {
    let prompts = input::prompts(&args.prompts)?;
    let session = Session::new(args)?;
    let names = &session.names.names;
    let words = Words::new(names, matcher(args)?);
    let mut writer = Writer::new(args)?;
    let mut memory = Memory::default();
    let (mut nth, mut tokens, mut spent) = (0, 0, Duration::ZERO);
    for batch in prompts.chunks(args.batch.max(1)) {
        let start = Instant::now();
        let texts = writer.write(args, batch)?;
        spent += start.elapsed();
        for (prompt, text) in batch.iter().zip(texts) {
            nth += 1;
            tokens += text.tokens;
            let request = session.request(prompt);
            let listed = read(&text.text, text.is_cut);
            let written = words.accept(&listed, None, &mut memory);
            let response = respond(&request, written.clone(), words.len());
            let line = Line::new(nth, (&text, &written, &response), names);
            to_stdout(|| match args.json {
                true => {
                    serde_json::to_writer(&mut *out, &line)?;
                    writeln!(out)?;
                    out.flush()
                }
                false => line.print(out),
            })?;
        }
    }
    let seconds = spent.as_secs_f64();
    let speed = f64::from(tokens) / seconds;
    note!("{nth} prompts, {tokens} tokens written in {seconds:.1} s, {speed:.1} a second");
    Ok(())
}

/// What writes the texts.
enum Writer {
    /// A server.
    Elsewhere(Client, tokio::runtime::Runtime),
    /// A model that runs here.
    Here(Box<Constrained>),
}

impl Writer {
    fn new(args: &TryArgs) -> Result<Self, Error> {
        if let Some(url) = &args.endpoint {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|source| Error::File {
                path: "the runtime of the client".into(),
                source,
            })?;
            return Ok(Self::Elsewhere(client(args, url)?, runtime));
        }
        let model = Constrained::load(&args.model, args.options())?;
        for warning in &model.loading().warnings {
            note!("{}: {warning}", args.model.display());
        }
        // Somebody waits for the text, and may stop waiting.
        let limits = Limits {
            time_max: Duration::from_secs(24 * 60 * 60),
            ..Limits::default()
        };
        Ok(Self::Here(Box::new(model.limited(limits))))
    }

    /// Has a text written for each prompt.
    fn write(&mut self, args: &TryArgs, prompts: &[Prompt]) -> Result<Vec<Text>, Error> {
        match self {
            Self::Elsewhere(client, runtime) => {
                let ask = |prompt: &Prompt| {
                    let asked = runtime.block_on(client.complete(&prompt.prompt.user));
                    let completion = asked.map_err(Error::remote)?;
                    Ok(Text {
                        text: completion.text,
                        is_cut: completion.is_cut,
                        prompt_tokens: completion.prompt_tokens,
                        tokens: completion.completion_tokens,
                    })
                };
                prompts.iter().map(ask).collect()
            }
            Self::Here(model) => {
                let request = |prompt: &Prompt| WriteRequest {
                    prompt: prompt.prompt.clone(),
                    decoding: args.decoding(),
                    ..WriteRequest::default()
                };
                let requests: Vec<WriteRequest> = prompts.iter().map(request).collect();
                let texts = model.write(&requests)?;
                let limit = model.context();
                let text = |(prompt, text): (&Prompt, WriteResponse)| {
                    if text.ended == Ended::TooLong {
                        let (tokens, most) = (text.prompt_tokens, args.decoding().max_tokens);
                        return Err(Error::Usage(format!(
                            "a prompt of {tokens} tokens and --max-tokens {most} are over the model's context of {limit} tokens"
                        )));
                    }
                    Ok(Text {
                        text: prompt.prompt.assistant.trim_end().to_owned() + &text.text,
                        is_cut: text.is_cut,
                        prompt_tokens: text.prompt_tokens,
                        tokens: text.tokens,
                    })
                };
                prompts.iter().zip(texts).map(text).collect()
            }
        }
    }
}

fn client(args: &TryArgs, url: &str) -> Result<Client, Error> {
    let decoding = args.decoding();
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    let endpoint = Endpoint {
        api_key_file: path(&args.api_key_file),
        ca_file: path(&args.ca_file),
        max_tokens: decoding.max_tokens,
        temperature: decoding.temperature,
        seed: decoding.seed,
        ..Endpoint::at(url)
    };
    Client::new(&endpoint, &args.model.display().to_string()).map_err(Error::remote)
}

fn matcher(args: &TryArgs) -> Result<Arc<Model>, Error> {
    let missing =
        || Error::Usage("--mode free needs --matcher, a model of `nearshore match --fit`".into());
    let path = args.matcher.as_ref().ok_or_else(missing)?;
    let text = files::read_filled(
        path,
        "make it with `nearshore match --labels FILE --fit FILE`",
    )?;
    let wrong = |what: String| Error::Usage(format!("--matcher {}: {what}", path.display()));
    let model = Model::read(&text).map_err(|error| wrong(error.to_string()))?;
    match model.encoder {
        Some(_) => Err(wrong(
            "it was fitted with an encoder; fit it without --encoder".into(),
        )),
        None => Ok(Arc::new(model)),
    }
}

impl<'a> Line<'a> {
    fn new(
        prompt: usize,
        (text, written, response): (&'a Text, &'a Written, &ScoreResponse),
        names: &'a [String],
    ) -> Self {
        let name = |pu: u32| names.get(pu as usize).map_or("", String::as_str);
        let matched = written.accepted.iter().map(|it| Matched {
            text: &it.text,
            name: name(it.pu),
            probability: it.probability,
        });
        let rejected = written.rejected.iter().map(|it| Unmatched {
            text: &it.text,
            why: it.why,
            nearest: it.nearest.map(|(pu, probability)| (name(pu), probability)),
        });
        let scored = response.named.iter().map(|it| Name {
            name: name(it.pu),
            score: it.score,
        });
        Self {
            prompt,
            text: &text.text,
            is_cut: text.is_cut,
            chatter: written.chatter,
            matched: matched.collect(),
            rejected: rejected.collect(),
            names: scored.collect(),
            prompt_tokens: text.prompt_tokens,
            completion_tokens: text.tokens,
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let cut = if self.is_cut { ", cut off" } else { "" };
        writeln!(
            out,
            "prompt {} ({} tokens written{cut})",
            self.prompt, self.completion_tokens
        )?;
        for line in self.text.lines() {
            writeln!(out, "    | {}", visible(line))?;
        }
        for it in &self.matched {
            let (text, name) = (visible(it.text), visible(it.name));
            writeln!(out, "  matched   {:.3}  {text} -> {name}", it.probability)?;
        }
        for it in &self.rejected {
            let (why, text): (&str, _) = (it.why.into(), visible(it.text));
            match it.nearest {
                Some((name, probability)) => {
                    writeln!(
                        out,
                        "  rejected  {why}: {text} ({probability:.3} {})",
                        visible(name)
                    )?;
                }
                None => writeln!(out, "  rejected  {why}: {text}")?,
            }
        }
        if self.names.is_empty() {
            writeln!(
                out,
                "  no name was matched: the list without the model would stay"
            )?;
        }
        for (nth, it) in self.names.iter().enumerate() {
            let (place, text, score) = (nth + 1, visible(it.name), it.score);
            writeln!(out, "{place:>4}. {text:<40} {score:>8.4}")?;
        }
        out.flush()
    }
}
