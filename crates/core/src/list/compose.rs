//! From a taken user to a question, and from the answer to a list: all of stage 1 and 2 but the model.
//!
//! Invariant: what may be offered is settled by rules, needs and stock before the model is asked, and
//! once more when its names become SKUs. It does not know lanes, tickets' meaning, nor where lists go.

use std::sync::Arc;
use std::time::Duration;

use crate::list::document::{
    Audit, Built, Document, Header, Model, Recipe, Scored, Times, list_id,
};
use crate::list::prompt::{Arm, Rendered, Template, View};
use crate::list::select;
use crate::names::scoring::{Answer, Ask, Reference, Term, Values};
use crate::shop::rules::{Needs, Verdict};
use crate::shop::snapshot::Shop;
use crate::user::event::UserId;
use crate::user::record::Timestamp;
use crate::user::state::UserState;
use crate::user::trigger::Request;

/// The user as taken.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// What asked.
    pub request: &'a Request,
    /// The state that the list is made from.
    pub state: &'a UserState,
    /// Number of the take.
    pub ticket: u64,
}

/// What a list is made with, beside the shop.
pub struct Kit<'a> {
    /// The arm.
    pub arm: &'a Arm,
    /// Its template.
    pub template: &'a Template,
    /// Its model, as audits call it.
    pub model: Model,
    /// What the model says behind these it says to everyone.
    pub reference: Option<Arc<Reference>>,
    /// Counts tokens of a text.
    pub count: &'a (dyn Fn(&str) -> usize + Sync),
    /// What is not needed again yet.
    pub needs: &'a Needs,
    /// How SKUs are chosen.
    pub selection: &'a select::Policy,
}

/// A question, with all that its answer will need.
#[derive(Clone, Debug)]
pub struct Brief {
    /// The question; `None` if the template failed on this user.
    pub ask: Option<Ask>,
    verdict: Verdict,
    header: Header,
    audit: Audit,
    /// See [`Recipe`]'s.
    draw: u64,
}

/// A list with its audit.
#[derive(Clone, Debug)]
pub struct Made {
    /// The list.
    pub document: Document,
    /// The audit; times are filled in by [`Made::audited`].
    pub audit: Audit,
}

/// Judges the user, renders the prompt, and says what may be named.
pub fn brief(subject: &Subject, shop: &Shop, kit: &Kit) -> Brief {
    let Subject {
        request,
        state,
        ticket,
    } = *subject;
    let profile = state.profile.as_ref().map(|profiled| &profiled.profile);
    let (at, draw) = moment(subject, shop);
    let mut verdict = shop.judge(profile, at);
    kit.needs
        .add(&mut verdict, &state.window, (&shop.catalogue, at));
    let segment = shop.rules.segment(profile, at).to_owned();
    let view = View::new(state, &shop.catalogue, &segment, at);
    let rendered = kit
        .template
        .render(&view, kit.arm.prompt_tokens, kit.count)
        .ok();
    let permitted = verdict.permitted(&shop.catalogue);
    let id = list_id(&request.ns, &request.user.0, ticket, state.life);
    let mut audit = Audit {
        list_id: id.clone(),
        ticket,
        covers: state.fences.clone(),
        arm: kit.arm.id.clone(),
        epoch: kit.arm.epoch,
        model: Some(kit.model.clone()),
        template: kit.template.hash.clone(),
        references: (kit.reference.as_ref()).map_or("none".into(), |own| own.hash.clone()),
        rules: verdict.fired.clone(),
        rules_unknown: verdict.unknown.clone(),
        segment: segment.clone(),
        demand: shop.demand.version.clone(),
        catalogue: shop.catalogue.version(),
        times: Times {
            source: request.time,
            due: request.due,
            ..Times::default()
        },
        ..Audit::default()
    };
    let ask = rendered.map(|rendered| {
        let terms = demand_term(kit.arm, shop, &segment);
        let prompt = told(&mut audit, rendered);
        Ask {
            prompt,
            permitted: Some(Arc::new(permitted)),
            n: kit.arm.names,
            terms,
            weight: kit.arm.model_weight as f32,
            reference: kit.reference.clone(),
            ..Ask::default()
        }
    });
    let header = Header {
        list_id: id,
        user: Some(request.user.0.to_string()),
        arm: kit.arm.id.clone(),
        at,
        segment,
        reason: None,
    };
    Brief {
        ask,
        verdict,
        header,
        audit,
        draw,
    }
}

