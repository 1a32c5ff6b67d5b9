//! The plan of a run, decided by its seed before it starts: its size, and which fault comes when.
//!
//! Invariant: the same options give the same plan. It knows no process and no clock; times are from the start of the
//! load.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The servers that store the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// A primary with two replicas and three Sentinels; each member has a fault proxy of its own.
    Sentinel,
    /// Three primaries with an append-only file; each node has a fault proxy.
    Cluster,
}

/// A break on purpose, as in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Counts are added whatever the fence says.
    NoFence,
    /// A state is written whatever its version is.
    BlindWrite,
    /// The tombstone is not read.
    NoTombstone,
    /// Offsets are committed when records arrive.
    CommitEarly,
    /// Batches in hand are committed and not folded when partitions move.
    ForgetInHand,
}

impl Break {
    pub const ALL: [(&'static str, Self); 5] = [
        ("no-fence", Self::NoFence),
        ("blind-write", Self::BlindWrite),
        ("no-tombstone", Self::NoTombstone),
        ("commit-early", Self::CommitEarly),
        ("forget-in-hand", Self::ForgetInHand),
    ];

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, it)| *it)
    }

    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, it)| *it == self);
        found.map_or("", |(name, _)| name)
    }
}

/// How large a run is.
#[derive(Clone, Debug)]
pub struct Size {
    pub seed: u64,
    pub stores: Stores,
    /// Members ask the Sentinels for the primary and connect to it themselves; there are no proxies.
    pub direct: bool,
    pub broken: Option<Break>,
    pub brokers: usize,
    pub ingest: usize,
    pub generate: usize,
    pub partitions: i32,
    pub users: usize,
    pub events: usize,
    /// How long events are sent; faults begin within it.
    pub load: Duration,
    /// Time that the table of scores takes for a batch.
    pub delay: Duration,
    /// Faults of each kind.
    pub faults: Counts,
    /// Longest drain that passes. The short run is a test, so there only a hang exceeds it.
    pub drain_max: Duration,
    /// How long after a failover a reader may still find older lists, until they are made again.
    pub aftermath: Duration,
}

/// How many faults of each kind.
#[derive(Clone, Debug)]
pub struct Counts {
    pub kills: usize,
    pub terms: usize,
    pub stops: usize,
    pub cuts: usize,
    pub brokers: usize,
    pub primaries: usize,
    pub flushes: usize,
    pub replays: usize,
}

impl Size {
    /// Few faults of each kind, about two minutes.
    pub fn short(seed: u64, stores: Stores, broken: Option<Break>) -> Self {
        Self {
            seed,
            stores,
            direct: false,
            broken,
            brokers: 1,
            ingest: 3,
            generate: 2,
            partitions: 8,
            users: 400,
            events: 6_000,
            load: Duration::from_secs(60),
            delay: Duration::from_millis(30),
            faults: Counts {
                kills: 2,
                terms: 2,
                stops: 2,
                cuts: 6,
                brokers: 1,
                primaries: 2,
                flushes: 1,
                replays: 1,
            },
            drain_max: Duration::from_secs(100),
            aftermath: Duration::from_secs(60),
        }
    }

    /// The full run.
    pub fn full(seed: u64, stores: Stores, broken: Option<Break>) -> Self {
        Self {
            brokers: 3,
            ingest: 8,
            generate: 4,
            partitions: 32,
            users: 5_000,
            events: 100_000,
            load: Duration::from_secs(600),
            delay: Duration::from_millis(50),
            faults: Counts {
                kills: 16,
                terms: 16,
                stops: 6,
                cuts: 12,
                brokers: 4,
                primaries: 4,
                flushes: 2,
                replays: 1,
            },
            drain_max: Duration::from_secs(10),
            aftermath: Duration::from_secs(20),
            ..Self::short(seed, stores, broken)
        }
    }
}

/// What the network between a client and Redis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    Pass,
    /// Every read is forwarded so many milliseconds late.
    Delay(u64),
    /// Nothing is forwarded, and connections stay open.
    BlackHole,
    /// Connections are reset, including new ones.
    Reset,
    /// Requests are executed, and sometimes the connection ends before the answer.
    LoseAnswers,
}

/// A fault. Members are numbered, ingest before generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill(usize),
    Term(usize),
    /// SIGSTOP for so long, then SIGCONT.
    Stop(usize, Duration),
    /// The network of a member (with Sentinel) or of a node (in a cluster).
    Cut(usize, Net, Duration),
    /// SIGKILL, and started again after so long.
    Broker(usize, Duration),
    /// SIGKILL of the primary (or of a node), started again after so long or after the failover.
    Primary(usize, Duration),
    /// SIGSTOP of the primary until after the failover: when it wakes it still acts as primary.
    Freeze(Duration),
    /// SCRIPT FLUSH.
    Flush,
    /// All ingest members are killed, states of erased and silent users expire, and all is read from the beginning
    /// again.
    Replay,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(nth) => write!(f, "SIGKILL member {nth}"),
            Self::Term(nth) => write!(f, "SIGTERM member {nth}"),
            Self::Stop(nth, long) => write!(f, "SIGSTOP member {nth} for {long:.0?}"),
            Self::Cut(nth, net, long) => write!(f, "network {nth}: {net:?} for {long:.0?}"),
            Self::Broker(nth, long) => write!(f, "SIGKILL broker {nth}, back after {long:.0?}"),
            Self::Primary(nth, long) => write!(f, "SIGKILL primary {nth}, back after {long:.0?}"),
            Self::Freeze(long) => write!(f, "SIGSTOP primary for {long:.0?}"),
            Self::Flush => f.write_str("SCRIPT FLUSH"),
            Self::Replay => f.write_str("ingest killed, offsets back to the beginning"),
        }
    }
}

