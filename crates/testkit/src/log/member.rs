//! [`MemoryLog`]: a member of a group in a [`MemoryCluster`].
//!
//! Keeps nothing but its name: all state is the cluster's, so that a member that is dropped leaves what a
//! crashed process leaves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::MemoryCluster;
use nearshore_core::ports::log::{Committed, Delivery, Error, Log, Outgoing};
use nearshore_core::user::record::{Offset, Partition, Resume};

/// A member of a group in a [`MemoryCluster`]. Dropping it is a crash: the group learns at its next rebalance.
pub struct MemoryLog {
    pub(super) cluster: MemoryCluster,
    pub(super) group: String,
    pub(super) id: u64,
}

impl MemoryLog {
    /// The next delivery, if there is one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.cluster.lock().next(&self.group, self.id)
    }

    async fn wait(&mut self, batches: bool) -> Result<Delivery, Error> {
        std::future::poll_fn(|context| {
            let mut cluster = self.cluster.lock();
            let told = cluster
                .member(&self.group, self.id)
                .is_some_and(|member| !member.notices.is_empty());
            if (batches || told)
                && let Some(delivery) = cluster.next(&self.group, self.id)
            {
                return Poll::Ready(Ok(delivery));
            }
            match cluster.member(&self.group, self.id) {
                Some(member) => member.waker = Some(context.waker().clone()),
                None => return Poll::Ready(Err(Error::Stopped("not a member".into()))),
            }
            Poll::Pending
        })
        .await
    }

    /// The member stops without a word; its partitions wait for the next [`MemoryCluster::rebalance`].
    pub fn crash(self) {}

    /// The group gives up on this member, which does not know yet: a zombie. Its partitions go to the others,
    /// its commits are refused, and it learns of it, as lost, by its next delivery. It takes part again
    /// from the next rebalance on.
    pub fn expire(&self) {
        let mut cluster = self.cluster.lock();
        if let Some(member) = cluster.member(&self.group, self.id) {
            let partitions: Vec<Partition> = std::mem::take(&mut member.own).into_keys().collect();
            if !partitions.is_empty() {
                member.tell(Delivery::Revoked {
                    partitions,
                    lost: true,
                });
            }
            member.alive = false;
        }
        cluster.rebalance(&self.group);
        if let Some(member) = cluster.member(&self.group, self.id) {
            member.alive = true;
        }
    }
}

impl Log for MemoryLog {
    async fn next(&mut self) -> Result<Delivery, Error> {
        self.wait(true).await
    }

    async fn notice(&mut self) -> Result<Delivery, Error> {
        self.wait(false).await
    }

    fn pause(&mut self, topics: &[Arc<str>]) {
        if let Some(member) = self.cluster.lock().member(&self.group, self.id) {
            member.held = topics.to_vec();
        }
    }

    async fn commit(&self, done: &[(Partition, Resume)]) -> Result<(), Error> {
        Breath::default().await;
        let answer = self.cluster.lock().commit((&self.group, self.id), done);
        Breath::default().await;
        answer
    }

    async fn committed(&self, of: &[Partition]) -> Result<Vec<Committed>, Error> {
        let positions = self.cluster.committed(&self.group);
        let found = of.iter().filter_map(|partition| {
            Some(Committed {
                partition: partition.clone(),
                resume: *positions.get(partition)?,
                ours: true,
            })
        });
        Ok(found.collect())
    }

    async fn rewind(&mut self, to: &[(Partition, Resume)]) -> Result<(), Error> {
        let mut cluster = self.cluster.lock();
        if let Some(member) = cluster.member(&self.group, self.id) {
            // One that went and came back untold is read from where the group stands.
            let known: Vec<bool> = to.iter().map(|(it, _)| member.knows(it)).collect();
            for ((partition, resume), _) in to.iter().zip(known).filter(|(_, known)| *known) {
                if let Some(next) = member.own.get_mut(partition) {
                    *next = resume.0;
                }
            }
        }
        Ok(())
    }

    async fn end(&self, partition: &Partition) -> Result<Offset, Error> {
        Ok(self.cluster.lock().end(partition))
    }

    async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
        for record in records {
            Breath::default().await;
            self.cluster.produce(record);
        }
        Breath::default().await;
        Ok(())
    }

    async fn close(self) {
        let (shared, name) = (self.cluster.clone(), self.group.clone());
        let mut cluster = shared.lock();
        let flaws = cluster.flaws;
        if let Some(group) = cluster.groups.get_mut(&name) {
            group.take_from(self.id, &[], flaws);
        }
        drop(cluster);
        drop(self);
        shared.rebalance(&name);
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        let mut cluster = self.cluster.lock();
        if let Some(group) = cluster.groups.get_mut(&self.group) {
            group.members.remove(&self.id);
        }
    }
}

/// Pending once: a place where a simulation may crash.
#[derive(Default)]
struct Breath(bool);

impl Future for Breath {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
