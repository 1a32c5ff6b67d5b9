//! What generate writes for others to read: lists, their updates, dead letters: [`Publisher`].
//!
//! Invariant: an update is sent only after its list is stored, and a user whose update may be unsent or overtaken is in
//! the outbox until a later turn has settled it. It decides nothing about a list: the store accepts or refuses it by
//! its claim number.

use std::collections::BTreeMap;

use nearshore_core::list::compose::FinishedList;
use nearshore_core::list::document::{Audit, Source, StoredAudit};
use nearshore_core::list::fallback::is_storable;
use nearshore_core::list::hits::{Earned, ListKind, is_sampled};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Peek, Publish, Published, Store, Stored};
use nearshore_core::queue::lanes::Work;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Timestamp};

use super::count::count_published;
use super::outbox::Outbox;
use super::scoring::FinishedJob;
use crate::members::dlq::{DeadLetterWriter, Rejected};
use crate::members::error::Error;
use crate::members::outbox::{ListUpdate, current, publish_updates};
use crate::metrics;

/// Publishes lists and updates, and writes dead letters. It owns what an error left unsent.
pub(super) struct Publisher {
    group: String,
    topics: Topics,
    clock: fn() -> Timestamp,
    /// Share of the users whose audits are stored: those of a smaller share are among those of a larger one.
    audits_kept: f64,
    outbox: Outbox,
    /// Acknowledged dead letters of a batch which is not received completely yet.
    dead_letters: DeadLetterWriter,
}

impl Publisher {
    /// A publisher with nothing unsent; `group` is the member's, as dead letters name it. The clock only measures.
    pub(super) fn new(
        (group, topics): (String, Topics),
        audits_kept: f64,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self {
            group,
            topics,
            clock,
            audits_kept,
            outbox: Outbox::default(),
            dead_letters: DeadLetterWriter::default(),
        }
    }

    /// Sends the updates that an error left in the outbox, as the store holds their lists now.
    pub(super) async fn settle<L: Log, S: Store>(&self, log: &L, store: &S) -> Result<(), Error> {
        for (ns, users) in self.outbox.by_namespace() {
            let peeks = store.peek(&ns, &users).await?;
            let updates = users.into_iter().zip(peeks);
            let updates = updates.map(|(user, peek)| (user, current(&peek)));
            self.send(log, store, &ns, updates.collect()).await?;
        }
        Ok(())
    }

