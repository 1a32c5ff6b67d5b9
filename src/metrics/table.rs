//! The table: every metric with its kind, unit, labels and meaning. `docs/metrics.md` says the same for
//! people; a test holds one against the other.

use super::labels::*;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; `rate()` it.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets of [`super::SECONDS`].
    Seconds,
    /// Counts in buckets of [`super::SIZES`].
    Sizes,
}

/// Which values a label has.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// These.
    These(&'static [&'static str]),
    /// The configured arms, and `none`.
    Arms,
    /// The configured names of topics that are read.
    Topics,
    /// Known only at run time, e.g. assigned partitions: the series begin when they are.
    Later,
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Exported name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// Labels with their values.
    pub labels: &'static [(&'static str, Values)],
}

macro_rules! table {
    ($($constant:ident: $kind:ident $name:tt [$($label:ident = $values:expr),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                help: $help,
                labels: &[$((stringify!($label), $values)),*],
            };
        )+

        /// All metrics, in the order of the way of one event.
        pub static ALL: &[&Metric] = &[$(&$constant),+];
    };
}

use Values::{Arms, Later, These, Topics};

table! {
    RECORDS: Counter {nearshore_kafka::metrics::RECORDS} [topic = Topics, outcome = These(RecordOutcome::ALL)]
        "Records consumed, by what became of them; the outcomes add up to the offsets passed.";
    EVENTS: Counter "nearshore_events_total" [type = These(EventType::ALL), outcome = These(EventOutcome::ALL)]
        "Records of users folded, by type and outcome.";
    UNKNOWN_SKUS: Counter "nearshore_unknown_skus_total" []
        "Events folded whose SKU is not in the catalogue.";
    FOLD: Seconds "nearshore_fold_seconds" []
        "From a batch in hand until its writes and requests are acknowledged.";
    DLQ: Counter "nearshore_dlq_records_total" [stage = These(Stage::ALL), error = These(nearshore_core::user::event::Reject::ALL_CODES)]
        "Records sent to the dlq, by stage and code.";
    DLQ_WAITING: Gauge "nearshore_dlq_waiting_records" [stage = These(Stage::ALL)]
        "Dead letters that the dlq has not acknowledged yet; their partitions go no further until it does.";
    ERASES: Counter "nearshore_erases_total" []
        "Users erased.";
    STATE_LOADS: Counter "nearshore_state_loads_total" [cache = These(Cache::ALL)]
        "States needed by the fold, by whether they were in memory.";
    STATE_CACHED: Gauge "nearshore_state_cached_users" []
        "Users whose state is in memory.";
    STATE_CONFLICTS: Counter "nearshore_state_conflicts_total" []
        "Writes of states refused because another write came first; they are folded again.";
    REQUESTS: Counter "nearshore_requests_total" [reason = These(ReasonLabel::ALL)]
        "Lists asked for, by reason.";
    COALESCED: Counter "nearshore_requests_coalesced_total" []
        "Requests merged into another of the same user.";
    EXPIRED: Counter "nearshore_requests_expired_total" [lane = These(LaneLabel::ALL)]
        "Requests older than lanes.max_wait, served by the fallback.";
    REQUEUED: Counter "nearshore_requests_requeued_total" [lane = These(LaneLabel::ALL)]
        "Requests written again at the end of their lane because they are due much later.";
    WAITING: Gauge "nearshore_requests_waiting" [lane = These(LaneLabel::ALL)]
        "Requests in memory that wait for the engine.";
    RUNNING: Gauge "nearshore_requests_running" [lane = These(LaneLabel::ALL)]
        "Requests in the batches of the turn that runs.";
    OLDEST: Gauge "nearshore_requests_oldest_age_seconds" [lane = These(LaneLabel::ALL)]
        "Age of the oldest waiting request since it was due; 0 when none waits.";
    QUEUED_WORK: Gauge "nearshore_queued_work_seconds" [lane = These(LaneLabel::ALL)]
        "Engine time that the waiting requests will take, in memory and in Kafka: what to scale on.";
    BATCH: Sizes "nearshore_batch_users" []
        "Users per batch.";
    PROMPT_TOKENS: Counter "nearshore_prompt_tokens_total" [arm = Arms]
        "Tokens of prompts.";
    GENERATED_TOKENS: Counter "nearshore_generated_tokens_total" [arm = Arms]
        "Tokens of names forwarded by the search.";
    PREFIX_QUERIES: Counter "nearshore_prefix_cache_queries_total" []
        "Prompt tokens that could have been shared.";
    PREFIX_HITS: Counter "nearshore_prefix_cache_hits_total" []
        "Prompt tokens that were shared and computed once.";
    PHASE: Seconds "nearshore_generation_phase_seconds" [arm = Arms, phase = These(Phase::ALL)]
        "Time of one phase of a generation, from due to published.";
    BUSY: Seconds "nearshore_engine_busy_seconds" []
        "Time the engine computed, per batch; the rate of its sum is the busy share.";
    REJECTED: Counter "nearshore_names_rejected_total" [reason = These(Rejected::ALL)]
        "Names kept off lists, by reason.";
    PUBLISHED: Counter "nearshore_lists_published_total" [arm = Arms, lane = These(LaneLabel::ALL), source = These(Source::ALL)]
        "Lists published.";
    FIRST_FALLBACKS: Counter "nearshore_first_fallbacks_total" []
        "Fallbacks written by ingest at the first sight of a user.";
    UNCHANGED: Counter "nearshore_lists_unchanged_total" [lane = These(LaneLabel::ALL)]
        "Requests skipped because the list already covers the state.";
    FENCED: Counter "nearshore_lists_fenced_off_total" [reason = These(Fenced::ALL)]
        "Publishes without effect, by the fence that stopped them.";
    EVENT_TO_LIST: Seconds "nearshore_event_to_list_seconds" [lane = These(LaneLabel::ALL), start = These(Start::ALL)]
        "From the record that asked until its list is in Redis.";
    BACKFILL_PAUSED: Gauge "nearshore_backfill_paused" []
        "1 while backfill has no share of the model, because live is behind its objective in some worker.";
    COVERAGE: Gauge "nearshore_coverage_ratio" []
        "Share of recently active users, by sampling, whose list is model-made and covers their state.";
    CATALOGUE_SKUS: Gauge "nearshore_catalogue_skus" []
        "SKUs in the catalogue.";
    CATALOGUE_PUS: Gauge "nearshore_catalogue_pus" []
        "PUs in the catalogue.";
    CATALOGUE_SOLD_OUT: Gauge "nearshore_catalogue_sold_out_skus" []
        "SKUs of the catalogue that are out of stock.";
    STOCK_OPS: Counter "nearshore_stock_ops_total" [move = These(StockMove::ALL)]
        "Stock changes written to the stock sets.";
    STOCK_DELAY: Seconds "nearshore_stock_to_filter_seconds" []
        "From a stock record until the stock sets have it.";
    BLOCKS: Gauge "nearshore_blocks" []
        "Products blocked by a person.";
    LAG: Gauge "nearshore_consumer_lag" [group = Later, topic = Later, partition = Later]
        "Records between the committed offset and the end of a partition.";
    LAG_SECONDS: Gauge "nearshore_consumer_lag_seconds" [group = Later, topic = Later]
        "Age of the oldest uncommitted record; 0 when there is none.";
    REBALANCES: Counter "nearshore_rebalanced_partitions_total" [change = These(Rebalance::ALL)]
        "Partitions that came and went.";
    CALLBACK: Seconds {nearshore_kafka::metrics::CALLBACK} []
        "Time inside a rebalance callback, which the whole group may have to wait for.";
    STOPPED: Gauge "nearshore_partitions_stopped" []
        "Partitions stopped with an alarm: a fence that outlived its log, or a value of a newer version.";
    ROUND_TRIPS: Counter {nearshore_redis::metrics::ROUND_TRIPS} []
        "Round trips to Redis, per primary.";
    REGRESSIONS: Counter "nearshore_store_regressions_total" []
        "Times a reader found that Redis is not the one it was, and read its lost writes again from the log.";
    REWOUND: Counter "nearshore_rewound_records_total" []
        "Records read again because Redis lost writes that it had acknowledged.";
    ERRORS: Counter "nearshore_errors_total" [stage = These(Edge::ALL), error = These(Failure::ALL)]
        "Failures of Kafka, Redis and the engine.";
    BUILD: Gauge "nearshore_build_info" [version = Later]
        "Always 1; the version is a label.";
    MODEL: Gauge "nearshore_model_info" [arm = Later, model_name = Later, revision = Later, dtype = Later, device = Later]
        "Always 1; what each arm's lists are made with.";
}
