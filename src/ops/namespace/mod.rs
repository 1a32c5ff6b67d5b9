//! Works on a namespace from outside the stream: reads a list as a client does, inspects one user, says why a product
//! is not on a list, compares, promotes, retires and dumps namespaces.
//!
//! Invariant: nothing here writes a list.

mod diff;
mod dump;
mod evaluated;
mod now;
mod promote;
mod retire;
mod what_if;
mod why_not;

pub use crate::ops::coverage::is_covered;
pub use diff::{Difference, diff};
pub use dump::{Dump, dump};
pub use evaluated::Asked;
pub use promote::{Bounds, Check, Listing, Note, enroll, list, promote};
pub use retire::{Retired, retire};
pub use what_if::{Supposed, what_if};
pub use why_not::{Answer, why_not, why_not_in};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::files;
use crate::map::{Read, open_tail};
use crate::members::clock::wall_clock;
use crate::ops::inspect::{Sources, View};
use nearshore_core::list::document::{Audit, Document};
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::prompt::{Rendered, Template, View as Shown};
use nearshore_core::map::ReadAs;
use nearshore_core::ports::log;
use nearshore_core::ports::store::{self, Store};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::merchant::Merchant;
use nearshore_core::shop::naming;
use nearshore_core::shop::rules::{Table, unmatched_blocks};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Reject, UserId};
use nearshore_core::user::record::{Position, Timestamp};
use nearshore_core::user::state::UserState;

/// The longest that a command may take to read the whole catalogue.
const CATALOGUE_MAX: Duration = Duration::from_secs(60);

/// The list that a client would show: the user's, or else the default fallback, without sold-out SKUs.
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
    let stored = peek.list.and_then(|list| Document::parse(&list.doc).ok());
    let list = match stored {
        Some(list) => Some(list),
        // There is no list, or its schema is unknown to this reader.
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
    let sold_out = sold_out(store, skus).await?;
    list.strip(|_, sku| sold_out.contains(sku));
    Ok(Some(list))
}

/// Those of `skus` that are in the stock sets now: sold out or blocked.
async fn sold_out<S: Store>(
    store: &S,
    skus: Vec<String>,
) -> Result<BTreeSet<String>, store::Error> {
    let sold_out = store.sold_out(&skus).await?;
    Ok(skus
        .into_iter()
        .zip(sold_out)
        .filter_map(|(sku, sold_out)| sold_out.then_some(sku))
        .collect())
}

/// Shows one user: their state, list and audit, with the names and stock of the present catalogue.
pub struct Inspector<S> {
    store: S,
    ns: String,
    snapshot: Arc<Snapshot>,
    /// By arm.
    templates: BTreeMap<String, Template>,
}

impl<S: Store> Inspector<S> {
    /// An inspector for a command: it reads the whole catalogue first. It shows the active namespace, or the configured
    /// one if none is active.
    pub async fn open(config: &Config, store: S) -> anyhow::Result<Self> {
        let catalogue = Arc::new(read_catalogue(config).await?.catalogue);
        let rules = Arc::new(Table::compile(&config.rules, &config.segments, &catalogue));
        let demand = Demand::build(std::iter::empty(), &catalogue, &config.demand, Timestamp(0));
        let merchant = Arc::new(Merchant::compile(&config.merchant, &catalogue));
        let parts = SnapshotParts {
            catalogue,
            rules,
            demand: Arc::new(demand),
            merchant,
        };
        let no_fallbacks = FallbackSettings {
            segments: &[],
            names: 0,
            selection: &config.selection,
        };
        let snapshot = serving_snapshot(parts, no_fallbacks);
        Self::of(config, store, Arc::new(snapshot)).await
    }

