//! Requests of the three lanes become one per user, cut into a batch.
//!
//! Invariant: first in, first out within a lane; every request taken in is handed out in a batch or
//! merged into one that is, with all its positions, or put back at the end of its lane. The only pure code that is handed the clock's time.
//!
//! A request waits for its `due`, but never longer after its arrival than it was put off when it was made
//! (`due - time`, both record times): so a clock that is wrong by an hour costs at most one quiet period.
//! Nor is it called late for an old `due` alone: what an event lost on its way to us is not the queue's doing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::user::event::UserId;
use crate::user::record::{Offset, Partition, Position, Timestamp};
use crate::user::trigger::{Lane, RATE_LIMIT_MAX, Reason, Request};

/// How lanes share the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Share of batches' places, relative.
    pub urgent: u32,
    /// Share of the live lane.
    pub live: u32,
    /// Share of the backfill lane; drops to none while live is behind its objective.
    pub backfill: u32,
    /// Most requests held unserved in memory; intake stops there and lag grows in Kafka only.
    pub unserved_max: usize,
    /// Most users in a batch.
    pub batch_max: usize,
    /// A live or urgent request older than this gets the fallback instead, counted.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Age at which the live lane is behind its objective.
    #[serde(with = "humantime_serde")]
    pub objective: Duration,
    /// A request that waits in memory for so long and is still not due goes to the end of its lane.
    #[serde(with = "humantime_serde")]
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

/// What became of an offered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits on its own.
    Queued,
    /// Another of its user waits already; they are one now.
    Merged,
    /// This very record waits already.
    Again,
}

/// One user's merged requests, to be served now.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The merged request: earliest `due`, latest source and time, strongest reason, highest lane.
    pub request: Request,
    /// Where all of them stand, sorted; each is done when this work is.
    pub positions: Vec<Position>,
    /// The records that asked: a list must have seen each, for partitions have no common order.
    pub sources: Vec<Position>,
    /// When the first of them arrived, by the clock.
    pub arrived: Timestamp,
    /// When it became due, by the clock: waiting longer is the queue's doing.
    pub ready: Timestamp,
    /// Beyond `max_wait`: gets the fallback instead of a list.
    pub late: bool,
}

/// How a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Users not due yet.
    pub waiting: usize,
    /// Users due.
    pub due: usize,
    /// How long the oldest of them has been due.
    pub oldest: Duration,
}

const LANES: [Lane; 3] = [Lane::Urgent, Lane::Live, Lane::Backfill];

/// Arrival number: order within a lane.
type Seq = u64;

#[derive(Clone, Debug, Default)]
struct Queue {
    /// Not due yet, by when they are.
    waiting: BTreeSet<(Timestamp, Seq)>,
    /// Due, in order of arrival.
    fifo: BTreeSet<Seq>,
    /// The same, by when they became due.
    aged: BTreeSet<(Timestamp, Seq)>,
    /// Smooth weighted round robin: what this lane is outbox, in shares.
    credit: i64,
}

#[derive(Clone, Debug)]
struct Entry {
    request: Request,
    positions: BTreeSet<Position>,
    sources: BTreeSet<Position>,
    arrived: Timestamp,
    ready: Timestamp,
    /// When it came into memory, by the clock; it may have arrived in another's before.
    since: Timestamp,
}

/// How often requests are put back at most.
const PUT_BACK_EVERY: Duration = Duration::from_secs(1);

