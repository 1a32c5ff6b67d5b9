//! The requests that wait for the model, after their lists without it are published: [`Asking`].
//!
//! Invariant: every request offered leaves once: picked, released or revoked. A user has one entry, with the highest
//! claim number of those offered and the positions of all. The order is by what the model is expected to gain in a
//! second of its time, times the share of the lane, times one plus the time waited over the objective: so it is spent
//! where it helps most, and no user waits for ever behind equals. It does not know what the model is asked.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::queue::lanes::{Policy, Work};
use crate::user::event::UserId;
use crate::user::record::{Partition, Timestamp};
use crate::user::trigger::Lane;

/// A request that waits for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The merged request, with the positions that are done when the model has answered.
    pub work: Work,
    /// The claim whose list without the model is stored: of two requests of a user the one of the later is kept.
    pub claim: u64,
    /// What the model is expected to gain in a second of its time; only the order of users depends on it.
    pub gain: f64,
}

/// All requests that wait for the model.
#[derive(Clone, Debug)]
pub struct Asking {
    policy: Policy,
    users: BTreeMap<(String, UserId), Ask>,
    /// Number of positions of each lane.
    counts: [usize; 3],
    /// Number of users of each lane.
    waiting: [usize; 3],
    /// Most backfill users of a batch.
    backfill_max: usize,
}

/// The part of the room for requests that live and urgent ones may take while they wait for the model; the rest is for
/// requests that are not served at all yet.
const ROOM: usize = 4;

