//! Merges the requests of the three lanes into one per user, and cuts batches of due users.
//!
//! Invariant: first in, first out within a lane. Every request offered leaves in a batch, with all its positions and
//! those merged into it, or is requeued at the end of its lane. This is the only pure code that takes the time of the
//! clock.
//!
//! A request waits for its `due`, but after its arrival at most as long as it was delayed when it was made (`due -
//! time`, both record times): a clock that is wrong by an hour costs at most one quiet period. An old `due` alone does
//! not make a request late, because time that an event lost before it arrived is not waiting time of the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::user::event::UserId;
use crate::user::record::{Offset, Partition, Position, Timestamp};
use crate::user::trigger::{Lane, RATE_LIMIT_MAX, Reason, Request};

/// Settings of how lanes share the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Share of the urgent lane in batches, relative to the others.
    pub urgent: u32,
    /// Share of the live lane.
    pub live: u32,
    /// Share of the backfill lane; 0 while the live lane is behind its objective.
    pub backfill: u32,
    /// Most unserved requests in memory; beyond it reading stops and lag grows in Kafka alone.
    pub unserved_max: usize,
    /// Most users whom a model is asked about at once.
    pub batch_max: usize,
    /// A live or urgent request that waits longer for the model is released, which is counted; its list without the
    /// model stays.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub max_wait: Duration,
    /// Age at which the live lane is behind its objective.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub objective: Duration,
    /// A request that waits in memory this long and is still not due is requeued at the end of its lane.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub requeue_after: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            urgent: 70,
            live: 20,
            backfill: 10,
            unserved_max: 10_000,
            batch_max: 16,
            max_wait: Duration::from_secs(300),
            objective: Duration::from_secs(60),
            requeue_after: Duration::from_secs(60),
        }
    }
}

impl Policy {
    /// Share of a lane; backfill has none while live is `behind`.
    pub(crate) fn share(&self, lane: Lane, behind: bool) -> u32 {
        match lane {
            Lane::Urgent => self.urgent,
            Lane::Live => self.live,
            Lane::Backfill if behind => 0,
            Lane::Backfill => self.backfill,
        }
    }
}

/// Result of offering a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits as a new entry.
    Queued,
    /// It was merged into a waiting request of its user.
    Merged,
    /// This record waits already.
    Again,
}

/// The merged requests of one user, to serve now.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The merged request: earliest `due`, latest source and time, strongest reason, highest lane.
    pub request: Request,
    /// Positions of all of them, sorted; each is done when this work is.
    pub positions: Vec<Position>,
    /// The records that caused them: a list must have seen each, because partitions have no common order.
    pub sources: Vec<Position>,
    /// Time at which the first of them arrived, by the clock.
    pub arrived: Timestamp,
    /// Time at which it became due, by the clock: the queue's waiting time starts here.
    pub ready: Timestamp,
}

/// Status of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Number of users not due yet.
    pub waiting: usize,
    /// Number of due users.
    pub due: usize,
    /// Time since the oldest of them became due.
    pub oldest: Duration,
}

const LANES: [Lane; 3] = [Lane::Urgent, Lane::Live, Lane::Backfill];

/// Arrival number: order within a lane.
type Seq = u64;

#[derive(Clone, Debug, Default)]
struct Queue {
    /// Entries not due yet, by due time.
    waiting: BTreeSet<(Timestamp, Seq)>,
    /// Due entries in order of arrival.
    fifo: BTreeSet<Seq>,
    /// Due entries by the time at which they became due.
    aged: BTreeSet<(Timestamp, Seq)>,
    /// Credit of this lane in the smooth weighted round robin, in shares.
    credit: i64,
}

#[derive(Clone, Debug)]
struct Entry {
    request: Request,
    positions: BTreeSet<Position>,
    sources: BTreeSet<Position>,
    arrived: Timestamp,
    ready: Timestamp,
    /// Time at which it came into this process, by the clock; it may have arrived earlier, before a requeue.
    since: Timestamp,
}

/// Least time between two rounds of requeueing.
const REQUEUE_EVERY: Duration = Duration::from_secs(1);

