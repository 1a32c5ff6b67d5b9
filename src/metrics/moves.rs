//! One function per metric, with typed labels. Call them per batch or per list, not per record: each
//! looks its series up.

use std::time::Duration;

use super::NO_ARM;
use super::labels::*;
use super::table as t;
use nearshore_core::ports::{log, store};
use nearshore_engine as engine;

/// Records of a topic and what became of them.
pub fn records(topic: &str, outcome: RecordOutcome, n: u64) {
    t::RECORDS.add(&[topic, outcome.text()], n);
}

/// Records of users folded.
pub fn events(kind: EventType, outcome: EventOutcome, n: u64) {
    t::EVENTS.add(&[kind.text(), outcome.text()], n);
}

/// Events whose SKU is not in the catalogue.
pub fn unknown_skus(n: u64) {
    t::UNKNOWN_SKUS.add(&[], n);
}

/// A batch was folded and acknowledged.
pub fn fold(took: Duration) {
    t::FOLD.observe(&[], took.as_secs_f64());
}

/// Records sent to the dlq; `code`: that of the reject.
pub fn dlq(stage: Stage, code: &str, n: u64) {
    t::DLQ.add(&[stage.text(), code], n);
}

/// Dead letters of a stage that are not acknowledged yet.
pub fn dlq_waiting(stage: Stage, letters: usize) {
    t::DLQ_WAITING.set(&[stage.text()], letters as f64);
}

/// Users erased.
pub fn erases(n: u64) {
    t::ERASES.add(&[], n);
}

/// States needed by the fold.
pub fn state_loads(cache: Cache, n: u64) {
    t::STATE_LOADS.add(&[cache.text()], n);
}

/// States in memory.
pub fn state_cached(users: usize) {
    t::STATE_CACHED.set(&[], users as f64);
}

/// States that had to be folded again.
pub fn state_conflicts(n: u64) {
    t::STATE_CONFLICTS.add(&[], n);
}

/// Lists asked for.
pub fn requests(reason: impl Into<ReasonLabel>, n: u64) {
    t::REQUESTS.add(&[reason.into().text()], n);
}

/// Requests merged into another.
pub fn coalesced(n: u64) {
    t::COALESCED.add(&[], n);
}

/// Requests beyond `lanes.max_wait`.
pub fn expired(lane: impl Into<LaneLabel>, n: u64) {
    t::EXPIRED.add(&[lane.into().text()], n);
}

/// How a lane stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queue {
    /// Requests that wait in memory.
    pub waiting: usize,
    /// Age of the oldest waiting request since due; zero when none waits.
    pub oldest: Duration,
    /// Engine time that all waiting requests will take.
    pub work: Duration,
}

/// How a lane stands now.
pub fn queue(lane: impl Into<LaneLabel>, queue: Queue) {
    let lane = [lane.into().text()];
    t::WAITING.set(&lane, queue.waiting as f64);
    t::OLDEST.set(&lane, queue.oldest.as_secs_f64());
    t::QUEUED_WORK.set(&lane, queue.work.as_secs_f64());
}

/// Whether backfill has no share, for live is behind its objective somewhere.
pub fn backfill_paused(held: bool) {
    t::BACKFILL_PAUSED.set(&[], f64::from(u8::from(held)));
}

/// Users of a lane in the batch that runs now.
pub fn running(lane: impl Into<LaneLabel>, users: usize) {
    t::RUNNING.set(&[lane.into().text()], users as f64);
}

/// What one batch of an arm cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    /// Users in it.
    pub users: usize,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Of these, computed once for all.
    pub shared_tokens: u64,
    /// Tokens of names forwarded.
    pub forwarded: u64,
    /// Time the engine computed.
    pub busy: Duration,
}

/// A batch is done.
pub fn batch(arm: &str, batch: Batch) {
    t::BATCH.observe(&[], batch.users as f64);
    t::PROMPT_TOKENS.add(&[arm], batch.prompt_tokens);
    t::GENERATED_TOKENS.add(&[arm], batch.forwarded);
    t::PREFIX_QUERIES.add(&[], batch.prompt_tokens);
    t::PREFIX_HITS.add(&[], batch.shared_tokens);
    t::BUSY.observe(&[], batch.busy.as_secs_f64());
}

/// One phase of a generation.
pub fn phase(arm: &str, phase: Phase, took: Duration) {
    t::PHASE.observe(&[arm, phase.text()], took.as_secs_f64());
}

/// Names kept off lists.
pub fn rejected(reason: impl Into<Rejected>, n: u64) {
    t::REJECTED.add(&[reason.into().text()], n);
}

/// A list was published; `arm` is none for a fallback that no arm made.
pub fn published(arm: Option<&str>, lane: impl Into<LaneLabel>, source: impl Into<Source>) {
    let arm = arm.unwrap_or(NO_ARM);
    t::PUBLISHED.add(&[arm, lane.into().text(), source.into().text()], 1);
}

/// Fallbacks written at the first sight of a user.
pub fn first_fallbacks(n: u64) {
    t::FIRST_FALLBACKS.add(&[], n);
}

/// A request was skipped: the list covers the state.
pub fn unchanged(lane: impl Into<LaneLabel>) {
    t::UNCHANGED.add(&[lane.into().text()], 1);
}

