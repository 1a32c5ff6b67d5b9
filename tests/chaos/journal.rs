//! What happened, with times: faults, ends that nobody asked for, drains; and what a reader saw meanwhile.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::plan::Fault;

/// A fault as it was done.
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
    fallen: Vec<String>,
    /// Reads of lists, and those that went back within a declared failover.
    reads: (usize, usize),
}

/// Shared by all; each line is printed as it happens.
pub struct Journal(Mutex<Inner>);

impl Default for Journal {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            start: Instant::now(),
            faults: Vec::new(),
            ended: Vec::new(),
            drains: Vec::new(),
            memory: BTreeMap::new(),
            fallen: Vec::new(),
            reads: (0, 0),
        }))
    }
}

impl Journal {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().expect("nobody panics with it"))
    }

    /// Times are from now on.
    pub fn begin(&self) {
        self.with(|inner| inner.start = Instant::now());
    }

    pub fn now(&self) -> Duration {
        self.with(|inner| inner.start.elapsed())
    }

    pub fn say(&self, what: impl AsRef<str>) {
        let at = self.now();
        eprintln!("{:7.1} s  {}", at.as_secs_f64(), what.as_ref());
    }

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

    /// A member ended, and nobody had told it to.
    pub fn ended(&self, what: String) {
        self.say(&what);
        self.with(|inner| inner.ended.push(what));
    }

    pub fn drained(&self, clean: bool, took: Duration) {
        self.with(|inner| inner.drains.push((clean, took)));
    }

    /// Resident memory of a member: first seen and most.
    pub fn memory(&self, name: String, bytes: u64) {
        self.with(|inner| {
            let seen = inner.memory.entry(name).or_insert((bytes, bytes));
            seen.1 = seen.1.max(bytes);
        });
    }

    /// A reader looked at a list; `wrong` says that it went back, `declared` that stores were failing over.
    pub fn looked(&self, wrong: Option<String>, declared: bool) {
        self.with(|inner| {
            inner.reads.0 += 1;
            match wrong {
                Some(_) if declared => inner.reads.1 += 1,
                Some(what) => inner.fallen.push(what),
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

    /// Reads, those that went back in a declared window, and those that went back outside of one.
    pub fn reads(&self) -> (usize, usize, Vec<String>) {
        self.with(|inner| (inner.reads.0, inner.reads.1, inner.fallen.clone()))
    }
}
