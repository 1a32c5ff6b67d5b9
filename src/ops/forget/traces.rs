//! Searches every place that may hold something of a user: [`find_traces`].
//!
//! Invariant: it only reads. It reads keys directly, where other readers hide data: a list that is no longer served can
//! still be read in Redis.

use std::collections::{BTreeMap, BTreeSet};

use super::receipt::{Finding, Receipt, Verdict, moment};
use crate::config::Config;
use crate::members::generate;
use nearshore_core::map::ReadAs;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Namespaces, Users};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{Limits, UserId, key_user};
use nearshore_core::user::record::{Partition, Record, Resume, Timestamp};
use nearshore_core::user::trigger::Request;
use nearshore_kafka::dlq::DeadLetter;
use nearshore_kafka::{Admin, Tailed, Topic, tail};
use nearshore_redis::{RedisStore, Trace};

/// How far the search goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceOptions {
    /// Also reads the source topics from their beginning, which may take long.
    pub scan: bool,
}

struct TraceFinder<'a> {
    config: &'a Config,
    store: &'a RedisStore,
    admin: Admin,
    user: &'a UserId,
    erased: Option<Timestamp>,
    findings: Vec<Finding>,
}

/// Searches all places for one user and returns the receipt.
pub async fn find_traces(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
    options: TraceOptions,
) -> anyhow::Result<Receipt> {
    let mut finder = TraceFinder {
        config,
        store,
        admin: Admin::new(&config.kafka)?,
        user,
        erased: store.erased_at(user).await?,
        findings: Vec::new(),
    };
    let namespaces = finder.redis().await?;
    let mut names = config.topics.lanes().to_vec();
    names.extend([
        config.topics.recall_updates.clone(),
        config.topics.dlq.clone(),
    ]);
    names.extend(config.topics.of_users());
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let topics = finder.admin.describe(&names).await?;
    let (lanes, rest) = topics.split_at(3);
    for lane in lanes {
        finder.lane(lane).await?;
    }
    finder.updates(&rest[0], &namespaces).await?;
    finder.dead_letters(&rest[1]).await?;
    for source in &rest[2..] {
        finder.source(source, options.scan).await?;
    }
    finder.memory();
    Ok(Receipt::of(&user.0, finder.erased, finder.findings))
}

/// Records of the user on one topic.
#[derive(Default)]
struct UserRecords {
    count: u64,
    /// Those that are not after the erase.
    old: u64,
    newest_old: Option<Timestamp>,
}

