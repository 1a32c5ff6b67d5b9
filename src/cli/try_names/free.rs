//! `nearshore try --mode free`: what a model elsewhere writes for each prompt, which names it means, and what is
//! rejected.
//!
//! Invariant: prompts are answered one after the other, in the order of the file, and all names of the file may be
//! offered. It decides nothing: reading, matching and filling up are those of generate.

use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;

use super::{Error, Session, TryArgs, input, to_stdout};
use crate::files;
use crate::ops::visible::visible;
use nearshore_core::list::prompt::Endpoint;
use nearshore_core::names::free::{Words, read, respond};
use nearshore_core::names::matcher::{Memory, Model};
use nearshore_core::names::scoring::ScoreResponse;
use nearshore_core::names::written::{Reject, Written};
use nearshore_remote::{Client, Completion};

#[derive(Serialize)]
struct Line<'a> {
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

#[derive(Serialize)]
struct Matched<'a> {
    text: &'a str,
    name: &'a str,
    probability: f64,
}

#[derive(Serialize)]
struct Unmatched<'a> {
    text: &'a str,
    why: Reject,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<(&'a str, f64)>,
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
    score: f32,
}

/// Runs the command; results go to `out`.
pub(super) fn run(args: &TryArgs, out: &mut dyn Write) -> Result<(), Error> {
    let prompts = input::prompts(&args.prompts)?;
    let session = Session::new(args)?;
    let client = client(args)?;
    let names = &session.names.names;
    let words = Words::new(names, matcher(args)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| Error::File {
        path: "the runtime of the client".into(),
        source,
    })?;
    let mut memory = Memory::default();
    for (nth, prompt) in prompts.iter().enumerate() {
        let request = session.request(prompt);
        let asked = runtime.block_on(client.complete(&request.prompt.user));
        let completion = asked.map_err(Error::remote)?;
        let listed = read(&completion.text, completion.is_cut);
        let written = words.accept(&listed, None, &mut memory);
        let response = respond(&request, written.clone(), words.len());
        let line = Line::new(nth + 1, (&completion, &written, &response), names);
        to_stdout(|| match args.json {
            true => {
                serde_json::to_writer(&mut *out, &line)?;
                writeln!(out)?;
                out.flush()
            }
            false => line.print(out),
        })?;
    }
    Ok(())
}

fn client(args: &TryArgs) -> Result<Client, Error> {
    let url = args.endpoint.as_deref().unwrap_or_default();
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    let endpoint = Endpoint {
        api_key_file: path(&args.api_key_file),
        ca_file: path(&args.ca_file),
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
        (completion, written, response): (&'a Completion, &'a Written, &ScoreResponse),
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
            text: &completion.text,
            is_cut: completion.is_cut,
            chatter: written.chatter,
            matched: matched.collect(),
            rejected: rejected.collect(),
            names: scored.collect(),
            prompt_tokens: completion.prompt_tokens,
            completion_tokens: completion.completion_tokens,
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
