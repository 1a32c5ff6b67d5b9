//! Updates each metric through one function with typed labels.
//!
//! Invariant: a label value is an enum variant or configured. Call the functions per batch or per list, not per record,
//! because each call looks up its series.

use std::time::Duration;

use super::NO_ARM;
use super::labels::*;
use super::process::Usage;
use super::table as t;
use nearshore_core::list::document::{Source, Why};
use nearshore_core::list::hits::Earned;
use nearshore_core::list::meant::TextCounts;
use nearshore_core::names::written::Written;
use nearshore_core::ports::{log, store};
use nearshore_core::shop::rules::UnmatchedKind;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::{Lane, Reason};
use nearshore_engine as engine;

/// Counts records of a topic by outcome.
pub fn records(topic: &str, outcome: RecordOutcome, n: u64) {
    t::RECORDS.add(&[topic, outcome.into()], n);
}

/// Counts records of users by type and by what the fold did with them.
pub fn events(kind: EventType, outcome: EventOutcome, n: u64) {
    t::EVENTS.add(&[kind.text(), outcome.into()], n);
}

/// Counts folded events whose SKU is not in the catalogue.
pub fn unknown_skus(n: u64) {
    t::UNKNOWN_SKUS.add(&[], n);
}

/// Observes the time of a fold whose writes and requests are acknowledged.
pub fn fold(took: Duration) {
    t::FOLD.observe(&[], took.as_secs_f64());
}

/// Counts records written to the dlq; `code` is the reject's code.
pub fn dlq(stage: Stage, code: &str, n: u64) {
    t::DLQ.add(&[stage.into(), code], n);
}

/// Sets how many dead letters of a stage are not acknowledged yet.
pub fn dlq_waiting(stage: Stage, records: usize) {
    t::DLQ_WAITING.set(&[stage.into()], records as f64);
}

/// Counts erased users.
pub fn erases(n: u64) {
    t::ERASES.add(&[], n);
}

/// Counts states that a fold needed, by whether they were cached.
pub fn state_loads(cache: Cache, n: u64) {
    t::STATE_LOADS.add(&[cache.into()], n);
}

/// Sets how many states are cached.
pub fn state_cached(users: usize) {
    t::STATE_CACHED.set(&[], users as f64);
}

/// Counts state writes that were refused and are folded again.
pub fn state_conflicts(n: u64) {
    t::STATE_CONFLICTS.add(&[], n);
}

/// Counts requests for lists by reason.
pub fn requests(reason: Reason, n: u64) {
    t::REQUESTS.add(&[reason.into()], n);
}

/// Counts requests that were merged into a waiting one.
pub fn coalesced(n: u64) {
    t::COALESCED.add(&[], n);
}

/// Sets whether an arm's artefact fits the served catalogue.
pub fn artefact_bound(arm: &str, bound: bool) {
    t::ARTEFACT.set(&[arm], f64::from(u8::from(bound)));
}

/// Sets until when the log was read that an arm's artefact learned from.
pub fn artefact_until(arm: &str, until: Timestamp) {
    t::ARTEFACT_UNTIL.set(&[arm], until.0 as f64 / 1_000.0);
}

/// Counts a renewed artefact that was refused.
pub fn artefact_refused(arm: &str) {
    t::ARTEFACTS_REFUSED.add(&[arm], 1);
}

/// Sets whether the artefact that an arm names is refused now.
pub fn artefact_is_refused(arm: &str, refused: bool) {
    t::ARTEFACT_REFUSED.set(&[arm], f64::from(u8::from(refused)));
}

/// Sets how many names of the catalogue have no vector in an arm.
pub fn names_without_vector(arm: &str, names: usize) {
    t::NAMES_WITHOUT_VECTOR.set(&[arm], names as f64);
}

/// Sets how many names of the catalogue are not in the table of an arm's artefact.
pub fn names_without_table(arm: &str, names: usize) {
    t::NAMES_WITHOUT_TABLE.set(&[arm], names as f64);
}

/// Counts texts of a user that have no vector.
pub fn texts_without_vector(arm: &str, texts: usize) {
    t::TEXTS_WITHOUT_VECTOR.add(&[arm], texts as u64);
}

