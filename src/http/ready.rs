//! Readiness: what must be there before work can be done, each behind a [`Gate`].
//!
//! Invariant: ready iff every gate is open; a gate is closed until somebody opens it. Whoever holds a
//! gate decides how long a failure must last before it shuts: nothing here flaps by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

type Gates = Arc<Mutex<BTreeMap<&'static str, GateStatus>>>;

/// All gates of the process.
#[derive(Clone, Debug, Default)]
pub struct Ready(Gates);

/// One dependency.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    gates: Gates,
}

/// How a dependency stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateStatus {
    /// Whether it is there.
    pub ready: bool,
    /// Why not, or what is there.
    pub detail: String,
}

impl Ready {
    /// A dependency that is waited for: `assigned`, `catalogue`, `model`, `redis`.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate {
            name,
            gates: Arc::clone(&self.0),
        };
        gate.shut("not yet");
        gate
    }

    /// Whether all are there, and how each stands.
    pub fn read(&self) -> (bool, BTreeMap<&'static str, GateStatus>) {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (gates.values().all(|gate| gate.ready), gates.clone())
    }
}

impl Gate {
    /// It is there; `detail` says what.
    pub fn open(&self, detail: impl Into<String>) {
        self.set(true, detail.into());
    }

    /// It is not there; `detail` says why.
    pub fn shut(&self, detail: impl Into<String>) {
        self.set(false, detail.into());
    }

    fn set(&self, ready: bool, detail: String) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(self.name, GateStatus { ready, detail });
    }
}
