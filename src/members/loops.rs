//! The loops around the roles: wait for the log, call the role, retry after an error, commit.
//!
//! Invariant: a call is repeated with the same input until it succeeds, its partition stops, or the process ends. All
//! waiting between calls is here; the roles themselves only wait for the answers of log and store.

mod gates;
mod stock;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::http::Gate;
use crate::members::checkpoints::STORE_CHECK_EVERY;
use crate::members::clock::wall_clock;
use crate::members::error::Error;
use crate::members::generate::{self, Generate};
use crate::members::ingest::{Ingest, Tally};
use crate::members::stock::Stock;
use crate::metrics;
use nearshore_core::ports::log::{Batch, Delivery, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::Lane;

pub(crate) use gates::dlq_gate;
pub(crate) use stock::stock_loop;

use gates::{DLQ_OPEN, PARTITIONS_OPEN, VALUES_OPEN, report_checkpoints, report_dlq};

/// How often done offsets are committed.
pub(crate) const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// First delay after an error that may pass; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);

/// Longest delay between two tries. A store that is available again waits at most so long for its next call.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// How long work in hand may take after SIGTERM. Together with [`LAST_COMMIT_MAX`] and the time in which the log leaves
/// its group it stays below the limit of the drain.
const DRAIN_WORK_MAX: Duration = Duration::from_secs(2);

/// How long the last commit may take.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(2);

/// How often a stopped partition is tried again.
const RESUME_EVERY: Duration = Duration::from_secs(5);

/// How often unused states are dropped. A state that is not needed for one to two of these periods leaves the cache.
const DROP_STATES_EVERY: Duration = Duration::from_secs(300);

/// Records per call of the role; more would delay commits and revokes.
const GATHER_MAX: usize = 4_000;

/// Waits until `ready` is true. Returns false if it was cancelled before.
pub(crate) async fn wait_ready(
    ready: &mut watch::Receiver<bool>,
    cancel: &CancellationToken,
) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
    }
}

/// Counts assigned and revoked partitions in the metrics.
pub(crate) fn count_rebalance(delivery: &Delivery) {
    let (change, partitions) = match delivery {
        Delivery::Assigned(partitions) => (metrics::Rebalance::Assigned, partitions),
        Delivery::Revoked { partitions, lost } if *lost => (metrics::Rebalance::Lost, partitions),
        Delivery::Revoked { partitions, .. } => (metrics::Rebalance::Revoked, partitions),
        Delivery::Batch(_) => return,
    };
    metrics::rebalanced(change, partitions.len() as u64);
}

/// Gathers batches that the log has at once, about [`GATHER_MAX`] records, merged into one batch per partition. A
/// delivery of another kind ends the gathering and is returned beside them.
pub(crate) async fn gather<L: Log>(
    log: &mut L,
    first: Delivery,
) -> Result<(Vec<Batch>, Option<Delivery>), Error> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut next = Some(first);
    let mut count = 0;
    loop {
        match next {
            Some(Delivery::Batch(batch)) => {
                count += batch.records.len();
                match batches.iter_mut().find(|b| b.partition == batch.partition) {
                    Some(known) => {
                        known.records.extend(batch.records);
                        known.end = batch.end;
                    }
                    None => batches.push(batch),
                }
            }
            Some(other) => return Ok((batches, Some(other))),
            None => return Ok((batches, None)),
        }
        if count >= GATHER_MAX {
            return Ok((batches, None));
        }
        // Cancel-safe by the trait's contract: nothing is lost when the future is dropped.
        next = futures::FutureExt::now_or_never(log.next()).transpose()?;
    }
}

/// An interval that does not make up for ticks missed during a long call.
fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether a tick is due now. Does not wait.
fn due(ticks: &mut Interval) -> bool {
    ticks.tick().now_or_never().is_some()
}

