//! Looks at every place where something of a user may be: [`look`].
//!
//! Invariant: it only looks, with code of its own for what a reader would hide: a list that no reader of ours would serve
//! is still there for who reads Redis directly.

use std::collections::{BTreeMap, BTreeSet};

use super::receipt::{Finding, Receipt, Verdict, moment};
use crate::config::Config;
use crate::members::generate;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Namespaces, Users};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{UserId, key_user};
use nearshore_core::user::record::{Partition, Record, Resume, Timestamp};
use nearshore_core::user::trigger::Request;
use nearshore_kafka::dlq::DeadLetter;
use nearshore_kafka::{Admin, Tailed, Topic, tail};
use nearshore_redis::{RedisStore, Trace};

/// How far to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Also read the source topics from their beginning, which may take long.
    pub scan: bool,
}

struct Inspector<'a> {
    config: &'a Config,
    store: &'a RedisStore,
    admin: Admin,
    user: &'a UserId,
    erased: Option<Timestamp>,
    findings: Vec<Finding>,
}

/// A receipt for one user.
pub async fn look(
    config: &Config,
    store: &RedisStore,
    (user, how): (&UserId, Look),
) -> anyhow::Result<Receipt> {
    let mut inspector = Inspector {
        config,
        store,
        admin: Admin::new(&config.kafka)?,
        user,
        erased: store.erased_at(user).await?,
        findings: Vec::new(),
    };
    let spaces = inspector.redis().await?;
    let mut names = config.topics.lanes().to_vec();
    names.extend([
        config.topics.recall_updates.clone(),
        config.topics.dlq.clone(),
    ]);
    names.extend([
        config.topics.user_events.clone(),
        config.topics.profile_changes.clone(),
    ]);
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let topics = inspector.admin.describe(&names).await?;
    let (lanes, rest) = topics.split_at(3);
    for lane in lanes {
        inspector.lane(lane).await?;
    }
    inspector.updates(&rest[0], &spaces).await?;
    inspector.letters(&rest[1]).await?;
    for source in &rest[2..] {
        inspector.source(source, how.scan).await?;
    }
    inspector.memory();
    Ok(Receipt::of(&user.0, inspector.erased, inspector.findings))
}

/// Records of a user on a topic.
#[derive(Default)]
struct Found {
    count: u64,
    /// Not after the erase.
    old: u64,
    newest_old: Option<Timestamp>,
}

