//! The command line: one function per command, from arguments to exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments or configuration. Results go to stdout, everything else to stderr.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::ops::visible::visible_lines;
use try_names::TryArgs;

mod align;
mod arms;
mod ask;
mod backfill;
mod bench;
mod calibrate;
mod catalog;
pub mod check;
pub mod config;
mod dlq;
mod erases;
mod evaluate;
mod forget;
mod import;
mod logs;
mod map;
mod matching;
mod namespace;
mod neighbours;
mod off_policy;
mod partials;
mod run;
mod schema;
mod shell;
mod simulate;
mod tap;
mod top;
mod try_names;
mod tune;
mod users;

/// Near-line recall for recommenders: Kafka events in, LLM-named product lists in Redis out.
#[derive(Debug, Parser)]
#[command(name = "nearshore", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Args)]
struct Common {
    /// Configuration file; without it, defaults and NEARSHORE__* variables.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run ingest, generate, or both until SIGTERM.
    #[command(
        after_help = "Examples:\n  nearshore run --config nearshore.toml\n  nearshore run --config nearshore.toml --role generate"
    )]
    Run {
        #[command(flatten)]
        common: Common,
        /// The role to run.
        #[arg(long, value_enum, default_value = "all")]
        role: Role,
        /// Namespace to fill instead of the configured one.
        #[arg(long)]
        namespace: Option<String>,
    },
    /// Check configuration, rules, templates, and without --offline also brokers, topics, catalogue, Redis and models.
    #[command(
        after_help = "Examples:\n  nearshore check --offline --config nearshore.toml\n  nearshore check --config nearshore.toml --json\n  nearshore check --acl --role ingest       # the rights to grant on Kafka and Redis\n  nearshore check --role ingest             # are they there?"
    )]
    Check(check::Options),
    /// Print the effective configuration, secrets masked.
    #[command(after_help = "Examples:\n  nearshore config --config nearshore.toml")]
    Config {
        #[command(flatten)]
        common: Common,
    },
    /// Print a user's served list, or a SKU's neighbours, as a client would read it, without sold-out SKUs.
    #[command(
        after_help = "Examples:\n  nearshore get 1228 --config nearshore.toml\n  nearshore get 1228 --json\n  nearshore get --neighbours 1000002"
    )]
    Get {
        /// User id.
        #[arg(required_unless_present = "neighbours", conflicts_with = "neighbours")]
        user: Option<String>,
        /// SKU whose substitutes and complements are printed instead.
        #[arg(long, value_name = "SKU")]
        neighbours: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Print how a user's list was made: events, prompt, names, rules, SKUs, versions, times.
    #[command(
        after_help = "Examples:\n  nearshore inspect 1228\n  nearshore inspect 1228 --json | jq .audit\n  nearshore inspect 1228 --why-not 'ADULT ANALGESICS'\n  nearshore inspect 1228 --what-if events.jsonl\n\nA line of --what-if is an event as in user-events, {\"type\":\"view\",\"sku\":\"845208\"}; with \"timestamp\" (milliseconds) it is not of now."
    )]
    Inspect {
        /// User id.
        user: String,
        /// Say why this product is not on the list: rule, stock, or rank and the terms that cost it. A PU, a SKU or a
        /// name.
        #[arg(long, value_name = "PRODUCT")]
        why_not: Option<String>,
        /// Print the list that the user would have with the events of this file, and what changes; nothing is stored.
        /// - reads standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "why_not")]
        what_if: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Erase a user, by a tombstone on the profile topic, or prove that everything is erased.
    #[command(
        after_help = "Examples:\n  nearshore forget 1228 --config nearshore.toml\n  nearshore forget 1228 --proof --wait 1m\n  nearshore forget --proof 1228 --json | jq '.findings[] | select(.verdict == \"left\")'\n  nearshore forget --export erased.jsonl      # keep a copy outside of Redis\n  nearshore forget --import erased.jsonl      # after Redis lost its data, before a replay"
    )]
    Forget(forget::Forget),
    /// Request new lists on the backfill lane, made from the present state; nothing is folded again.
    #[command(
        after_help = "Examples:\n  nearshore refresh --user 1228\n  nearshore refresh --all\n  nearshore refresh --arm b --older-than 7days\n  nearshore refresh --pu 'ADULT ANALGESICS'"
    )]
    Refresh(ask::RefreshArgs),
    /// Fill another namespace from the log and request its lists, while the served one goes on; resumable.
    #[command(
        after_help = "Examples:\n  nearshore backfill --namespace next --from earliest\n  nearshore backfill --namespace next --from last=30d --dry-run --lists-per-second 40\n  nearshore backfill --namespace next            # resume after an interruption"
    )]
    Backfill(backfill::BackfillArgs),
    /// List, compare, promote, retire and dump namespaces.
    #[command(subcommand)]
    Namespace(namespace::Command),
    /// Request a list for each user whose list trails their state.
    #[command(after_help = "Examples:\n  nearshore sweep --config nearshore.toml")]
    Sweep {
        /// Namespace to use instead of the configured one.
        #[arg(long)]
        namespace: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Print what each arm's lists earned, and test whether users are spread over the arms by their shares.
    #[command(
        after_help = "Examples:\n  nearshore arms --config nearshore.toml\n  nearshore arms --json | jq '.mismatch'"
    )]
    Arms {
        /// Namespace to use instead of the configured one.
        #[arg(long)]
        namespace: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Take a product off all lists within seconds; who did it and why is stored.
    #[command(
        after_help = "Examples:\n  nearshore block 1028816 --reason 'recall of batch 7'\n  nearshore block --pu 'ADULT ANALGESICS' --reason 'licence'"
    )]
    Block {
        /// SKU id, or PU id with --pu.
        id: String,
        /// The id is that of a PU.
        #[arg(long)]
        pu: bool,
        /// Why it is blocked; stored with the block.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// Undo a block; SKUs that are sold out stay off the lists.
    #[command(after_help = "Examples:\n  nearshore unblock 1028816")]
    Unblock {
        /// SKU id or PU id, as blocked.
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// List dead letters and send them back to their topics.
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Name products for prompts from a file, without Kafka or Redis.
    #[command(
        after_help = "Examples:\n  nearshore try --model smollm2.gguf --names names.txt --prompts prompts.txt --top 10\n  nearshore try --model smollm2.gguf --names names.txt --prompts prompts.txt --precision int8 --threads 2 --json | jq .names\n  nearshore try --model smollm2.gguf --names names.txt --prompts prompts.txt --top 3 --explain \\\n    --calibration everyone.txt --demand demand.tsv --term repeat=bought.tsv\n\nResults go to standard output. Progress and totals (time, memory, rates) go to standard error, or with --json to the last line.\nWith --explain each line under a name is one choice of tokens: its part of the score, the text chosen, and out of how many."
    )]
    Try(TryArgs),
    /// Write an arm's calibration prompts; the model's mean over them is subtracted from its scores.
    #[command(
        after_help = "Examples:\n  nearshore calibrate --config nearshore.toml --arm a --from people.jsonl\n  nearshore calibrate --config nearshore.toml --arm a --from people.jsonl --force"
    )]
    Calibrate {
        #[command(flatten)]
        args: calibrate::CalibrateArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Measure what lists would have been worth: replay a log, stop held-out users, compare with what they bought.
    #[command(after_help = evaluate::EXAMPLES)]
    Evaluate(evaluate::EvaluateArgs),
    /// Bring history from files into the topics, each record with its own time.
    #[command(after_help = import::EXAMPLES)]
    Import(import::ImportArgs),
    /// Learn an arm's weights and tables from the shop's own log, and write them as an artefact.
    #[command(after_help = align::EXAMPLES)]
    Align(align::AlignArgs),
    /// Train an arm's model, or an adapter beside it, on the shop's own log.
    #[command(after_help = tune::EXAMPLES)]
    Tune(Box<tune::TuneArgs>),
    /// Compare ways to choose the SKUs under a name in simulated shops, where the truth is known.
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::SimulateArgs),
    /// Match free texts with products: fit and measure the matcher on labelled texts, or match texts by a fitted one.
    #[command(after_help = matching::EXAMPLES)]
    Match(matching::MatchArgs),
    /// Give products to SKUs that have only titles.
    #[command(subcommand)]
    Catalog(catalog::Command),
    /// Run everything in one process on real purchases, until Ctrl-C.
    #[command(
        after_help = "Examples:\n  scripts/demo                 # downloads data and model, then runs this\n  nearshore demo --data .cache/data --model smollm2.gguf --check"
    )]
    Demo(crate::demo::DemoArgs),
    /// Show what the mapping of a topic makes of records: before, after and refusals, without starting anything.
    #[command(after_help = map::EXAMPLES)]
    Map(map::MapArgs),
    /// Follow one user's events, requests and updates, live from the topics, without joining a group.
    #[command(
        after_help = "Examples:\n  nearshore tap --user 1228 --config nearshore.toml\n  nearshore tap --user 1228 --json --for 1min | jq -c 'select(.what == \"update\") | .value.doc.names'"
    )]
    Tap(tap::TapArgs),
    /// Show what many processes do now: lanes, freshness, rates, lag and faults, from their /metrics.
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArgs),
    /// Print what makes a shell complete commands and options.
    #[command(
        after_help = "Examples:\n  nearshore completions bash > /etc/bash_completion.d/nearshore\n  nearshore completions zsh > ~/.zfunc/_nearshore"
    )]
    Completions(shell::Completions),
    /// Print a man page, or write one for every command.
    #[command(
        after_help = "Examples:\n  nearshore man | man -l -\n  nearshore man --out /usr/local/share/man/man1"
    )]
    Man(shell::Man),
    /// Print the JSON Schema of a topic's values, a list, the configuration or a `--json` answer.
    #[command(
        after_help = "Examples:\n  nearshore schema                                # the names\n  nearshore schema config > nearshore.schema.json # lets an editor check nearshore.toml\n  nearshore schema --out schemas"
    )]
    Schema(schema::SchemaArgs),
    /// Run the program of a mapping: read it and its questions from standard input.
    #[command(name = "run-program", hide = true)]
    RunProgram,
    /// Answer the requests of scripts/bench, one JSON line each.
    #[command(subcommand, hide = true)]
    Bench(Bench),
}

