//! Folds ranges of a topic as one member of the namespace's group: [`catch_up`].
//!
//! Invariant: nothing beyond the goal is folded, and the group's position is never beyond what is folded. So a member
//! may be killed anywhere, others may fold at the same time, and the next member resumes. It ends when every partition
//! of the goal is done, by any member.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::http::Ready;
use crate::members::ingest::{self, Ingest, Tally};
use crate::members::loops::{
    COMMIT_EVERY, accept_retryable_commit, count_rebalance, fold_all, gather,
};
use nearshore_core::ports::log::{self, Batch, Delivery, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::replay::{Goal, Since};
use nearshore_core::user::record::{Partition, Resume};
use nearshore_kafka::{Admin, probe};

/// Without a record for this long, a member asks whether any record is left, and how far the other members are.
const QUIET: Duration = Duration::from_secs(1);

/// Ranges of offsets, start to end, per partition.
pub type OffsetRanges = BTreeMap<Partition, (Resume, Resume)>;

/// Answers what a member must know beyond its own partitions.
pub trait Group: Send + Sync {
    /// The group's committed positions on the topic.
    fn committed(&self) -> impl Future<Output = Result<Since, log::Error>> + Send;

    /// The partitions whose range holds no record.
    fn empty(
        &self,
        stretches: OffsetRanges,
    ) -> impl Future<Output = Result<BTreeSet<Partition>, log::Error>> + Send;
}

/// Asks the broker about the group.
pub struct KafkaGroup<'a> {
    config: &'a Config,
    topic: &'a str,
    admin: Admin,
}

impl<'a> KafkaGroup<'a> {
    /// The namespace's group, on `topic` alone.
    pub fn new(config: &'a Config, topic: &'a str) -> Result<Self, log::Error> {
        Ok(Self {
            config,
            topic,
            admin: Admin::new(&config.kafka)?,
        })
    }
}

impl Group for KafkaGroup<'_> {
    async fn committed(&self) -> Result<Since, log::Error> {
        let group = ingest::group(&self.config.kafka, &self.config.namespace);
        self.admin.committed(&group, &[self.topic]).await
    }

    async fn empty(&self, stretches: OffsetRanges) -> Result<BTreeSet<Partition>, log::Error> {
        probe::empty(&self.config.kafka, stretches).await
    }
}

/// Called after each fold; may delay the next one.
pub trait Watch: Send {
    /// `tally` was folded; `goal` says what is left.
    fn folded(
        &mut self,
        goal: &Goal,
        tally: Tally,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Folds until the goal is reached; false if it was cancelled before. The log of `member` must read the goal's topic.
pub async fn catch_up<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    goal: &mut Goal,
    (group, watch): (&impl Group, &mut impl Watch),
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut assigned = BTreeSet::new();
    let mut commits = tokio::time::interval(COMMIT_EVERY);
    let mut last_record = Instant::now();
    update_goal(member, goal, group, &assigned).await?;
    while !goal.reached() {
        // Each arm is cancel-safe: a delivery that is not taken now is delivered at the next turn.
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                accept_retryable_commit(member.commit().await)?;
                return Ok(false);
            }
            _ = commits.tick() => {
                accept_retryable_commit(member.commit().await)?;
                if last_record.elapsed() >= QUIET {
                    update_goal(member, goal, group, &assigned).await?;
                    last_record = Instant::now();
                    notify(watch, goal, Tally::default(), cancel).await?;
                }
            }
            delivery = member.log().next() => {
                last_record = Instant::now();
                let (batches, rest) = gather(member.log(), delivery?).await?;
                let tally = fold(member, goal, batches, cancel).await?;
                if let Some(rest) = rest {
                    apply(member, &mut assigned, rest).await?;
                }
                notify(watch, goal, tally, cancel).await?;
            }
        }
    }
    commit_all(member, cancel).await?;
    Ok(true)
}