impl Asking {
    /// Nobody waits.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            users: BTreeMap::new(),
            counts: [0; 3],
            waiting: [0; 3],
            backfill_max: usize::MAX,
        }
    }

    /// Adds a request. One of the same user is merged into it.
    pub fn offer(&mut self, ask: Ask) {
        let key = key(&ask.work);
        let merged = match self.remove(&key) {
            Some(known) => merged(known, ask),
            None => ask,
        };
        let lane = merged.work.request.lane as usize;
        self.counts[lane] += merged.work.positions.len();
        self.waiting[lane] += 1;
        self.users.insert(key, merged);
    }

    /// Removes live and urgent users who became due longer than `max_wait` ago.
    pub fn late(&mut self, now: Timestamp) -> Vec<Ask> {
        let is_late = |ask: &&Ask| {
            let waited = now.since(ask.work.ready);
            ask.work.request.lane != Lane::Backfill && waited > self.policy.max_wait
        };
        let late = self.users.values().filter(is_late);
        let late: Vec<_> = late.map(|ask| key(&ask.work)).collect();
        late.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Removes the live and urgent users of the least worth while there are more than a part of the room is for, so that
    /// a slow model never keeps requests from being read.
    pub fn crowded(&mut self, now: Timestamp) -> Vec<Ask> {
        let room = self.policy.unserved_max.div_ceil(ROOM);
        let served_at_once = |asking: &Self| {
            asking.counts[Lane::Urgent as usize] + asking.counts[Lane::Live as usize]
        };
        if served_at_once(self) <= room {
            return Vec::new();
        }
        let mut released = Vec::new();
        let order = self.ordered(now, |lane| lane != Lane::Backfill);
        for key in order.iter().rev() {
            if served_at_once(self) <= room {
                break;
            }
            released.extend(self.remove(key));
        }
        released
    }

    /// Removes the users whom the model is asked about next, best first, at most `batch_max`. `behind`: live is behind
    /// its objective, here or in another worker; backfill then gets only the places that are left.
    pub fn pick(&mut self, now: Timestamp, behind: bool) -> Vec<Ask> {
        let first = self.ordered(now, |lane| !behind || lane != Lane::Backfill);
        let rest = self.ordered(now, |lane| behind && lane == Lane::Backfill);
        let mut picked = Vec::new();
        let mut backfill = 0;
        for key in first.iter().chain(&rest) {
            if picked.len() >= self.policy.batch_max {
                break;
            }
            let is_backfill = self.users[key].work.request.lane == Lane::Backfill;
            if is_backfill && backfill >= self.backfill_max {
                continue;
            }
            backfill += usize::from(is_backfill);
            picked.extend(self.remove(key));
        }
        picked
    }

    /// Limits backfill users of a batch, to at least 1: a live user waits for the running batch.
    pub fn limit_backfill(&mut self, most: usize) {
        self.backfill_max = most.max(1);
    }

    /// Drops requests of revoked partitions, and users without a request left.
    pub fn revoke(&mut self, partitions: &[Partition]) {
        let all: Vec<_> = self.users.keys().cloned().collect();
        for key in all {
            let Some(mut ask) = self.remove(&key) else {
                continue;
            };
            let positions = &mut ask.work.positions;
            positions.retain(|it| !partitions.contains(&it.partition));
            // A request with no position waits for nobody to commit it, and its new owner asks.
            if !ask.work.positions.is_empty() {
                self.offer(ask);
            }
        }
    }

    /// Removes the requests of a user, of all namespaces.
    pub fn take(&mut self, user: &UserId) -> Vec<Ask> {
        let theirs = self.users.keys().filter(|(_, known)| known == user);
        let theirs: Vec<_> = theirs.cloned().collect();
        theirs.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.users.clear();
        self.counts = [0; 3];
        self.waiting = [0; 3];
    }

    /// Number of positions that wait, of each lane.
    pub fn counts(&self) -> [usize; 3] {
        self.counts
    }

    /// Number of users of a lane who wait.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.waiting[lane as usize]
    }

    /// Whether a live user waits longer than the objective.
    pub fn live_behind(&self, now: Timestamp) -> bool {
        let is_behind = |ask: &Ask| {
            let waited = now.since(ask.work.ready);
            ask.work.request.lane == Lane::Live && waited > self.policy.objective
        };
        self.waiting[Lane::Live as usize] > 0 && self.users.values().any(is_behind)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The users of some lanes, in the order in which the model is to be asked.
    fn ordered(&self, now: Timestamp, lanes: impl Fn(Lane) -> bool) -> Vec<(String, UserId)> {
        let of_lanes = self.users.iter();
        let of_lanes = of_lanes.filter(|(_, ask)| lanes(ask.work.request.lane));
        let mut order: Vec<_> = of_lanes
            .map(|(key, ask)| (self.worth(ask, now), ask.work.ready, key))
            .collect();
        order.sort_by(|one, other| {
            let worth = other.0.total_cmp(&one.0);
            worth.then(one.1.cmp(&other.1)).then(one.2.cmp(other.2))
        });
        order.into_iter().map(|(.., key)| key.clone()).collect()
    }

    fn worth(&self, ask: &Ask, now: Timestamp) -> f64 {
        let waited = now.since(ask.work.ready).as_secs_f64();
        let objective = self.policy.objective.max(Duration::from_millis(1));
        let age = 1.0 + waited / objective.as_secs_f64();
        let share = f64::from(self.policy.share(ask.work.request.lane, false));
        ask.gain.max(0.0) * share * age
    }

    fn remove(&mut self, key: &(String, UserId)) -> Option<Ask> {
        let ask = self.users.remove(key)?;
        let lane = ask.work.request.lane as usize;
        self.counts[lane] -= ask.work.positions.len();
        self.waiting[lane] -= 1;
        Some(ask)
    }
}

fn key(work: &Work) -> (String, UserId) {
    (work.request.ns.clone(), work.request.user.clone())
}

/// Two requests of one user as one: the later claim, the positions of both, and the age of the earlier.
fn merged(known: Ask, new: Ask) -> Ask {
    let (mut kept, other) = match known.claim.cmp(&new.claim) {
        Ordering::Greater => (known, new),
        Ordering::Less | Ordering::Equal => (new, known),
    };
    kept.work.positions.extend(other.work.positions);
    kept.work.positions.sort();
    kept.work.positions.dedup();
    kept.work.ready = kept.work.ready.min(other.work.ready);
    kept.work.request.lane = kept.work.request.lane.min(other.work.request.lane);
    kept.work.request.force |= other.work.request.force;
    kept
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
