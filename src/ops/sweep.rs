//! Requests lists on the backfill lane: for users whose list trails their state, or for those that a refresh selects.
//!
//! Invariant: these requests go the same way as all others; a list that is requested twice is made once, unless a
//! refresh forces a new one. The store is scanned one page at a time, so that an interrupted sweep resumes at a page.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::records::request_record;
use crate::ops::coverage::{leave_out, vacant_users};
use nearshore_core::list::document::{Document, Shown};
use nearshore_core::ports::log::{self, Outgoing};
use nearshore_core::ports::store::{self, Peek, Store};
use nearshore_core::queue::claims::{Need, need};
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::rules::Table;
use nearshore_core::text;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::LoadedUser;
use nearshore_core::user::trigger::{Lane, Reason, Request};
use nearshore_kafka::Producer;

/// Requests per acknowledged write.
const PAGE: usize = 500;

/// Users remembered during one scan, which may return a user twice. Beyond it a user may be requested twice; the list
/// is still made once.
const REMEMBERED: usize = 4_000_000;

/// The least time granted to a worker to read changed counts once it noticed them.
const READ_MIN: Duration = Duration::from_secs(2);

/// The time after which every worker has read counts that are written now, if it looks for changes every `every`.
pub fn demand_read_delay(every: Duration) -> Duration {
    every + (every / 3).max(READ_MIN)
}

/// What a sweep or refresh did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Users scanned; a scan may return a user twice.
    pub seen: u64,
    /// Requests written.
    pub requested: u64,
}

/// Selects the users whose lists a refresh makes anew; by default all users.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RefreshFilter {
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
    /// Also replace lists of a higher arm epoch.
    pub force: bool,
}

/// Why lists are requested.
#[derive(Clone, Debug, PartialEq)]
pub enum Purpose {
    /// The list trails the user's state.
    Sweep,
    /// An operator asked for new lists of these users.
    Refresh(RefreshFilter),
}

/// Requests lists, page by page of a scan.
pub struct ListRequester<'a, S> {
    store: &'a S,
    producer: &'a Producer,
    config: &'a Config,
    segments: Table,
    now: Timestamp,
    delay: Duration,
    /// Hashes of the users whose lists were requested; only membership is read, never the order.
    requested: HashSet<u64>,
}

impl<'a, S: Store> ListRequester<'a, S> {
    /// A requester that has requested nothing yet.
    pub fn new(store: &'a S, producer: &'a Producer, config: &'a Config) -> Self {
        Self {
            store,
            producer,
            config,
            // Segments depend on the profile alone, so an empty catalogue is enough.
            segments: Table::compile(&[], &config.segments, &Catalogue::default()),
            now: wall_clock(),
            delay: Duration::ZERO,
            requested: HashSet::new(),
        }
    }

    /// Makes all requests due this long after they are written.
    pub fn delayed_by(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Requests the lists of all users that `purpose` selects.
    pub async fn all(&mut self, purpose: &Purpose) -> anyhow::Result<RequestCounts> {
        if let Purpose::Refresh(filter) = purpose
            && !filter.users.is_empty()
        {
            let users = filter.users.clone();
            return self.some(users, purpose).await;
        }
        let mut sum = RequestCounts::default();
        let mut cursor = None;
        loop {
            let (counts, next) = self.page(purpose, cursor).await?;
            sum.seen += counts.seen;
            sum.requested += counts.requested;
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(sum),
            }
        }
    }

    /// Requests lists for one page of the scan; returns the cursor of the next page, `None` after the last.
    pub async fn page(
        &mut self,
        purpose: &Purpose,
        cursor: Option<String>,
    ) -> anyhow::Result<(RequestCounts, Option<String>)> {
        let (users, next) = self.store.scan(&self.config.namespace, cursor).await?;
        Ok((self.some(users, purpose).await?, next))
    }

