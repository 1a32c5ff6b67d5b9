//! Follows `recall-updates` for the demo: which users have a list, and how long it takes from a purchase to a list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::progress::bar;
use crate::config::Config;
use crate::members::clock::wall_clock;
use nearshore_core::list::document::{Document, Update};
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::{Tail, Tailed, tail};

/// How often the demo prints what it waits for.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Follows `recall-updates`.
pub(super) struct Watch {
    tail: Tail,
    users: BTreeSet<String>,
    /// The newest list of each user.
    lists: BTreeMap<String, Document>,
    /// Time of each user's purchase that no list has seen yet.
    waiting: BTreeMap<String, Timestamp>,
    /// Seconds from a purchase sent while the roles ran to the list that has seen it.
    seconds: Vec<f64>,
    bar: ProgressBar,
    started: Timestamp,
}

impl Watch {
    /// Follows lists of these users from now on.
    pub(super) async fn follow(config: &Config, users: Vec<String>) -> anyhow::Result<Self> {
        let tail = tail(
            &config.kafka,
            &config.topics.recall_updates,
            &BTreeMap::new(),
        )
        .await?;
        let bar = bar("lists", users.len());
        Ok(Self {
            tail,
            users: users.into_iter().collect(),
            lists: BTreeMap::new(),
            waiting: BTreeMap::new(),
            seconds: Vec::new(),
            bar,
            started: wall_clock(),
        })
    }

    /// Notes a purchase that a list must see.
    pub(super) fn bought(&mut self, user: &str, at: Timestamp) {
        self.waiting.insert(user.into(), at);
    }

    /// SKUs of a user's newest list.
    pub(super) fn skus_of(&self, user: &str) -> Vec<String> {
        let list = self.lists.get(user);
        list.into_iter()
            .flat_map(|list| &list.pus)
            .flat_map(|pu| pu.skus.iter().cloned())
            .collect()
    }

    /// Reads updates for this long.
    pub(super) async fn listen(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + time;
        while let Ok(update) = tokio::time::timeout_at(end, self.tail.next()).await {
            self.apply(update.context("recall-updates")?);
        }
        Ok(())
    }

    /// Waits until every user has a list of the model; false after the time limit.
    pub(super) async fn all_listed(&mut self, limit: Duration) -> anyhow::Result<bool> {
        let all = self
            .wait(limit, |watch| {
                let listed = watch
                    .users
                    .iter()
                    .filter(|user| watch.has_list_of_arm(user))
                    .count();
                (
                    listed == watch.users.len(),
                    format!("{listed} of {} households have a list", watch.users.len()),
                )
            })
            .await?;
        self.bar.finish();
        Ok(all)
    }

    /// Waits until lists have seen all purchases sent while the roles ran; false after the time limit.
    pub(super) async fn caught_up(&mut self, limit: Duration) -> anyhow::Result<bool> {
        self.wait(limit, |watch| {
            let left = watch.waiting.len();
            (
                left == 0,
                format!("{left} households still wait for a list that has seen their last basket"),
            )
        })
        .await
    }

    async fn wait(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> (bool, String),
    ) -> anyhow::Result<bool> {
        let start = Instant::now();
        let mut reported = Instant::now();
        loop {
            let (done, state) = done(self);
            if done {
                return Ok(true);
            }
            if start.elapsed() > limit {
                note!("gave up after {limit:?}: {state}");
                return Ok(false);
            }
            if reported.elapsed() > REPORT_EVERY {
                note!("{state}");
                reported = Instant::now();
            }
            self.listen(Duration::from_millis(200)).await?;
        }
    }

    fn has_list_of_arm(&self, user: &str) -> bool {
        self.lists
            .get(user)
            .is_some_and(|list| list.source.is_exposure())
    }

    fn apply(&mut self, update: Tailed) {
        let Tailed::Record(record) = update else {
            return;
        };
        let user = record
            .key
            .as_deref()
            .and_then(|key| std::str::from_utf8(key).ok());
        let Some((_, user)) = user.and_then(|key| key.split_once('/')) else {
            return;
        };
        let Some(update) = record
            .value
            .as_deref()
            .and_then(|bytes| Update::parse(bytes).ok())
        else {
            self.lists.remove(user);
            return;
        };
        // A list's source time is that of the newest record that requested it.
        if let Some(at) = self.waiting.get(user).copied()
            && update.doc.at >= at
            && at >= self.started
        {
            self.waiting.remove(user);
            self.seconds.push(record.time.since(at).as_secs_f64());
        }
        let is_new = !self.has_list_of_arm(user);
        self.lists.insert(user.into(), update.doc);
        if is_new && self.has_list_of_arm(user) && self.users.contains(user) {
            self.bar.inc(1);
        }
    }

    /// The quantile of seconds from purchase to list, over purchases sent while the roles ran; 0 without purchases.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        seconds.get(at).copied().unwrap_or(0.0)
    }
}
