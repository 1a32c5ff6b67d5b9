//! The log in memory, for seeded simulations: [`MemoryCluster`] and [`MemoryLog`].
//!
//! Keeps the contract of [`Log`](nearshore_core::ports::log::Log) with no thread, timer or clock: the same calls in
//! the same order give the same deliveries. The seed chooses the size of batches, the partition that is delivered
//! next, and the owner of each partition after a rebalance. `send` and `commit` yield once before and once after
//! their effect, so that an executor may crash a role on either side of it. [`Flaws`] break the contract on purpose,
//! to prove that a check notices.

mod member;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use nearshore_core::ports::log::{Batch, Delivery, Error, Outgoing};
use nearshore_core::user::record::{Offset, Partition, Position, Record, Resume, Timestamp};

pub use member::MemoryLog;

/// Ways to break the contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Delivered records count as committed at once.
    pub commit_early: bool,
    /// A revoke commits all delivered records, processed or not.
    pub forget_in_hand: bool,
}

#[derive(Default)]
struct Member {
    topics: Vec<Arc<str>>,
    /// Assigned partitions with the offset that is delivered next.
    assigned: BTreeMap<Partition, i64>,
    notices: VecDeque<Delivery>,
    /// Paused topics.
    paused: Vec<Arc<str>>,
    waker: Option<Waker>,
    alive: bool,
}

#[derive(Default)]
struct Group {
    members: BTreeMap<u64, Member>,
    committed: BTreeMap<Partition, Resume>,
}

struct Cluster {
    rng: ChaCha8Rng,
    flaws: Flaws,
    batch_max: usize,
    now: Timestamp,
    topics: BTreeMap<Arc<str>, Vec<Vec<Record>>>,
    groups: BTreeMap<String, Group>,
    members: u64,
    unkeyed: usize,
}

/// A cluster in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryCluster(Arc<Mutex<Cluster>>);

impl MemoryCluster {
    /// An empty cluster that keeps the contract.
    pub fn new(seed: u64) -> Self {
        Self::flawed(seed, Flaws::default())
    }

