//! `align --part` and `align --partials`: the log read by several processes, joined by one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::logs::{LogArgs, bar, read_catalogue, read_share};
use super::{block_on, erases::Erases};
use crate::config::Config;
use crate::ops::evaluate::History;
use crate::ops::evaluate::records::by_user;
use crate::ops::files::Share;
use crate::ops::partials::{
    Extent, Plan, Problem, agree, check_part, hash_files, joined, read_header, read_plan,
    remove_run, write_part,
};
use crate::ops::topics;

/// Variable in which Kubernetes gives a pod of an Indexed Job its number, from 0.
const INDEX: &str = "JOB_COMPLETION_INDEX";

/// How often it is looked whether all parts are there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Which part of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PartOf {
    /// Its number, from 1; that of the Job's pod if there is none.
    part: Option<u32>,
    of: u32,
}

/// Parts of a log.
#[derive(Clone, Debug, Args)]
pub(super) struct PartialArgs {
    /// Reads one part of the log and writes it to --partials: users whose id's hash falls to part I of N. `job/N` takes the
    /// number from JOB_COMPLETION_INDEX, as a pod of a Kubernetes Indexed Job has it. A part that is there is kept.
    #[arg(long, value_name = "I/N", value_parser = part_of, requires = "partials")]
    part: Option<PartOf>,
    /// Folder of parts. Without --part it joins the parts of the run that are there and learns from them; they are
    /// removed when the artefact is written.
    #[arg(long, value_name = "DIR")]
    partials: Option<PathBuf>,
    /// Name of the run, such as that of a Job. A folder has the parts of one run; a new run removes those of others.
    #[arg(long, value_name = "NAME", default_value = "align", value_parser = run_name, requires = "partials")]
    run: String,
    /// With --part: part 1 goes on to join all parts and to learn, once they are there. The others end.
    #[arg(long, requires = "part")]
    reduce: bool,
    /// How long is waited for parts that are missing.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration, requires = "partials")]
    wait: Duration,
    /// Leaves the parts where they are. They are files of persons: remove them.
    #[arg(long, requires = "partials")]
    keep_partials: bool,
}

/// What is to be learned from.
pub(super) enum Found {
    /// All of the log.
    History(History),
    /// A part was written, and that was all.
    Part(serde_json::Value),
}

impl PartialArgs {
    /// Whether there are parts.
    pub(super) fn are_asked(&self) -> bool {
        self.partials.is_some()
    }

