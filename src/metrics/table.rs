//! Declares every metric: name, kind, labels and help.
//!
//! Invariant: `docs/metrics.md` has the same rows; a test compares them.

use nearshore_core::list::document::{Source, Why};
use nearshore_core::names::written::Reject as WrittenReject;
use nearshore_core::shop::rules::UnmatchedKind;
use nearshore_core::user::event::Reject;
use nearshore_core::user::trigger::{Lane, Reason};
use strum::VariantNames;

use super::labels::*;

/// The kind of a metric; it decides how it is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A counter: it only rises, and is read with `rate()`.
    Counter,
    /// A gauge: it rises and falls.
    Gauge,
    /// A histogram with the buckets [`super::SECONDS`].
    Seconds,
    /// A histogram with the buckets [`super::SIZES`].
    Sizes,
}

/// The values that a label can have.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// A closed set of values.
    These(&'static [&'static str]),
    /// Ids of the configured arms, and `none`.
    Arms,
    /// Configured names of the topics that are read.
    Topics,
    /// Ids of the configured rules.
    Rules,
    /// Values known only at run time, such as assigned partitions; their series do not start at zero.
    Later,
}

/// A metric as it is declared.
#[derive(Debug)]
pub struct Metric {
    /// Exported name.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Help: what is counted, in which unit, by which process.
    pub help: &'static str,
    /// Labels, each with its values.
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

        /// All metrics, in the order in which an event passes them.
        pub static ALL: &[&Metric] = &[$(&$constant),+];
    };
}

use Values::{Arms, Later, Rules, These, Topics};

