//! A user's state, list and audit become a [`View`], read against the shop of now.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AuditView, DroppedView, EventView, ListView, NameView, PendingView, ProfileView, PromptView, SkuView,
    StateView, Times, View,
};
use crate::event::{Item, UserId};
use crate::list::{Audit, Document, Shown, Source};
use crate::prompt::{Template, View as PromptInput};
use crate::record::{Fences, Timestamp};
use crate::shop::Shop;
use crate::state::{Held, Seen, UserState};

/// The list as stored, if there is one.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The document.
    pub doc: Document,
    /// Its audit; the default one of a first fallback.
    pub audit: Audit,
    /// What it has seen.
    pub covers: Fences,
    /// The take that it was made from.
    pub ticket: u64,
    /// Epoch of its arm.
    pub epoch: u64,
}

/// What of the user is stored.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Whose.
    pub user: &'a UserId,
    /// In which namespace.
    pub ns: &'a str,
    /// State and mark.
    pub held: &'a Held,
    /// The list.
    pub list: Option<&'a Listed>,
    /// SKUs of the list that are sold out or blocked now.
    pub sold_out: &'a BTreeSet<String>,
}

/// Everything there is to see. `template`: of the list's arm, to render the prompt again.
pub fn gather(found: &Found, shop: &Shop, template: Option<&Template>) -> View {
    let state = &found.held.state;
    let profile = state.profile.as_ref();
    let at = found.list.map_or(Timestamp(0), |list| list.doc.at);
    View {
        user: found.user.0.to_string(),
        namespace: found.ns.into(),
        segment: shop.rules.segment(profile.map(|p| &p.profile), at).into(),
        profile: profile.map(|profiled| ProfileView {
            time: profiled.time,
            position: profiled.position.to_string(),
            fields: profiled.profile.0.clone(),
        }),
        events: state.window.iter().map(|seen| event(seen, shop)).collect(),
        state: state_view(found.held),
        list: found.list.map(|list| list_view(list, found, shop)),
        audit: found.list.map(|list| audit_view(&list.audit)),
        prompt: template.and_then(|template| prompt_view(state, found.list?, (shop, template))),
    }
}

fn event(seen: &Seen, shop: &Shop) -> EventView {
    let item = match &seen.item {
        Item::Sku(id) | Item::Pu(id) | Item::Query(id) => id.clone(),
    };
    EventView {
        time: seen.time,
        position: seen.position.to_string(),
        kind: seen.kind.text().into(),
        item,
        name: shop.catalogue.name_of_item(&seen.item).map(str::to_owned),
        qty: seen.qty,
        price: seen.price,
    }
}

fn fences(fences: &Fences) -> Vec<String> {
    fences.iter().map(|(partition, offset)| format!("{partition}:{}", offset.0)).collect()
}

fn state_view(held: &Held) -> StateView {
    StateView {
        fences: fences(&held.state.fences),
        life: held.state.life,
        ver: held.ver,
        ticket: held.ticket,
        moved: f64::from(held.mark.moved) / 100.0,
        pending: held.mark.pending.as_ref().map(|pending| PendingView {
            source: pending.source.as_ref().map(ToString::to_string),
            due: pending.due,
        }),
    }
}

fn list_view(list: &Listed, found: &Found, shop: &Shop) -> ListView {
    let reason = list.doc.reason.clone().unwrap_or_default();
    ListView {
        list_id: list.doc.list_id.clone(),
        source: match list.doc.source {
            Source::Model => "model".into(),
            Source::Fallback => "fallback".into(),
        },
        note: if list.doc.stale { format!("stale: {reason}") } else { reason },
        arm: list.doc.arm.clone(),
        epoch: list.epoch,
        ticket: list.ticket,
        covers: fences(&list.covers),
        current: list.covers.cover_all(&found.held.state.fences),
        at: list.doc.at,
        names: list.doc.pus.iter().map(|shown| name_view(shown, list, (found, shop))).collect(),
    }
}

