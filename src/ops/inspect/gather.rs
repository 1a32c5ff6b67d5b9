//! Builds one [`View`] from a user's state, list, audit and prompt, and from the catalogue.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    AuditView, DroppedView, EventView, ListView, NameView, PendingView, ProfileView, PromptView,
    SkuView, StateView, Times, View,
};
use nearshore_core::list::document::{Audit, ClauseAudit, Document, NameAudit, Shown, Source};
use nearshore_core::list::prompt::Rendered;
use nearshore_core::names::meaning::Subject;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::event::Item;
use nearshore_core::user::record::Fences;
use nearshore_core::user::state::{LoadedUser, WindowEvent};

/// What a [`View`] is built from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The user's id.
    pub user: &'a str,
    /// The namespace that was read.
    pub namespace: &'a str,
    /// The segment of the present profile.
    pub segment: &'a str,
    /// State, profile, claim number and activity.
    pub loaded: &'a LoadedUser,
    /// The stored list.
    pub document: Option<&'a Document>,
    /// Its audit.
    pub audit: Option<&'a Audit>,
    /// Gives names and titles.
    pub catalogue: &'a Catalogue,
    /// SKUs of the list that are sold out or blocked now.
    pub sold_out: &'a BTreeSet<String>,
    /// The prompt, rendered from the present state.
    pub prompt: Option<&'a Rendered>,
}

impl View {
    /// Builds the view.
    pub fn of(sources: &Sources) -> Self {
        let loaded = sources.loaded;
        let state = &loaded.state;
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
                .map(|event| event_view(event, sources.catalogue))
                .collect(),
            state: StateView {
                fences: lines(&state.fences),
                erased_at: state.erased_at,
                ver: loaded.ver,
                claim: loaded.claim,
                activity: f64::from(loaded.activity.score) / 100.0,
                pending: loaded.activity.pending.as_ref().map(|pending| PendingView {
                    source: pending.source.as_ref().map(ToString::to_string),
                    due: pending.due,
                }),
            },
            list: sources
                .document
                .map(|document| list_view(document, sources)),
            audit: sources
                .audit
                .map(|audit| audit_view(audit, sources.catalogue)),
            prompt: sources.prompt.map(|rendered| PromptView {
                text: rendered.text(),
                hash: rendered.hash(),
                moved_on: sources.audit.is_some_and(|audit| {
                    !audit.prompt.is_empty() && audit.prompt != rendered.hash()
                }),
            }),
        }
    }
}

fn event_view(event: &WindowEvent, catalogue: &Catalogue) -> EventView {
    let (item, name) = match &event.item {
        Item::Sku(id) | Item::Pu(id) => {
            (id, catalogue.name_of_item(&event.item).map(Cow::into_owned))
        }
        Item::Query(words) => (words, Some("search".to_owned())),
    };
    EventView {
        time: event.time,
        position: event.position.to_string(),
        kind: format!("{:?}", event.kind).to_lowercase(),
        item: item.clone(),
        name,
        qty: event.qty,
        price: event.price,
    }
}

fn list_view(document: &Document, sources: &Sources) -> ListView {
    let audit = sources.audit;
    let audited: BTreeMap<&str, &NameAudit> = audit
        .into_iter()
        .flat_map(|audit| &audit.names)
        .map(|name| (name.pu.as_str(), name))
        .collect();
    let seen = audit.map(|audit| &audit.seen);
    ListView {
        list_id: document.list_id.clone(),
        source: <&str>::from(document.source).into(),
        note: note(document),
        arm: document.arm.clone(),
        epoch: audit.map_or(0, |audit| audit.epoch),
        claim: audit.map_or(0, |audit| audit.claim),
        seen: seen.map(lines).unwrap_or_default(),
        current: seen.is_some_and(|seen| seen.contains_all(&sources.loaded.state.fences)),
        at: document.at,
        names: document
            .pus
            .iter()
            .map(|shown| name_view(shown, audited.get(shown.pu.as_str()).copied(), sources))
            .collect(),
    }
}

