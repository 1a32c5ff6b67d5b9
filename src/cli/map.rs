//! `nearshore map`: shows what the mapping of a topic makes of records, before and after, offline.
//!
//! Invariant: it starts nothing and writes nothing, but for the process of a program. Exit code 1 if a record is
//! refused that does not say so itself, or becomes something else than it says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nearshore_core::map::{Input, Sample, became};
use nearshore_core::user::event::Limits;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::files;
use crate::map::Mapper;
use crate::ops::visible::{visible_json, visible_lines};

/// Examples of its help.
pub(super) const EXAMPLES: &str = "Examples:\n  nearshore map --config nearshore.toml                   # the samples beside each mapping\n  nearshore map --topic segment --sample records.jsonl --config nearshore.toml\n  kcat -C -t segment -o -20 -e -J | nearshore map --topic segment --sample - --config nearshore.toml --json\n\nA line of a sample is a record as `kcat -J` prints it, {\"key\", \"value\", \"headers\"}, or the value alone. With \"expect\" it says\nwhat it must become: a list of {\"key\", \"value\"}, or the code of the refusal.";

/// Arguments of `nearshore map`.
#[derive(Args, Clone, Debug)]
pub(super) struct MapArgs {
    /// Topic whose mapping is used; not needed where one alone is mapped.
    #[arg(long)]
    topic: Option<String>,
    /// Records, one a line, instead of the samples beside the mapping; - reads standard input.
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What one sample became.
pub(super) struct Shown {
    before: Value,
    became: Value,
    why: Option<String>,
    expect: Option<Value>,
}

impl Shown {
    /// Whether it became what it says, or is not refused.
    pub(super) fn is_right(&self) -> bool {
        match &self.expect {
            Some(expect) => *expect == self.became,
            None => self.why.is_none(),
        }
    }

    /// What is wrong, for people.
    pub(super) fn wrong(&self) -> String {
        let why = self
            .why
            .as_ref()
            .map_or(String::new(), |why| format!(" ({why})"));
        match &self.expect {
            Some(expect) => format!("it became {}{why}, not {expect}", self.became),
            None => format!("refused: {}{why}", self.became),
        }
    }
}

/// Serves the program of a mapping on standard input and output.
pub(super) fn run_program() -> anyhow::Result<ExitCode> {
    crate::map::serve()?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(args: &MapArgs) -> anyhow::Result<ExitCode> {
    with_config(&args.common, |config| {
        anyhow::ensure!(
            !config.inputs.is_empty(),
            "no topic is mapped: there is no [[inputs]]"
        );
        let chosen = config.topics.inputs.iter().filter(|input| {
            args.topic
                .as_ref()
                .is_none_or(|topic| **topic == *input.topic)
        });
        let chosen: Vec<&Input> = chosen.collect();
        let topics = config
            .inputs
            .iter()
            .map(|it| &*it.topic)
            .collect::<Vec<_>>()
            .join(", ");
        anyhow::ensure!(
            !chosen.is_empty(),
            "--topic is none of those that are mapped: {topics}"
        );
        anyhow::ensure!(
            args.sample.is_none() || chosen.len() == 1,
            "--topic says whose mapping is used; mapped are {topics}"
        );
        block_on(async {
            let (mut all, mut wrong) = (0, 0);
            for input in chosen {
                for shown in mapped(&config, input, args.sample.as_ref()).await? {
                    print(input, &shown, args.common.json);
                    all += 1;
                    wrong += usize::from(!shown.is_right());
                }
            }
            note!("{all} records mapped, {wrong} of them wrong");
            Ok(ExitCode::from(u8::from(wrong > 0)))
        })
    })
}

/// Maps the samples of a file, or those beside the mapping.
pub(super) async fn mapped(
    config: &Config,
    input: &Input,
    file: Option<&PathBuf>,
) -> anyhow::Result<Vec<Shown>> {
    let beside = config.inputs.iter().find(|it| *it.topic == *input.topic);
    let beside = beside.and_then(|it| it.samples.as_ref());
    let text = match file {
        Some(path) if path.as_os_str() == "-" => {
            std::io::read_to_string(std::io::stdin()).context("standard input")?
        }
        Some(path) => files::read(path)?,
        None => {
            let what = || {
                format!(
                    "the mapping of {} names no samples; give --sample",
                    input.topic
                )
            };
            files::read(&config.resolve(beside.with_context(what)?))?
        }
    };
    let mut samples = Vec::new();
    for (nth, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let sample = Sample::read(line, &input.topic, nth);
        samples.push(sample.map_err(|why| anyhow::anyhow!("line {}: {why}", nth + 1))?);
    }
    let limits = Limits::default();
    let records: Vec<_> = samples.iter().map(|sample| sample.record.clone()).collect();
    let mut mapper = Mapper::new(&config.topics);
    let outcomes = mapper.records(&input.topic, &records, &limits).await?;
    let each = samples.into_iter().zip(outcomes.into_iter().flatten());
    Ok(each
        .map(|(sample, outcome)| {
            let (became, why) = became(input, &outcome, &limits);
            Shown {
                before: before(&sample),
                became,
                why,
                expect: sample.expect,
            }
        })
        .collect())
}

fn before(sample: &Sample) -> Value {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let value = sample.record.value.as_deref().map_or(Value::Null, |bytes| {
        serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes))
    });
    json!({"key": sample.record.key.as_deref().map(text), "value": value})
}

/// What one record became, as JSON.
#[derive(Serialize, JsonSchema)]
pub(super) struct MapLine<'a> {
    /// The topic.
    topic: &'a str,
    /// Key and value of the record.
    before: &'a Value,
    /// Records of our contract with key and value, or the code of the refusal.
    became: &'a Value,
    /// What is wrong with it.
    why: Option<&'a str>,
    /// Whether it became what the sample says, or is not refused.
    right: bool,
}

fn print(input: &Input, shown: &Shown, json: bool) {
    if json {
        let line = json!(MapLine {
            topic: &input.topic,
            before: &shown.before,
            became: &shown.became,
            why: shown.why.as_deref(),
            right: shown.is_right(),
        });
        out!("{}", visible_json(&line.to_string()));
        return;
    }
    let mark = if shown.is_right() { "ok   " } else { "WRONG" };
    let mut lines = vec![format!("{mark} {}  {}", input.topic, shown.before)];
    match (&shown.became, &shown.why) {
        (Value::Array(records), _) if records.is_empty() => lines.push("      -> nothing".into()),
        (Value::Array(records), _) => {
            lines.extend(records.iter().map(|record| format!("      -> {record}")));
        }
        (code, why) => {
            let code = code.as_str().unwrap_or_default();
            lines.push(format!(
                "      refused: {code}: {}",
                why.as_deref().unwrap_or_default()
            ));
        }
    }
    if !shown.is_right() && shown.expect.is_some() {
        lines.push(format!("      {}", shown.wrong()));
    }
    out!("{}", visible_lines(&lines.join("\n")));
}