table! {
    RECORDS: Counter {nearshore_kafka::metrics::RECORDS} [topic = Topics, outcome = These(RecordOutcome::VARIANTS)]
        "Records consumed, by topic and outcome; the outcomes of a topic add up to the offsets passed.";
    EVENTS: Counter "nearshore_events_total" [type = These(EventType::ALL), outcome = These(EventOutcome::VARIANTS)]
        "Records of users processed by the fold, by type and outcome.";
    UNKNOWN_SKUS: Counter "nearshore_unknown_skus_total" []
        "Folded events whose SKU is not in the catalogue.";
    FOLD: Seconds "nearshore_fold_seconds" []
        "Seconds from the start of a fold until its Redis writes and its requests are acknowledged; failed tries are not observed.";
    DLQ: Counter "nearshore_dlq_records_total" [stage = These(Stage::VARIANTS), error = These(Reject::ALL_CODES)]
        "Records written to the dlq and acknowledged by Kafka, by stage and error code.";
    DLQ_WAITING: Gauge "nearshore_dlq_waiting_records" [stage = These(Stage::VARIANTS)]
        "Dead letters that Kafka has not acknowledged yet; their partitions go no further until it does.";
    ERASES: Counter "nearshore_erases_total" []
        "Users erased by ingest.";
    STATE_LOADS: Counter "nearshore_state_loads_total" [cache = These(Cache::VARIANTS)]
        "User states that ingest needed for a fold, by whether they were cached in memory.";
    STATE_CACHED: Gauge "nearshore_state_cached_users" []
        "User states cached in the memory of this ingest process.";
    STATE_CONFLICTS: Counter "nearshore_state_conflicts_total" []
        "State writes that Redis refused because another write came first; ingest loads the state and folds again.";
    REQUESTS: Counter "nearshore_requests_total" [reason = These(Reason::VARIANTS)]
        "Lists requested by ingest, by reason.";
    COALESCED: Counter "nearshore_requests_coalesced_total" []
        "Requests that generate merged into a waiting request of the same user.";
    MODEL_REFUSED: Counter "nearshore_model_refused_total" [lane = These(Lane::VARIANTS), reason = These(Refused::VARIANTS)]
        "Requests whose list without the model was published and that ended without the model's list, by reason.";
    MODEL_WAITING: Gauge "nearshore_model_waiting_users" [lane = These(Lane::VARIANTS)]
        "Users in the memory of this generate process whose list without the model is published and who wait for the model.";
    REQUEUED: Counter "nearshore_requests_requeued_total" [lane = These(Lane::VARIANTS)]
        "Requests that generate wrote to the end of their lane because they are due much later.";
    WAITING: Gauge "nearshore_requests_waiting" [lane = These(Lane::VARIANTS)]
        "Requests held in the memory of this generate process, due or not, that are in no batch yet.";
    RUNNING: Gauge "nearshore_requests_running" [lane = These(Lane::VARIANTS)]
        "Requests in the batches that this generate process is serving.";
    OLDEST: Gauge "nearshore_requests_oldest_age_seconds" [lane = These(Lane::VARIANTS)]
        "Seconds since the oldest request in memory became due; 0 if none is due.";
    QUEUED_WORK: Gauge "nearshore_queued_work_seconds" [lane = These(Lane::VARIANTS)]
        "Seconds of model time that the requests in memory will take: their number times the measured cost per user.";
    BATCH: Sizes "nearshore_batch_users" []
        "Users per batch of the model.";
    PROMPT_TOKENS: Counter "nearshore_prompt_tokens_total" [arm = Arms]
        "Tokens of the prompts that the model was given.";
    GENERATED_TOKENS: Counter "nearshore_generated_tokens_total" [arm = Arms]
        "Tokens of product names that the search forwarded through the model.";
    PREFIX_QUERIES: Counter "nearshore_prefix_cache_queries_total" []
        "Prompt tokens that the engine looked up in its prefix cache.";
    PREFIX_HITS: Counter "nearshore_prefix_cache_hits_total" []
        "Prompt tokens that the engine took from its prefix cache instead of computing them.";
    PHASE: Seconds "nearshore_generation_phase_seconds" [arm = Arms, phase = These(Phase::VARIANTS)]
        "Seconds of one phase of making a list, from due to published, by arm and phase.";
    BUSY: Seconds "nearshore_engine_busy_seconds" []
        "Seconds that the engine computed, observed once per batch; the rate of the sum is the busy share.";
    REJECTED: Counter "nearshore_names_rejected_total" [reason = These(Why::VARIANTS)]
        "Names that the model gave and generate kept off a list, by reason.";
    TEXTS_READ: Counter "nearshore_texts_read_total" [result = These(TextResult::VARIANTS)]
        "Clauses of searches and free texts that generate read for lists, by what became of them: matched with a product or need term, unmatched, or negated.";
    TEXT_MATCHER_BOUND: Gauge "nearshore_text_matcher_bound" []
        "Whether the matcher of [text] is of the served catalogue (1); at 0 generate reads no text.";
    TEXT_READINGS: Gauge "nearshore_text_readings" [kept = These(TextsKept::VARIANTS)]
        "Texts whose reading this generate process keeps: for all users, because enough users typed them, or for one.";
    WRITTEN: Counter "nearshore_written_names_total" [arm = Arms]
        "Entries that a model wrote and generate matched with a product that may be offered.";
    WRITTEN_REJECTED: Counter "nearshore_written_rejected_total" [arm = Arms, reason = These(WrittenReject::VARIANTS)]
        "Entries that a model wrote and that are no names of the list, by reason.";
    ENDPOINT_FAILING: Gauge "nearshore_endpoint_failing" [arm = Arms]
        "1 while the last answer of the server that has the arm's model failed, else 0; lists without the model go on.";
    RULES_UNKNOWN: Counter "nearshore_rules_unknown_total" [rule = Rules]
        "Lists that generate prepared for users whose profile has a value that the rule cannot compare, by rule.";
    ARTEFACT: Gauge "nearshore_artefact_bound" [arm = Arms]
        "1 if the arm's artefact fits the served catalogue; 0 if it was refused and the arm ranks by demand alone.";
    ARTEFACT_UNTIL: Gauge "nearshore_artefact_until_timestamp_seconds" [arm = Arms]
        "Time up to which the log was read that the arm's artefact learned from, in seconds since 1970; processes that differ rank by different artefacts.";
    ARTEFACTS_REFUSED: Counter "nearshore_artefacts_refused_total" [arm = Arms]
        "Renewed artefacts of the arm that were refused, because they are damaged, of another catalogue, or need what the process did not load; the one before stays.";
    ARTEFACT_REFUSED: Gauge "nearshore_artefact_refused" [arm = Arms]
        "1 while the artefact that the arm names is refused, so that the one before or demand alone makes the lists, else 0.";
    NAMES_WITHOUT_VECTOR: Gauge "nearshore_names_without_vector" [arm = Arms]
        "Names of the served catalogue to which the arm's terms text and typical give 0, because they have no vector.";
    NAMES_WITHOUT_TABLE: Gauge "nearshore_names_without_table" [arm = Arms]
        "Names of the served catalogue to which the arm's term table gives 0, because the artefact's table has no row of them.";
    TEXTS_WITHOUT_VECTOR: Counter "nearshore_texts_without_vector_total" [arm = Arms]
        "Names and profile values of users that the term text did not read in lists of the arm, because they have no vector.";
    PUBLISHED: Counter "nearshore_lists_published_total" [arm = Arms, lane = These(Lane::VARIANTS), source = These(Source::VARIANTS)]
        "Lists stored in Redis by generate, by arm, lane and source.";
    LIST_PURCHASES: Counter "nearshore_list_purchases_total" [arm = Arms, source = These(Source::VARIANTS)]
        "Purchases that ingest folded of sampled users who had a stored list before, by the arm and source of the list.";
    LIST_HITS: Counter "nearshore_list_hits_total" [arm = Arms, source = These(Source::VARIANTS)]
        "Those of nearshore_list_purchases_total whose product (PU) was on the buyer's stored list.";
    LIST_FALLBACK_HITS: Counter "nearshore_list_fallback_hits_total" [arm = Arms, source = These(Source::VARIANTS)]
        "Those of nearshore_list_purchases_total whose product (PU) is on the fallback of the buyer's segment, cut to the list's length.";
    UNCHANGED: Counter "nearshore_lists_unchanged_total" [lane = These(Lane::VARIANTS)]
        "Requests that generate skipped because the stored list has already seen the whole state.";
    EMPTY_LISTS: Counter "nearshore_lists_empty_total" []
        "Lists that generate did not store because nothing was in stock: clients use the segment's fallback, or their own.";
    FENCED: Counter "nearshore_lists_fenced_off_total" [reason = These(Fenced::VARIANTS)]
        "Publishes without effect, by the fence in Redis that refused them.";
    EVENT_TO_LIST: Seconds "nearshore_event_to_list_seconds" [lane = These(Lane::VARIANTS), start = These(Start::VARIANTS)]
        "Seconds from the timestamp of the record that caused a request until its list without the model is in Redis; backfill is not observed.";
    BACKFILL_PAUSED: Gauge "nearshore_backfill_paused" []
        "1 while the backfill lane has no share of the model because live is behind its objective in some worker, else 0.";
    COVERAGE: Gauge "nearshore_coverage_ratio" []
        "Share of users whose list was made by a model and has seen their whole state, in the last sampled page.";
    COVERAGE_USERS: Counter "nearshore_coverage_users_total" [list = These(Covered::VARIANTS)]
        "Users in the pages sampled for nearshore_coverage_ratio, by whether a list of an arm has seen their whole state.";
    CATALOGUE_SKUS: Gauge "nearshore_catalogue_skus" []
        "SKUs in the catalogue of the serving snapshot.";
    CATALOGUE_PUS: Gauge "nearshore_catalogue_pus" []
        "Products (PUs) in the catalogue of the serving snapshot.";
    CATALOGUE_SOLD_OUT: Gauge "nearshore_catalogue_sold_out_skus" []
        "SKUs in the catalogue of the serving snapshot that are out of stock.";
    STOCK_OPS: Counter "nearshore_stock_ops_total" [move = These(StockChange::VARIANTS)]
        "Stock changes written to the stock sets in Redis by the stock member, by direction.";
    STOCK_DELAY: Seconds "nearshore_stock_to_filter_seconds" []
        "Seconds from the timestamp of a batch's oldest stock record until the stock sets in Redis have it.";
    BLOCKS: Gauge "nearshore_blocks" []
        "SKUs and PUs blocked with `nearshore block`.";
    REPEATED_PUS: Gauge "nearshore_catalogue_repeated_pus" []
        "Products (PUs) whose name and category another product has, too: of each such name a list has one product.";
    UNMATCHED: Gauge "nearshore_unmatched" [kind = These(UnmatchedKind::VARIANTS)]
        "Rules, categories of `[needs]`, blocks, boosts and pins that name something which no SKU of the serving catalogue has; fields that rules and segments ask for and no profile has.";
    LAG: Gauge "nearshore_consumer_lag" [group = Later, topic = Later, partition = Later]
        "Records between the committed offset and the end of a partition that this process owns.";
    LAG_SECONDS: Gauge "nearshore_consumer_lag_seconds" [group = Later, topic = Later]
        "Age in seconds of the oldest uncommitted record of a topic in this process; 0 if there is none.";
    RETENTION: Gauge "nearshore_topic_retention_seconds" [topic = Later]
        "Seconds after which the broker deletes records of a topic that is read; +Inf if it keeps them; no series if it does not say.";
    FOREIGN_MEMBERS: Gauge "nearshore_foreign_members" []
        "Members of another installation (another Redis) in the consumer groups of this one, which then gets only a part of the records.";
    UNKNOWN_NAMESPACE: Counter "nearshore_requests_unknown_namespace_total" []
        "Requests that generate passed because this Redis has no such namespace: retired, or of another installation.";
    REBALANCES: Counter "nearshore_rebalanced_partitions_total" [change = These(Rebalance::VARIANTS)]
        "Partitions assigned to or taken from this process by rebalances, by change.";
    CALLBACK: Seconds {nearshore_kafka::metrics::CALLBACK} []
        "Seconds spent inside a rebalance callback; the whole group may have to wait for it.";
    STOPPED: Gauge "nearshore_partitions_stopped" []
        "Partitions that ingest stopped because of an error that somebody must mend, such as a state written by a newer version; they are tried again every few seconds.";
    ROUND_TRIPS: Counter {nearshore_redis::metrics::ROUND_TRIPS} []
        "Round trips to Redis, one per primary and request.";
    REGRESSIONS: Counter "nearshore_store_regressions_total" []
        "Redis failovers or restarts detected by a changed replication id; the member then reads from Kafka again.";
    REWOUND: Counter "nearshore_rewound_records_total" []
        "Records read again from Kafka because Redis lost writes that it had acknowledged.";
    ERRORS: Counter "nearshore_errors_total" [stage = These(Edge::VARIANTS), error = These(Failure::VARIANTS)]
        "Failures of Kafka, Redis, the engine and of servers that have models, by stage and error; each try counts, of servers each answer.";
    RESIDENT: Gauge "process_resident_memory_bytes" []
        "Bytes of memory that this process has in RAM.";
    MEMORY_LIMIT: Gauge "nearshore_memory_limit_bytes" []
        "Bytes of memory that this process may use: the limit of its cgroup, else the memory of the machine.";
    OPEN_FDS: Gauge "process_open_fds" []
        "File descriptors that this process has open.";
    MAX_FDS: Gauge "process_max_fds" []
        "File descriptors that this process may have open.";
    BUILD: Gauge "nearshore_build_info" [version = Later]
        "Always 1; the label is the version of this build.";
    MODEL: Gauge "nearshore_model_info" [arm = Later, model_name = Later, revision = Later, dtype = Later, device = Later]
        "Always 1; the labels say which model an arm's lists are made with.";
}
