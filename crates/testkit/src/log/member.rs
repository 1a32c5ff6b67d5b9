//! [`MemoryLog`]: a member of a group in a [`MemoryCluster`].
//!
//! It stores its group and id only. All state is the cluster's, so that a dropped member leaves what a crashed process
//! leaves.

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
    async fn wait(&mut self, batches: bool) -> Result<Delivery, Error> {
        std::future::poll_fn(|context| {
            let mut cluster = self.cluster.lock();
            let has_notice = cluster
                .member(&self.group, self.id)
                .is_some_and(|member| !member.notices.is_empty());
            if (batches || has_notice)
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

    /// Stops the member without leaving the group; its partitions wait for the next [`MemoryCluster::rebalance`].
    pub fn crash(self) {}

    /// Expires the member's session before the member knows: a zombie. Its partitions go to other members, its
    /// commits are refused, and its next delivery revokes its partitions as lost. It joins again at the next
    /// rebalance.
    pub fn expire(&self) {
        let mut cluster = self.cluster.lock();
        if let Some(member) = cluster.member(&self.group, self.id) {
            let partitions: Vec<Partition> =
                std::mem::take(&mut member.assigned).into_keys().collect();
            if !partitions.is_empty() {
                member.post(Delivery::Revoked {
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
            member.paused = topics.to_vec();
        }
    }

    async fn commit(&self, done: &[(Partition, Resume)]) -> Result<(), Error> {
        Yield::default().await;
        let answer = self.cluster.lock().commit(&self.group, self.id, done);
        Yield::default().await;
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
            // A partition with an undelivered revoke is read from the group's position after it comes back.
            let owned: Vec<bool> = to.iter().map(|(it, _)| member.owns(it)).collect();
            for ((partition, resume), _) in to.iter().zip(owned).filter(|(_, owned)| *owned) {
                if let Some(next) = member.assigned.get_mut(partition) {
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
            Yield::default().await;
            self.cluster.produce(record);
        }
        Yield::default().await;
        Ok(())
    }

    async fn close(self) {
        let (shared, name) = (self.cluster.clone(), self.group.clone());
        let mut cluster = shared.lock();
        let flaws = cluster.flaws;
        if let Some(group) = cluster.groups.get_mut(&name) {
            group.revoke_from(self.id, &[], flaws);
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

/// A future that is pending once: a point where a simulation may crash the member.
#[derive(Default)]
struct Yield(bool);

impl Future for Yield {
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
