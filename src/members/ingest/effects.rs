//! Effects of a batch that wait until its states are stored: [`Effects`].
//!
//! Invariant: an effect is collected only from a plan that is stored or that changes nothing. After an error all
//! effects are dropped; the next try plans the same records again and collects what is still pending.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Tally;
use crate::members::error::Error;
use crate::members::outbox::{ListUpdate, publish_updates};
use crate::members::records::request_record;
use crate::metrics::{self, EventOutcome, EventType, RecordOutcome};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::fold::Step;
use nearshore_core::user::plan::{Counted, Edit, Plan, StoredList};
use nearshore_core::user::record::Partition;
use nearshore_core::user::trigger::Request;

/// What one call of `handle` does to counts, log and metrics.
#[derive(Default)]
pub(super) struct Effects {
    requests: Vec<Request>,
    erased: Vec<UserId>,
    /// Lists without products that a new profile forbids.
    stripped: Vec<(UserId, Box<StoredList>)>,
    counted: BTreeMap<Partition, Vec<Counted>>,
    tally: Tally,
    /// Number of ignored records by topic.
    ignored: BTreeMap<Arc<str>, u64>,
    /// Number of records by topic, type and outcome.
    outcomes: BTreeMap<(Arc<str>, EventType, EventOutcome), u64>,
}

impl Effects {
    /// Starts with this many dead letters and ignored records.
    pub(super) fn new(dead: usize, ignored: BTreeMap<Arc<str>, u64>) -> Self {
        Self {
            tally: Tally {
                dead: dead as u64,
                ignored: ignored.values().sum(),
                ..Tally::default()
            },
            ignored,
            ..Self::default()
        }
    }

    /// Counts of the records handled.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// Collects the effects of a plan that is stored or changes nothing.
    pub(super) fn collect(&mut self, user: &UserId, records: &[Accepted], plan: Plan) {
        self.tally_steps(records, &plan);
        metrics::unknown_skus(plan.unknown);
        self.requests.extend(plan.requests);
        if plan.erased {
            self.erased.push(user.clone());
        }
        if let Edit::Strip(list) = plan.edit {
            self.stripped.push((user.clone(), list));
        }
        for counted in plan.counted {
            let partition = counted.position.partition.clone();
            self.counted.entry(partition).or_default().push(counted);
        }
    }

    fn tally_steps(&mut self, records: &[Accepted], plan: &Plan) {
        let steps = plan.steps.iter().zip(&plan.kinds);
        for (record, (step, kind)) in records.iter().zip(steps) {
            let topic = &record.position.partition.topic;
            let event_type = match (kind, step) {
                (Some(kind), _) => (*kind).into(),
                (None, Step::Erased) => EventType::Erase,
                (None, _) => EventType::Profile,
            };
            let key = (topic.clone(), event_type, (*step).into());
            *self.outcomes.entry(key).or_default() += 1;
            match step {
                Step::Duplicate => self.tally.duplicate += 1,
                Step::Folded | Step::ProfileChanged | Step::Erased | Step::Passed => {
                    self.tally.folded += 1;
                }
            }
        }
    }

    /// Takes out the events to be counted, by partition.
    pub(super) fn take_counted(&mut self) -> BTreeMap<Partition, Vec<Counted>> {
        std::mem::take(&mut self.counted)
    }

    /// Sends the requests, then the updates of lists that were erased or stripped.
    pub(super) async fn publish<L: Log, S: Store>(
        &mut self,
        log: &L,
        store: &S,
        topics: &Topics,
        ns: &str,
    ) -> Result<(), Error> {
        let mut records = Vec::new();
        for request in self.requests.drain(..) {
            metrics::requests(request.reason, 1);
            self.tally.requests += 1;
            records.push(request_record(topics, &request));
        }
        if !records.is_empty() {
            log.send(records).await?;
        }
        let mut updates = Vec::new();
        for user in &self.erased {
            metrics::erases(1);
            updates.push((user.clone(), None));
        }
        for (user, list) in &self.stripped {
            updates.push((user.clone(), Some(ListUpdate::from(&**list))));
        }
        publish_updates(log, store, topics, ns, updates).await
    }

    /// Counts the records in the metrics. Call it once, when all effects are acknowledged.
    pub(super) fn count_records(&self) {
        for (topic, n) in &self.ignored {
            metrics::records(topic, RecordOutcome::Ignored, *n);
        }
        for ((topic, event_type, outcome), n) in &self.outcomes {
            metrics::events(*event_type, *outcome, *n);
            let record = match outcome {
                EventOutcome::Folded => RecordOutcome::Folded,
                EventOutcome::Passed => RecordOutcome::Passed,
                EventOutcome::Duplicate => RecordOutcome::Duplicate,
            };
            metrics::records(topic, record, *n);
        }
    }
}