/// Sets how many members of another installation are in the groups of this one.
pub fn foreign_members(n: usize) {
    t::FOREIGN_MEMBERS.set(&[], n as f64);
}

/// Counts requests of a namespace that this Redis does not have.
pub fn unknown_namespace(n: usize) {
    t::UNKNOWN_NAMESPACE.add(&[], n as u64);
}

/// Counts a list that was empty and is not stored.
pub fn empty_list(is_empty: bool) {
    t::EMPTY_LISTS.add(&[], u64::from(is_empty));
}

/// Counts a request that ended without the model's list.
pub fn model_refused(lane: Lane, why: Refused) {
    t::MODEL_REFUSED.add(&[lane.into(), why.into()], 1);
}

/// Sets how many users of a lane wait for the model.
pub fn model_waiting(lane: Lane, users: usize) {
    t::MODEL_WAITING.set(&[lane.into()], users as f64);
}

/// The load of one lane at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queue {
    /// Requests in memory that are in no batch yet.
    pub waiting: usize,
    /// Time since the oldest request became due; zero if none is due.
    pub oldest: Duration,
    /// Model time that these requests will take.
    pub work: Duration,
}

/// Sets the gauges of a lane's load.
pub fn queue(lane: Lane, queue: Queue) {
    let lane = [lane.into()];
    t::WAITING.set(&lane, queue.waiting as f64);
    t::OLDEST.set(&lane, queue.oldest.as_secs_f64());
    t::QUEUED_WORK.set(&lane, queue.work.as_secs_f64());
}

/// Sets whether the backfill lane has no share of the model.
pub fn backfill_paused(paused: bool) {
    t::BACKFILL_PAUSED.set(&[], f64::from(u8::from(paused)));
}

/// Sets how many users of a lane are in the batches that are being served.
pub fn running(lane: Lane, users: usize) {
    t::RUNNING.set(&[lane.into()], users as f64);
}

/// What one batch of an arm cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    /// Users in the batch.
    pub users: usize,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the prefix cache.
    pub shared_tokens: u64,
    /// Tokens of names that the search forwarded.
    pub forwarded: u64,
    /// Time that the engine computed.
    pub busy: Duration,
}

/// Counts a finished batch of an arm: users, tokens and engine time.
pub fn batch(arm: &str, batch: Batch) {
    t::BATCH.observe(&[], batch.users as f64);
    t::PROMPT_TOKENS.add(&[arm], batch.prompt_tokens);
    t::GENERATED_TOKENS.add(&[arm], batch.forwarded);
    t::PREFIX_QUERIES.add(&[], batch.prompt_tokens);
    t::PREFIX_HITS.add(&[], batch.shared_tokens);
    t::BUSY.observe(&[], batch.busy.as_secs_f64());
}

/// Observes the time of one phase of making a list.
pub fn phase(arm: &str, phase: Phase, took: Duration) {
    t::PHASE.observe(&[arm, phase.into()], took.as_secs_f64());
}

/// Counts names that were kept off lists, by reason.
pub fn rejected(reason: Why, n: u64) {
    t::REJECTED.add(&[reason.into()], n);
}

/// Counts the clauses of a user's texts that were read for a list.
pub fn texts_read(counts: TextCounts) {
    let TextCounts {
        matched,
        unmatched,
        negated,
    } = counts;
    for (result, n) in [
        (TextResult::Matched, matched),
        (TextResult::Unmatched, unmatched),
        (TextResult::Negated, negated),
    ] {
        t::TEXTS_READ.add(&[result.into()], n as u64);
    }
}

/// Sets whether the matcher of texts is of the served catalogue.
pub fn text_matcher_bound(bound: bool) {
    t::TEXT_MATCHER_BOUND.set(&[], f64::from(u8::from(bound)));
}

/// Sets how many texts' readings are kept for all users, and for one.
pub fn text_readings((all, one): (usize, usize)) {
    t::TEXT_READINGS.set(&[TextsKept::All.into()], all as f64);
    t::TEXT_READINGS.set(&[TextsKept::One.into()], one as f64);
}