/// What `nearshore bench` measures.
#[derive(Debug, Subcommand)]
enum Bench {
    /// The engine.
    Engine(bench::BenchArgs),
}

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Events to state and requests.
    Ingest,
    /// Requests to lists.
    Generate,
    /// Both.
    All,
}

/// Parses the arguments and runs the command; errors go to stderr.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if let Err(error) = nearshore_engine::Isa::cap() {
        note!("nearshore: {error}");
        return ExitCode::from(2);
    }
    // A process that serves has no reader: what breaks there is an error.
    let prints = !matches!(cli.command, Command::Run { .. });
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) if prints && is_unread(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note!("nearshore: {}", visible_lines(&chain(&error)));
            ExitCode::from(1)
        }
    }
}

/// Whether a command ended because the reader of its standard output is gone: `nearshore namespace dump | head`.
fn is_unread(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// An error and its causes, without causes whose text it already contains.
fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            _ if text.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
}

fn try_once(args: &TryArgs) -> anyhow::Result<ExitCode> {
    match try_names::run(args) {
        Err(error) if error.is_usage() => {
            note!("nearshore: {error}");
            Ok(ExitCode::from(2))
        }
        done => Ok(done.map(|()| ExitCode::SUCCESS)?),
    }
}

fn bench_engine(args: &bench::BenchArgs) -> anyhow::Result<ExitCode> {
    let (stdin, stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    bench::run(args, stdin, stdout).map_err(anyhow::Error::from_boxed)?;
    Ok(ExitCode::SUCCESS)
}

fn calibrated(common: &Common, args: &calibrate::CalibrateArgs) -> anyhow::Result<ExitCode> {
    with_config(common, |c| calibrate::run(&c, args, common.json))
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Try(args) => try_once(&args),
        Command::Bench(Bench::Engine(args)) => bench_engine(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Map(args) => map::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Tap(args) => tap::run(&args),
        Command::Top(args) => top::run(&args),
        Command::RunProgram => map::run_program(),
        Command::Import(args) => import::run(&args),
        Command::Align(args) => align::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Match(args) => matching::run(&args),
        Command::Catalog(command) => catalog::run(&command),
        Command::Demo(args) => crate::demo::run(args),
        Command::Dlq(command) => dlq::run(command),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Check(options) => check::command(options),
        Command::Config { common } => {
            let code = config::config(common.config.as_deref(), common.json);
            Ok(ExitCode::from(code))
        }
        Command::Run {
            common,
            role,
            namespace,
        } => with_config(&common, |mut config| {
            let valid = namespace.is_none_or(|name| use_namespace(&mut config, &name));
            if !valid {
                return Ok(ExitCode::from(2));
            }
            run::run(config, role)
        }),
        Command::Get {
            user,
            neighbours,
            common,
        } => with_config(&common, |c| match &neighbours {
            Some(sku) => neighbours::get(&c, sku, common.json),
            None => users::get(&c, &user.unwrap_or_default(), common.json),
        }),
        Command::Inspect {
            user,
            why_not,
            what_if,
            common,
        } => with_config(&common, |c| match (&why_not, &what_if) {
            (Some(product), _) => users::why_not(&c, &user, product, common.json),
            (None, Some(events)) => users::what_if(&c, &user, events, common.json),
            (None, None) => users::inspect(&c, &user, common.json),
        }),
        Command::Forget(args) => with_config(&args.common, |c| forget::run(&c, &args)),
        Command::Refresh(args) => ask::refresh(args),
        Command::Backfill(args) => backfill::run(args),
        Command::Namespace(command) => namespace::run(command),
        Command::Calibrate { args, common } => calibrated(&common, &args),
        Command::Sweep { namespace, common } => ask::sweep(&common, namespace.as_deref()),
        Command::Arms { namespace, common } => arms::run(&common, namespace.as_deref()),
        Command::Block {
            id,
            pu,
            reason,
            common,
        } => with_config(&common, |c| users::block(&c, &id, pu, &reason, common.json)),
        Command::Unblock { id, common } => {
            with_config(&common, |c| users::unblock(&c, &id, common.json))
        }
    }
}

/// Uses the namespace of the arguments instead of the configured one. If the name is not valid, prints why and returns
/// false.
fn use_namespace(config: &mut Config, name: &str) -> bool {
    if let Err(error) = nearshore_core::ports::keys::namespace(name) {
        note!("namespace {name:?}: {error}");
        return false;
    }
    config.namespace = name.into();
    true
}

/// Loads the configuration, or prints all its problems and exits with 2.
fn with_config(
    common: &Common,
    then: impl FnOnce(Config) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    match config::load(common.config.as_deref()) {
        Ok(config) => then(config),
        Err(code) => Ok(ExitCode::from(code)),
    }
}

/// Runs an async command on a small runtime.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}

/// Parses an argument that is one of an enum's names; `--help` lists them.
fn one_of<T>() -> impl clap::builder::TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = strum::ParseError>
        + strum::VariantNames
        + Clone
        + Send
        + Sync
        + 'static,
{
    use clap::builder::TypedValueParser as _;
    clap::builder::PossibleValuesParser::new(T::VARIANTS).try_map(|name| name.parse())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_cause_is_printed_once() {
        let missing = || std::io::Error::other("no such file");
        let file = try_names::Error::File {
            path: "a.txt".into(),
            source: missing(),
        };
        assert_eq!(chain(&file.into()), "a.txt: no such file");
        let bare = Err::<(), _>(missing()).context("reading b.txt");
        assert_eq!(
            chain(&bare.expect_err("one")),
            "reading b.txt: no such file"
        );
    }
}