/// As of when the list is made, and what its exploration is seeded by: the request's time and the take.
///
/// Where counts are frozen and no record asks (a sweep, a refresh), it depends on state, counts and arm alone, and not on
/// when, by whom or how often it was asked for: as of the counts, or of the user's newest record if that is later;
/// seeded by what it covers.
fn moment(subject: &Subject, shop: &Shop) -> (Timestamp, u64) {
    let Subject {
        request,
        state,
        ticket,
    } = *subject;
    if !shop.demand.frozen || request.source.is_some() {
        return (request.time, ticket);
    }
    let event = state.window.last().map(|seen| seen.time);
    let profile = state.profile.as_ref().map(|profiled| profiled.time);
    let newest = event.max(profile).unwrap_or_default();
    (newest.max(shop.demand.at), select::draw(&state.fences))
}

/// Notes in the audit what the prompt was made of; the prompt itself goes to the model only.
fn told(audit: &mut Audit, rendered: Rendered) -> String {
    audit.prompt = rendered.hash();
    audit.events_cut = u32::try_from(rendered.events_cut).unwrap_or(u32::MAX);
    let text = rendered.text();
    audit.events = rendered.events;
    text
}

fn demand_term(arm: &Arm, shop: &Shop, segment: &str) -> Vec<Term> {
    if arm.demand_weight == 0.0 {
        return Vec::new();
    }
    vec![Term {
        name: "demand",
        weight: arm.demand_weight as f32,
        values: Values::Mass(shop.demand.mass(segment)),
    }]
}

/// The list of an answer. Empty answers, and answers of which nothing may be offered, become the fallback.
pub fn finish(brief: &Brief, answer: &Answer, shop: &Shop, kit: &Kit) -> Made {
    let terms = brief
        .ask
        .iter()
        .flat_map(|ask| ask.terms.iter().map(|term| term.name));
    let terms: Vec<&str> = terms.collect();
    let scored: Vec<Scored> = answer
        .named
        .iter()
        .map(|named| {
            let model = ("model".to_owned(), named.model);
            let habit = ("habit".to_owned(), named.habit);
            let habit = kit.reference.is_some().then_some(habit);
            let others = terms
                .iter()
                .zip(&named.terms)
                .map(|(name, value)| ((*name).into(), *value));
            Scored {
                pu: named.pu,
                score: named.score,
                terms: std::iter::once(model).chain(habit).chain(others).collect(),
            }
        })
        .collect();
    let built = recipe(brief, shop, kit).build(brief.header.clone(), &scored);
    if built.document.is_empty() {
        return fallback(
            brief,
            shop,
            kit,
            "nothing that the model named may be offered",
        );
    }
    let mut made = made(brief, built);
    made.audit.prompt_tokens = answer.prompt_tokens;
    made
}

/// The fallback in place of a list of the model: `reason` says why.
pub fn fallback(brief: &Brief, shop: &Shop, kit: &Kit, reason: &str) -> Made {
    let header = Header {
        reason: Some(reason.into()),
        ..brief.header.clone()
    };
    made(brief, recipe(brief, shop, kit).fallback(header))
}

fn recipe<'a>(brief: &'a Brief, shop: &'a Shop, kit: &'a Kit) -> Recipe<'a> {
    Recipe {
        catalogue: &shop.catalogue,
        verdict: &brief.verdict,
        demand: &shop.demand,
        policy: kit.selection,
        names: kit.arm.names,
        theta: kit.arm.theta,
        draw: brief.draw,
    }
}

fn made(brief: &Brief, built: Built) -> Made {
    let audit = Audit {
        names: built.names,
        dropped: built.dropped,
        ..brief.audit.clone()
    };
    Made {
        document: built.document,
        audit,
    }
}

impl Made {
    /// The audit as JSON, with the parts of the list's age: queued, generated, published.
    pub fn audited(
        &self,
        (queued, generated, published): (Duration, Duration, Duration),
    ) -> String {
        let times = Times {
            queued,
            generated,
            published,
            ..self.audit.times
        };
        let audit = Audit {
            times,
            ..self.audit.clone()
        };
        serde_json::to_string(&audit).expect("an audit has only strings and finite numbers")
    }
}

/// The fallback of a segment for somebody of whom nothing is known: rules fail closed.
pub fn shelf(shop: &Shop, segment: &str, (names, policy): (usize, &select::Policy)) -> Document {
    let verdict = shop.judge(None, Timestamp(0));
    let recipe = Recipe {
        catalogue: &shop.catalogue,
        verdict: &verdict,
        demand: &shop.demand,
        policy,
        names,
        theta: None,
        draw: 0,
    };
    let header = Header {
        list_id: list_id("", segment, 0, Timestamp(0)),
        segment: segment.into(),
        reason: Some("no list of the model yet".into()),
        ..Header::default()
    };
    recipe.fallback(header).document
}

/// A user's own copy of a segment's fallback.
pub fn own_copy(mut list: Document, user: &UserId, at: Timestamp) -> Document {
    list.list_id = list_id("", &user.0, 0, at);
    list.user = Some(user.0.to_string());
    list.at = at;
    list
}