    /// Publishes finished lists, namespace by namespace, and returns how many the store accepted. Jobs of one namespace
    /// must be neighbours.
    pub(super) async fn publish<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        finished: &[FinishedJob],
    ) -> Result<u64, Error> {
        let mut published = 0;
        for jobs in finished.chunk_by(|one, next| one.ns() == next.ns()) {
            published += self.publish_namespace(log, store, jobs).await?;
        }
        Ok(published)
    }

    async fn publish_namespace<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        jobs: &[FinishedJob],
    ) -> Result<u64, Error> {
        let Some(ns) = jobs.first().map(FinishedJob::ns) else {
            return Ok(0);
        };
        let now = (self.clock)();
        let jobs: Vec<(&FinishedJob, &FinishedList)> = jobs.iter().filter_map(storable).collect();
        let (writes, audits): (Vec<Publish>, Vec<Audit>) =
            jobs.iter().map(|job| self.to_publish(*job, now)).unzip();
        let outcomes = store.publish(ns, &writes).await?;
        let (mut updates, mut older) = (Vec::new(), Vec::new());
        let mut stored: BTreeMap<ListKind, Earned> = BTreeMap::new();
        let made = jobs.iter().zip(writes.into_iter().zip(audits));
        for (((job, list), (write, audit)), outcome) in made.zip(outcomes) {
            metrics::fenced_off(outcome);
            match outcome {
                Published::Stored => {
                    let source = list.document.source;
                    count_published(&job.arm.0, &job.job.work, source, now);
                    stored.entry(kind_of(job, source)).or_default().lists += 1;
                    let update = ListUpdate::with_audit(&write.list, &audit);
                    updates.push((write.user, Some(update)));
                }
                // The newer list may be this one: a client of a Redis Cluster which lost the answer sends it again.
                Published::Older => older.push(write.user),
                Published::Erased | Published::NoState | Published::Epoch | Published::Kept => {}
            }
        }
        let published = updates.len() as u64;
        if !older.is_empty() {
            let peeks = store.peek(ns, &older).await?;
            let newer = older.into_iter().zip(peeks);
            updates.extend(newer.map(|(user, peek)| (user, current(&peek))));
        }
        let (sent, ()) = futures::join!(
            self.send(log, store, ns, updates),
            count_lists(store, ns, &stored)
        );
        sent?;
        Ok(published)
    }

    /// Sends the update of covered requests again: a crash between a publish and its update loses the update, and the
    /// member which finds the request covered is the only one that can notice.
    pub(super) async fn send_again<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        ns: &str,
        covered: Vec<(&Work, Peek)>,
    ) -> Result<(), Error> {
        let stored = covered.into_iter().map(|(work, peek)| {
            metrics::unchanged(work.request.lane);
            (work.request.user.clone(), peek)
        });
        self.send_stored(log, store, ns, stored.collect()).await
    }

    /// Sends what is stored of these users as their updates.
    pub(super) async fn send_stored<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        ns: &str,
        stored: Vec<(UserId, Peek)>,
    ) -> Result<(), Error> {
        let updates = stored.iter();
        let updates = updates.map(|(user, peek)| (user.clone(), current(peek)));
        self.send(log, store, ns, updates.collect()).await
    }

    /// Deletes the updates of users of whom nothing is stored.
    pub(super) async fn delete<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        ns: &str,
        users: Vec<UserId>,
    ) -> Result<(), Error> {
        let updates = users.into_iter().map(|user| (user, None));
        self.send(log, store, ns, updates.collect()).await
    }

    /// Sends updates; one without a value deletes the user's record.
    async fn send<L: Log, S: Store>(
        &self,
        log: &L,
        store: &S,
        ns: &str,
        updates: Vec<(UserId, Option<ListUpdate>)>,
    ) -> Result<(), Error> {
        let users: Vec<UserId> = updates.iter().map(|(user, _)| user.clone()).collect();
        self.outbox.add(ns, &users);
        publish_updates(log, store, &self.topics, ns, updates).await?;
        self.outbox.remove(ns, &users);
        Ok(())
    }

    /// Forgets what may be unsent of a user whose list cannot be read: their request is served again, and sends it. Returns
    /// whether there was anything.
    pub(super) fn forget(&self, user: &UserId) -> bool {
        let all = self.outbox.by_namespace().into_iter();
        let theirs = all.filter(|(_, users)| users.contains(user));
        let namespaces: Vec<String> = theirs.map(|(ns, _)| ns).collect();
        for ns in &namespaces {
            self.outbox.remove(ns, std::slice::from_ref(user));
        }
        !namespaces.is_empty()
    }

    /// Writes rejected records of one batch to `dlq`. After an error call it again with the same batch: what was
    /// acknowledged is not written twice.
    pub(super) async fn write_dead_letters<L: Log>(
        &mut self,
        log: &L,
        partition: &Partition,
        rejects: &[Rejected<'_>],
    ) -> Result<(), Error> {
        self.dead_letters
            .write_rejects(log, &self.topics.dlq, &self.group, rejects)
            .await?;
        self.dead_letters.forget([partition]);
        Ok(())
    }

    /// Forgets the dead letters of revoked partitions: their new owner reads the batches again.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        self.dead_letters.forget(partitions);
    }

    /// The write of a list, and its whole audit.
    fn to_publish(
        &self,
        (finished, list): (&FinishedJob, &FinishedList),
        now: Timestamp,
    ) -> (Publish, Audit) {
        let FinishedJob {
            job,
            arm,
            generated,
            ..
        } = finished;
        let queued = job.claimed_at.since(job.work.ready);
        let rest = now.since(job.claimed_at).saturating_sub(*generated);
        let audit = list.audited((queued, *generated, rest));
        let user = job.work.request.user.clone();
        let publish = Publish {
            list: Stored {
                doc: list.document.to_json(),
                claim: job.claimed.claim,
                stage: list.document.source.stage(),
                seen: job.claimed.state.fences.clone(),
                epoch: arm.1,
                at: job.work.request.time,
                audit: match is_sampled(&user.0, self.audits_kept) {
                    true => StoredAudit::pack(&audit),
                    false => StoredAudit::default(),
                },
            },
            user,
            erased_at: job.claimed.state.erased_at,
            force: job.work.request.force,
            only_if_absent: list.document.source == Source::Fallback,
        };
        (publish, audit)
    }
}

/// The list of a job, if there is one that may be stored; one that may not is counted and left out.
fn storable(finished: &FinishedJob) -> Option<(&FinishedJob, &FinishedList)> {
    let list = finished.list.as_ref()?;
    let storable = is_storable(&list.document);
    metrics::empty_list(!storable);
    storable.then_some((finished, list))
}

/// The kind under which a list is counted.
fn kind_of(finished: &FinishedJob, source: Source) -> ListKind {
    let (arm, epoch) = finished.arm.clone();
    ListKind { arm, epoch, source }
}

/// Counts stored lists for `nearshore arms`. An error leaves them out: they are stored, and only measured here.
async fn count_lists<S: Store>(store: &S, ns: &str, lists: &BTreeMap<ListKind, Earned>) {
    if lists.is_empty() {
        return;
    }
    if let Err(error) = store.add_earned(ns, lists).await {
        metrics::store_error(&error);
        tracing::warn!(target: "redis", %error, "stored lists were not added to the counts of `nearshore arms`; they are left out of them");
    }
}