/// All requests in hand that are not being served.
#[derive(Clone, Debug)]
pub struct Lanes {
    policy: Policy,
    entries: BTreeMap<Seq, Entry>,
    users: BTreeMap<(String, UserId), Seq>,
    positions: BTreeMap<Position, Seq>,
    queues: [Queue; 3],
    /// Positions in hand of each lane.
    held: [usize; 3],
    next: Seq,
    backfill_paused: bool,
    /// Enough of backfill is in hand.
    sated: bool,
    requeue: Timestamp,
    /// Most backfill users of a batch.
    backfill_most: usize,
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
            held: [0; 3],
            next: 0,
            backfill_paused: false,
            sated: false,
            requeue: Timestamp::default(),
            backfill_most: usize::MAX,
        }
    }

    /// Takes a request in. Also beyond [`Lanes::room`], for it is read already: the caller stops reading instead.
    ///
    /// `arrived`: when it was read, by the clock. Who trusts the broker's clock may hand in the request
    /// record's own timestamp if that is earlier, so that time spent in Kafka counts as waiting.
    pub fn offer(&mut self, request: Request, position: Position, arrived: Timestamp) -> Offered {
        self.offer_again(request, position, (arrived, Duration::ZERO))
    }

    /// [`Lanes::offer`] of one that has waited before, and was put back ([`Lanes::far`]).
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

    /// How many more requests may be read.
    pub fn room(&self) -> usize {
        self.policy
            .unserved_max
            .saturating_sub(self.positions.len())
    }

    /// Whether more of the backfill lane is to be read: it has half of the room, and is asked for again when half of
    /// that is served. So a backfill of any length leaves room for live, whose requests do not wait in the log behind it.
    pub fn wants_backfill(&mut self) -> bool {
        let most = self.policy.unserved_max.div_ceil(2);
        let held = self.held[Lane::Backfill as usize];
        self.sated = held >= most || (self.sated && held > most / 2);
        !self.sated
    }

    /// Another worker's live lane is behind its objective: backfill takes only what nobody else wants here.
    pub fn pause_backfill(&mut self, behind: bool) {
        self.backfill_paused = behind;
    }

    /// Whether backfill is held back for another worker's sake.
    pub fn is_backfill_paused(&self) -> bool {
        self.backfill_paused
    }

    /// Most backfill users in one batch, at least 1: a live user who becomes due waits for the batch that runs.
    pub fn limit_backfill(&mut self, most: usize) {
        self.backfill_most = most.max(1);
    }

    /// Whether our own live lane is behind its objective.
    pub fn live_behind(&self, now: Timestamp) -> bool {
        self.status(Lane::Live, now).oldest > self.policy.objective
    }

    /// Live and urgent users who have been due for longer than `max_wait`, oldest first, at most `most`.
    /// Call it before [`Lanes::cut`]: they get the fallback, the engine keeps to those it can still serve.
    pub fn overdue(&mut self, now: Timestamp, most: usize) -> Vec<Work> {
        self.ripen(now);
        let mut late = Vec::new();
        while late.len() < most {
            let oldest = [Lane::Urgent, Lane::Live]
                .iter()
                .filter_map(|lane| self.queues[*lane as usize].aged.first())
                .min();
            match oldest {
                Some(&(ready, seq)) if now.since(ready) > self.policy.max_wait => {
                    late.extend(self.take(seq, true));
                }
                _ => break,
            }
        }
        late
    }

    /// Users to be put back at the end of their lanes, at most once a second: those who have been in memory for `hold` and
    /// are still not due; and where the lanes are full, those who wait longest, until half is free. So nobody
    /// who is due much later holds a commit, or the place of one who is due now.
    pub fn deferred(&mut self, now: Timestamp) -> Vec<Work> {
        self.requeue = self.requeue.min(now);
        if now.since(self.requeue) < PUT_BACK_EVERY {
            return Vec::new();
        }
        self.requeue = now;
        self.ripen(now);
        let soon = now.after(PUT_BACK_EVERY);
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
                deferred.extend(self.take(seq, false));
            }
        }
        deferred
    }

    /// The next batch: due users only, lanes by their shares, first in first out within a lane.
    pub fn cut(&mut self, now: Timestamp, most: usize) -> Vec<Work> {
        self.ripen(now);
        let behind = self.backfill_paused || self.live_behind(now);
        let mut batch = Vec::new();
        let mut backfill = 0;
        while batch.len() < most.min(self.policy.batch_max) {
            let room = backfill < self.backfill_most;
            let Some(lane) = self.turn(behind, room) else {
                break;
            };
            backfill += usize::from(lane == Lane::Backfill);
            let first = self.queues[lane as usize].fifo.first().copied();
            let seq = first.expect("a lane without due users has no turn");
            batch.extend(self.take(seq, false));
        }
        batch
    }

    /// Drops what was read from partitions that are no longer ours; a user with nothing left is gone.
    pub fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            let at = |offset| Position {
                partition: partition.clone(),
                offset: Offset(offset),
            };
            let theirs: Vec<(Position, Seq)> = self
                .positions
                .range(at(i64::MIN)..=at(i64::MAX))
                .map(|(position, seq)| (position.clone(), *seq))
                .collect();
            for (position, seq) in theirs {
                let mut entry = self.remove(seq).expect("every position has an entry");
                entry.positions.remove(&position);
                if !entry.positions.is_empty() {
                    self.insert(seq, entry);
                }
            }
        }
    }

    /// Drops everything: all of it is read again.
    pub fn clear(&mut self) {
        *self = Self {
            next: self.next,
            backfill_paused: self.backfill_paused,
            ..Self::new(self.policy.clone())
        };
    }

    /// How long until somebody is due: zero if somebody is, `None` if nobody waits.
    pub fn next_due(&self, now: Timestamp) -> Option<Duration> {
        if self.queues.iter().any(|queue| !queue.fifo.is_empty()) {
            return Some(Duration::ZERO);
        }
        let firsts = self.queues.iter().filter_map(|q| q.waiting.first());
        firsts.map(|(ready, _)| ready.since(now)).min()
    }

    /// How a lane stands; who became due since the last cut still counts as waiting.
    pub fn status(&self, lane: Lane, now: Timestamp) -> LaneStatus {
        let queue = &self.queues[lane as usize];
        let oldest = queue.aged.first().map(|(ready, _)| now.since(*ready));
        LaneStatus {
            waiting: queue.waiting.len(),
            due: queue.fifo.len(),
            oldest: oldest.unwrap_or_default(),
        }
    }

    /// Users who wait, due or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whose turn it is. Smooth weighted round robin: each lane with due users earns its share, the richest
    /// pays for all. A lane without a share, or held back, gets what the others leave.
    fn turn(&mut self, behind: bool, room: bool) -> Option<Lane> {
        let share = |lane: Lane| match lane {
            Lane::Urgent => self.policy.urgent,
            Lane::Live => self.policy.live,
            Lane::Backfill if behind => 0,
            Lane::Backfill => self.policy.backfill,
        };
        let due = |lane: &Lane| {
            let barred = *lane == Lane::Backfill && !room;
            !barred && !self.queues[*lane as usize].fifo.is_empty()
        };
        let shares: Vec<(Lane, i64)> = LANES
            .into_iter()
            .filter(due)
            .map(|lane| (lane, i64::from(share(lane))))
            .collect();
        let total: i64 = shares.iter().map(|(_, share)| share).sum();
        if total == 0 {
            return shares.first().map(|(lane, _)| *lane);
        }
        let mut richest: Option<Lane> = None;
        for (lane, share) in shares.into_iter().filter(|(_, share)| *share > 0) {
            self.queues[lane as usize].credit += share;
            let more =
                |than: Lane| self.queues[lane as usize].credit > self.queues[than as usize].credit;
            if richest.is_none_or(more) {
                richest = Some(lane);
            }
        }
        let lane = richest?;
        self.queues[lane as usize].credit -= total;
        Some(lane)
    }

    /// Moves to the lanes' ends who became due; their place there is by arrival.
    fn ripen(&mut self, now: Timestamp) {
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

    fn take(&mut self, seq: Seq, late: bool) -> Option<Work> {
        self.remove(seq).map(|entry| Work {
            request: entry.request,
            positions: entry.positions.into_iter().collect(),
            sources: entry.sources.into_iter().collect(),
            arrived: entry.arrived,
            ready: entry.ready,
            late,
        })
    }

    fn insert(&mut self, seq: Seq, entry: Entry) {
        let user = (entry.request.ns.clone(), entry.request.user.clone());
        self.users.insert(user, seq);
        for position in &entry.positions {
            self.positions.insert(position.clone(), seq);
        }
        // Ripened by the next cut, which is handed the time.
        let lane = entry.request.lane as usize;
        self.held[lane] += entry.positions.len();
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
        self.held[lane] -= entry.positions.len();
        let queue = &mut self.queues[lane];
        queue.waiting.remove(&(entry.ready, seq));
        queue.aged.remove(&(entry.ready, seq));
        queue.fifo.remove(&seq);
        Some(entry)
    }
}

/// When a request may be served, by the clock that says when it arrived.
fn ready(request: &Request, arrived: Timestamp) -> Timestamp {
    let put_off = request.due.since(request.time).min(RATE_LIMIT_MAX);
    request.due.max(arrived).min(arrived.after(put_off))
}

/// One request that stands for two of the same user.
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

/// A person's wish outlives a merge; of the rest, what says most about why the list is needed.
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
