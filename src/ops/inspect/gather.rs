//! From what the store, the catalogue and the template know of a user to one [`View`].

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AuditView, DroppedView, EventView, ListView, NameView, PendingView, ProfileView, PromptView,
    SkuView, StateView, Times, View,
};
use nearshore_core::list::document::{Audit, Document, NameAudit, Shown, Source};
use nearshore_core::list::prompt::Rendered;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::event::Item;
use nearshore_core::user::record::Fences;
use nearshore_core::user::state::{Held, WindowEvent};

/// What a view is made from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The user's id.
    pub user: &'a str,
    /// Namespace that was read.
    pub namespace: &'a str,
    /// The segment that the profile has now.
    pub segment: &'a str,
    /// State, profile and what stands beside.
    pub held: &'a Held,
    /// The stored list.
    pub document: Option<&'a Document>,
    /// Its audit.
    pub audit: Option<&'a Audit>,
    /// For names and titles.
    pub catalogue: &'a Catalogue,
    /// SKUs of the list that are in the stock sets now.
    pub sold_out: &'a BTreeSet<String>,
    /// The prompt, rendered from the state of now.
    pub prompt: Option<&'a Rendered>,
}

impl View {
    /// All that the sources say.
    pub fn of(sources: &Sources) -> Self {
        let held = sources.held;
        let state = &held.state;
        Self {
            user: sources.user.into(),
            namespace: sources.namespace.into(),
            segment: sources.segment.into(),
            profile: state.profile.as_ref().map(|profiled| ProfileView {
                time: profiled.time,
                position: profiled.position.to_string(),
                fields: profiled.profile.0.clone(),
            }),
            events: state
                .window
                .iter()
                .map(|seen| event(seen, sources.catalogue))
                .collect(),
            state: StateView {
                fences: lines(&state.fences),
                erased_at: state.erased_at,
                ver: held.ver,
                claim: held.claim,
                activity: f64::from(held.activity.score) / 100.0,
                pending: held.activity.pending.as_ref().map(|pending| PendingView {
                    source: pending.source.as_ref().map(ToString::to_string),
                    due: pending.due,
                }),
            },
            list: sources.document.map(|document| list(document, sources)),
            audit: sources.audit.map(|audit| why(audit, sources.catalogue)),
            prompt: sources.prompt.map(|rendered| PromptView {
                text: rendered.text(),
                hash: rendered.hash(),
                moved_on: sources
                    .audit
                    .is_some_and(|audit| audit.prompt != rendered.hash()),
            }),
        }
    }
}

fn event(seen: &WindowEvent, catalogue: &Catalogue) -> EventView {
    let (item, name) = match &seen.item {
        Item::Sku(id) | Item::Pu(id) => (id, catalogue.name_of_item(&seen.item).map(str::to_owned)),
        Item::Query(words) => (words, Some("search".to_owned())),
    };
    EventView {
        time: seen.time,
        position: seen.position.to_string(),
        kind: format!("{:?}", seen.kind).to_lowercase(),
        item: item.clone(),
        name,
        qty: seen.qty,
        price: seen.price,
    }
}

fn list(document: &Document, sources: &Sources) -> ListView {
    let audit = sources.audit;
    let audited: BTreeMap<&str, &NameAudit> = audit
        .into_iter()
        .flat_map(|audit| &audit.names)
        .map(|name| (name.pu.as_str(), name))
        .collect();
    let seen = audit.map(|audit| &audit.seen);
    ListView {
        list_id: document.list_id.clone(),
        source: match document.source {
            Source::Model => "model".into(),
            Source::Fallback => "fallback".into(),
        },
        note: note(document),
        arm: document.arm.clone(),
        epoch: audit.map_or(0, |audit| audit.epoch),
        claim: audit.map_or(0, |audit| audit.claim),
        seen: seen.map(lines).unwrap_or_default(),
        current: seen.is_some_and(|seen| seen.contains_all(&sources.held.state.fences)),
        at: document.at,
        names: document
            .pus
            .iter()
            .map(|shown| name(shown, audited.get(shown.pu.as_str()).copied(), sources))
            .collect(),
    }
}

/// Why it is a fallback, or that a later generation failed.
fn note(document: &Document) -> String {
    let reason = document.reason.as_deref().unwrap_or_default();
    match (document.stale, document.source) {
        (true, _) => format!("A later generation failed and this list was kept: {reason}"),
        (false, Source::Fallback) => format!("A fallback by demand: {reason}"),
        (false, Source::Model) => reason.to_owned(),
    }
}

fn name(shown: &Shown, audited: Option<&NameAudit>, sources: &Sources) -> NameView {
    let catalogue = sources.catalogue;
    let sku = |id: &String| {
        let of_audit = audited.and_then(|name| name.skus.iter().find(|sku| sku.sku == *id));
        let title = catalogue
            .by_sku(id)
            .map(|ix| catalogue.sku(ix).title.clone());
        SkuView {
            sku: id.clone(),
            title: title.unwrap_or_default(),
            ee: of_audit.and_then(|sku| sku.ee),
            sold_out: sources.sold_out.contains(id),
        }
    };
    let terms = audited.map(|name| &name.terms).into_iter().flatten();
    NameView {
        name: shown.name.clone(),
        pu: shown.pu.clone(),
        score: shown.score,
        terms: terms
            .map(|(term, value)| (term.clone(), f64::from(*value)))
            .collect(),
        skus: shown.skus.iter().map(sku).collect(),
    }
}

fn why(audit: &Audit, catalogue: &Catalogue) -> AuditView {
    let pu_name = |pu: &str| {
        let known = catalogue.by_pu(pu).map(|ix| catalogue.pu(ix).name.clone());
        known.unwrap_or_else(|| pu.to_owned())
    };
    let rule = |id: &String| {
        let unknown = audit.rules_unknown.contains(id);
        format!(
            "{id}{}",
            if unknown {
                " (the profile does not tell)"
            } else {
                ""
            }
        )
    };
    let mut versions = BTreeMap::from([
        ("template", audit.template.clone()),
        ("prompt", audit.prompt.clone()),
        ("prompt tokens", audit.prompt_tokens.to_string()),
        ("events cut", audit.events_cut.to_string()),
        ("demand", audit.demand.clone()),
        ("catalogue", audit.catalogue.to_string()),
        ("segment", audit.segment.clone()),
    ]);
    if let Some(model) = &audit.model {
        let called = format!(
            "{} {} {} {}",
            model.name, model.revision, model.dtype, model.device
        );
        versions.insert("model", called);
    }
    let versions = versions
        .into_iter()
        .filter(|(_, version)| !version.is_empty());
    AuditView {
        rules: audit.rules.iter().map(rule).collect(),
        dropped: audit
            .dropped
            .iter()
            .map(|dropped| DroppedView {
                name: pu_name(&dropped.pu),
                reason: <&str>::from(dropped.why).replace('_', " "),
            })
            .collect(),
        versions: versions
            .map(|(what, version)| (what.to_owned(), version))
            .collect(),
        times: Times::of(&audit.times),
    }
}

fn lines(fences: &Fences) -> Vec<String> {
    let fence = |(partition, offset): (_, nearshore_core::user::record::Offset)| {
        format!("{partition}:{}", offset.0)
    };
    fences.iter().map(fence).collect()
}
