//! Asking for lists on the backfill lane: sweeps (whose list trails their state) and refreshes (as a person wishes).
//!
//! Invariant: what is asked for goes the way of every other request; asked twice, a list is made once, unless
//! a person wants it made anew. One page of a scan at a time, so that whoever is killed goes on at a page.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::records::request_record;
use crate::ops::coverage::vacant_users;
use nearshore_core::list::document::Document;
use nearshore_core::ports::log::{self, Outgoing};
use nearshore_core::ports::store::{self, Peek, Store};
use nearshore_core::queue::claims::{Need, need};
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::rules::Table;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::Held;
use nearshore_core::user::trigger::{Lane, Reason, Request};
use nearshore_kafka::Producer;

/// Requests per acknowledged write.
const PAGE: usize = 500;

/// Users remembered in one scan, which may show a user twice; beyond it a request may be doubled, to no effect.
const REMEMBERED: usize = 4_000_000;

/// What a worker has at least to read changed counts, once it noticed them.
const READ_MIN: Duration = Duration::from_secs(2);

/// By when every worker has read counts that are written now, if it looks for changes so often.
pub fn put_off(every: Duration) -> Duration {
    every + (every / 3).max(READ_MIN)
}

/// What a sweep or refresh did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Users looked at; a user may be seen twice in a scan.
    pub seen: u64,
    /// Requests written.
    pub requested: u64,
}

/// Whose lists are to be made anew; everyone's by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// Only these users; everyone with a state if empty.
    pub users: Vec<UserId>,
    /// Only users of this arm.
    pub arm: Option<String>,
    /// Only users of this segment.
    pub segment: Option<String>,
    /// Only lists older than this, and users without a list.
    pub older_than: Option<Duration>,
    /// Only lists that show this product, by id or name.
    pub pu: Option<String>,
    /// Also over lists of a higher arm epoch.
    pub force: bool,
}

/// Why lists are asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// They trail their states.
    Sweep,
    /// Somebody wishes it.
    Refresh(Wish),
}

/// Who asks, page by page.
pub struct Asker<'a, S> {
    store: &'a S,
    producer: &'a Producer,
    config: &'a Config,
    segments: Table,
    now: Timestamp,
    put_off: Duration,
    /// Hashes of users asked for; only looked up in.
    asked: HashSet<u64>,
}

impl<'a, S: Store> Asker<'a, S> {
    /// One that has asked for nobody yet.
    pub fn new(store: &'a S, producer: &'a Producer, config: &'a Config) -> Self {
        Self {
            store,
            producer,
            config,
            // Segments are of the profile alone.
            segments: Table::compile(&[], &config.segments, &Catalogue::default()),
            now: wall_clock(),
            put_off: Duration::ZERO,
            asked: HashSet::new(),
        }
    }

    /// Whose lists are made no sooner than so long after they are asked for.
    pub fn put_off(self, put_off: Duration) -> Self {
        Self { put_off, ..self }
    }

