//! The loops around the roles: wait for the log, call the role, wait and call again after an error, commit.
//!
//! Invariant: a call is made again with the same input until it succeeds, its partition stops, or the
//! process ends. All waiting is here; the roles themselves wait for nobody.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::http::{Gate, Ready};
use crate::members::checkpoints::STORE_CHECK_EVERY;
use crate::members::clock::wall_clock;
use crate::members::error::Error;
use crate::members::generate::{self, Generate};
use crate::members::ingest::{Ingest, Tally};
use crate::members::stock::Stock;
use crate::metrics;
use nearshore_core::ports::log::{self, Batch, Delivery, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::Lane;

/// How often done offsets are committed.
pub(crate) const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// First wait after an error that may pass; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);

/// Longest wait between two tries: what a store that is back has to wait for us.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// What may be finished after SIGTERM. With [`LAST_COMMIT`] and the log's own farewell it stays below the drain's limit.
const IN_HAND: Duration = Duration::from_secs(2);

/// How long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(2);

/// A state that is not needed for one to two of these leaves the memory.
const STATES_AGE: Duration = Duration::from_secs(300);

/// Records folded in one go; more would delay commits and revokes.
const GATHER_MAX: usize = 4_000;

/// False if cancelled before.
pub(crate) async fn wait_ready(
    ready: &mut watch::Receiver<bool>,
    cancel: &CancellationToken,
) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
    }
}

/// Counts partitions that come and go.
pub(crate) fn count_rebalance(delivery: &Delivery) {
    let (change, partitions) = match delivery {
        Delivery::Assigned(partitions) => (metrics::Rebalance::Assigned, partitions),
        Delivery::Revoked { partitions, lost } if *lost => (metrics::Rebalance::Lost, partitions),
        Delivery::Revoked { partitions, .. } => (metrics::Rebalance::Revoked, partitions),
        Delivery::Batch(_) => return,
    };
    metrics::rebalanced(change, partitions.len() as u64);
}

/// Deliveries until the log has nothing at once, or enough is gathered. At most one batch per partition.
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

/// Ticks that a long call swallows are not made up for.
fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether a tick is due: asks and does not wait.
fn due(ticks: &mut Interval) -> bool {
    ticks.tick().now_or_never().is_some()
}

/// What the loops do with any role.
pub(crate) trait Member: Send {
    fn commit(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    fn check_store(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
    fn rewind(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
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
        }
    };
}

member!(Ingest<L: Log, S: Store>);
member!(Stock<L: Log, S: Store>);
member!(Generate<L: Log, S: Store, A: generate::Scorer>);

/// Waits between tries of one thing.
pub(crate) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(RETRY_MIN)
    }
}

impl Patience {
    /// Counts the error and waits; false if cancelled.
    pub(crate) async fn wait(&mut self, error: &Error, cancel: &CancellationToken) -> bool {
        count_error(error);
        tracing::warn!(%error, wait = ?self.0, "will be tried again");
        tokio::select! {
            () = cancel.cancelled() => false,
            () = tokio::time::sleep(self.0) => {
                self.0 = (self.0 * 2).min(RETRY_MAX);
                true
            }
        }
    }
}

/// After a store that lost writes: reads again, until that succeeds. What is in hand is to be dropped.
pub(crate) async fn rewind(
    member: &mut impl Member,
    why: &Error,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    count_error(why);
    let mut patience = Patience::default();
    while let Err(error) = member.rewind().await {
        anyhow::ensure!(error.retry() || error.rewinds(), error);
        if !patience.wait(&error, cancel).await {
            break;
        }
    }
    Ok(())
}

/// Works until the end, or until what was in hand at the end had its time: it is dropped there as by a crash, and the
/// next owner does it again.
async fn in_time(
    cancel: &CancellationToken,
    turns: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let over = async {
        cancel.cancelled().await;
        tokio::time::sleep(IN_HAND).await;
    };
    tokio::select! {
        ended = turns => ended,
        () = over => {
            tracing::warn!("what was in hand is not done after {IN_HAND:?}; the next owner does it again");
            Ok(())
        }
    }
}

/// Whatever is not committed in its time is read again by the next owner, and passed over.
async fn last_commit(member: &mut impl Member, cancel: &CancellationToken) -> anyhow::Result<()> {
    let committed = tokio::time::timeout(LAST_COMMIT, commit(member, cancel)).await;
    committed.unwrap_or_else(|_| {
        tracing::warn!("the last commit had no answer within {LAST_COMMIT:?}");
        Ok(())
    })
}

