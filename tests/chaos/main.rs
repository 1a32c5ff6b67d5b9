//! Chaos: the real binary against a real Kafka and a real Redis, under faults that a seed chooses; at the end an
//! independent checker says whether anything is lost, stale, doubled or leaked. See `scripts/chaos --help`.
//!
//! Without arguments, as `cargo test` starts it, it does the short run. That run checks no time that depends on the
//! machine.

#![allow(unreachable_pub)] // Nothing can import a test binary.

mod blob;
mod broken;
mod brokers;
mod checker;
mod dump;
mod facts;
mod journal;
mod lists;
mod load;
mod members;
mod plan;
mod proxy;
mod report;
mod servers;
mod site;
mod topics;
mod watcher;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use tokio_util::sync::CancellationToken;

use journal::Journal;
use plan::{Break, Size, Stores};
use world::World;

/// The name of the short run, for filters of `cargo test`.
const NAME: &str = "a_short_chaos_run_loses_nothing";

/// Kills, stops and cuts off members, brokers and stores under load; then checks every user against a
/// single-threaded fold of the topics.
#[derive(Parser)]
#[command(name = "chaos", after_help = EXAMPLES)]
struct Arguments {
    /// Seed of load and faults; a full run chooses one and prints it
    #[arg(long)]
    seed: Option<u64>,
    /// How long the load lasts; the full run's default is 10
    #[arg(long)]
    minutes: Option<f64>,
    /// 3 ingest, 2 generate, one broker, few faults of each kind, about two minutes
    #[arg(long)]
    short: bool,
    /// The full run; the default of scripts/chaos
    #[arg(long, conflicts_with = "short")]
    full: bool,
    /// A Redis Cluster of three
    #[arg(long, conflicts_with = "sentinel")]
    cluster: bool,
    /// A primary with two replicas and three Sentinels; the default
    #[arg(long)]
    sentinel: bool,
    /// Members ask the Sentinels themselves, instead of proxies that follow the primary; without faults of the network
    #[arg(long, conflicts_with_all = ["cluster", "broken"])]
    direct: bool,
    /// Break something on purpose: no-fence, blind-write, no-tombstone, commit-early, forget-in-hand
    #[arg(long = "break", value_name = "NAME")]
    broken: Option<String>,
    /// Events, instead of the run's own number
    #[arg(long)]
    events: Option<usize>,
    /// Users, instead of the run's own number
    #[arg(long)]
    users: Option<usize>,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
    /// Keep the folder with all logs, and say where it is
    #[arg(long)]
    keep: bool,
    /// Internal: be a broken member
    #[arg(long, hide = true)]
    member: Option<String>,
    /// Internal: the member's configuration
    #[arg(long, hide = true)]
    config: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  scripts/chaos --short                     the short run
  scripts/chaos --seed 7 --minutes 10       the full run with Sentinel
  scripts/chaos --cluster --json            the full run with a Redis Cluster
  scripts/chaos --short --direct            the short run, the members' own way to the primary
  scripts/chaos --short --break no-fence    must end with violations

Exit code: 0 all invariants hold, 1 some do not, 2 wrong usage.";

/// Sends a signal to a process.
fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    ensure!(status?.success(), "kill -{name} {pid}");
    Ok(())
}

fn size(arguments: &Arguments, short: bool) -> anyhow::Result<Size> {
    let broken = match &arguments.broken {
        Some(name) => {
            Some(Break::named(name).with_context(|| format!("no break is called {name}"))?)
        }
        None => None,
    };
    let stores = if arguments.cluster {
        Stores::Cluster
    } else {
        Stores::Sentinel
    };
    ensure!(
        broken.is_none() || !arguments.cluster,
        "breaks are made with Sentinel"
    );
    let mut size = if short {
        Size::short(arguments.seed.unwrap_or(7), stores, broken)
    } else {
        Size::full(
            arguments
                .seed
                .unwrap_or_else(|| rand::random_range(0..1_000_000)),
            stores,
            broken,
        )
    };
    if arguments.direct {
        size.direct = true;
        size.faults.cuts = 0;
    }
    if let Some(minutes) = arguments.minutes {
        ensure!((0.2..=240.0).contains(&minutes), "--minutes is 0.2 to 240");
        size.load = Duration::from_secs_f64(minutes * 60.0);
    }
    size.events = arguments.events.unwrap_or(size.events).max(100);
    size.users = arguments.users.unwrap_or(size.users).max(20);
    if let Some(Break::CommitEarly | Break::ForgetInHand) = broken {
        // Reading everything again would restore what these lose.
        size.faults.replays = 0;
        size.faults.kills += 4;
    }
    Ok(size)
}