/// Counts what became of the entries that a model elsewhere wrote.
pub fn written(arm: &str, written: &Written) {
    t::WRITTEN.add(&[arm], written.accepted.len() as u64);
    for (reason, n) in written.reasons() {
        t::WRITTEN_REJECTED.add(&[arm, reason.into()], n as u64);
    }
}

/// Sets whether the last answer of the server of an arm's model failed.
pub fn endpoint_failing(arm: &str, failing: bool) {
    t::ENDPOINT_FAILING.set(&[arm], f64::from(u8::from(failing)));
}

/// Counts a list that was prepared while a value of the profile could not be compared by the rule.
pub fn rule_unknown(rule: &str) {
    t::RULES_UNKNOWN.add(&[rule], 1);
}

/// Counts a published list; `arm` is `None` for a fallback that no arm made.
pub fn published(arm: Option<&str>, lane: Lane, source: Source) {
    let arm = arm.unwrap_or(NO_ARM);
    t::PUBLISHED.add(&[arm, lane.into(), source.into()], 1);
}

/// Counts what lists of one kind earned; `arm` is empty for a fallback that no arm made.
pub fn list_earned(arm: &str, source: Source, earned: &Earned) {
    let arm = if arm.is_empty() { NO_ARM } else { arm };
    let labels = [arm, source.into()];
    t::LIST_PURCHASES.add(&labels, earned.purchases);
    t::LIST_HITS.add(&labels, earned.hits);
    t::LIST_FALLBACK_HITS.add(&labels, earned.fallback_hits);
}

/// Counts a request that was skipped because the stored list has seen the whole state.
pub fn unchanged(lane: Lane) {
    t::UNCHANGED.add(&[lane.into()], 1);
}

/// Counts a publish that a fence refused; a stored one is not counted here.
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
    t::FENCED.add(&[reason.into()], 1);
}

/// Observes the time from the record that caused a request until its list is in Redis.
pub fn event_to_list(lane: Lane, start: Start, took: Duration) {
    let labels = [lane.into(), start.into()];
    t::EVENT_TO_LIST.observe(&labels, took.as_secs_f64());
}

/// Counts a page of users by whether their list has seen their whole state, and sets the share; `of` 0 changes nothing.
pub fn coverage(covered: u64, of: u64) {
    if of > 0 {
        t::COVERAGE.set(&[], covered as f64 / of as f64);
        t::COVERAGE_USERS.add(&[Covered::Covered.into()], covered);
        t::COVERAGE_USERS.add(&[Covered::Uncovered.into()], of.saturating_sub(covered));
    }
}

/// Sets the size of the serving catalogue.
pub fn catalogue(skus: usize, pus: usize, sold_out: usize) {
    t::CATALOGUE_SKUS.set(&[], skus as f64);
    t::CATALOGUE_PUS.set(&[], pus as f64);
    t::CATALOGUE_SOLD_OUT.set(&[], sold_out as f64);
}

/// Sets how many products cannot be told apart from another one by name and category.
pub fn repeated_pus(n: usize) {
    t::REPEATED_PUS.set(&[], n as f64);
}

/// Sets how many rules, needs, blocks, boosts or pins match nothing in the catalogue, in whole or in part, or how many
/// fields no profile has.
pub fn unmatched(kind: UnmatchedKind, n: usize) {
    t::UNMATCHED.set(&[kind.into()], n as f64);
}

/// Counts stock changes written to the stock sets.
pub fn stock(change: StockChange, n: u64) {
    t::STOCK_OPS.add(&[change.into()], n);
}

/// Observes the time from a stock record until the stock sets have it.
pub fn stock_to_filter(took: Duration) {
    t::STOCK_DELAY.observe(&[], took.as_secs_f64());
}

/// Sets how many SKUs and PUs are blocked.
pub fn blocks(n: usize) {
    t::BLOCKS.set(&[], n as f64);
}

/// Sets how many records are between the committed offset and the end of a partition.
pub fn lag(group: &str, partition: &nearshore_core::user::record::Partition, records: u64) {
    let number = partition.number.to_string();
    t::LAG.set(&[group, &partition.topic, &number], records as f64);
}