/// A commit that fails for now is made again with the next; one that fails for good ends the role.
pub(crate) async fn commit(
    member: &mut impl Member,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    match member.commit().await {
        Err(error) if error.rewinds() => rewind(member, &error, cancel).await,
        Err(error) if error.retry() => {
            count_error(&error);
            tracing::warn!(%error, "commit will be tried again");
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// Looks whether the store is the one that it was; one that does not answer is somebody else's alarm.
pub(crate) async fn look(
    member: &mut impl Member,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    match member.check_store().await {
        Err(error) if error.rewinds() => rewind(member, &error, cancel).await,
        Err(error) if error.retry() => {
            count_error(&error);
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}
/// Says on `/readyz` that dead letters wait: the role goes no further until the dlq takes them.
fn say(dlq: &Gate, error: &Error) {
    match error {
        Error::Dlq { .. } => dlq.shut(error.to_string()),
        Error::Log(_) | Error::Store(_) | Error::FenceAboveEnd { .. } => {}
    }
}

/// The gate of the dlq, open until letters wait.
pub(crate) fn dlq_gate(ready: &Ready, name: &'static str) -> Gate {
    let gate = ready.gate(name);
    gate.open(TAKES);
    gate
}

/// What a gate of the dlq says while no letter waits.
const TAKES: &str = "no dead letter waits";

pub(crate) async fn ingest_loop<L: Log, S: Store>(
    mut member: Ingest<L, S>,
    (mut ready, dlq): (watch::Receiver<bool>, Gate),
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    // Without the catalogue a first list could not be judged by the rules.
    if wait_ready(&mut ready, &cancel).await {
        in_time(&cancel, ingest_turns(&mut member, (&dlq, &cancel))).await?;
        last_commit(&mut member, &cancel).await?;
    }
    member.into_log().close().await;
    Ok(())
}

async fn ingest_turns<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    (dlq, cancel): (&Gate, &CancellationToken),
) -> anyhow::Result<()> {
    let mut commits = every(COMMIT_EVERY);
    let mut looks = every(STORE_CHECK_EVERY);
    let mut ages = every(STATES_AGE);
    loop {
        tokio::select! {
            // The end comes first: a batch that was given up for it must not be followed by the next of its partition,
            // whose commit would pass over it.
            biased;
            () = cancel.cancelled() => return Ok(()),
            _ = commits.tick() => commit(member, cancel).await?,
            _ = looks.tick() => look(member, cancel).await?,
            _ = ages.tick() => member.drop_unused_states(),
            delivery = member.log().next() => {
                let (batches, rest) = gather(member.log(), delivery?).await?;
                fold_all(member, &batches, (dlq, cancel)).await?;
                rest.iter().for_each(count_rebalance);
                match rest {
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
    }
}

/// Folds batches, again and again while the cause may pass; a cause that stays stops its partition.
pub(crate) async fn fold_all<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    batches: &[Batch],
    (dlq, cancel): (&Gate, &CancellationToken),
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    if batches.is_empty() {
        return Ok(tally);
    }
    let mut patience = Patience::default();
    loop {
        let start = std::time::Instant::now();
        match member.handle(batches).await {
            Ok(done) => {
                dlq.open(TAKES);
                metrics::fold(start.elapsed());
                return Ok(done);
            }
            // These batches come again, from further back.
            Err(error) if error.rewinds() => {
                rewind(member, &error, cancel).await?;
                return Ok(tally);
            }
            Err(error) if error.retry() => {
                say(dlq, &error);
                if !patience.wait(&error, cancel).await {
                    return Ok(tally);
                }
            }
            Err(error) if batches.len() == 1 => {
                count_error(&error);
                member.stop(&batches[0].partition, &error);
                return Ok(tally);
            }
            Err(_) => {
                // One of them cannot go on; find out which, so that the others do. A rewind on the way takes all of
                // them back: whoever folded the rest would pass over what comes again.
                let rewound = member.rewound();
                for batch in batches {
                    if member.rewound() != rewound {
                        break;
                    }
                    let one = std::slice::from_ref(batch);
                    tally += Box::pin(fold_all(member, one, (dlq, cancel))).await?;
                }
                return Ok(tally);
            }
        }
    }
}

pub(crate) fn count_error(error: &Error) {
    match error {
        Error::Log(error) | Error::Dlq { source: error, .. } => metrics::log_error(error),
        Error::Store(error) => metrics::store_error(error),
        Error::FenceAboveEnd { .. } => {
            metrics::error(metrics::Edge::Log, metrics::Failure::Refused)
        }
    }
}

/// A commit that fails for now is made again with the next; one that fails for good ends the role.
pub(crate) fn commit_softly(outcome: Result<(), Error>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if !error.retry() => Err(error.into()),
        Err(error) => {
            count_error(&error);
            tracing::warn!(%error, "commit will be tried again");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

pub(crate) async fn stock_loop<L: Log, S: Store>(
    mut member: Stock<L, S>,
    dlq: Gate,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    in_time(&cancel, stock_turns(&mut member, (&dlq, &cancel))).await?;
    last_commit(&mut member, &cancel).await?;
    member.into_log().close().await;
    Ok(())
}

async fn stock_turns<L: Log, S: Store>(
    member: &mut Stock<L, S>,
    (dlq, cancel): (&Gate, &CancellationToken),
) -> anyhow::Result<()> {
    let mut commits = every(COMMIT_EVERY);
    let mut looks = every(STORE_CHECK_EVERY);
    loop {
        tokio::select! {
            // As in `ingest_turns`.
            biased;
            () = cancel.cancelled() => return Ok(()),
            _ = commits.tick() => commit(member, cancel).await?,
            _ = looks.tick() => look(member, cancel).await?,
            delivery = member.log().next() => {
                let delivery = delivery?;
                count_rebalance(&delivery);
                let mut patience = Patience::default();
                while let Err(error) = member.handle(&delivery).await {
                    if error.rewinds() {
                        rewind(member, &error, cancel).await?;
                        break;
                    }
                    anyhow::ensure!(error.retry(), error);
                    say(dlq, &error);
                    if !patience.wait(&error, cancel).await {
                        break;
                    }
                }
                dlq.open(TAKES);
            }
        }
    }
}

pub(crate) async fn generate_loop<L: Log, S: Store, A: generate::Scorer>(
    mut member: Generate<L, S, A>,
    dlq: Gate,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    in_time(&cancel, generate_turns(&mut member, (&dlq, &cancel))).await?;
    last_commit(&mut member, &cancel).await?;
    member.into_log().close().await;
    Ok(())
}

async fn generate_turns<L: Log, S: Store, A: generate::Scorer>(
    member: &mut Generate<L, S, A>,
    (dlq, cancel): (&Gate, &CancellationToken),
) -> anyhow::Result<()> {
    let mut commits = every(COMMIT_EVERY);
    let mut looks = every(STORE_CHECK_EVERY);
    let mut patience = Patience::default();
    let mut signals = every(generate::BACKPRESSURE_EVERY);
    let in_flight = member.in_flight();
    loop {
        // Before and not beside what comes: a turn is as slow as the model, so one of these is due after each, and a
        // choice between them and a delivery would read nothing as long as there is work.
        if due(&mut commits) {
            commit(member, cancel).await?;
        }
        if due(&mut looks) {
            look(member, cancel).await?;
        }
        if due(&mut signals) {
            // Asked again in two seconds.
            drop(
                member
                    .update_backpressure(wall_clock())
                    .await
                    .inspect_err(count_error),
            );
        }
        let now = wall_clock();
        count_lanes(member, now);
        // Never longer than to the next commit: stats and shares move with time, too.
        let due = member.lanes().next_due(now);
        let pause = match member.is_midway() {
            true => Duration::ZERO,
            false => due.map_or(COMMIT_EVERY, |due| due.min(COMMIT_EVERY)),
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            delivery = next(member) => {
                take_in(member, delivery?, (dlq, cancel)).await?;
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let turn = tokio::select! {
            // Work in hand is dropped: it is not committed, so the next owner does it.
            () = cancel.cancelled() => return Ok(()),
            turn = member.turn(wall_clock()) => turn,
            () = in_flight.watch() => continue,
        };
        match turn {
            Ok(_) => patience = Patience::default(),
            Err(error) if error.rewinds() => rewind(member, &error, cancel).await?,
            Err(error) if error.retry() => {
                patience.wait(&error, cancel).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next delivery; where the lanes are full, only what comes and goes, for work of others is not to be kept.
async fn next<L: Log, S: Store, A: generate::Scorer>(
    member: &mut Generate<L, S, A>,
) -> Result<Delivery, log::Error> {
    if member.lanes().room() > 0 {
        member.log().next().await
    } else {
        member.log().notice().await
    }
}

pub(crate) fn count_lanes<L: Log, S: Store, A: generate::Scorer>(
    member: &Generate<L, S, A>,
    now: Timestamp,
) {
    for lane in [Lane::Urgent, Lane::Live, Lane::Backfill] {
        let status = member.lanes().status(lane, now);
        let waiting = status.waiting + status.due;
        let work = member.seconds_per_user().mul_f64(waiting as f64);
        let queue = metrics::Queue {
            waiting,
            oldest: status.oldest,
            work,
        };
        metrics::queue(lane, queue);
    }
}

pub(crate) async fn take_in<L: Log, S: Store, A: generate::Scorer>(
    member: &mut Generate<L, S, A>,
    delivery: Delivery,
    (dlq, cancel): (&Gate, &CancellationToken),
) -> anyhow::Result<()> {
    count_rebalance(&delivery);
    match delivery {
        Delivery::Batch(batch) => {
            let mut patience = Patience::default();
            while let Err(error) = member.receive(&batch, wall_clock()).await {
                anyhow::ensure!(error.retry(), error);
                say(dlq, &error);
                if !patience.wait(&error, cancel).await {
                    return Ok(());
                }
            }
            dlq.open(TAKES);
        }
        Delivery::Revoked { partitions, .. } => {
            commit(member, cancel).await?;
            member.revoked(&partitions);
        }
        Delivery::Assigned(partitions) => member.assigned(&partitions),
    }
    Ok(())
}