    async fn some(
        &mut self,
        users: Vec<UserId>,
        purpose: &Purpose,
    ) -> anyhow::Result<RequestCounts> {
        let seen = users.len() as u64;
        if users.is_empty() {
            return Ok(RequestCounts::default());
        }
        let mut users = users;
        let selected = loop {
            let selected = match purpose {
                Purpose::Sweep => trailing(self.store, self.config, users.clone()).await,
                Purpose::Refresh(filter) => self.matching(users.clone(), filter).await,
            };
            match selected {
                Err(error) => leave_out(error, &mut users)?,
                Ok(selected) => break selected,
            }
        };
        let new: Vec<UserId> = selected
            .into_iter()
            .filter(|user| self.is_new(user))
            .collect();
        for page in new.chunks(PAGE) {
            self.send(page, purpose).await?;
        }
        Ok(RequestCounts {
            seen,
            requested: new.len() as u64,
        })
    }

    fn is_new(&mut self, user: &UserId) -> bool {
        let mut hasher = DefaultHasher::new();
        user.0.hash(&mut hasher);
        let hash = hasher.finish();
        if self.requested.len() >= REMEMBERED {
            return !self.requested.contains(&hash);
        }
        self.requested.insert(hash)
    }

    /// Those of `users` that the filter selects. It reads lists and states only if a condition needs them.
    async fn matching(
        &self,
        users: Vec<UserId>,
        filter: &RefreshFilter,
    ) -> Result<Vec<UserId>, store::Error> {
        let ns = &self.config.namespace;
        let needs_lists = filter.pu.is_some() || filter.older_than.is_some();
        let peeks = match needs_lists {
            true => self.store.peek(ns, &users).await?,
            false => vec![Peek::default(); users.len()],
        };
        let loaded = match filter.segment.is_some() {
            true => self.store.load(ns, &users).await?,
            false => vec![LoadedUser::default(); users.len()],
        };
        Ok(users
            .into_iter()
            .zip(peeks.into_iter().zip(loaded))
            .filter(|(user, (peek, loaded))| self.matches(user, peek, loaded, filter))
            .map(|(user, _)| user)
            .collect())
    }

    fn matches(
        &self,
        user: &UserId,
        peek: &Peek,
        loaded: &LoadedUser,
        filter: &RefreshFilter,
    ) -> bool {
        let config = self.config;
        let arms = arms_for(&config.namespace, &config.arms);
        let arm = || arm_of(&user.0, &config.arm_seed, &arms).map(|arm| arm.id.clone());
        let profile = loaded.state.profile.as_ref().map(|known| &known.profile);
        let segment = || self.segments.segment(profile, self.now).to_owned();
        let list = peek.list.as_ref().filter(|list| list.claim > 0);
        let old = |limit: &Duration| list.is_none_or(|list| self.now.since(list.at) > *limit);
        let shows = |pu: &String| {
            let document = peek
                .list
                .as_ref()
                .and_then(|list| Document::parse(&list.doc).ok());
            let is_it = |it: &Shown| text::same(&it.pu, pu) || text::same(&it.name, pu);
            document.is_some_and(|doc| doc.pus.iter().any(is_it))
        };
        filter
            .arm
            .as_ref()
            .is_none_or(|wanted| arm().as_ref() == Some(wanted))
            && filter
                .segment
                .as_ref()
                .is_none_or(|wanted| segment() == *wanted)
            && filter.older_than.as_ref().is_none_or(old)
            && filter.pu.as_ref().is_none_or(shows)
    }

    async fn send(&self, users: &[UserId], purpose: &Purpose) -> Result<(), log::Error> {
        let requests: Vec<Outgoing> = users
            .iter()
            .map(|user| {
                let request = request(&self.config.namespace, user, purpose);
                let due = request.due.after(self.delay);
                Request { due, ..request }
            })
            .map(|request| request_record(&self.config.topics, &request))
            .collect();
        self.producer.send(requests).await
    }
}

/// Those of `page` whose list has not seen all of their state, or has an older epoch than their arm.
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
        need(&request(ns, user, &Purpose::Sweep), &[], (&status, epoch)) == Need::Claim
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

fn request(ns: &str, user: &UserId, purpose: &Purpose) -> Request {
    let now = wall_clock();
    let (reason, force) = match purpose {
        Purpose::Sweep => (Reason::Sweep, false),
        Purpose::Refresh(filter) => (Reason::Refresh, filter.force),
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
