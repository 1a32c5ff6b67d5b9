//! What is done with a namespace from outside the stream: reading a list as a client does, asking
//! for lists, looking at one user.
//!
//! Invariant: nothing here writes a list; requests go the way of every other one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::arms::arm_of;
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::demand::Demand;
use crate::event::{UserId, decode_sku};
use crate::ingest::request_record;
use crate::inspect::{Sources, View};
use crate::keeper::wall_clock;
use crate::list::{Audit, Document};
use crate::log::{self, Producer, Tailed};
use crate::prompt::{Rendered, Template, View as Shown};
use crate::record::Timestamp;
use crate::rules::Table;
use crate::shop::Shop;
use crate::state::UserState;
use crate::store::{self, Peek, Store};
use crate::takes::{Need, Standing, need};
use crate::trigger::{Lane, Reason, Request};

/// How long reading the whole catalogue may take for a command.
const CATALOGUE_MAX: Duration = Duration::from_secs(60);

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
    let peek = store
        .peek(ns, std::slice::from_ref(user))
        .await?
        .pop()
        .unwrap_or_default();
    let own = peek.list.and_then(|list| Document::parse(&list.doc).ok());
    let list = match own {
        Some(list) => Some(list),
        // None, or of a schema that this reader does not know.
        None => store
            .fallback(ns, "default")
            .await?
            .and_then(|doc| Document::parse(&doc).ok()),
    };
    let Some(mut list) = list else {
        return Ok(None);
    };
    let skus: Vec<String> = list
        .pus
        .iter()
        .flat_map(|pu| pu.skus.iter().cloned())
        .collect();
    let out = store.sold_out(&skus).await?;
    let gone: std::collections::BTreeSet<String> = skus
        .into_iter()
        .zip(out)
        .filter_map(|(sku, out)| out.then_some(sku))
        .collect();
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
    let mut cursor = None;
    loop {
        let (page, next) = store.scan(&config.namespace, cursor).await?;
        asked.seen += page.len() as u64;
        let trailing = match reason {
            Reason::Sweep => trailing(store, config, page).await?,
            Reason::First | Reason::Moved | Reason::Profile | Reason::Overdue | Reason::Refresh => {
                page
            }
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
    config: &Config,
    page: Vec<UserId>,
) -> Result<Vec<UserId>, store::Error> {
    if page.is_empty() {
        return Ok(page);
    }
    let ns = &config.namespace;
    let peeks = store.peek(ns, &page).await?;
    let trails = |user: &UserId, peek: &Peek| {
        let list = peek.list.as_ref().filter(|list| list.ticket > 0);
        let standing = Standing {
            list: list.map(|list| (list.covers.clone(), list.epoch)),
            state: peek.fences.clone(),
            pending: peek.pending.clone(),
        };
        let request = request(ns, user, Reason::Sweep);
        let arm = arm_of(&user.0, &config.arm_seed, &config.arms);
        let epoch = arm.map_or(0, |arm| arm.epoch);
        need(&request, &[], (&standing, epoch)) == Need::Take
    };
    Ok(page
        .into_iter()
        .zip(peeks)
        .filter_map(|(user, peek)| trails(&user, &peek).then_some(user))
        .collect())
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

/// Looks at one user: their state, list and audit, read against the shop of now.
pub struct Eye<S> {
    store: S,
    ns: String,
    shop: Arc<Shop>,
    /// By arm.
    templates: BTreeMap<String, Template>,
}

impl<S: Store> Eye<S> {
    /// For a command: reads the whole catalogue first. Of the active namespace, or else the configured one.
    pub async fn open(config: &Config, store: S) -> anyhow::Result<Self> {
        let catalogue = Arc::new(read_catalogue(config).await?);
        let rules = Arc::new(Table::compile(&config.rules, &config.segments, &catalogue));
        let demand = Demand::build(std::iter::empty(), &catalogue, &config.demand, Timestamp(0));
        let shop = Shop::new(
            (catalogue, rules, Arc::new(demand)),
            &[],
            (0, &config.selection),
        );
        Self::of(config, store, Arc::new(shop)).await
    }

    /// In a process that has a shop.
    pub async fn of(config: &Config, store: S, shop: Arc<Shop>) -> anyhow::Result<Self> {
        let ns = store
            .active()
            .await?
            .unwrap_or_else(|| config.namespace.clone());
        let mut templates = BTreeMap::new();
        for arm in &config.arms {
            // An arm that was removed, or a template that is gone: its prompt is not shown.
            let source = std::fs::read_to_string(config.resolve(&arm.template));
            if let Some(template) = source
                .ok()
                .and_then(|text| Template::load(&text, &arm.template).ok())
            {
                templates.insert(arm.id.clone(), template);
            }
        }
        Ok(Self {
            store,
            ns,
            shop,
            templates,
        })
    }

    /// Everything there is to see; `None` if nothing is stored of this user.
    pub async fn look(&self, user: &UserId) -> anyhow::Result<Option<View>> {
        let users = std::slice::from_ref(user);
        let held = self
            .store
            .load(&self.ns, users)
            .await?
            .pop()
            .unwrap_or_default();
        let stored = self
            .store
            .peek(&self.ns, users)
            .await?
            .pop()
            .unwrap_or_default()
            .list;
        if held.ver == 0 && stored.is_none() {
            return Ok(None);
        }
        let (document, audit) = match &stored {
            Some(stored) => {
                let document =
                    Document::parse(&stored.doc).with_context(|| format!("list of {user}"))?;
                // A first fallback has none.
                (
                    Some(document),
                    serde_json::from_str::<Audit>(&stored.audit).ok(),
                )
            }
            None => (None, None),
        };
        let skus: Vec<String> = document
            .iter()
            .flat_map(|list| &list.pus)
            .flat_map(|pu| pu.skus.iter().cloned())
            .collect();
        let out = self.store.sold_out(&skus).await?;
        let sold_out: BTreeSet<String> = skus
            .into_iter()
            .zip(out)
            .filter_map(|(sku, out)| out.then_some(sku))
            .collect();
        let profile = held
            .state
            .profile
            .as_ref()
            .map(|profiled| &profiled.profile);
        let at = document.as_ref().map_or(wall_clock(), |list| list.at);
        let prompt = audit
            .as_ref()
            .and_then(|audit| self.render(&held.state, audit, at));
        Ok(Some(View::of(&Sources {
            user: &user.0,
            namespace: &self.ns,
            segment: self.shop.rules.segment(profile, at),
            held: &held,
            document: document.as_ref(),
            audit: audit.as_ref(),
            catalogue: &self.shop.catalogue,
            sold_out: &sold_out,
            prompt: prompt.as_ref(),
        })))
    }

    /// The prompt as it would be rendered now, cut as the list's was: there is no tokenizer here, so the
    /// least budget in bytes is searched that leaves out as many lines of events.
    fn render(&self, state: &UserState, audit: &Audit, at: Timestamp) -> Option<Rendered> {
        let template = self.templates.get(&audit.arm)?;
        let shown = Shown::new(state, &self.shop.catalogue, &audit.segment, at);
        let render = |budget: usize| template.render(&shown, budget, str::len).ok();
        let cut = audit.events_cut as usize;
        let (mut low, mut high) = (0, render(usize::MAX)?.tokens);
        while low < high {
            let middle = low + (high - low) / 2;
            // Fields are cut only when no event is left, which the audit does not count.
            let tried = render(middle)?;
            let fits = tried.events_cut <= cut && tried.fields_cut == 0;
            (low, high) = if fits {
                (low, middle)
            } else {
                (middle + 1, high)
            };
        }
        render(high)
    }
}

/// The whole catalogue as it stands in the log now.
async fn read_catalogue(config: &Config) -> anyhow::Result<Catalogue> {
    let topic = &config.topics.catalog;
    let limits = config.limits();
    let read = async {
        let mut tail = log::tail(&config.kafka, topic, &BTreeMap::new()).await?;
        let mut catalogue = Catalogue::default();
        while let Tailed::Record(record) = tail.next().await? {
            if let Ok((sku, value)) = decode_sku(&record, &limits) {
                catalogue.apply(sku, value);
            }
        }
        Ok::<_, log::Error>(catalogue)
    };
    let read = tokio::time::timeout(CATALOGUE_MAX, read).await;
    let late = || format!("{topic} is not read to its end within {CATALOGUE_MAX:?}");
    read.with_context(late)?
        .with_context(|| format!("topic {topic}; see kafka.brokers and `nearshore check`"))
}

/// The SKUs of a PU, by id.
pub async fn skus_of(config: &Config, pu: &str) -> anyhow::Result<Vec<String>> {
    let catalogue = read_catalogue(config).await?;
    let ix = catalogue
        .by_pu(pu)
        .with_context(|| format!("the catalogue has no PU {pu:?}"))?;
    Ok(catalogue
        .pu(ix)
        .skus
        .iter()
        .map(|sku| catalogue.sku(*sku).sku.clone())
        .collect())
}