/// Says why the list is a fallback, or that a later list of the model is not there.
fn note(document: &Document) -> String {
    let reason = document.reason.as_deref().unwrap_or_default();
    match (document.stale, document.source) {
        (true, _) => format!("Kept until a later list of the model is there: {reason}"),
        (false, Source::Fallback) => format!("A fallback made from demand alone: {reason}"),
        (false, Source::Model | Source::Mixture) => reason.to_owned(),
    }
}

fn name_view(shown: &Shown, audited: Option<&NameAudit>, sources: &Sources) -> NameView {
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

fn audit_view(audit: &Audit, catalogue: &Catalogue) -> AuditView {
    let pu_name = |pu: &str| {
        let known = catalogue
            .by_pu(pu)
            .map(|ix| catalogue.label(ix).into_owned());
        known.unwrap_or_else(|| pu.to_owned())
    };
    let rule = |id: &String| {
        let unknown = audit.rules_unknown.contains(id);
        format!(
            "{id}{}",
            if unknown {
                " (a field of the profile is missing or cannot be compared)"
            } else {
                ""
            }
        )
    };
    let mut versions = BTreeMap::from([
        ("artefact", audit.artefact.clone()),
        ("template", audit.template.clone()),
        ("model asked", audit.asked.clone()),
        ("prompt", audit.prompt.clone()),
        ("prompt tokens", audit.prompt_tokens.to_string()),
        ("events cut", audit.events_cut.to_string()),
        ("demand", audit.demand.clone()),
        ("catalogue", audit.catalogue.to_string()),
        ("segment", audit.segment.clone()),
    ]);
    if let Some(model) = &audit.model {
        let description = format!(
            "{} {} {} {}",
            model.name, model.revision, model.dtype, model.device
        );
        versions.insert("model", description);
    }
    let off = (audit.rules_unknown.iter()).filter(|id| !audit.rules.contains(id));
    let off: Vec<&str> = off.map(String::as_str).collect();
    versions.insert("rules that could not be applied", off.join(", "));
    let written = audit.written.iter().flat_map(|written| &written.rejected);
    let rejected = written.map(|rejected| DroppedView {
        name: format!("{:?}, as the model wrote it", rejected.text),
        reason: <&str>::from(rejected.why).replace('_', " "),
    });
    let texts = audit.texts.iter().flat_map(|texts| &texts.clauses);
    if let Some(texts) = &audit.texts {
        versions.insert("reader of texts", texts.reader.clone());
    }
    let versions = versions
        .into_iter()
        .filter(|(_, version)| !version.is_empty());
    AuditView {
        texts: texts.map(|clause| said(clause, &pu_name)).collect(),
        rules: audit.rules.iter().map(rule).collect(),
        dropped: audit
            .dropped
            .iter()
            .map(|dropped| DroppedView {
                name: pu_name(&dropped.pu),
                reason: <&str>::from(dropped.why).replace('_', " "),
            })
            .chain(rejected)
            .collect(),
        versions: versions
            .map(|(what, version)| (what.to_owned(), version))
            .collect(),
        times: Times::of(&audit.times),
    }
}

/// What a clause of a text was read as, in words.
fn said(clause: &ClauseAudit, name: &dyn Fn(&str) -> String) -> String {
    let names: Vec<String> = clause.pus.iter().map(|pu| name(pu)).collect();
    let mut said = match (&clause.need, names.is_empty()) {
        (Some(need), _) => format!("means the need {need:?}"),
        (None, false) => format!("means {}", names.join(", ")),
        (None, true) => "means nothing that is likely enough".to_owned(),
    };
    if clause.is_matched() {
        said += &format!(" ({:.3})", clause.probability);
    }
    if clause.negated {
        said += ", negated: no interest";
    }
    match clause.subject {
        Subject::Unsaid => {}
        Subject::User => said += ", about the user",
        Subject::Other => said += ", about another person",
    }
    if let Some(days) = clause.days {
        said += &format!(", for {days} days");
    }
    format!("{}: {said}", clause.source)
}

fn lines(fences: &Fences) -> Vec<String> {
    let fence = |(partition, offset): (_, nearshore_core::user::record::Offset)| {
        format!("{partition}:{}", offset.0)
    };
    fences.iter().map(fence).collect()
}