    /// Writes a part, joins parts, or both.
    pub(super) fn run(
        &self,
        (logs, erases): (&LogArgs, &Erases<'_>),
        config: &Config,
    ) -> anyhow::Result<Found> {
        let folder = self.partials.as_deref().context("--partials")?;
        if let Some(part) = self.part {
            let found = self.part(part, (logs, erases), config)?;
            if !(self.reduce && found["part"] == 1) {
                return Ok(Found::Part(found));
            }
            note!("part 1 of {} is there; waiting for the others", part.of);
        }
        let plan = read_plan(folder, &self.run)?;
        self.check(&plan, logs, config)?;
        self.wait(&plan)?;
        // After the parts: what they have of users who were erased since is left out here.
        let erased = erases.read(logs, config)?;
        let bar = bar("joining", "{pos}/{len} parts, {elapsed}");
        bar.set_length(u64::from(plan.parts));
        let (users, left_out) = joined(folder, &plan, &erased, &|_| bar.inc(1))?;
        bar.finish_and_clear();
        if left_out > 0 {
            note!("{left_out} records of erased users are left out");
        }
        let ends = match &plan.log {
            Extent::Topics(ends) => Some(ends),
            Extent::Files(_) => None,
        };
        let catalogue = read_catalogue(logs, config, ends)?;
        Ok(Found::History(History::of(users, catalogue, config)))
    }

    /// Removes the parts, once what was learned from them is written.
    pub(super) fn done(&self) -> anyhow::Result<()> {
        if let Some(folder) = self.partials.as_deref().filter(|_| !self.keep_partials) {
            remove_run(folder, &self.run)?;
        }
        Ok(())
    }

    /// Reads and writes a part, unless it is there.
    fn part(
        &self,
        part: PartOf,
        (logs, erases): (&LogArgs, &Erases<'_>),
        config: &Config,
    ) -> anyhow::Result<serde_json::Value> {
        let folder = self.partials.as_deref().context("--partials")?;
        let number = part.number()?;
        let own = Plan::new(
            &self.run,
            part.of,
            extent(logs, config)?,
            &topics::decoding(config),
        );
        let plan = agree(folder, own)?;
        let say = |users: u64, refused: u64, kept: bool| json!({"part": number, "of": part.of, "users": users, "refused": refused, "kept": kept});
        match check_part(folder, (&plan, number)) {
            Ok(Some(header)) => return Ok(say(header.users, header.refused, true)),
            // Left by a run of the same name: this one makes it anew.
            Ok(None) | Err(Problem::Foreign { .. } | Problem::Damaged { .. }) => {}
            Err(problem) => return Err(problem.into()),
        }
        let erased = erases.read(logs, config)?;
        let share = Share {
            nth: number - 1,
            of: part.of,
        };
        let ends = match &plan.log {
            Extent::Topics(ends) => Some(ends),
            Extent::Files(_) => None,
        };
        let mut read = read_share(logs, config, (share, ends))?;
        let left_out = read.leave_out(&erased);
        if left_out > 0 {
            note!("{left_out} records of erased users are left out");
        }
        let refused = read.rejects.total();
        let users = by_user(read.records);
        let header = write_part(folder, (&plan, number), &users, refused)?;
        Ok(say(header.users, refused, false))
    }

    /// Refuses parts of another log or configuration than this process has.
    fn check(&self, plan: &Plan, logs: &LogArgs, config: &Config) -> anyhow::Result<()> {
        let log = match &plan.log {
            Extent::Files(_) if logs.are_files() => hash_files(&logs.source())?,
            Extent::Topics(_) if !logs.are_files() => plan.log.clone(),
            Extent::Files(_) => Extent::Topics(Default::default()),
            Extent::Topics(_) => Extent::Files(Default::default()),
        };
        let own = Plan::new(&self.run, plan.parts, log, &topics::decoding(config));
        match plan.differs(&own) {
            None => Ok(()),
            Some(what) => Err(Problem::OtherPlan {
                path: self.partials.clone().unwrap_or_default(),
                what,
            }
            .into()),
        }
    }

    /// Waits until all parts are there; if they do not come, joining says which are missing.
    fn wait(&self, plan: &Plan) -> anyhow::Result<()> {
        let folder = self.partials.as_deref().context("--partials")?;
        let until = Instant::now() + self.wait;
        let bar = bar("waiting", "{pos}/{len} parts, {elapsed}");
        bar.set_length(u64::from(plan.parts));
        loop {
            let mut there = 0;
            for part in 1..=plan.parts {
                // A part of a run before this one may still be replaced.
                let found = read_header(folder, (plan, part));
                there += u64::from(matches!(found, Ok(Some(_))));
            }
            bar.set_position(there);
            if there == u64::from(plan.parts) || Instant::now() >= until {
                break;
            }
            block_on(async {
                tokio::time::sleep(LOOK_EVERY).await;
                Ok(())
            })?;
        }
        bar.finish_and_clear();
        Ok(())
    }
}

impl PartOf {
    /// Its number, from 1.
    fn number(self) -> anyhow::Result<u32> {
        let Some(part) = self.part else {
            let text = std::env::var(INDEX).with_context(|| {
                format!(
                    "--part job/{} needs {INDEX}, which pods of an Indexed Job have",
                    self.of
                )
            })?;
            let index: u32 = text.parse().with_context(|| format!("{INDEX}={text:?}"))?;
            ensure!(
                index < self.of,
                "{INDEX} is {index}, and --part has {} parts: give it the completions of the Job",
                self.of
            );
            return Ok(index + 1);
        };
        Ok(part)
    }
}

/// Where the log ends now.
fn extent(logs: &LogArgs, config: &Config) -> anyhow::Result<Extent> {
    match logs.are_files() {
        true => Ok(hash_files(&logs.source())?),
        false => Ok(Extent::Topics(block_on(topics::ends(config))?)),
    }
}

fn part_of(text: &str) -> Result<PartOf, String> {
    let wrong = || format!("{text:?} is not I/N with 1 <= I <= N <= 10000, such as 2/5, nor job/N");
    let (part, of) = text.split_once('/').ok_or_else(wrong)?;
    let of: u32 = of.parse().map_err(|_| wrong())?;
    let part = match part {
        "job" => None,
        number => Some(number.parse::<u32>().map_err(|_| wrong())?),
    };
    let fits = (1..=10_000).contains(&of) && part.is_none_or(|part| (1..=of).contains(&part));
    fits.then_some(PartOf { part, of }).ok_or_else(wrong)
}

fn run_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !text.is_empty() && text.len() <= 100 && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, -, _ and . alone, at most 100 of them".into()),
    }
}