/// What the loops do with every role.
trait Member: Send {
    fn commit(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    fn check_store(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    fn rewind(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    fn unusable_checkpoints(&self) -> Option<&str>;
}

macro_rules! member {
    ($role:ident<$($of:ident: $bound:path),+>) => {
        impl<$($of: $bound),+> Member for $role<$($of),+> {
            async fn commit(&mut self) -> Result<(), Error> {
                self.commit().await
            }

            async fn check_store(&mut self) -> Result<(), Error> {
                self.check_store().await
            }

            async fn rewind(&mut self) -> Result<(), Error> {
                self.rewind().await
            }

            fn unusable_checkpoints(&self) -> Option<&str> {
                self.unusable_checkpoints()
            }
        }
    };
}

member!(Ingest<L: Log, S: Store>);
member!(Stock<L: Log, S: Store>);
member!(Generate<L: Log, S: Store, A: generate::Scorer>);

/// The delays between tries of one call: [`RETRY_MIN`], then doubled up to [`RETRY_MAX`], without end.
struct Backoff(<ExponentialBuilder as BackoffBuilder>::Backoff);

impl Default for Backoff {
    fn default() -> Self {
        let delays = ExponentialBuilder::new()
            .with_min_delay(RETRY_MIN)
            .with_max_delay(RETRY_MAX)
            .without_max_times();
        Self(delays.build())
    }
}

impl Backoff {
    /// Counts the error and waits for the next try. Returns false if it was cancelled meanwhile.
    async fn wait(&mut self, error: &Error, cancel: &CancellationToken) -> bool {
        count_error(error);
        let delay = self.0.next().unwrap_or(RETRY_MAX);
        error.warn("call failed; it is tried again until it succeeds");
        tokio::select! {
            () = cancel.cancelled() => false,
            () = tokio::time::sleep(delay) => true,
        }
    }
}

/// Rewinds a member whose store lost writes, until that succeeds. The caller drops what it has in hand.
async fn rewind(
    member: &mut impl Member,
    why: &Error,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    count_error(why);
    let mut backoff = Backoff::default();
    while let Err(error) = member.rewind().await {
        anyhow::ensure!(error.retry() || error.rewinds(), error);
        if !backoff.wait(&error, cancel).await {
            break;
        }
    }
    Ok(())
}

/// Runs the turns of a role until they end, or until [`DRAIN_WORK_MAX`] after a cancellation. Work in hand is then
/// dropped as by a crash, and the next owner does it again.
async fn run_until_drained(
    cancel: &CancellationToken,
    turns: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let limit = async {
        cancel.cancelled().await;
        tokio::time::sleep(DRAIN_WORK_MAX).await;
    };
    tokio::select! {
        ended = turns => ended,
        () = limit => {
            tracing::warn!(
                "work in hand was not done within {DRAIN_WORK_MAX:?} of the shutdown; the next owner does it again"
            );
            Ok(())
        }
    }
}

/// Commits once more, for at most [`LAST_COMMIT_MAX`]. The next owner reads again what is not committed then, and skips
/// it, because it is fenced.
async fn last_commit(member: &mut impl Member, cancel: &CancellationToken) -> anyhow::Result<()> {
    let committed = tokio::time::timeout(LAST_COMMIT_MAX, commit(member, cancel)).await;
    committed.unwrap_or_else(|_| {
        tracing::warn!(
            "last commit got no answer within {LAST_COMMIT_MAX:?}; the next owner reads its records again"
        );
        Ok(())
    })
}

/// Commits what is done. A commit that may succeed later is left to the next one; any other failure ends the role.
async fn commit(member: &mut impl Member, cancel: &CancellationToken) -> anyhow::Result<()> {
    match member.commit().await {
        Err(error) if error.rewinds() => rewind(member, &error, cancel).await,
        Err(error) if error.retry() || error.is_of_a_value() => {
            count_error(&error);
            error.warn("commit failed; the next commit includes its offsets");
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// Checks that the store lost no writes, and rewinds if it did. A store that does not answer is only counted here: the
/// next call of the role reports it.
async fn check_store(member: &mut impl Member, cancel: &CancellationToken) -> anyhow::Result<()> {
    match member.check_store().await {
        Err(error) if error.rewinds() => rewind(member, &error, cancel).await,
        Err(error) if error.retry() || error.is_of_a_value() => {
            count_error(&error);
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// Runs an ingest member until it is cancelled, once `ready` says that the catalogue is read.
pub(crate) async fn ingest_loop<L: Log, S: Store>(
    mut member: Ingest<L, S>,
    mut ready: watch::Receiver<bool>,
    (dlq, partitions): (Gate, Gate),
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    partitions.open(PARTITIONS_OPEN);
    // Without the catalogue the rules could not filter a first list.
    if wait_ready(&mut ready, &cancel).await {
        run_until_drained(
            &cancel,
            ingest_turns(&mut member, (&dlq, &partitions), &cancel),
        )
        .await?;
        last_commit(&mut member, &cancel).await?;
    }
    member.into_log().close().await;
    Ok(())
}

async fn ingest_turns<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    (dlq, partitions): (&Gate, &Gate),
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let mut resumes = every(RESUME_EVERY);
    let mut commits = every(COMMIT_EVERY);
    let mut store_checks = every(STORE_CHECK_EVERY);
    let mut drops = every(DROP_STATES_EVERY);
    loop {
        tokio::select! {
            // The cancellation comes first: a batch that was given up for it must not be followed by the next batch of
            // its partition, whose commit would skip it.
            biased;
            () = cancel.cancelled() => return Ok(()),
            _ = commits.tick() => commit(member, cancel).await?,
            _ = store_checks.tick() => check_store(member, cancel).await?,
            _ = drops.tick() => member.drop_unused_states(),
            _ = resumes.tick() => resume(member, cancel).await?,
            delivery = member.log().next() => {
                let (batches, other) = gather(member.log(), delivery?).await?;
                fold_all(member, &batches, dlq, cancel).await?;
                other.iter().for_each(count_rebalance);
                match other {
                    Some(Delivery::Assigned(partitions)) => member.assigned(&partitions),
                    Some(Delivery::Revoked { partitions, lost }) => {
                        if !lost {
                            commit(member, cancel).await?;
                        }
                        member.revoked(&partitions);
                    }
                    Some(Delivery::Batch(_)) | None => {}
                }
            }
        }
        match member.stopped_why() {
            Some(why) => partitions.shut(format!("{why}; next try in {RESUME_EVERY:?}")),
            None => report_checkpoints(member, partitions, PARTITIONS_OPEN),
        }
    }
}

/// Reads stopped partitions again, so that they go on by themselves when their cause is mended. A log that refuses is
/// asked again at the next tick.
async fn resume<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    match member.resume_stopped().await {
        Err(error) if error.rewinds() => rewind(member, &error, cancel).await,
        Err(error) => {
            count_error(&error);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Folds batches and retries while the error may pass. An error that does not pass stops the partition that causes it.
///
/// After a cancellation, a rewind or a stop the tally has only what was folded before it.
pub(crate) async fn fold_all<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    batches: &[Batch],
    dlq: &Gate,
    cancel: &CancellationToken,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    if batches.is_empty() {
        return Ok(tally);
    }
    let mut backoff = Backoff::default();
    loop {
        let start = std::time::Instant::now();
        match member.handle(batches).await {
            Ok(done) => {
                dlq.open(DLQ_OPEN);
                metrics::fold(start.elapsed());
                return Ok(done);
            }
            // The log delivers these batches again, from further back.
            Err(error) if error.rewinds() => {
                rewind(member, &error, cancel).await?;
                return Ok(tally);
            }
            Err(error) if error.retry() => {
                report_dlq(dlq, &error);
                if !backoff.wait(&error, cancel).await {
                    return Ok(tally);
                }
            }
            Err(error) if batches.len() == 1 => {
                count_error(&error);
                member.stop(&batches[0], &error);
                return Ok(tally);
            }
            Err(_) => {
                // One of the partitions has to stop: fold each batch alone to find out which, so that the others
                // continue. A rewind meanwhile ends this: it rewinds all partitions, and to fold the remaining
                // batches would skip what is delivered again before them.
                let rewound = member.rewound();
                for batch in batches {
                    if member.rewound() != rewound {
                        break;
                    }
                    let one = std::slice::from_ref(batch);
                    tally += Box::pin(fold_all(member, one, dlq, cancel)).await?;
                }
                return Ok(tally);
            }
        }
    }
}

/// Counts an error in the metrics of the edge that it is from.
fn count_error(error: &Error) {
    match error {
        Error::Log(error) | Error::Dlq { source: error, .. } => metrics::log_error(error),
        Error::Store(error) => metrics::store_error(error),
        Error::FenceAboveEnd { .. } => {
            metrics::error(metrics::Edge::Log, metrics::Failure::Refused)
        }
        // It is none of the edges; the lag and the log line tell it.
        Error::Map(_) => {}
    }
}

/// Accepts a commit that may succeed later: the next one includes it. Any other failure ends the role.
pub(crate) fn accept_retryable_commit(outcome: Result<(), Error>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if !error.retry() => Err(error.into()),
        Err(error) => {
            count_error(&error);
            error.warn("commit failed; the next commit includes its offsets");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Runs a generate member until it is cancelled.
pub(crate) async fn generate_loop<L: Log, S: Store, A: generate::Scorer>(
    mut member: Generate<L, S, A>,
    (dlq, values): (Gate, Gate),
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    values.open(VALUES_OPEN);
    run_until_drained(
        &cancel,
        generate_turns(&mut member, (&dlq, &values), &cancel),
    )
    .await?;
    last_commit(&mut member, &cancel).await?;
    member.into_log().close().await;
    Ok(())
}

async fn generate_turns<L: Log, S: Store, A: generate::Scorer>(
    member: &mut Generate<L, S, A>,
    (dlq, values): (&Gate, &Gate),
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let mut commits = every(COMMIT_EVERY);
    let mut store_checks = every(STORE_CHECK_EVERY);
    let mut backoff = Backoff::default();
    let mut backpressure = every(generate::BACKPRESSURE_EVERY);
    let mut erase_checks = every(generate::ERASE_CHECK_EVERY);
    loop {
        // Before the select, not in it: after a long turn one of these is always due, and a select that prefers them to a
        // delivery would read nothing as long as there is work.
        if due(&mut commits) {
            commit(member, cancel).await?;
        }
        if due(&mut store_checks) {
            check_store(member, cancel).await?;
        }
        if due(&mut backpressure) {
            // An error is only counted: the next tick asks again.
            drop(
                member
                    .update_backpressure(wall_clock())
                    .await
                    .inspect_err(count_error),
            );
        }
        if due(&mut erase_checks) {
            member.cancel_erased().await;
        }
        let now = wall_clock();
        count_lanes(member, now);
        // Never longer than until the next commit, because queue metrics and lane shares change with time, too.
        let due = member.next_due(now);
        let pause = match member.is_midway() {
            true => Duration::ZERO,
            false => due.map_or(COMMIT_EVERY, |due| due.min(COMMIT_EVERY)),
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            delivery = member.wait() => {
                if let Some(delivery) = delivery? {
                    receive(member, delivery, dlq, cancel).await?;
                    continue;
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
        let turn = tokio::select! {
            // Work in hand is dropped. It is not committed, so the next owner does it.
            () = cancel.cancelled() => return Ok(()),
            turn = member.turn(wall_clock()) => turn,
        };
        match turn {
            Ok(_) => {
                backoff = Backoff::default();
                report_checkpoints(member, values, VALUES_OPEN);
            }
            Err(error) if error.rewinds() => rewind(member, &error, cancel).await?,
            Err(error) if error.retry() || error.is_of_a_value() => {
                if error.is_of_a_value() {
                    values.shut(error.to_string());
                }
                backoff.wait(&error, cancel).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets the queue metrics of all lanes.
fn count_lanes<L: Log, S: Store, A: generate::Scorer>(member: &Generate<L, S, A>, now: Timestamp) {
    for lane in [Lane::Urgent, Lane::Live, Lane::Backfill] {
        let status = member.lanes().status(lane, now);
        let for_model = member.waiting_for_model(lane);
        metrics::model_waiting(lane, for_model);
        let waiting = status.waiting + status.due + for_model;
        let work = member.seconds_per_user().mul_f64(waiting as f64);
        let queue = metrics::Queue {
            waiting,
            oldest: status.oldest,
            work,
        };
        metrics::queue(lane, queue);
    }
}

/// Hands a delivery to the member. A call that may succeed later is retried.
async fn receive<L: Log, S: Store, A: generate::Scorer>(
    member: &mut Generate<L, S, A>,
    delivery: Delivery,
    dlq: &Gate,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    count_rebalance(&delivery);
    match delivery {
        Delivery::Batch(batch) => {
            let mut backoff = Backoff::default();
            while let Err(error) = member.receive(&batch, wall_clock()).await {
                anyhow::ensure!(error.retry(), error);
                report_dlq(dlq, &error);
                if !backoff.wait(&error, cancel).await {
                    return Ok(());
                }
            }
            dlq.open(DLQ_OPEN);
        }
        Delivery::Revoked { partitions, .. } => {
            commit(member, cancel).await?;
            member.revoked(&partitions);
        }
        Delivery::Assigned(partitions) => member.assigned(&partitions),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_never_end() {
        let delays = Backoff::default().0.map(|delay| delay.as_millis());
        assert_eq!(
            delays.take(6).collect::<Vec<_>>(),
            [50, 100, 200, 400, 500, 500]
        );
    }
}