impl TraceFinder<'_> {
    fn note(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether a time is not after the erase.
    fn is_old(&self, time: Timestamp) -> bool {
        self.erased.is_none_or(|erased| time <= erased)
    }

    /// Searches all keys with the user's hash tag; returns the namespaces that were searched.
    async fn redis(&mut self) -> anyhow::Result<BTreeSet<String>> {
        let tombstone = keys::tombstone(self.user)?;
        let (verdict, found) = match self.erased {
            Some(at) => (
                Verdict::Kept,
                format!("tombstone of {}: it keeps older records out", moment(at)),
            ),
            None => (Verdict::Gone, "no tombstone".into()),
        };
        self.note(Finding::new(format!("redis {tombstone}"), verdict, found));
        let traces = self.store.traces(self.user).await?;
        let mut namespaces: BTreeSet<String> = traces
            .iter()
            .filter_map(|trace| Some(keys::part(&trace.key)?.0.to_owned()))
            .collect();
        namespaces.insert(self.config.namespace.clone());
        namespaces.extend(self.store.active().await?);
        for ns in &namespaces {
            self.namespace(ns, &traces).await?;
        }
        for trace in &traces {
            if trace.key != tombstone && keys::part(&trace.key).is_none() {
                let place = format!("redis {}", trace.key);
                self.note(Finding::new(place, Verdict::Kept, "not a key of Nearshore"));
            }
        }
        Ok(namespaces)
    }

    async fn namespace(&mut self, ns: &str, traces: &[Trace]) -> anyhow::Result<()> {
        let users = std::slice::from_ref(self.user);
        let loaded = self.store.load(ns, users).await?.remove(0);
        let peek = self.store.peek(ns, users).await?.remove(0);
        let keys = keys::user(ns, self.user)?;
        let unfolded = "from before the erase: is the ingest role of this namespace running?";
        let folded = self.erased.is_some() && !loaded.erased_elsewhere;
        let younger = loaded.state.window.len();
        let since = |time: Option<Timestamp>| time.map(moment).unwrap_or_default();
        let judged = [
            (
                &keys.state,
                folded && loaded.ver > 0,
                format!("{younger} events since the erase, and offsets"),
            ),
            (
                &keys.profile,
                folded && loaded.state.profile.is_some(),
                format!(
                    "of {}",
                    since(loaded.state.profile.as_ref().map(|p| p.time))
                ),
            ),
            (
                &keys.recall,
                folded && peek.list.is_some(),
                "a list made since the erase".into(),
            ),
        ];
        for (key, kept, found) in judged {
            let place = format!("redis {key}");
            let finding = match traces.iter().find(|trace| trace.key == **key) {
                None => Finding::new(place, Verdict::Gone, "nothing"),
                Some(_) if kept => Finding::new(place, Verdict::Kept, found),
                Some(_) => Finding::new(place, Verdict::Left, unfolded),
            };
            self.note(finding);
        }
        if let Some(pending) = loaded.activity.pending.filter(|_| !folded) {
            let found = format!("a request is out, due {}", moment(pending.due));
            self.note(Finding::new(format!("queue of {ns}"), Verdict::Left, found));
        }
        Ok(())
    }

    /// Counts the records of the user on a topic.
    async fn read(
        &self,
        topic: &str,
        mut is_users: impl FnMut(&Record) -> bool,
    ) -> anyhow::Result<UserRecords> {
        let mut found = UserRecords::default();
        let nowhere = BTreeMap::<Partition, Resume>::new();
        let mut tail = tail(&self.config.kafka, topic, &nowhere).await?;
        while let Tailed::Record(record) = tail.next().await? {
            if is_users(&record) {
                found.count += 1;
                if self.is_old(record.occurred()) {
                    found.old += 1;
                    found.newest_old = found.newest_old.max(Some(record.time));
                }
            }
        }
        Ok(found)
    }

    /// Searches a lane for waiting requests, and for served ones that are not yet removed.
    async fn lane(&mut self, topic: &Topic) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        let committed = self
            .admin
            .committed(&generate::group(&self.config.kafka), &[&topic.name])
            .await?;
        let mut unread = 0;
        let user = self.user;
        let found = self
            .read(&topic.name, |record| {
                let by_user = Request::decode(record).is_ok_and(|request| request.user == *user);
                let at = &record.position;
                let read = committed
                    .get(&at.partition)
                    .is_some_and(|resume| at.offset.0 < resume.0);
                unread += u64::from(by_user && !read);
                by_user
            })
            .await?;
        let finding = if found.count == 0 {
            Finding::new(place, Verdict::Gone, "no request")
        } else {
            let text = format!(
                "{} requests, {unread} of them unread: they hold the id and no data, and are skipped",
                found.count
            );
            Finding::new(place, Verdict::Leaves, text).by(removed_by(topic, found.newest_old))
        };
        self.note(finding);
        Ok(())
    }

    /// Searches the updates: the last record of each namespace counts; compaction removes older ones.
    async fn updates(
        &mut self,
        topic: &Topic,
        namespaces: &BTreeSet<String>,
    ) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        // Namespaces that Redis no longer has are found, too.
        let tail = format!("/{}", self.user);
        let mut last: BTreeMap<String, (bool, Timestamp)> = BTreeMap::new();
        let found = self
            .read(&topic.name, |record| {
                let key = record.key.as_deref().map(String::from_utf8_lossy);
                let ns = key.as_deref().and_then(|key| key.strip_suffix(&tail));
                let Some(ns) = ns.filter(|ns| nearshore_core::user::namespace::is_namespace(ns))
                else {
                    return false;
                };
                last.insert(ns.to_owned(), (record.value.is_some(), record.time));
                record.value.is_some()
            })
            .await?;
        for (ns, (list, time)) in &last {
            let place = format!("{place}, key {ns}{tail}");
            let finding = match list {
                false => Finding::new(place, Verdict::Gone, "a tombstone is the last record"),
                true if self.has_new_list(ns, namespaces).await? => {
                    Finding::new(place, Verdict::Kept, "a list made since the erase")
                }
                true => {
                    let found = format!("a list of {} is the last record", moment(*time));
                    Finding::new(place, Verdict::Left, found)
                }
            };
            self.note(finding);
        }
        let lists = last.values().filter(|(list, _)| *list).count() as u64;
        let finding = match found.count.saturating_sub(lists) {
            0 if last.is_empty() => Finding::new(place, Verdict::Gone, "no record"),
            0 => return Ok(()),
            older => {
                let text = format!("{older} older lists will be removed by compaction");
                Finding::new(place, Verdict::Leaves, text).by(removed_by(topic, found.newest_old))
            }
        };
        self.note(finding);
        Ok(())
    }

    /// Whether a namespace has a list of the user that was made since the erase.
    async fn has_new_list(&self, ns: &str, namespaces: &BTreeSet<String>) -> anyhow::Result<bool> {
        if self.erased.is_none() || !namespaces.contains(ns) {
            return Ok(false);
        }
        let users = std::slice::from_ref(self.user);
        let peek = self.store.peek(ns, users).await?.remove(0);
        Ok(peek.list.is_some_and(|list| list.claim > 0))
    }

    async fn dead_letters(&mut self, topic: &Topic) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        let (topics, user) = (self.config.topics.clone(), self.user);
        let found = self
            .read(&topic.name, |record| {
                let from = DeadLetter::read(record).topic.unwrap_or_default();
                !topics
                    .read_as(ReadAs::Catalog)
                    .iter()
                    .any(|it| **it == *from)
                    && is_of_user(&topics, &from, record, user)
            })
            .await?;
        let finding = if found.count == 0 {
            Finding::new(place, Verdict::Gone, "no record with this key")
        } else {
            let text = format!(
                "{} records with this key, {} from before the erase; a replay of those is skipped",
                found.count, found.old
            );
            Finding::new(place, Verdict::Leaves, text).by(removed_by(topic, found.newest_old))
        };
        self.note(finding);
        Ok(())
    }

    /// Searches a source topic. Nearshore does not own it, so only its owner can remove records.
    async fn source(&mut self, topic: &Topic, scan: bool) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        let by = removed_by(topic, self.erased);
        let rule = match (topic.compacted(), topic.retention()) {
            (Some(true), Some(None)) => {
                "compacted: older records of a key are removed after its tombstone"
            }
            (_, Some(None)) => "kept forever: records from before the erase stay and are skipped",
            (_, Some(Some(_))) => {
                "records from before the erase are skipped and are removed by retention"
            }
            (_, None) => {
                "records from before the erase are skipped; the broker does not show the retention"
            }
        };
        if !scan {
            let text = format!("not read (--scan reads it); {rule}");
            self.note(Finding::new(place, Verdict::Leaves, text).by(by));
            return Ok(());
        }
        let (topics, user) = (self.config.topics.clone(), self.user);
        let by_program = topics.inputs.get(&topic.name);
        if by_program.is_some_and(|input| input.program().is_some()) {
            let text = format!("not read: only its program knows whose its records are; {rule}");
            self.note(Finding::new(place, Verdict::Leaves, text).by(by));
            return Ok(());
        }
        let found = self
            .read(&topic.name, |record| {
                record.value.is_some() && is_of_user(&topics, &topic.name, record, user)
            })
            .await?;
        let finding = if found.old == 0 {
            let text = format!("no record from before the erase, {} since", found.count);
            Finding::new(place, Verdict::Gone, text)
        } else {
            let text = format!("{} records from before the erase; {rule}", found.old);
            Finding::new(place, Verdict::Leaves, text).by(by)
        };
        self.note(finding);
        Ok(())
    }

    /// Lists places that cannot be searched from outside, and why nothing lasts there.
    fn memory(&mut self) {
        for (place, found) in [
            (
                "memory of ingest",
                "the member that folds the tombstone drops the state; others drop it after at most 10 minutes",
            ),
            (
                "memory of generate",
                "prompts and their keys and values last as long as their batch; its publish is refused",
            ),
        ] {
            self.note(Finding::new(place, Verdict::Leaves, found));
        }
        self.note(Finding::new(
            "logs, metrics",
            Verdict::Gone,
            "never hold a user's id",
        ));
        self.note(Finding::new(
            "counts",
            Verdict::Kept,
            "sums per product and segment, without user ids",
        ));
    }
}

/// Whether a record that came from the topic `from` is of this user.
fn is_of_user(topics: &Topics, from: &str, record: &Record, user: &UserId) -> bool {
    if topics.lanes().iter().any(|lane| **lane == *from) {
        return record.key.as_deref() == Some(user.0.as_bytes());
    }
    if let Some(input) = topics.inputs.get(from) {
        // A record that the mapping refuses names nobody whom it knows.
        let made = input.apply(record, &Limits::default()).unwrap_or_default();
        let key = |record: Record| record.key;
        return made
            .into_iter()
            .filter_map(key)
            .any(|key| *key == *user.0.as_bytes());
    }
    key_user(record, topics.source(from)).is_some_and(|id| id == *user.0)
}

/// The latest time at which a record of `time` is removed. The broker removes a segment once its newest record is old
/// enough.
fn removed_by(topic: &Topic, time: Option<Timestamp>) -> Option<Timestamp> {
    let retention = topic.retention()??;
    time.map(|time| time.after(retention))
}