    /// An empty cluster that breaks the contract.
    pub fn flawed(seed: u64, flaws: Flaws) -> Self {
        Self(Arc::new(Mutex::new(Cluster {
            rng: ChaCha8Rng::seed_from_u64(seed),
            flaws,
            batch_max: 8,
            now: Timestamp(0),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            members: 0,
            unkeyed: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock()
    }

    /// Sets the time of records that are sent without one.
    pub fn set_time(&self, now: Timestamp) {
        self.lock().now = now;
    }

    /// Sets the largest batch; the seed chooses 1 up to this many records.
    pub fn set_batch_max(&self, records: usize) {
        self.lock().batch_max = records.max(1);
    }

    /// Creates a topic; an existing one is left as it is.
    pub fn create_topic(&self, topic: &str, partitions: usize) {
        let mut cluster = self.lock();
        let empty = || vec![Vec::new(); partitions.max(1)];
        cluster.topics.entry(topic.into()).or_insert_with(empty);
    }

    /// Appends one record and returns its position. A missing topic is created with one partition.
    pub fn produce(&self, record: Outgoing) -> Position {
        self.lock().append(record)
    }

    /// All records of a topic, by partition, each partition in offset order.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let cluster = self.lock();
        let partitions = cluster.topics.get(topic);
        partitions
            .into_iter()
            .flatten()
            .flatten()
            .cloned()
            .collect()
    }

    /// End offset of each partition of a topic.
    pub fn ends(&self, topic: &str) -> BTreeMap<Partition, Offset> {
        let cluster = self.lock();
        let count = cluster.topics.get(topic).map_or(0, Vec::len);
        (0..count)
            .map(|number| {
                let partition = cluster.partition(topic, number);
                let end = cluster.end(&partition);
                (partition, end)
            })
            .collect()
    }

    /// Committed positions of a group.
    pub fn committed(&self, group: &str) -> BTreeMap<Partition, Resume> {
        let cluster = self.lock();
        let found = cluster.groups.get(group);
        found
            .map(|group| group.committed.clone())
            .unwrap_or_default()
    }

    /// Lag of a group: records between its positions and the ends of its members' topics.
    pub fn lag(&self, group: &str) -> u64 {
        let cluster = self.lock();
        let Some(found) = cluster.groups.get(group) else {
            return 0;
        };
        cluster
            .partitions_of(found)
            .map(|partition| {
                let from = found.committed.get(&partition).map_or(0, |at| at.0);
                u64::try_from(cluster.end(&partition).0 - from).unwrap_or(0)
            })
            .sum()
    }

    /// Joins a group and rebalances it.
    pub fn join(&self, group: &str, topics: &[&str]) -> MemoryLog {
        let mut cluster = self.lock();
        cluster.members += 1;
        let id = cluster.members;
        let member = Member {
            topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
            alive: true,
            ..Member::default()
        };
        let members = &mut cluster.groups.entry(group.into()).or_default().members;
        members.insert(id, member);
        cluster.rebalance(group);
        drop(cluster);
        MemoryLog {
            cluster: self.clone(),
            group: group.into(),
            id,
        }
    }

    /// Assigns a group's partitions to its members again, as the seed chooses. A member gets its revoke first, then its
    /// assignment; kept partitions appear in neither.
    pub fn rebalance(&self, group: &str) {
        self.lock().rebalance(group);
    }
}

impl Cluster {
    fn partition(&self, topic: &str, number: usize) -> Partition {
        Partition {
            incarnation: 0,
            topic: topic.into(),
            number: i32::try_from(number).unwrap_or(i32::MAX),
        }
    }

    fn stored(&self, partition: &Partition) -> &[Record] {
        let number = usize::try_from(partition.number).unwrap_or(usize::MAX);
        let topic = self.topics.get(&partition.topic);
        topic
            .and_then(|topic| topic.get(number))
            .map_or(&[], Vec::as_slice)
    }

    fn end(&self, partition: &Partition) -> Offset {
        Offset(i64::try_from(self.stored(partition).len()).unwrap_or(i64::MAX))
    }

    fn partitions_of(&self, group: &Group) -> impl Iterator<Item = Partition> + use<> {
        let mut topics: Vec<_> = group
            .members
            .values()
            .flat_map(|member| member.topics.iter().cloned())
            .collect();
        topics.sort();
        topics.dedup();
        let mut all = Vec::new();
        for topic in topics {
            let count = self.topics.get(&topic).map_or(0, Vec::len);
            all.extend((0..count).map(|number| self.partition(&topic, number)));
        }
        all.into_iter()
    }

    fn append(&mut self, record: Outgoing) -> Position {
        let time = record.time.unwrap_or(self.now);
        let topic = self.topics.entry(record.topic.clone());
        let partitions = topic.or_insert_with(|| vec![Vec::new()]).len();
        let number = match &record.key {
            Some(key) => usize::try_from(hash(key) % partitions as u64).unwrap_or(0),
            None => {
                self.unkeyed += 1;
                self.unkeyed % partitions
            }
        };
        let partition = self.partition(&record.topic, number);
        let position = Position {
            offset: self.end(&partition),
            partition,
        };
        let stored = Record {
            position: position.clone(),
            time,
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        if let Some(topic) = self.topics.get_mut(&record.topic) {
            topic[number].push(stored);
        }
        let members = self
            .groups
            .values_mut()
            .flat_map(|group| group.members.values_mut());
        for reader in members.filter(|member| member.assigned.contains_key(&position.partition)) {
            if let Some(waker) = reader.waker.take() {
                waker.wake();
            }
        }
        position
    }

    fn rebalance(&mut self, name: &str) {
        let Some(mut group) = self.groups.remove(name) else {
            return;
        };
        let mut all: Vec<Partition> = self.partitions_of(&group).collect();
        all.shuffle(&mut self.rng);
        let mut wanted: BTreeMap<u64, Vec<Partition>> = BTreeMap::new();
        let start = self.rng.random_range(0..1_000_usize);
        for (nth, partition) in all.into_iter().enumerate() {
            let readers: Vec<u64> = group
                .members
                .iter()
                .filter(|(_, member)| member.alive && member.topics.contains(&partition.topic))
                .map(|(id, _)| *id)
                .collect();
            if !readers.is_empty() {
                let reader = readers[(start + nth) % readers.len()];
                wanted.entry(reader).or_default().push(partition);
            }
        }
        let ids: Vec<u64> = group.members.keys().copied().collect();
        for id in &ids {
            let kept = wanted.get(id).cloned().unwrap_or_default();
            group.revoke_from(*id, &kept, self.flaws);
        }
        for id in ids {
            let partitions = wanted.remove(&id).unwrap_or_default();
            group.assign_to(id, partitions);
        }
        self.groups.insert(name.into(), group);
    }

    fn next(&mut self, group: &str, id: u64) -> Option<Delivery> {
        let batch_max = self.batch_max;
        let member = self.groups.get_mut(group)?.members.get_mut(&id)?;
        if let Some(notice) = member.notices.pop_front() {
            return Some(notice);
        }
        let waiting: Vec<(Partition, i64)> = member
            .assigned
            .iter()
            .filter(|(partition, _)| !member.paused.contains(&partition.topic))
            .map(|(partition, next)| (partition.clone(), *next))
            .collect();
        let ready: Vec<_> = waiting
            .into_iter()
            .filter(|(partition, next)| *next < self.end(partition).0)
            .collect();
        if ready.is_empty() {
            return None;
        }
        let (partition, next) = ready[self.rng.random_range(0..ready.len())].clone();
        let count = self.rng.random_range(1..=batch_max);
        let from = usize::try_from(next).unwrap_or(usize::MAX);
        let records: Vec<Record> = self.stored(&partition)[from..]
            .iter()
            .take(count)
            .cloned()
            .collect();
        let after = next + i64::try_from(records.len()).unwrap_or(0);
        let end = self.end(&partition);
        let early = self.flaws.commit_early;
        let group = self.groups.get_mut(group)?;
        if early {
            group.committed.insert(partition.clone(), Resume(after));
        }
        let member = group.members.get_mut(&id)?;
        member.assigned.insert(partition.clone(), after);
        Some(Delivery::Batch(Batch {
            partition,
            records,
            end,
        }))
    }

    fn member(&mut self, group: &str, id: u64) -> Option<&mut Member> {
        self.groups.get_mut(group)?.members.get_mut(&id)
    }

    fn commit(&mut self, group: &str, id: u64, done: &[(Partition, Resume)]) -> Result<(), Error> {
        let owns = |group: &Group, partition: &Partition| {
            let member = group.members.get(&id);
            member.is_some_and(|member| member.owns(partition))
        };
        let group = self.groups.entry(group.into()).or_default();
        for (partition, _) in done {
            if !owns(group, partition) {
                return Err(Error::NotAssigned {
                    partition: partition.clone(),
                });
            }
        }
        group.committed.extend(done.iter().cloned());
        Ok(())
    }
}

impl Group {
    fn revoke_from(&mut self, id: u64, kept: &[Partition], flaws: Flaws) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let revoked: Vec<Partition> = member
            .assigned
            .keys()
            .filter(|partition| !kept.contains(partition))
            .cloned()
            .collect();
        for partition in &revoked {
            let delivered = member.assigned.remove(partition);
            if let Some(delivered) = delivered.filter(|_| flaws.forget_in_hand) {
                self.committed.insert(partition.clone(), Resume(delivered));
            }
        }
        if !revoked.is_empty() {
            member.post(Delivery::Revoked {
                partitions: revoked,
                lost: false,
            });
        }
    }

    fn assign_to(&mut self, id: u64, partitions: Vec<Partition>) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let mut added = Vec::new();
        for partition in partitions {
            if !member.assigned.contains_key(&partition) {
                let from = self.committed.get(&partition).map_or(0, |at| at.0);
                member.assigned.insert(partition.clone(), from);
                added.push(partition);
            }
        }
        if !added.is_empty() {
            added.sort();
            member.post(Delivery::Assigned(added));
        }
    }
}

impl Member {
    /// Whether a partition is assigned and all notices about it are delivered. While a revoke waits, the member would
    /// commit positions from before it.
    fn owns(&self, partition: &Partition) -> bool {
        let undelivered = self
            .notices
            .iter()
            .any(|notice| notice.changes_owner_of(partition));
        self.assigned.contains_key(partition) && !undelivered
    }

    fn post(&mut self, notice: Delivery) {
        self.notices.push_back(notice);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// FNV-1a: the same partition for a key in every run.
fn hash(key: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    key.iter().fold(0xcbf2_9ce4_8422_2325, fold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use nearshore_core::ports::log::Log;

    fn event(user: u32, n: i64) -> Outgoing {
        Outgoing {
            topic: "events".into(),
            key: Some(user.to_string().into()),
            value: Some(n.to_string().into()),
            headers: Vec::new(),
            time: Some(Timestamp(n)),
        }
    }

    fn filled(seed: u64, flaws: Flaws) -> MemoryCluster {
        let cluster = MemoryCluster::flawed(seed, flaws);
        cluster.create_topic("events", 4);
        for n in 0..100 {
            cluster.produce(event(u32::try_from(n % 17).expect("small"), n));
        }
        cluster
    }

    fn drain(log: &mut MemoryLog) -> Vec<Position> {
        let mut seen = Vec::new();
        while let Some(delivery) = log.next().now_or_never() {
            if let Delivery::Batch(batch) = delivery.expect("a member") {
                seen.extend(batch.records.into_iter().map(|record| record.position));
            }
        }
        seen
    }

    #[test]
    fn the_same_seed_gives_the_same_history() {
        let history = |seed| drain(&mut filled(seed, Flaws::default()).join("g", &["events"]));
        assert_eq!(history(1), history(1));
        assert_ne!(history(1), history(2));
        assert_eq!(history(1).len(), 100);
    }

    #[test]
    fn records_of_a_crashed_member_are_delivered_again_unless_flawed() {
        let left = |flaws| {
            let cluster = filled(7, flaws);
            let mut log = cluster.join("g", &["events"]);
            drain(&mut log);
            log.crash();
            drain(&mut cluster.join("g", &["events"])).len()
        };
        assert_eq!(left(Flaws::default()), 100);
        let early = Flaws {
            commit_early: true,
            ..Flaws::default()
        };
        assert_eq!(left(early), 0);
    }

    #[test]
    fn uncommitted_records_go_to_the_next_owner_unless_flawed() {
        let seen_by_next_owner = |flaws| {
            let cluster = filled(7, flaws);
            let mut log = cluster.join("g", &["events"]);
            drain(&mut log);
            log.close().now_or_never().expect("never waits");
            drain(&mut cluster.join("g", &["events"])).len()
        };
        assert_eq!(seen_by_next_owner(Flaws::default()), 100);
        let forgetful = Flaws {
            forget_in_hand: true,
            ..Flaws::default()
        };
        assert_eq!(seen_by_next_owner(forgetful), 0);
    }

    #[tokio::test]
    async fn a_zombies_commit_is_refused_and_its_partitions_are_revoked_as_lost() {
        let cluster = filled(3, Flaws::default());
        let mut zombie = cluster.join("g", &["events"]);
        let of = drain(&mut zombie)[0].partition.clone();
        let mut other = cluster.join("other", &["events"]);
        drain(&mut other);
        zombie.expire();
        let done = [(of.clone(), Resume(1))];
        assert!(matches!(
            zombie.commit(&done).await,
            Err(Error::NotAssigned { partition }) if partition == of
        ));
        assert!(matches!(
            zombie.next().await,
            Ok(Delivery::Revoked { lost: true, .. })
        ));
        other.commit(&done).await.expect("another group's own");
    }
}