/// A publish came back; counts it if a fence stopped it.
pub fn fenced_off(published: store::Published) {
    use store::Published;
    let reason = match published {
        Published::Stored => return,
        Published::Older => Fenced::Older,
        Published::Erased => Fenced::Erased,
        Published::NoState => Fenced::NoState,
        Published::Epoch => Fenced::Epoch,
        Published::Kept => Fenced::Kept,
    };
    t::FENCED.add(&[reason.text()], 1);
}

/// From the record that asked until its list is in Redis.
pub fn event_to_list(lane: impl Into<LaneLabel>, start: Start, took: Duration) {
    let labels = [lane.into().text(), start.text()];
    t::EVENT_TO_LIST.observe(&labels, took.as_secs_f64());
}

/// Share of recently active users with a model-made list that covers their state; `of` 0 leaves it.
pub fn coverage(covered: u64, of: u64) {
    if of > 0 {
        t::COVERAGE.set(&[], covered as f64 / of as f64);
    }
}

/// Size of the catalogue.
pub fn catalogue(skus: usize, pus: usize, sold_out: usize) {
    t::CATALOGUE_SKUS.set(&[], skus as f64);
    t::CATALOGUE_PUS.set(&[], pus as f64);
    t::CATALOGUE_SOLD_OUT.set(&[], sold_out as f64);
}

/// Stock changes written.
pub fn stock(change: StockMove, n: u64) {
    t::STOCK_OPS.add(&[change.text()], n);
}

/// From a stock record until the stock sets have it.
pub fn stock_to_filter(took: Duration) {
    t::STOCK_DELAY.observe(&[], took.as_secs_f64());
}

/// Products blocked by a person.
pub fn blocks(n: usize) {
    t::BLOCKS.set(&[], n as f64);
}

/// Records between the committed offset and the end of a partition.
pub fn lag(group: &str, partition: &nearshore_core::user::record::Partition, records: u64) {
    let number = partition.number.to_string();
    t::LAG.set(&[group, &partition.topic, &number], records as f64);
}

/// Age of the oldest uncommitted record of a topic; zero when there is none.
pub fn lag_seconds(group: &str, topic: &str, age: Duration) {
    t::LAG_SECONDS.set(&[group, topic], age.as_secs_f64());
}

/// Partitions came or went.
pub fn rebalanced(change: Rebalance, partitions: u64) {
    t::REBALANCES.add(&[change.text()], partitions);
}

/// Time inside a rebalance callback.
pub fn callback(took: Duration) {
    t::CALLBACK.observe(&[], took.as_secs_f64());
}

/// A request went back to the end of its lane.
pub fn requeue(lane: impl Into<LaneLabel>) {
    t::REQUEUED.add(&[lane.into().text()], 1);
}

/// Partitions stopped with an alarm.
pub fn stopped(partitions: usize) {
    t::STOPPED.set(&[], partitions as f64);
}

/// Round trips to Redis.
pub fn round_trips(n: u64) {
    t::ROUND_TRIPS.add(&[], n);
}

/// Redis lost acknowledged writes, or may have; so many records are read again.
pub fn rewound(records: u64) {
    t::REGRESSIONS.add(&[], 1);
    t::REWOUND.add(&[], records);
}

/// An edge failed.
pub fn error(edge: Edge, failure: Failure) {
    t::ERRORS.add(&[edge.text(), failure.text()], 1);
}

/// Kafka failed.
pub fn log_error(error: &log::Error) {
    let failure = match error {
        log::Error::Timeout { .. } => Failure::Timeout,
        log::Error::NotAssigned { .. } => Failure::NotAssigned,
        log::Error::Refused { .. } | log::Error::Unfit { .. } => Failure::Refused,
        log::Error::Stopped(_) => Failure::Stopped,
    };
    self::error(Edge::Log, failure);
}

/// Redis failed.
pub fn store_error(error: &store::Error) {
    let failure = match error {
        store::Error::Timeout { .. } => Failure::Timeout,
        store::Error::Unavailable { .. } => Failure::Unavailable,
        store::Error::Corrupt { .. } => Failure::Corrupt,
        store::Error::NotReplicated { .. } => Failure::NotReplicated,
        store::Error::Regressed { .. } => Failure::Regressed,
        store::Error::Refused { .. } => Failure::Refused,
    };
    self::error(Edge::Store, failure);
}

/// The engine failed.
pub fn engine_error(error: &engine::Error) {
    let failure = match error {
        engine::Error::Load { .. } => Failure::Load,
        engine::Error::TooLong { .. } => Failure::TooLong,
        engine::Error::Compute { .. } => Failure::Compute,
        engine::Error::Stopped => Failure::Stopped,
    };
    self::error(Edge::Engine, failure);
}

/// What an arm's lists are made with.
pub fn model(arm: &str, info: &engine::Info) {
    let labels = [arm, &info.name, &info.revision, &info.dtype, &info.device];
    t::MODEL.set(&labels, 1.0);
}

/// What is running.
pub(super) fn build() {
    t::BUILD.set(&[env!("CARGO_PKG_VERSION")], 1.0);
}