    /// An inspector in a process that has a serving snapshot.
    pub async fn of(config: &Config, store: S, snapshot: Arc<Snapshot>) -> anyhow::Result<Self> {
        let ns = store
            .active()
            .await?
            .unwrap_or_else(|| config.namespace.clone());
        let mut templates = BTreeMap::new();
        for arm in &config.arms {
            // Without a template, as of an arm that was removed, the prompt is not shown.
            let source = files::read(&config.resolve(&arm.template));
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
            snapshot,
            templates,
        })
    }

    /// Everything stored of this user; `None` if nothing is stored.
    pub async fn inspect(&self, user: &UserId) -> anyhow::Result<Option<View>> {
        let users = std::slice::from_ref(user);
        let loaded = self
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
        if loaded.ver == 0 && stored.is_none() {
            return Ok(None);
        }
        let (document, audit) = match &stored {
            Some(stored) => {
                let document =
                    Document::parse(&stored.doc).with_context(|| format!("list of {user}"))?;
                // Without one, or with one of a later release, the list is shown without its audit.
                (Some(document), stored.audit.read().ok())
            }
            None => (None, None),
        };
        let skus: Vec<String> = document
            .iter()
            .flat_map(|list| &list.pus)
            .flat_map(|pu| pu.skus.iter().cloned())
            .collect();
        let sold_out = sold_out(&self.store, skus).await?;
        let profile = loaded
            .state
            .profile
            .as_ref()
            .map(|profiled| &profiled.profile);
        let at = document.as_ref().map_or(wall_clock(), |list| list.at);
        let prompt = audit
            .as_ref()
            .and_then(|audit| self.render(&loaded.state, audit, at));
        Ok(Some(View::of(&Sources {
            user: &user.0,
            namespace: &self.ns,
            segment: self.snapshot.rules.segment(profile, at),
            loaded: &loaded,
            document: document.as_ref(),
            audit: audit.as_ref(),
            catalogue: &self.snapshot.catalogue,
            sold_out: &sold_out,
            prompt: prompt.as_ref(),
        })))
    }

    /// Renders the prompt from the present state, cut like the list's prompt. There is no tokenizer here, so it
    /// searches the smallest budget in bytes that leaves out at most as many lines of events.
    fn render(&self, state: &UserState, audit: &Audit, at: Timestamp) -> Option<Rendered> {
        let template = self.templates.get(&audit.arm)?;
        let texts = audit.texts.as_ref();
        let catalogue = &self.snapshot.catalogue;
        let shown = Shown::new((state, texts), catalogue, &audit.segment, at);
        let render = |budget: usize| template.render(&shown, budget, str::len).ok();
        let cut = audit.events_cut as usize;
        let (mut low, mut high) = (0, render(usize::MAX)?.tokens);
        while low < high {
            let middle = low + (high - low) / 2;
            // Fields are cut only when no event is left; the audit does not count them.
            let rendered = render(middle)?;
            let fits = rendered.events_cut <= cut && rendered.fields_cut == 0;
            (low, high) = if fits {
                (low, middle)
            } else {
                (middle + 1, high)
            };
        }
        render(high)
    }
}

/// A catalogue as read from its topic.
#[derive(Debug, Default)]
pub(crate) struct ReadCatalogue {
    /// The catalogue.
    pub catalogue: Catalogue,
    /// Number of records that cannot be used.
    pub refused: u64,
    /// The first of them, and why.
    pub first_refused: Option<(Position, Reject)>,
}

/// Reads the whole catalogue up to the present end of its topic.
pub(crate) async fn read_catalogue(config: &Config) -> anyhow::Result<ReadCatalogue> {
    let names = config.topics.read_as(ReadAs::Catalog);
    let topic = names.join(", ");
    let limits = config.limits();
    let names_of = config.naming.as_deref();
    let read = async {
        let mut tail = open_tail(&config.kafka, &names, &config.topics, limits).await?;
        let mut read = ReadCatalogue::default();
        loop {
            let (position, skus) = match tail.next().await? {
                Read::Ready => break,
                Read::Refused(position, reject) => (position, Err(reject)),
                Read::Records(position, records) => {
                    let skus = records
                        .iter()
                        .map(|record| naming::decode_sku(names_of, record, &limits));
                    (position, skus.collect::<Result<Vec<_>, _>>())
                }
            };
            match skus {
                Ok(skus) => {
                    for (sku, value) in skus {
                        read.catalogue.apply(sku, value);
                    }
                }
                Err(reject) => {
                    read.refused += 1;
                    read.first_refused.get_or_insert((position, reject));
                }
            }
        }
        Ok::<_, log::Error>(read)
    };
    let read = tokio::time::timeout(CATALOGUE_MAX, read).await;
    let late = || {
        format!(
            "topic {topic} could not be read to its end within {CATALOGUE_MAX:?}; see `nearshore check`"
        )
    };
    read.with_context(late)?
        .with_context(|| format!("topic {topic}; see kafka.brokers and `nearshore check`"))
}

/// The SKUs of the PU with this id.
pub async fn skus_of(config: &Config, pu: &str) -> anyhow::Result<Vec<String>> {
    let catalogue = read_catalogue(config).await?.catalogue;
    let Some(ix) = catalogue.by_pu(pu) else {
        let unknown = unmatched_blocks([pu], [], &catalogue).pop();
        let what = unknown.map_or_else(|| "the catalogue has no SKU".to_owned(), |it| it.what);
        anyhow::bail!("nothing is blocked: {what}");
    };
    Ok(catalogue
        .pu(ix)
        .skus
        .iter()
        .map(|sku| catalogue.sku(*sku).sku.clone())
        .collect())
}

/// What is wrong with the id of a SKU that was blocked, if the catalogue does not have it.
pub async fn unknown_sku(config: &Config, sku: &str) -> anyhow::Result<Option<String>> {
    let catalogue = read_catalogue(config).await?.catalogue;
    let unknown = unmatched_blocks([], [sku], &catalogue).pop();
    Ok(unknown.map(|it| it.what))
}