/// Answers what `cargo test` asks of every test program; `None` if the run itself is wanted.
fn as_a_test(words: &[String]) -> Option<ExitCode> {
    if words.iter().any(|word| word == "--list") {
        println!("{NAME}: test");
        return Some(ExitCode::SUCCESS);
    }
    let ours = [
        "seed", "minutes", "break", "events", "users", "member", "config",
    ];
    let mut filters = Vec::new();
    let mut value = false;
    for word in words {
        match word.strip_prefix("--") {
            Some(name) => {
                value = ours.contains(&name)
                    || ["test-threads", "skip", "format", "color"].contains(&name)
            }
            None if !value && !word.starts_with('-') => filters.push(word),
            None => value = false,
        }
    }
    let wanted = filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter.as_str()));
    (!wanted).then(|| {
        println!("chaos: filtered out");
        ExitCode::SUCCESS
    })
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = as_a_test(&words) {
        return code;
    }
    // Filters and other options of libtest are ignored.
    let own = words.iter().any(|word| Arguments::knows(word));
    let arguments = if own || words.iter().any(|word| word == "--help" || word == "-h") {
        Arguments::parse()
    } else {
        Arguments::parse_from(["chaos"])
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads can be started");
    let outcome = match (&arguments.member, &arguments.config) {
        (Some(name), Some(config)) => {
            let broken = Break::named(name).expect("the harness passes a known name");
            runtime.block_on(broken::run(broken, config)).map(|()| true)
        }
        _ => runtime.block_on(run(&arguments, !own || arguments.short)),
    };
    // Blocking reads of servers that have ended must not delay the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn knows(word: &str) -> bool {
        let names = [
            "seed", "minutes", "short", "cluster", "sentinel", "break", "events", "users", "json",
            "keep", "member", "full",
        ];
        let name = word.strip_prefix("--").unwrap_or_default();
        names.contains(&name.split('=').next().unwrap_or_default())
    }
}

async fn run(arguments: &Arguments, short: bool) -> anyhow::Result<bool> {
    proxy::self_test().map_err(anyhow::Error::msg)?;
    lists::self_test().map_err(anyhow::Error::msg)?;
    let size = match size(arguments, short) {
        Ok(size) => size,
        Err(error) => {
            eprintln!("chaos: error: {error:#}");
            #[expect(clippy::disallowed_methods, reason = "wrong usage ends a test program")]
            std::process::exit(2);
        }
    };
    let dir = tempfile::Builder::new()
        .prefix("nearshore-chaos")
        .tempdir()?;
    let path = dir.path().to_owned();
    eprintln!(
        "chaos: seed {}; logs until the end: {}",
        size.seed,
        path.display()
    );
    let outcome = one(arguments, size, &path).await;
    if arguments.keep {
        eprintln!("chaos: kept {}", dir.keep().display());
    }
    outcome
}

async fn one(arguments: &Arguments, size: Size, path: &std::path::Path) -> anyhow::Result<bool> {
    let plan = plan::plan(&size);
    let world = World::start(size, path).await?;
    let cancel = CancellationToken::new();
    let watching = tokio::spawn(watcher::watch(world.clone(), cancel.clone()));
    let disturbed = world.disturb(plan).await;
    if let Err(error) = &disturbed {
        eprintln!("chaos: a fault could not be executed: {error:#}");
    }
    let at_rest = world
        .rest(world.size.load.max(Duration::from_secs(600)))
        .await;
    match &at_rest {
        Ok(took) => world.journal.say(format!(
            "at rest {:.1} s after the load",
            took.as_secs_f64()
        )),
        Err(what) => world.journal.say(what),
    }
    cancel.cancel();
    watching.await?;
    world.breaks_took_effect()?;
    for member in &world.members {
        if let Err(error) = member.finish().await {
            world.journal.say(format!("{error:#}"));
        }
    }
    world.journal.say("checking");
    let disturbances = world.journal.faults(|faults| faults.len() as u64);
    let (site, ports) = (world.site.clone(), world.servers.read_ports());
    let checking = tokio::task::spawn_blocking(move || {
        let evidence = checker::Evidence::read(&site, &ports, disturbances)?;
        anyhow::Ok((evidence.verdict(&site), evidence.dump.spread.clone()))
    });
    let (mut rows, spread) = checking.await??;
    rows.extend(report::observed(&world.size, &world.journal));
    rows.sort_by_key(|row| if row.number == 0 { 99 } else { row.number });
    let good = report::print(&world.size, &world.journal, (&rows, &spread));
    if arguments.json {
        println!("{}", report::json(&world.size, &world.journal, &rows));
    }
    world.brokers.end().await?;
    disturbed?;
    Ok(good && at_rest.is_ok())
}
