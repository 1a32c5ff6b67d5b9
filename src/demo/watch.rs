//! What the demo sees of its lists: it follows `recall-updates`, as an analyst would.
//!
//! It knows which users are waited for, which list each has, and how long an event took to become a list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::progress::bar;
use crate::config::Config;
use crate::members::clock::wall_clock;
use nearshore_core::list::document::{Document, Source, Update};
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::{Tail, Tailed, tail};

/// How long the demo goes without saying what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A follower of `recall-updates`.
pub struct Watch {
    tail: Tail,
    users: BTreeSet<String>,
    /// The newest list of each user.
    lists: BTreeMap<String, Document>,
    /// When each user bought something that no list has seen yet.
    waiting: BTreeMap<String, Timestamp>,
    /// Seconds from a purchase made while the roles ran to the list that has seen it.
    seconds: Vec<f64>,
    bar: ProgressBar,
    started: Timestamp,
}

impl Watch {
    /// Follows lists of these users from now on.
    pub async fn follow(config: &Config, users: Vec<String>) -> anyhow::Result<Self> {
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

    /// A user bought something at that time: a list must see it.
    pub fn bought(&mut self, user: &str, at: Timestamp) {
        self.waiting.insert(user.into(), at);
    }

    /// SKUs of a user's newest list.
    pub fn skus_of(&self, user: &str) -> Vec<String> {
        let list = self.lists.get(user);
        list.into_iter()
            .flat_map(|list| &list.pus)
            .flat_map(|pu| pu.skus.iter().cloned())
            .collect()
    }

    /// Takes in what there is for this long.
    pub async fn listen(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + time;
        while let Ok(told) = tokio::time::timeout_at(end, self.tail.next()).await {
            self.take_in(told.context("recall-updates")?);
        }
        Ok(())
    }

    /// Waits until every user has a list of the model; false if some have none in time.
    pub async fn all_listed(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let all = self
            .wait(patience, |watch| {
                let modelled = |user: &&String| watch.modelled(user);
                let have = watch.users.iter().filter(modelled).count();
                (
                    have == watch.users.len(),
                    format!("{have} of {} households have a list", watch.users.len()),
                )
            })
            .await?;
        self.bar.finish();
        Ok(all)
    }

    /// Waits until a list has seen every purchase made while the roles ran; false if not in time.
    pub async fn caught_up(&mut self, patience: Duration) -> anyhow::Result<bool> {
        self.wait(patience, |watch| {
            let left = watch.waiting.len();
            (
                left == 0,
                format!("{left} households wait for the list that has seen their last basket"),
            )
        })
        .await
    }

    async fn wait(
        &mut self,
        patience: Duration,
        done: impl Fn(&Self) -> (bool, String),
    ) -> anyhow::Result<bool> {
        let start = Instant::now();
        let mut said = Instant::now();
        loop {
            let (done, state) = done(self);
            if done {
                return Ok(true);
            }
            if start.elapsed() > patience {
                eprintln!("gave up after {patience:?}: {state}");
                return Ok(false);
            }
            if said.elapsed() > SAY_EVERY {
                eprintln!("{state}");
                said = Instant::now();
            }
            self.listen(Duration::from_millis(200)).await?;
        }
    }

    fn modelled(&self, user: &str) -> bool {
        self.lists
            .get(user)
            .is_some_and(|list| list.source == Source::Model)
    }

    fn take_in(&mut self, told: Tailed) {
        let Tailed::Record(record) = told else {
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
        // The list's source time is that of the newest record that it was asked for.
        if let Some(at) = self.waiting.get(user).copied()
            && update.doc.at >= at
            && at >= self.started
        {
            self.waiting.remove(user);
            self.seconds.push(record.time.since(at).as_secs_f64());
        }
        let fresh = !self.modelled(user);
        self.lists.insert(user.into(), update.doc);
        if fresh && self.modelled(user) && self.users.contains(user) {
            self.bar.inc(1);
        }
    }

    /// Event-to-list seconds at this share of the purchases made while the roles ran; 0 if there were none.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        seconds.get(at).copied().unwrap_or(0.0)
    }
}
