//! `nearshore evaluate --off-policy`: what another policy of choosing SKUs would have earned.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nearshore_core::learn::bootstrap::Resampling;
use nearshore_core::learn::off_policy::Weighing;
use nearshore_core::user::event::Accepted;

use super::block_on;
use super::logs::{LogArgs, bar, read_events, read_logs};
use crate::config::Config;
use crate::ops::evaluate::Problem;
use crate::ops::evaluate::off_policy::{Asked, Clock, Updates, off_policy};
use crate::ops::lists::each_update;
use crate::ops::visible::{visible_json, visible_lines};

/// Time after a showing in which purchases count, if no other is given.
const WINDOW: Duration = Duration::from_secs(7 * 86_400);

/// Arguments of `evaluate --off-policy`.
#[derive(Clone, Debug, Args)]
pub(super) struct OffPolicyArgs {
    /// Judge a policy of choosing SKUs by the lists that were shown and by what was bought afterwards.
    #[arg(long, conflicts_with_all = [
        "cut", "visible", "folds", "cold", "no_align", "no_curve", "model_users", "encoder", "table", "baseline", "html", "diff",
    ])]
    off_policy: bool,
    /// With --off-policy: the policy's power of shares; by default selection.gamma, as for the other two.
    #[arg(long, value_name = "NUMBER", requires = "off_policy", value_parser = power)]
    gamma: Option<f64>,
    /// With --off-policy: the policy's part of exploration, 0 to 1.
    #[arg(long, value_name = "SHARE", requires = "off_policy", value_parser = part)]
    explore: Option<f64>,
    /// With --off-policy: the policy's least part of shares, or chance of being the best, with which a SKU is placed by chance.
    #[arg(long, value_name = "WEIGHT", requires = "off_policy", value_parser = part)]
    epsilon: Option<f64>,
    /// With --off-policy: judge only the first places under a name; by default selection.top_k.
    #[arg(long, value_name = "N", requires = "off_policy", value_parser = clap::value_parser!(u32).range(1..=100))]
    places: Option<u32>,
    /// With --off-policy: the namespace whose lists were shown instead of the configured one.
    #[arg(long, value_name = "NAMESPACE", requires = "off_policy")]
    namespace: Option<String>,
    /// With --off-policy and --events: files of recall-updates, in order of age.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "off_policy")]
    updates: Vec<PathBuf>,
}

impl OffPolicyArgs {
    /// Whether this evaluation is asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.off_policy
    }
}

/// Judges the policy, and prints the result.
pub(super) fn run(
    args: &OffPolicyArgs,
    (logs, config): (&LogArgs, &Config),
    (window, how): (Option<Duration>, Resampling),
    json: bool,
) -> anyhow::Result<()> {
    let selection = &config.selection;
    let namespace = args.namespace.as_ref().unwrap_or(&config.namespace);
    let (updates, records) = read(args, (logs, config), namespace)?;
    let asked = Asked {
        target: Weighing {
            gamma: args.gamma.unwrap_or(selection.gamma),
            explore: args.explore.unwrap_or(selection.explore),
            epsilon: args.epsilon.unwrap_or(selection.epsilon),
        },
        window: window.unwrap_or(WINDOW),
        places: args.places.map_or(selection.top_k, |it| it as usize),
        how,
        namespace: namespace.clone(),
    };
    let found = off_policy(&updates, &records, &asked)?;
    match json {
        true => out!("{}", visible_json(&serde_json::to_string(&found)?)),
        false => out_part!("{}", visible_lines(&found.text())),
    }
    Ok(())
}

/// Lists and records of users, both from files or both from the topics.
fn read(
    args: &OffPolicyArgs,
    (logs, config): (&LogArgs, &Config),
    namespace: &str,
) -> anyhow::Result<(Updates, Vec<Accepted>)> {
    let missing = match (logs.are_files(), args.updates.is_empty()) {
        (true, true) => Some("--updates"),
        (false, false) => Some("--events"),
        (true, false) | (false, true) => None,
    };
    if let Some(missing) = missing {
        return Err(Problem::Files { missing }.into());
    }
    if logs.are_files() {
        let mut updates = Updates::new(namespace, Clock::Times);
        for path in &args.updates {
            updates
                .read_file(path)
                .with_context(|| format!("{} is not read", path.display()))?;
        }
        return Ok((updates, read_events(logs, config)?));
    }
    let mut updates = Updates::new(namespace, Clock::Positions);
    let bar = bar("lists", "{msg} {pos}/{len} records, {per_sec}");
    block_on(each_update(config, &bar, |record| updates.add(record)))?;
    Ok((updates, read_logs(logs, config)?.records))
}

fn power(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(power) if power > 0.0 && power <= 1000.0 => Ok(power),
        _ => Err("a number above 0, at most 1000".into()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err("a number from 0 to 1".into()),
    }
}
