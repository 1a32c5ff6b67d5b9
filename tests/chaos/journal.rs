//! The journal of a run, with times: faults, unexpected ends of members, drains, memory, and what a reader saw.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::plan::Fault;

/// A fault that was executed.
pub struct Done {
    pub at: Duration,
    pub took: Duration,
    pub fault: Fault,
    pub how: String,
}

struct Inner {
    start: Instant,
    faults: Vec<Done>,
    ended: Vec<String>,
    drains: Vec<(bool, Duration)>,
    memory: BTreeMap<String, (u64, u64)>,
    regressions: Vec<String>,
    /// Number of reads of lists, and of those that showed an older list during a declared failover.
    reads: (usize, usize),
}

/// The journal, shared by all tasks; each line is printed at once.
pub struct Journal(Mutex<Inner>);

impl Default for Journal {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            start: Instant::now(),
            faults: Vec::new(),
            ended: Vec::new(),
            drains: Vec::new(),
            memory: BTreeMap::new(),
            regressions: Vec::new(),
            reads: (0, 0),
        }))
    }
}

impl Journal {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().expect("no thread panics with the lock"))
    }

    /// Starts the clock of the journal.
    pub fn begin(&self) {
        self.with(|inner| inner.start = Instant::now());
    }

    /// Time since [`Journal::begin`].
    pub fn now(&self) -> Duration {
        self.with(|inner| inner.start.elapsed())
    }

    /// Prints a line with its time.
    pub fn say(&self, what: impl AsRef<str>) {
        let at = self.now();
        eprintln!("{:7.1} s  {}", at.as_secs_f64(), what.as_ref());
    }

    /// Notes a fault that began at `at` and has ended.
    pub fn fault(&self, at: Duration, fault: Fault, how: &str) {
        let took = self.now().saturating_sub(at);
        let how = how.to_owned();
        let comma = if how.is_empty() { "" } else { ": " };
        self.say(format!(
            "{fault}{comma}{how} (from {:.1} s)",
            at.as_secs_f64()
        ));
        let done = Done {
            at,
            took,
            fault,
            how,
        };
        self.with(|inner| inner.faults.push(done));
    }

    /// Notes a member that ended without being told to.
    pub fn ended(&self, what: String) {
        self.say(&what);
        self.with(|inner| inner.ended.push(what));
    }

    /// Notes an end after SIGTERM: whether with exit code 0, and its time.
    pub fn drained(&self, clean: bool, took: Duration) {
        self.with(|inner| inner.drains.push((clean, took)));
    }

    /// Notes the resident memory of a member; the first and the largest value are kept.
    pub fn memory(&self, name: String, bytes: u64) {
        self.with(|inner| {
            let seen = inner.memory.entry(name).or_insert((bytes, bytes));
            seen.1 = seen.1.max(bytes);
        });
    }

    /// Notes a read of a list: `wrong` says that it was older than one read before, `declared` that stores were failing
    /// over.
    pub fn read(&self, wrong: Option<String>, declared: bool) {
        self.with(|inner| {
            inner.reads.0 += 1;
            match wrong {
                Some(_) if declared => inner.reads.1 += 1,
                Some(what) => inner.regressions.push(what),
                None => {}
            }
        });
    }

    pub fn faults<T>(&self, act: impl FnOnce(&[Done]) -> T) -> T {
        self.with(|inner| act(&inner.faults))
    }

    pub fn ends(&self) -> Vec<String> {
        self.with(|inner| inner.ended.clone())
    }

    pub fn drains(&self) -> Vec<(bool, Duration)> {
        self.with(|inner| inner.drains.clone())
    }

    pub fn most_memory(&self) -> BTreeMap<String, (u64, u64)> {
        self.with(|inner| inner.memory.clone())
    }

    /// Number of reads, number of older lists during declared failovers, and the older lists at other times.
    pub fn reads(&self) -> (usize, usize, Vec<String>) {
        self.with(|inner| (inner.reads.0, inner.reads.1, inner.regressions.clone()))
    }
}