/// Notifies the watch. It may delay this member, but not beyond a cancellation.
async fn notify(
    watch: &mut impl Watch,
    goal: &Goal,
    tally: Tally,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = watch.folded(goal, tally) => outcome,
        () = cancel.cancelled() => Ok(()),
    }
}

/// Commits until Kafka accepts it, so that the next member starts after what is folded.
async fn commit_all<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    while let Err(error) = member.commit().await {
        if !error.retry() || cancel.is_cancelled() {
            return Err(error.into());
        }
        tracing::warn!(%error, "commit failed; next try in {COMMIT_EVERY:?}");
        tokio::time::sleep(COMMIT_EVERY).await;
    }
    Ok(())
}

/// Folds the records before the goal, and notes in `goal` how far that is.
async fn fold<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    goal: &mut Goal,
    mut batches: Vec<Batch>,
    cancel: &CancellationToken,
) -> anyhow::Result<Tally> {
    let mut ends = BTreeSet::new();
    for batch in &mut batches {
        if goal.cut(&batch.partition, &mut batch.records) {
            ends.insert(batch.partition.clone());
        }
    }
    batches.retain(|batch| !batch.records.is_empty());
    // A backfill serves no readiness probe. A log line and metrics say that it waits for the dlq.
    let dlq = Ready::default().gate("dlq-backfill");
    let rewound = member.rewound();
    let tally = fold_all(member, &batches, &dlq, cancel).await?;
    if member.rewound() != rewound {
        accept_retryable_commit(member.commit().await)?;
        anyhow::bail!(
            "Redis lost acknowledged writes during the backfill; run it again to fold those records once more"
        );
    }
    if cancel.is_cancelled() {
        // Folding may have stopped in the middle: nothing is noted, and the next member folds it again.
        return Ok(tally);
    }
    if let Some(partition) = member.stopped().next() {
        anyhow::bail!("folding of {partition} stopped; the log line above says why");
    }
    for batch in &batches {
        if let Some(last) = batch.records.last() {
            goal.passed(&batch.partition, Resume::after(last.position.offset));
        }
    }
    for partition in ends {
        mark_done(member, goal, &partition);
    }
    Ok(tally)
}

/// Marks a partition as done: no record is left before its end.
fn mark_done<L: Log, S: Store>(member: &mut Ingest<L, S>, goal: &mut Goal, partition: &Partition) {
    let end = goal.end(partition);
    if goal.places().contains_key(partition) {
        member.pass(partition, end);
        goal.passed(partition, end);
    }
}

async fn apply<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    assigned: &mut BTreeSet<Partition>,
    delivery: Delivery,
) -> anyhow::Result<()> {
    count_rebalance(&delivery);
    match delivery {
        Delivery::Assigned(partitions) => {
            member.assigned(&partitions);
            assigned.extend(partitions);
        }
        Delivery::Revoked { partitions, lost } => {
            if !lost {
                accept_retryable_commit(member.commit().await)?;
            }
            member.revoked(&partitions);
            assigned.retain(|partition| !partitions.contains(partition));
        }
        Delivery::Batch(_) => {}
    }
    Ok(())
}

/// Updates the goal with the positions of other members, and with assigned partitions that hold only gaps up to their
/// end.
async fn update_goal<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    goal: &mut Goal,
    group: &impl Group,
    assigned: &BTreeSet<Partition>,
) -> anyhow::Result<()> {
    for (partition, at) in group.committed().await? {
        goal.passed(&partition, at);
    }
    let ranges: OffsetRanges = goal
        .behind()
        .filter(|(partition, _)| assigned.contains(*partition))
        .map(|(partition, next)| (partition.clone(), (next, goal.end(partition))))
        .collect();
    if ranges.is_empty() {
        return Ok(());
    }
    for partition in group.empty(ranges).await? {
        mark_done(member, goal, &partition);
    }
    Ok(())
}