fn name_view(shown: &Shown, list: &Listed, (found, shop): (&Found, &Shop)) -> NameView {
    let audit = list.audit.names.iter().find(|name| name.pu == shown.pu);
    let terms = audit.map(|name| name.terms.iter().map(|(term, nats)| (term.clone(), f64::from(*nats))));
    let ees: BTreeMap<&str, f64> = audit
        .into_iter()
        .flat_map(|name| &name.skus)
        .filter_map(|sku| Some((sku.sku.as_str(), sku.ee?)))
        .collect();
    let title = |sku: &str| {
        let ix = shop.catalogue.by_sku(sku)?;
        Some(shop.catalogue.sku(ix).title.clone())
    };
    let sku = |sku: &String| SkuView {
        sku: sku.clone(),
        title: title(sku).unwrap_or_default(),
        ee: ees.get(sku.as_str()).copied().unwrap_or_default(),
        sold_out: found.sold_out.contains(sku),
    };
    NameView {
        name: shown.name.clone(),
        pu: shown.pu.clone(),
        score: shown.score,
        terms: terms.map(Iterator::collect).unwrap_or_default(),
        skus: shown.skus.iter().map(sku).collect(),
    }
}

fn audit_view(audit: &Audit) -> AuditView {
    let mut versions = BTreeMap::from([
        ("catalogue".to_owned(), audit.catalogue.to_string()),
        ("demand".to_owned(), audit.demand.clone()),
        ("template".to_owned(), audit.template.clone()),
        ("prompt tokens".to_owned(), audit.prompt_tokens.to_string()),
    ]);
    if let Some(model) = &audit.model {
        versions.insert("model".into(), format!("{} ({}, {})", model.name, model.dtype, model.device));
        versions.insert("revision".into(), model.revision.clone());
    }
    let unknown = |rule: &String| audit.rules_unknown.contains(rule);
    let rule = |rule: &String| {
        if unknown(rule) { format!("{rule} (the profile does not tell)") } else { rule.clone() }
    };
    AuditView {
        rules: audit.rules.iter().map(rule).collect(),
        dropped: audit
            .dropped
            .iter()
            .map(|dropped| DroppedView { name: dropped.pu.clone(), reason: dropped.why.label().into() })
            .collect(),
        versions,
        times: times(audit),
    }
}

/// Moments of the clock, from the parts that the audit keeps: queueing began when the request was due.
fn times(audit: &Audit) -> Times {
    let times = &audit.times;
    if times.source == Timestamp(0) {
        return Times::default();
    }
    let taken = times.due.after(times.queued);
    let generated = taken.after(times.generated);
    Times {
        event: Some(times.source),
        due: Some(times.due),
        taken: Some(taken),
        generated: Some(generated),
        published: Some(generated.after(times.published)),
    }
}

/// The prompt as it would be rendered now, cut as the list's was: there is no tokenizer here, so the
/// budget in bytes is searched that leaves out as many lines of events.
fn prompt_view(state: &UserState, list: &Listed, (shop, template): (&Shop, &Template)) -> Option<PromptView> {
    if list.doc.source == Source::Fallback {
        return None;
    }
    let input = PromptInput::new(state, &shop.catalogue, &list.audit.segment, list.doc.at);
    let render = |budget: usize| template.render(&input, budget, str::len).ok();
    let cut = list.audit.events_cut as usize;
    let (mut low, mut high) = (0, render(usize::MAX)?.tokens);
    while low < high {
        let middle = low + (high - low) / 2;
        if render(middle)?.events_cut <= cut { high = middle } else { low = middle + 1 }
    }
    let rendered = render(high)?;
    let hash = rendered.hash();
    Some(PromptView { text: rendered.text(), moved_on: hash != list.audit.prompt, hash: list.audit.prompt.clone() })
}
