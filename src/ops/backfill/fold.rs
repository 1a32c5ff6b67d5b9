//! Folding a stretch of a topic as one member of the namespace's group: [`catch_up`].
//!
//! Invariant: nothing beyond the goal is folded, and the group's position never stands beyond what is folded: so a
//! member may be killed anywhere, others may fold beside it, and whoever comes next goes on. It ends when
//! every partition of the goal is done, whoever did it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::http::Ready;
use crate::members::ingest::{self, Ingest, Tally};
use crate::members::loops::{COMMIT_EVERY, commit_softly, count_rebalance, fold_all, gather};
use nearshore_core::ports::log::{self, Batch, Delivery, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::replay::{Goal, Since};
use nearshore_core::user::record::{Partition, Resume};
use nearshore_kafka::{Admin, probe};

/// Without a record for so long, it is asked whether there is anything left, and how far the others are.
const QUIET: Duration = Duration::from_secs(1);

/// From one offset to another, per partition.
pub type Stretches = BTreeMap<Partition, (Resume, Resume)>;

/// What a member must know beyond its own partitions.
pub trait Group: Send + Sync {
    /// Where the group stands on the topic.
    fn committed(&self) -> impl Future<Output = Result<Since, log::Error>> + Send;

    /// Those stretches in which no record is left.
    fn empty(
        &self,
        stretches: Stretches,
    ) -> impl Future<Output = Result<BTreeSet<Partition>, log::Error>> + Send;
}

/// The group on the broker.
pub struct KafkaGroup<'a> {
    config: &'a Config,
    topic: &'a str,
    admin: Admin,
}

impl<'a> KafkaGroup<'a> {
    /// The namespace's group, as far as it reads `topic`.
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
        let group = ingest::group(&self.config.namespace);
        self.admin.committed(&group, &[self.topic]).await
    }

    async fn empty(&self, stretches: Stretches) -> Result<BTreeSet<Partition>, log::Error> {
        probe::empty(&self.config.kafka, stretches).await
    }
}

/// Who is told after each fold, and may make it wait.
pub trait Watch: Send {
    /// So much was done, so much is left.
    fn folded(
        &mut self,
        goal: &Goal,
        tally: Tally,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Folds until the goal is reached; false if it was cancelled before. The member's log reads the goal's topic.
pub async fn catch_up<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    goal: &mut Goal,
    (group, watch): (&impl Group, &mut impl Watch),
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut own = BTreeSet::new();
    let mut commits = tokio::time::interval(COMMIT_EVERY);
    let mut heard = Instant::now();
    look(member, goal, (group, &own)).await?;
    while !goal.reached() {
        // Each arm is cancel-safe: a delivery not taken is there at the next turn.
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                commit_softly(member.commit().await)?;
                return Ok(false);
            }
            _ = commits.tick() => {
                commit_softly(member.commit().await)?;
                if heard.elapsed() >= QUIET {
                    look(member, goal, (group, &own)).await?;
                    heard = Instant::now();
                    told(watch, goal, (Tally::default(), cancel)).await?;
                }
            }
            delivery = member.log().next() => {
                heard = Instant::now();
                let (batches, rest) = gather(member.log(), delivery?).await?;
                let tally = fold(member, goal, batches, cancel).await?;
                if let Some(rest) = rest {
                    follow(member, &mut own, rest).await?;
                }
                told(watch, goal, (tally, cancel)).await?;
            }
        }
    }
    settle(member, cancel).await?;
    Ok(true)
}

/// Tells the watch, which may make us wait, but not beyond a cancellation.
async fn told(
    watch: &mut impl Watch,
    goal: &Goal,
    (tally, cancel): (Tally, &CancellationToken),
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = watch.folded(goal, tally) => outcome,
        () = cancel.cancelled() => Ok(()),
    }
}

/// Commits for good: whoever follows on starts behind what is folded.
async fn settle<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    while let Err(error) = member.commit().await {
        if !error.retry() || cancel.is_cancelled() {
            return Err(error.into());
        }
        tracing::warn!(%error, "commit will be tried again");
        tokio::time::sleep(COMMIT_EVERY).await;
    }
    Ok(())
}

/// Folds what is before the goal, and notes how far that is.
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
    // No probe asks a backfill whether it is ready; the log line and the metrics say that it waits.
    let dlq = Ready::default().gate("dlq-backfill");
    let rewound = member.rewound();
    let tally = fold_all(member, &batches, &dlq, cancel).await?;
    if member.rewound() != rewound {
        commit_softly(member.commit().await)?;
        anyhow::bail!(
            "Redis lost writes meanwhile; run it again, and it goes on from what is left"
        );
    }
    if cancel.is_cancelled() {
        // It may have broken off in the middle: nothing is noted, and the next member folds it again.
        return Ok(tally);
    }
    if let Some(partition) = member.stopped().iter().next() {
        anyhow::bail!("{partition} cannot be folded any further; the line above says why");
    }
    for batch in &batches {
        if let Some(last) = batch.records.last() {
            goal.passed(&batch.partition, Resume::after(last.position.offset));
        }
    }
    for partition in ends {
        reach(member, goal, &partition);
    }
    Ok(tally)
}

/// Nothing of a partition is left before its end.
fn reach<L: Log, S: Store>(member: &mut Ingest<L, S>, goal: &mut Goal, partition: &Partition) {
    let end = goal.end(partition);
    if goal.places().contains_key(partition) {
        member.pass(partition, end);
        goal.passed(partition, end);
    }
}

async fn follow<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    own: &mut BTreeSet<Partition>,
    delivery: Delivery,
) -> anyhow::Result<()> {
    count_rebalance(&delivery);
    match delivery {
        Delivery::Assigned(partitions) => {
            member.assigned(&partitions);
            own.extend(partitions);
        }
        Delivery::Revoked { partitions, lost } => {
            if !lost {
                commit_softly(member.commit().await)?;
            }
            member.revoked(&partitions);
            own.retain(|partition| !partitions.contains(partition));
        }
        Delivery::Batch(_) => {}
    }
    Ok(())
}

/// How far the others are, and whether our own partitions end in nothing but gaps.
async fn look<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    goal: &mut Goal,
    (group, own): (&impl Group, &BTreeSet<Partition>),
) -> anyhow::Result<()> {
    for (partition, at) in group.committed().await? {
        goal.passed(&partition, at);
    }
    let stretches: Stretches = goal
        .behind()
        .filter(|(partition, _)| own.contains(*partition))
        .map(|(partition, next)| (partition.clone(), (next, goal.end(partition))))
        .collect();
    if stretches.is_empty() {
        return Ok(());
    }
    for partition in group.empty(stretches).await? {
        reach(member, goal, &partition);
    }
    Ok(())
}