    /// Asks for everyone concerned.
    pub async fn all(&mut self, why: &Why) -> anyhow::Result<Asked> {
        if let Why::Refresh(wish) = why
            && !wish.users.is_empty()
        {
            let users = wish.users.clone();
            return self.some(users, why).await;
        }
        let mut sum = Asked::default();
        let mut cursor = None;
        loop {
            let (asked, next) = self.page(why, cursor).await?;
            sum.seen += asked.seen;
            sum.requested += asked.requested;
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(sum),
            }
        }
    }

    /// One page of the scan, and the cursor of the next.
    pub async fn page(
        &mut self,
        why: &Why,
        cursor: Option<String>,
    ) -> anyhow::Result<(Asked, Option<String>)> {
        let (users, next) = self.store.scan(&self.config.namespace, cursor).await?;
        Ok((self.some(users, why).await?, next))
    }

    async fn some(&mut self, users: Vec<UserId>, why: &Why) -> anyhow::Result<Asked> {
        let seen = users.len() as u64;
        if users.is_empty() {
            return Ok(Asked::default());
        }
        let wanted = match why {
            Why::Sweep => trailing(self.store, self.config, users).await?,
            Why::Refresh(wish) => self.wished(users, wish).await?,
        };
        let fresh: Vec<UserId> = wanted
            .into_iter()
            .filter(|user| self.is_new(user))
            .collect();
        for page in fresh.chunks(PAGE) {
            self.send(page, why).await?;
        }
        Ok(Asked {
            seen,
            requested: fresh.len() as u64,
        })
    }

    fn is_new(&mut self, user: &UserId) -> bool {
        let mut hasher = DefaultHasher::new();
        user.0.hash(&mut hasher);
        let hash = hasher.finish();
        if self.asked.len() >= REMEMBERED {
            return !self.asked.contains(&hash);
        }
        self.asked.insert(hash)
    }

    async fn wished(&self, users: Vec<UserId>, wish: &Wish) -> Result<Vec<UserId>, store::Error> {
        let ns = &self.config.namespace;
        let lists = wish.pu.is_some() || wish.older_than.is_some();
        let peeks = match lists {
            true => self.store.peek(ns, &users).await?,
            false => vec![Peek::default(); users.len()],
        };
        let helds = match wish.segment.is_some() {
            true => self.store.load(ns, &users).await?,
            false => vec![Held::default(); users.len()],
        };
        let meant = |(user, (peek, held)): (UserId, (Peek, Held))| {
            self.is_meant(&user, (&peek, &held), wish).then_some(user)
        };
        Ok(users
            .into_iter()
            .zip(peeks.into_iter().zip(helds))
            .filter_map(meant)
            .collect())
    }

    fn is_meant(&self, user: &UserId, (peek, held): (&Peek, &Held), wish: &Wish) -> bool {
        let config = self.config;
        let arms = arms_for(&config.namespace, &config.arms);
        let arm = || arm_of(&user.0, &config.arm_seed, &arms).map(|arm| arm.id.clone());
        let profile = held.state.profile.as_ref().map(|known| &known.profile);
        let segment = || self.segments.segment(profile, self.now).to_owned();
        let list = peek.list.as_ref().filter(|list| list.claim > 0);
        let old = |limit: &Duration| list.is_none_or(|list| self.now.since(list.at) > *limit);
        let shows = |pu: &String| {
            let shown = peek
                .list
                .as_ref()
                .and_then(|list| Document::parse(&list.doc).ok());
            shown.is_some_and(|doc| doc.pus.iter().any(|it| it.pu == *pu || it.name == *pu))
        };
        wish.arm
            .as_ref()
            .is_none_or(|wanted| arm().as_ref() == Some(wanted))
            && wish
                .segment
                .as_ref()
                .is_none_or(|wanted| segment() == *wanted)
            && wish.older_than.as_ref().is_none_or(old)
            && wish.pu.as_ref().is_none_or(shows)
    }

    async fn send(&self, users: &[UserId], why: &Why) -> Result<(), log::Error> {
        let requests: Vec<Outgoing> = users
            .iter()
            .map(|user| {
                let request = request(&self.config.namespace, user, why);
                let due = request.due.after(self.put_off);
                Request { due, ..request }
            })
            .map(|request| request_record(&self.config.topics, &request))
            .collect();
        self.producer.send(requests).await
    }
}

/// Those whose list has not seen all of their state, or is of an older epoch than their arm's.
async fn trailing<S: Store>(
    store: &S,
    config: &Config,
    page: Vec<UserId>,
) -> Result<Vec<UserId>, store::Error> {
    let ns = &config.namespace;
    let peeks = store.peek(ns, &page).await?;
    let arms = arms_for(ns, &config.arms);
    let trails = |user: &UserId, peek: &Peek| {
        let status = peek.status();
        let arm = arm_of(&user.0, &config.arm_seed, &arms);
        let epoch = arm.map_or(0, |arm| arm.epoch);
        need(&request(ns, user, &Why::Sweep), &[], (&status, epoch)) == Need::Claim
    };
    let trailing: Vec<UserId> = page
        .into_iter()
        .zip(peeks)
        .filter_map(|(user, peek)| trails(&user, &peek).then_some(user))
        .collect();
    // An erased user still has a state, whose fences keep old records out; no list is due to them.
    let vacant = vacant_users(store, ns, &trailing).await?;
    Ok(trailing
        .into_iter()
        .filter(|user| !vacant.contains(user))
        .collect())
}

fn request(ns: &str, user: &UserId, why: &Why) -> Request {
    let now = wall_clock();
    let (reason, force) = match why {
        Why::Sweep => (Reason::Sweep, false),
        Why::Refresh(wish) => (Reason::Refresh, wish.force),
    };
    Request {
        v: 1,
        ns: ns.into(),
        user: user.clone(),
        reason,
        source: None,
        time: now,
        due: now,
        lane: Lane::Backfill,
        force,
    }
}
