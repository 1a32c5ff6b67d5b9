//! Readiness: a [`Gate`] for each dependency that a process needs before it can work.
//!
//! Invariant: a process is ready only if every gate is open; a gate is shut until it is opened. The owner of a gate
//! decides how long a failure must last before it shuts the gate; there are no timers here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

type Gates = Arc<Mutex<BTreeMap<&'static str, GateStatus>>>;

/// All gates of the process.
#[derive(Clone, Debug, Default)]
pub struct Ready(Gates);

/// The gate of one dependency.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    gates: Gates,
}

/// The state of one dependency.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateStatus {
    /// Whether it is available.
    pub ready: bool,
    /// Why it is not available, or what is.
    pub detail: String,
}

impl Ready {
    /// A gate for a dependency: `catalogue`, `model`, `redis`, ... It is shut.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate {
            name,
            gates: Arc::clone(&self.0),
        };
        gate.shut("not yet");
        gate
    }

    /// Whether all gates are open, and the state of each.
    pub fn read(&self) -> (bool, BTreeMap<&'static str, GateStatus>) {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (gates.values().all(|gate| gate.ready), gates.clone())
    }
}

impl Gate {
    /// Opens the gate; `detail` says what is available.
    pub fn open(&self, detail: impl Into<String>) {
        self.set(true, detail.into());
    }

    /// Shuts the gate; `detail` says why.
    pub fn shut(&self, detail: impl Into<String>) {
        self.set(false, detail.into());
    }

    fn set(&self, ready: bool, detail: String) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(self.name, GateStatus { ready, detail });
    }
}
