//! What is done with a namespace from outside the stream: reading a list as a client does, asking
//! for lists, looking at one user.
//!
//! Invariant: nothing here writes a list; requests go the way of every other one.

use crate::config::Config;
use crate::event::UserId;
use crate::ingest::request_record;
use crate::keeper::wall_clock;
use crate::list::Document;
use crate::log::{self, Producer};
use crate::store::{self, Peek, Store};
use crate::takes::{Need, Standing, need};
use crate::trigger::{Lane, Reason, Request};

/// Requests per acknowledged write.
const PAGE: usize = 500;

/// What a sweep or refresh did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Users looked at; a user may be seen twice in a scan.
    pub seen: u64,
    /// Requests written.
    pub requested: u64,
}

/// The list that a client would show: the user's, else the default fallback; sold-out SKUs filtered.
pub async fn served<S: Store>(
    store: &S,
    ns: &str,
    user: &UserId,
) -> Result<Option<Document>, store::Error> {
    let peek = store.peek(ns, std::slice::from_ref(user)).await?.pop().unwrap_or_default();
    let doc = match peek.list {
        Some(list) => Some(list.doc),
        None => store.fallback(ns, "default").await?,
    };
    let Some(mut list) = doc.and_then(|doc| Document::parse(&doc).ok()) else {
        return Ok(None);
    };
    let skus: Vec<String> = list.pus.iter().flat_map(|pu| pu.skus.iter().cloned()).collect();
    let out = store.sold_out(&skus).await?;
    let gone: std::collections::BTreeSet<String> =
        skus.into_iter().zip(out).filter_map(|(sku, out)| out.then_some(sku)).collect();
    list.strip(|_, sku| gone.contains(sku));
    Ok(Some(list))
}

/// Requests lists on the backfill lane: for `users`, or for everyone with a state.
pub async fn ask<S: Store>(
    store: &S,
    producer: &Producer,
    (config, users, reason): (&Config, &[UserId], Reason),
) -> anyhow::Result<Asked> {
    let mut asked = Asked::default();
    if !users.is_empty() {
        asked.seen = users.len() as u64;
        asked.requested = send(producer, config, (users, reason)).await?;
        return Ok(asked);
    }
    let epoch = config.arms.iter().map(|arm| arm.epoch).max().unwrap_or(0);
    let mut cursor = None;
    loop {
        let (page, next) = store.scan(&config.namespace, cursor).await?;
        asked.seen += page.len() as u64;
        let trailing = match reason {
            Reason::Sweep => trailing(store, (&config.namespace, epoch), page).await?,
            Reason::First | Reason::Moved | Reason::Profile | Reason::Overdue | Reason::Refresh => page,
        };
        asked.requested += send(producer, config, (&trailing, reason)).await?;
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(asked),
        }
    }
}

async fn trailing<S: Store>(
    store: &S,
    (ns, epoch): (&str, u64),
    page: Vec<UserId>,
) -> Result<Vec<UserId>, store::Error> {
    if page.is_empty() {
        return Ok(page);
    }
    let peeks = store.peek(ns, &page).await?;
    let trails = |user: &UserId, peek: &Peek| {
        let list = peek.list.as_ref().filter(|list| list.ticket > 0);
        let standing = Standing {
            list: list.map(|list| (list.covers.clone(), list.epoch)),
            state: peek.fences.clone(),
            pending: peek.pending.clone(),
        };
        let request = request(ns, user, Reason::Sweep);
        need(&request, &[], (&standing, epoch)) == Need::Take
    };
    Ok(page.into_iter().zip(peeks).filter_map(|(user, peek)| trails(&user, &peek).then_some(user)).collect())
}

async fn send(
    producer: &Producer,
    config: &Config,
    (users, reason): (&[UserId], Reason),
) -> Result<u64, log::Error> {
    for page in users.chunks(PAGE) {
        let requests = page
            .iter()
            .map(|user| request_record(&config.topics, &request(&config.namespace, user, reason)))
            .collect();
        producer.send(requests).await?;
    }
    Ok(users.len() as u64)
}

fn request(ns: &str, user: &UserId, reason: Reason) -> Request {
    let now = wall_clock();
    Request {
        v: 1,
        ns: ns.into(),
        user: user.clone(),
        reason,
        source: None,
        time: now,
        due: now,
        lane: Lane::Backfill,
    }
}