impl Inspector<'_> {
    fn note(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether a time is not after the erase.
    fn is_old(&self, time: Timestamp) -> bool {
        self.erased.is_none_or(|erased| time <= erased)
    }

    /// All keys with the user's tag; the namespaces that were looked at.
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
        let mut spaces: BTreeSet<String> = traces
            .iter()
            .filter_map(|trace| Some(keys::part(&trace.key)?.0.to_owned()))
            .collect();
        spaces.insert(self.config.namespace.clone());
        spaces.extend(self.store.active().await?);
        for ns in &spaces {
            self.space(ns, &traces).await?;
        }
        for trace in &traces {
            if trace.key != tombstone && keys::part(&trace.key).is_none() {
                let place = format!("redis {}", trace.key);
                self.note(Finding::new(place, Verdict::Kept, "not a key of ours"));
            }
        }
        Ok(spaces)
    }

    async fn space(&mut self, ns: &str, traces: &[Trace]) -> anyhow::Result<()> {
        let users = std::slice::from_ref(self.user);
        let held = self.store.load(ns, users).await?.remove(0);
        let peek = self.store.peek(ns, users).await?.remove(0);
        let keys = keys::user(ns, self.user)?;
        let unfolded = "from before the erase: is the ingest role of this namespace running?";
        let folded = self.erased.is_some() && !held.reborn;
        let younger = held.state.window.len();
        let since = |time: Option<Timestamp>| time.map(moment).unwrap_or_default();
        let judged = [
            (
                &keys.state,
                folded && held.ver > 0,
                format!("{younger} events since the erase, and offsets"),
            ),
            (
                &keys.profile,
                folded && held.state.profile.is_some(),
                format!("of {}", since(held.state.profile.as_ref().map(|p| p.time))),
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
        if let Some(pending) = held.activity.pending.filter(|_| !folded) {
            let found = format!("a request is out, due {}", moment(pending.due));
            self.note(Finding::new(format!("queue of {ns}"), Verdict::Left, found));
        }
        Ok(())
    }

    /// Everything of the user on a topic.
    async fn read(
        &self,
        topic: &str,
        mut is_theirs: impl FnMut(&Record) -> bool,
    ) -> anyhow::Result<Found> {
        let mut found = Found::default();
        let nowhere = BTreeMap::<Partition, Resume>::new();
        let mut tail = tail(&self.config.kafka, topic, &nowhere).await?;
        while let Tailed::Record(record) = tail.next().await? {
            if is_theirs(&record) {
                found.count += 1;
                if self.is_old(record.occurred()) {
                    found.old += 1;
                    found.newest_old = found.newest_old.max(Some(record.time));
                }
            }
        }
        Ok(found)
    }

    /// Requests that wait, and those that were served and not yet removed.
    async fn lane(&mut self, topic: &Topic) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        let committed = self
            .admin
            .committed(generate::GROUP, &[&topic.name])
            .await?;
        let mut unread = 0;
        let user = self.user;
        let found = self
            .read(&topic.name, |record| {
                let theirs = Request::decode(record).is_ok_and(|request| request.user == *user);
                let at = &record.position;
                let read = committed
                    .get(&at.partition)
                    .is_some_and(|resume| at.offset.0 < resume.0);
                unread += u64::from(theirs && !read);
                theirs
            })
            .await?;
        let finding = if found.count == 0 {
            Finding::new(place, Verdict::Gone, "no request")
        } else {
            let said = format!(
                "{} requests, {unread} of them unread: they hold the id and no data, and are passed over",
                found.count
            );
            Finding::new(place, Verdict::Leaves, said).by(leaves(topic, found.newest_old))
        };
        self.note(finding);
        Ok(())
    }

    /// The last record of each namespace; older ones go with compaction.
    async fn updates(&mut self, topic: &Topic, spaces: &BTreeSet<String>) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        // Also of namespaces that Redis has forgotten.
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
                true if self.listed(ns, spaces).await? => {
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
                let said = format!("{older} older lists wait to be compacted away");
                Finding::new(place, Verdict::Leaves, said).by(leaves(topic, found.newest_old))
            }
        };
        self.note(finding);
        Ok(())
    }

    /// Whether a namespace has a list of the user that was made since the erase.
    async fn listed(&self, ns: &str, spaces: &BTreeSet<String>) -> anyhow::Result<bool> {
        if self.erased.is_none() || !spaces.contains(ns) {
            return Ok(false);
        }
        let users = std::slice::from_ref(self.user);
        let peek = self.store.peek(ns, users).await?.remove(0);
        Ok(peek.list.is_some_and(|list| list.claim > 0))
    }

    async fn letters(&mut self, topic: &Topic) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            self.note(Finding::new(place, Verdict::Gone, "no such topic"));
            return Ok(());
        }
        let (topics, user) = (self.config.topics.clone(), self.user);
        let found = self
            .read(&topic.name, |record| {
                let from = DeadLetter::read(record).topic.unwrap_or_default();
                from != *topics.catalog && theirs(&topics, (&from, record), user)
            })
            .await?;
        let finding = if found.count == 0 {
            Finding::new(place, Verdict::Gone, "no record with this key")
        } else {
            let said = format!(
                "{} records with this key, {} from before the erase; a replay of those is passed over",
                found.count, found.old
            );
            Finding::new(place, Verdict::Leaves, said).by(leaves(topic, found.newest_old))
        };
        self.note(finding);
        Ok(())
    }

    /// A topic that is not ours: what it holds is its owner's to remove.
    async fn source(&mut self, topic: &Topic, scan: bool) -> anyhow::Result<()> {
        let place = format!("topic {}", topic.name);
        let by = leaves(topic, self.erased);
        let rule = match (topic.compacted(), topic.retention()) {
            (Some(true), Some(None)) => "compacted: older records of a key go behind its null",
            (_, Some(None)) => {
                "kept for ever: records from before the erase stay, and are passed over"
            }
            (_, Some(Some(_))) => {
                "records from before the erase are passed over and leave by retention"
            }
            (_, None) => {
                "records from before the erase are passed over; the broker does not tell its retention"
            }
        };
        if !scan {
            let said = format!("not read (--scan reads it); {rule}");
            self.note(Finding::new(place, Verdict::Leaves, said).by(by));
            return Ok(());
        }
        let (topics, user) = (self.config.topics.clone(), self.user);
        let found = self
            .read(&topic.name, |record| {
                record.value.is_some() && theirs(&topics, (&topic.name, record), user)
            })
            .await?;
        let finding = if found.old == 0 {
            let said = format!("no record from before the erase, {} since", found.count);
            Finding::new(place, Verdict::Gone, said)
        } else {
            let said = format!("{} records from before the erase; {rule}", found.old);
            Finding::new(place, Verdict::Leaves, said).by(by)
        };
        self.note(finding);
        Ok(())
    }

    /// What cannot be looked at from outside, and why nothing of it lasts.
    fn memory(&mut self) {
        for (place, found) in [
            (
                "memory of ingest",
                "the owner of the record drops the state with it, others at the latest after 10 minutes",
            ),
            (
                "memory of generate",
                "prompts and their keys and values live as long as their batch; its publish is refused",
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
            "sums per product and segment, of nobody",
        ));
    }
}

/// Whether a record that came from `from` is of this user.
fn theirs(topics: &Topics, (from, record): (&str, &Record), user: &UserId) -> bool {
    if topics.lanes().iter().any(|lane| **lane == *from) {
        return record.key.as_deref() == Some(user.0.as_bytes());
    }
    key_user(record, topics.source(from)).is_some_and(|id| id == *user.0)
}

/// When a record of `time` is removed at the latest: a segment is removed once its newest record is old enough.
fn leaves(topic: &Topic, time: Option<Timestamp>) -> Option<Timestamp> {
    let retention = topic.retention()??;
    time.map(|time| time.after(retention))
}
