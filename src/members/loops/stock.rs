//! The loop around the stock role.
//!
//! Invariant: that of [`super`]. A sold-out set that cannot be used is waited for, because a set without its SKUs would
//! show what is sold out.

use tokio_util::sync::CancellationToken;

use super::gates::{DLQ_OPEN, report_checkpoints, report_dlq};
use super::{
    Backoff, COMMIT_EVERY, check_store, commit, count_rebalance, every, last_commit, rewind,
    run_until_drained,
};
use crate::http::Gate;
use crate::members::checkpoints::STORE_CHECK_EVERY;
use crate::members::stock::Stock;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;

/// What the gate of the sold-out sets says while it is open.
const SETS_OPEN: &str = "the sold-out sets can be written";

/// Runs a stock member until it is cancelled.
pub(crate) async fn stock_loop<L: Log, S: Store>(
    mut member: Stock<L, S>,
    (dlq, sets): (Gate, Gate),
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    sets.open(SETS_OPEN);
    run_until_drained(&cancel, stock_turns(&mut member, (&dlq, &sets), &cancel)).await?;
    last_commit(&mut member, &cancel).await?;
    member.into_log().close().await;
    Ok(())
}

async fn stock_turns<L: Log, S: Store>(
    member: &mut Stock<L, S>,
    (dlq, sets): (&Gate, &Gate),
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let mut commits = every(COMMIT_EVERY);
    let mut store_checks = every(STORE_CHECK_EVERY);
    loop {
        tokio::select! {
            // Cancellation first, as in `ingest_turns`.
            biased;
            () = cancel.cancelled() => return Ok(()),
            _ = commits.tick() => commit(member, cancel).await?,
            _ = store_checks.tick() => check_store(member, cancel).await?,
            delivery = member.log().next() => {
                let delivery = delivery?;
                count_rebalance(&delivery);
                let mut backoff = Backoff::default();
                while let Err(error) = member.handle(&delivery).await {
                    if error.rewinds() {
                        rewind(member, &error, cancel).await?;
                        break;
                    }
                    anyhow::ensure!(error.retry() || error.is_of_a_value(), error);
                    report_dlq(dlq, &error);
                    if error.is_of_a_value() {
                        sets.shut(error.to_string());
                    }
                    if !backoff.wait(&error, cancel).await {
                        break;
                    }
                }
                dlq.open(DLQ_OPEN);
            }
        }
        report_checkpoints(member, sets, SETS_OPEN);
    }
}