/// Which faults must not overlap: those of one lane come one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Members,
    Brokers,
    Stores,
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub at: Duration,
    pub fault: Fault,
}

/// All faults, by lane, in time order.
pub struct Plan {
    pub lanes: Vec<(Lane, Vec<Step>)>,
}

/// Longer than the members' session timeout.
const STOPPED: u64 = 9;

/// The plan of a run.
pub fn plan(size: &Size) -> Plan {
    let mut rng = ChaCha8Rng::seed_from_u64(size.seed);
    let members = member_faults(size, &mut rng);
    let brokers = (0..size.faults.brokers)
        .map(|_| {
            let down = Duration::from_secs(rng.random_range(3..=8));
            Fault::Broker(rng.random_range(1..=size.brokers), down)
        })
        .collect();
    let stores = store_faults(size, &mut rng);
    let lanes = [
        (Lane::Members, members),
        (Lane::Brokers, brokers),
        (Lane::Stores, stores),
    ];
    Plan {
        lanes: lanes
            .into_iter()
            .map(|(lane, faults)| (lane, spread(faults, size.load, &mut rng)))
            .map(|(lane, steps)| (lane, with_work_in_hand(size, steps)))
            .collect(),
    }
}

fn member_faults(size: &Size, rng: &mut ChaCha8Rng) -> Vec<Fault> {
    // Faults of a kind alternate between the roles, so that both are hit with every seed.
    let one = |nth: usize, rng: &mut ChaCha8Rng| {
        if nth.is_multiple_of(2) {
            rng.random_range(0..size.ingest)
        } else {
            size.ingest + rng.random_range(0..size.generate)
        }
    };
    let counts = &size.faults;
    let mut faults = Vec::new();
    for nth in 0..counts.kills {
        faults.push(Fault::Kill(one(nth, rng)));
    }
    for nth in 0..counts.terms {
        faults.push(Fault::Term(one(nth, rng)));
    }
    for nth in 0..counts.stops {
        let long = Duration::from_secs(rng.random_range(STOPPED..STOPPED + 4));
        faults.push(Fault::Stop(one(nth, rng), long));
    }
    let longest = (size.load.as_secs() / 6).clamp(6, 60);
    for nth in 0..counts.cuts {
        let net = [
            Net::LoseAnswers,
            Net::BlackHole,
            Net::Delay(rng.random_range(100..900)),
            Net::Reset,
        ][nth % 4];
        let whom = match size.stores {
            Stores::Sentinel => one(nth + nth / 4, rng),
            Stores::Cluster => nth % 3,
        };
        let long = Duration::from_secs(rng.random_range(5..=longest));
        faults.push(Fault::Cut(whom, net, long));
    }
    if size.broken == Some(Break::NoFence) {
        // A count is doubled where an addition is executed, its answer is lost, and the call is repeated.
        let lost = |nth| Fault::Cut(nth, Net::LoseAnswers, size.load / 2);
        faults.extend((0..size.ingest).map(lost));
    }
    faults.shuffle(rng);
    for _ in 0..counts.replays {
        // Late, so that there are many records to read again, and erased users that could come back.
        let place = faults.len() * 2 / 3;
        faults.insert(place, Fault::Replay);
    }
    faults
}

fn store_faults(size: &Size, rng: &mut ChaCha8Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    for nth in 0..size.faults.primaries {
        let down = Duration::from_secs(rng.random_range(3..=6));
        faults.push(match size.stores {
            Stores::Sentinel if nth % 2 == 1 => Fault::Freeze(down + Duration::from_secs(4)),
            Stores::Sentinel | Stores::Cluster => Fault::Primary(rng.random_range(0..3), down),
        });
    }
    for nth in 0..size.faults.flushes {
        faults.insert(rng.random_range(0..=faults.len().max(nth)), Fault::Flush);
    }
    faults
}

/// Spreads faults over the load, at random within equal parts of it, none at its start or end.
fn spread(faults: Vec<Fault>, load: Duration, rng: &mut ChaCha8Rng) -> Vec<Step> {
    let many = faults.len().max(1) as f64;
    let place = |nth: usize, rng: &mut ChaCha8Rng| {
        let share = (nth as f64 + 0.2 + 0.6 * rng.random::<f64>()) / many;
        load.mul_f64(0.06 + 0.82 * share)
    };
    let mut steps = Vec::new();
    for (nth, fault) in faults.into_iter().enumerate() {
        let at = place(nth, rng);
        steps.push(Step { at, fault });
    }
    steps
}

/// A member that commits too early loses records only if it dies with batches in hand: its network is cut before each
/// kill.
fn with_work_in_hand(size: &Size, mut steps: Vec<Step>) -> Vec<Step> {
    if size.broken != Some(Break::CommitEarly) {
        return steps;
    }
    let kills: Vec<Step> = steps.clone();
    for step in kills {
        if let Fault::Kill(nth) = step.fault {
            let fault = Fault::Cut(nth, Net::BlackHole, Duration::from_secs(4));
            let at = step.at.saturating_sub(Duration::from_secs(2));
            steps.push(Step { at, fault });
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}