/// All requests read and not yet handed out.
#[derive(Clone, Debug)]
pub struct Lanes {
    policy: Policy,
    entries: BTreeMap<Seq, Entry>,
    users: BTreeMap<(String, UserId), Seq>,
    positions: BTreeMap<Position, Seq>,
    queues: [Queue; 3],
    /// Number of positions in each lane.
    position_counts: [usize; 3],
    next: Seq,
    backfill_paused: bool,
    /// Whether the backfill lane has enough requests in memory, so that reading it is paused.
    backfill_full: bool,
    /// Time of the last round of requeueing.
    requeued_at: Timestamp,
    /// Namespaces whose backfill requests wait.
    held: BTreeSet<String>,
    /// Number of positions of each lane that left in batches and wait for the model.
    asking: [usize; 3],
}

impl Lanes {
    /// Empty lanes.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            entries: BTreeMap::new(),
            users: BTreeMap::new(),
            positions: BTreeMap::new(),
            queues: Default::default(),
            position_counts: [0; 3],
            next: 0,
            backfill_paused: false,
            backfill_full: false,
            requeued_at: Timestamp::default(),
            held: BTreeSet::new(),
            asking: [0; 3],
        }
    }

    /// Adds a request, also beyond [`Lanes::room`]: it is read already, and the caller stops reading instead.
    ///
    /// `arrived`: time at which it was read, by the clock. A caller that trusts the broker's clock may pass the
    /// record's timestamp if that is earlier, so that time in Kafka counts as waiting.
    pub fn offer(&mut self, request: Request, position: Position, arrived: Timestamp) -> Offered {
        self.offer_again(request, position, (arrived, Duration::ZERO))
    }

    /// Adds a request that was [deferred](Lanes::deferred) and requeued, with the time that it has waited already.
    pub fn offer_again(
        &mut self,
        request: Request,
        position: Position,
        (now, waited): (Timestamp, Duration),
    ) -> Offered {
        let arrived = now.before(waited);
        if self.positions.contains_key(&position) {
            return Offered::Again;
        }
        let ready = ready(&request, arrived);
        let user = (request.ns.clone(), request.user.clone());
        if let Some(&seq) = self.users.get(&user) {
            let mut entry = self.remove(seq).expect("every user has an entry");
            entry.sources.extend(request.source.clone());
            merge(&mut entry.request, request);
            entry.ready = entry.ready.min(ready);
            entry.positions.insert(position);
            self.insert(seq, entry);
            return Offered::Merged;
        }
        let seq = self.next;
        self.next += 1;
        let positions = BTreeSet::from([position]);
        let sources = request.source.clone().into_iter().collect();
        self.insert(
            seq,
            Entry {
                request,
                positions,
                sources,
                arrived,
                ready,
                since: now,
            },
        );
        Offered::Queued
    }

    /// Number of further requests that may be read.
    pub fn room(&self) -> usize {
        let asking: usize = self.asking.iter().sum();
        self.policy
            .unserved_max
            .saturating_sub(self.positions.len() + asking)
    }

    /// Says how many requests of each lane wait for the model: they take room, too.
    pub fn set_asking(&mut self, asking: [usize; 3]) {
        self.asking = asking;
    }

    /// Whether the backfill lane should be read: it may fill half of the room, and is read again once half of that is
    /// served. So a backfill of any length leaves room for live requests, which do not wait in Kafka.
    pub fn wants_backfill(&mut self) -> bool {
        let most = self.policy.unserved_max.div_ceil(2);
        let backfill = Lane::Backfill as usize;
        let count = self.position_counts[backfill] + self.asking[backfill];
        self.backfill_full = count >= most || (self.backfill_full && count > most / 2);
        !self.backfill_full
    }

    /// Pauses backfill while another worker's live lane is behind its objective: backfill then gets only places that
    /// the other lanes leave.
    pub fn pause_backfill(&mut self, behind: bool) {
        self.backfill_paused = behind;
    }

    /// Whether backfill is paused because of another worker.
    pub fn is_backfill_paused(&self) -> bool {
        self.backfill_paused
    }

    /// Namespaces that have requests in the backfill lane.
    pub fn backfill_namespaces(&self) -> BTreeSet<String> {
        let queue = &self.queues[Lane::Backfill as usize];
        let waiting = queue.waiting.iter().map(|(_, seq)| seq);
        waiting
            .chain(&queue.fifo)
            .map(|seq| self.entries[seq].request.ns.clone())
            .collect()
    }

    /// Lets the backfill requests of these namespaces wait, and those of no other.
    pub fn hold_backfill(&mut self, held: BTreeSet<String>) {
        self.held = held;
    }

    /// The next due user of a lane who is not held.
    fn first_due(&self, lane: Lane) -> Option<Seq> {
        let is_held =
            |seq: &Seq| lane == Lane::Backfill && self.held.contains(&self.entries[seq].request.ns);
        let mut fifo = self.queues[lane as usize].fifo.iter();
        fifo.find(|seq| !is_held(seq)).copied()
    }

    /// Whether this worker's live lane is behind its objective.
    pub fn live_behind(&self, now: Timestamp) -> bool {
        self.status(Lane::Live, now).oldest > self.policy.objective
    }

    /// Removes users to requeue at the end of their lanes, at most once a second: those in memory for `requeue_after`
    /// and still not due; and if the lanes are full, those due last, until half is free. So a request due much later
    /// neither delays a commit nor takes the place of one due now.
    pub fn deferred(&mut self, now: Timestamp) -> Vec<Work> {
        self.requeued_at = self.requeued_at.min(now);
        if now.since(self.requeued_at) < REQUEUE_EVERY {
            return Vec::new();
        }
        self.requeued_at = now;
        self.promote_due(now);
        let soon = now.after(REQUEUE_EVERY);
        let waiting = self.queues.iter().flat_map(|queue| &queue.waiting);
        let mut later: Vec<(Timestamp, Seq)> = waiting
            .filter(|(ready, _)| *ready > soon)
            .copied()
            .collect();
        later.sort();
        let mut free = if self.room() == 0 {
            self.policy.unserved_max.div_ceil(2)
        } else {
            0
        };
        let mut deferred = Vec::new();
        for (_, seq) in later.into_iter().rev() {
            let entry = &self.entries[&seq];
            if free > 0 || now.since(entry.since) >= self.policy.requeue_after {
                free = free.saturating_sub(entry.positions.len());
                deferred.extend(self.take_work(seq));
            }
        }
        deferred
    }

    /// Removes the next batch: due users alone, lanes by their shares, first in, first out within a lane.
    pub fn cut(&mut self, now: Timestamp, most: usize) -> Vec<Work> {
        self.promote_due(now);
        let behind = self.backfill_paused || self.live_behind(now);
        let mut batch = Vec::new();
        while batch.len() < most {
            let Some(lane) = self.next_lane(behind) else {
                break;
            };
            let seq = self
                .first_due(lane)
                .expect("next_lane returns lanes with due users");
            batch.extend(self.take_work(seq));
        }
        batch
    }

    /// Drops requests of partitions that are no longer assigned, and users without a request left.
    pub fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            let at = |offset| Position {
                partition: partition.clone(),
                offset: Offset(offset),
            };
            let revoked: Vec<(Position, Seq)> = self
                .positions
                .range(at(i64::MIN)..=at(i64::MAX))
                .map(|(position, seq)| (position.clone(), *seq))
                .collect();
            for (position, seq) in revoked {
                let mut entry = self.remove(seq).expect("every position has an entry");
                entry.positions.remove(&position);
                if !entry.positions.is_empty() {
                    self.insert(seq, entry);
                }
            }
        }
    }

    /// Drops all requests; the caller reads them again.
    pub fn clear(&mut self) {
        *self = Self {
            next: self.next,
            backfill_paused: self.backfill_paused,
            ..Self::new(self.policy.clone())
        };
    }

    /// Time until a user is due: zero if one is, `None` if no user waits.
    pub fn next_due(&self, now: Timestamp) -> Option<Duration> {
        if LANES.iter().any(|lane| self.first_due(*lane).is_some()) {
            return Some(Duration::ZERO);
        }
        let firsts = self.queues.iter().filter_map(|q| q.waiting.first());
        firsts.map(|(ready, _)| ready.since(now)).min()
    }

    /// Status of a lane; users who became due since the last cut still count as waiting.
    pub fn status(&self, lane: Lane, now: Timestamp) -> LaneStatus {
        let queue = &self.queues[lane as usize];
        let oldest = queue.aged.first().map(|(ready, _)| now.since(*ready));
        LaneStatus {
            waiting: queue.waiting.len(),
            due: queue.fifo.len(),
            oldest: oldest.unwrap_or_default(),
        }
    }

    /// Number of waiting users, due or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no user waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Chooses the lane of the next user by smooth weighted round robin: each lane with due users is credited its
    /// share, and the lane with the most credit is chosen and debited the total. A lane with share 0 is chosen only if
    /// no other has due users.
    fn next_lane(&mut self, behind: bool) -> Option<Lane> {
        let due = |lane: &Lane| self.first_due(*lane).is_some();
        let shares: Vec<(Lane, i64)> = LANES
            .into_iter()
            .filter(due)
            .map(|lane| (lane, i64::from(self.policy.share(lane, behind))))
            .collect();
        let total: i64 = shares.iter().map(|(_, share)| share).sum();
        if total == 0 {
            return shares.first().map(|(lane, _)| *lane);
        }
        let mut chosen: Option<Lane> = None;
        for (lane, share) in shares.into_iter().filter(|(_, share)| *share > 0) {
            self.queues[lane as usize].credit += share;
            let more =
                |than: Lane| self.queues[lane as usize].credit > self.queues[than as usize].credit;
            if chosen.is_none_or(more) {
                chosen = Some(lane);
            }
        }
        let lane = chosen?;
        self.queues[lane as usize].credit -= total;
        Some(lane)
    }

    /// Moves entries that became due into the order of arrival.
    fn promote_due(&mut self, now: Timestamp) {
        for queue in &mut self.queues {
            while let Some(&(ready, seq)) = queue.waiting.first() {
                if ready > now {
                    break;
                }
                queue.waiting.pop_first();
                queue.fifo.insert(seq);
                queue.aged.insert((ready, seq));
            }
        }
    }

    fn take_work(&mut self, seq: Seq) -> Option<Work> {
        self.remove(seq).map(|entry| Work {
            request: entry.request,
            positions: entry.positions.into_iter().collect(),
            sources: entry.sources.into_iter().collect(),
            arrived: entry.arrived,
            ready: entry.ready,
        })
    }

    fn insert(&mut self, seq: Seq, entry: Entry) {
        let user = (entry.request.ns.clone(), entry.request.user.clone());
        self.users.insert(user, seq);
        for position in &entry.positions {
            self.positions.insert(position.clone(), seq);
        }
        // The next cut moves it to the due entries, as it has the time.
        let lane = entry.request.lane as usize;
        self.position_counts[lane] += entry.positions.len();
        self.queues[lane].waiting.insert((entry.ready, seq));
        self.entries.insert(seq, entry);
    }

    fn remove(&mut self, seq: Seq) -> Option<Entry> {
        let entry = self.entries.remove(&seq)?;
        let user = (entry.request.ns.clone(), entry.request.user.clone());
        self.users.remove(&user);
        for position in &entry.positions {
            self.positions.remove(position);
        }
        let lane = entry.request.lane as usize;
        self.position_counts[lane] -= entry.positions.len();
        let queue = &mut self.queues[lane];
        queue.waiting.remove(&(entry.ready, seq));
        queue.aged.remove(&(entry.ready, seq));
        queue.fifo.remove(&seq);
        Some(entry)
    }
}

/// Time from which a request may be served, by the clock of its arrival.
fn ready(request: &Request, arrived: Timestamp) -> Timestamp {
    let delay = request.due.since(request.time).min(RATE_LIMIT_MAX);
    request.due.max(arrived).min(arrived.after(delay))
}

/// Merges a request into another of the same user.
fn merge(kept: &mut Request, other: Request) {
    kept.due = kept.due.min(other.due);
    kept.lane = kept.lane.min(other.lane);
    kept.force |= other.force;
    if strength(other.reason) > strength(kept.reason) {
        kept.reason = other.reason;
    }
    if (other.time, &other.source) > (kept.time, &kept.source) {
        kept.time = other.time;
        kept.source = other.source;
    }
}

/// Order in which reasons survive a merge: an operator's refresh first, then the most informative reason.
fn strength(reason: Reason) -> u8 {
    match reason {
        Reason::Sweep => 0,
        Reason::Activity => 1,
        Reason::Profile => 2,
        Reason::Overdue => 3,
        Reason::First => 4,
        Reason::Refresh => 5,
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