/// Sets the age of the oldest uncommitted record of a topic; zero if there is none.
pub fn lag_seconds(group: &str, topic: &str, age: Duration) {
    t::LAG_SECONDS.set(&[group, topic], age.as_secs_f64());
}

/// Sets after how long the broker deletes a topic's records; `None` if it keeps them.
pub fn retention(topic: &str, kept: Option<Duration>) {
    let seconds = kept.map_or(f64::INFINITY, |kept| kept.as_secs_f64());
    t::RETENTION.set(&[topic], seconds);
}

/// Sets what this process uses of the machine; what is unknown stays as it is.
pub fn usage(usage: &Usage) {
    let gauges = [
        (&t::RESIDENT, usage.resident),
        (&t::MEMORY_LIMIT, usage.memory_limit),
        (&t::OPEN_FDS, usage.open_fds),
        (&t::MAX_FDS, usage.max_fds),
    ];
    for (gauge, value) in gauges {
        if let Some(value) = value {
            gauge.set(&[], value as f64);
        }
    }
}

/// Counts partitions that a rebalance assigned or took away.
pub fn rebalanced(change: Rebalance, partitions: u64) {
    t::REBALANCES.add(&[change.into()], partitions);
}

/// Observes the time inside a rebalance callback.
pub fn callback(took: Duration) {
    t::CALLBACK.observe(&[], took.as_secs_f64());
}

/// Counts a request that was written to the end of its lane.
pub fn requeue(lane: Lane) {
    t::REQUEUED.add(&[lane.into()], 1);
}

/// Sets how many partitions are stopped by a permanent error.
pub fn stopped(partitions: usize) {
    t::STOPPED.set(&[], partitions as f64);
}

/// Counts round trips to Redis.
pub fn round_trips(n: u64) {
    t::ROUND_TRIPS.add(&[], n);
}

/// Counts a failover or restart of Redis, and the records that are read again because of it.
pub fn rewound(records: u64) {
    t::REGRESSIONS.add(&[], 1);
    t::REWOUND.add(&[], records);
}

/// Counts a failure of an outside service or the engine.
pub fn error(edge: Edge, failure: Failure) {
    t::ERRORS.add(&[edge.into(), failure.into()], 1);
}

/// Counts a failure of Kafka.
pub fn log_error(error: &log::Error) {
    let failure = match error {
        log::Error::Timeout { .. } | log::Error::Unreachable(_) => Failure::Timeout,
        log::Error::NotAssigned { .. } => Failure::NotAssigned,
        log::Error::Refused { .. } | log::Error::Unfit { .. } => Failure::Refused,
        log::Error::Stopped(_) => Failure::Stopped,
    };
    self::error(Edge::Log, failure);
}

/// Counts a failure of Redis.
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

/// Counts a failure of the engine.
pub fn engine_error(error: &engine::Error) {
    let failure = match error {
        engine::Error::Load { .. } => Failure::Load,
        engine::Error::TooLong { .. } => Failure::TooLong,
        engine::Error::Compute { .. } => Failure::Compute,
        engine::Error::Stopped => Failure::Stopped,
    };
    self::error(Edge::Engine, failure);
}

/// Counts a question that a server with a model did not answer.
pub fn remote_error(error: &nearshore_remote::Error) {
    use nearshore_remote::Failure as Remote;
    let failure = match error.failure() {
        Remote::Setting => Failure::Load,
        Remote::Open => Failure::LeftAlone,
        Remote::Connect | Remote::Server => Failure::Unavailable,
        Remote::Timeout => Failure::Timeout,
        Remote::Busy => Failure::Busy,
        Remote::Unknown => Failure::Unknown,
        Remote::Refused => Failure::Refused,
        Remote::Answer => Failure::Answer,
    };
    self::error(Edge::Remote, failure);
}

/// Sets the series that says which model an arm's lists are made with.
pub fn model(arm: &str, info: &engine::Info) {
    let labels = [arm, &info.name, &info.revision, &info.dtype, &info.device];
    t::MODEL.set(&labels, 1.0);
}

/// Sets the series that says which version is running.
pub(super) fn build() {
    t::BUILD.set(&[env!("CARGO_PKG_VERSION")], 1.0);
}
