//! From a taken user to a question, and from the answer to a list: all of stage 1 and 2 but the model.
//!
//! Invariant: what may be offered is settled by rules, needs and stock before the model is asked, and
//! once more when its names become SKUs. It does not know lanes, claims' meaning, nor where lists go.

use std::sync::Arc;
use std::time::Duration;

use crate::list::document::{
    Audit, BuiltList, Document, Header, ListBuilder, Model, Scored, Times, list_id,
};
use crate::list::prompt::{Arm, Rendered, Template, View};
use crate::list::{select, terms};
use crate::names::scoring::{Calibration, ScoreRequest, ScoreResponse};
use crate::shop::rules::{Needs, Verdict};
use crate::shop::snapshot::Snapshot;
use crate::user::record::Timestamp;
use crate::user::state::UserState;
use crate::user::trigger::Request;

/// The user as taken.
#[derive(Clone, Debug)]
pub struct ClaimedUser<'a> {
    /// What asked.
    pub request: &'a Request,
    /// The state that the list is made from.
    pub state: &'a UserState,
    /// Number of the take.
    pub claim: u64,
}

/// What a list is made with, beside the shop.
pub struct ListContext<'a> {
    /// The arm.
    pub arm: &'a Arm,
    /// Its template.
    pub template: &'a Template,
    /// Its model, as audits call it.
    pub model: Model,
    /// What the model says behind these it says to everyone.
    pub calibration: Option<Arc<Calibration>>,
    /// Counts tokens of a text.
    pub count: &'a (dyn Fn(&str) -> usize + Sync),
    /// What is not needed again yet.
    pub needs: &'a Needs,
    /// How SKUs are chosen.
    pub selection: &'a select::Policy,
}

/// A question, with all that its answer will need.
#[derive(Clone, Debug)]
pub struct PreparedRequest {
    /// The question; `None` if the template failed on this user.
    pub ask: Option<ScoreRequest>,
    verdict: Verdict,
    header: Header,
    audit: Audit,
    /// See [`ListBuilder`]'s.
    draw: u64,
}

/// A list with its audit.
#[derive(Clone, Debug)]
pub struct FinishedList {
    /// The list.
    pub document: Document,
    /// The audit; times are filled in by [`FinishedList::audited`].
    pub audit: Audit,
}

/// Judges the user, renders the prompt, and says what may be named.
pub fn prepare(
    subject: &ClaimedUser,
    snapshot: &Snapshot,
    context: &ListContext,
) -> PreparedRequest {
    let ClaimedUser {
        request,
        state,
        claim,
    } = *subject;
    let profile = state.profile.as_ref().map(|profiled| &profiled.profile);
    let (at, draw) = moment(subject, snapshot);
    let mut verdict = snapshot.judge(profile, at);
    context
        .needs
        .add(&mut verdict, &state.window, (&snapshot.catalogue, at));
    let segment = snapshot.rules.segment(profile, at).to_owned();
    let view = View::new(state, &snapshot.catalogue, &segment, at);
    let rendered = context
        .template
        .render(&view, context.arm.prompt_tokens, context.count)
        .ok();
    let permitted = verdict.permitted(&snapshot.catalogue);
    let id = list_id(&request.ns, &request.user.0, claim, state.erased_at);
    let mut audit = Audit {
        list_id: id.clone(),
        claim,
        seen: state.fences.clone(),
        arm: context.arm.id.clone(),
        epoch: context.arm.epoch,
        model: Some(context.model.clone()),
        template: context.template.hash.clone(),
        calibration: (context.calibration.as_ref()).map_or("none".into(), |own| own.hash.clone()),
        rules: verdict.fired.clone(),
        rules_unknown: verdict.unknown.clone(),
        segment: segment.clone(),
        demand: snapshot.demand.version.clone(),
        catalogue: snapshot.catalogue.version(),
        times: Times {
            source: request.time,
            due: request.due,
            ..Times::default()
        },
        ..Audit::default()
    };
    let ask = rendered.map(|rendered| {
        let terms = terms::score_terms(context.arm, state, snapshot, &segment);
        let prompt = told(&mut audit, rendered);
        ScoreRequest {
            prompt,
            permitted: Some(Arc::new(permitted)),
            n: context.arm.names,
            terms,
            weight: context.arm.model_weight as f32,
            calibration: context.calibration.clone(),
            ..ScoreRequest::default()
        }
    });
    let header = Header {
        list_id: id,
        user: Some(request.user.0.to_string()),
        arm: context.arm.id.clone(),
        at,
        segment,
        reason: None,
    };
    PreparedRequest {
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
fn moment(subject: &ClaimedUser, snapshot: &Snapshot) -> (Timestamp, u64) {
    let ClaimedUser {
        request,
        state,
        claim,
    } = *subject;
    if !snapshot.demand.frozen || request.source.is_some() {
        return (request.time, claim);
    }
    let event = state.window.last().map(|seen| seen.time);
    let profile = state.profile.as_ref().map(|profiled| profiled.time);
    let newest = event.max(profile).unwrap_or_default();
    (newest.max(snapshot.demand.at), select::draw(&state.fences))
}

/// Notes in the audit what the prompt was made of; the prompt itself goes to the model only.
fn told(audit: &mut Audit, rendered: Rendered) -> String {
    audit.prompt = rendered.hash();
    audit.events_cut = u32::try_from(rendered.events_cut).unwrap_or(u32::MAX);
    let text = rendered.text();
    audit.events = rendered.events;
    text
}

/// The list of an answer. Empty answers, and answers of which nothing may be offered, become the fallback.
pub fn finish(
    prepare: &PreparedRequest,
    answer: &ScoreResponse,
    snapshot: &Snapshot,
    context: &ListContext,
) -> FinishedList {
    let terms = prepare
        .ask
        .iter()
        .flat_map(|ask| ask.terms.iter().map(|term| term.name));
    let terms: Vec<&str> = terms.collect();
    let scored: Vec<Scored> = answer
        .named
        .iter()
        .map(|named| {
            let model = ("model".to_owned(), named.model);
            let baseline = ("baseline".to_owned(), named.baseline);
            let baseline = context.calibration.is_some().then_some(baseline);
            let others = terms
                .iter()
                .zip(&named.terms)
                .map(|(name, value)| ((*name).into(), *value));
            Scored {
                pu: named.pu,
                score: named.score,
                terms: std::iter::once(model)
                    .chain(baseline)
                    .chain(others)
                    .collect(),
            }
        })
        .collect();
    let built = recipe(prepare, snapshot, context).build(prepare.header.clone(), &scored);
    if built.document.is_empty() {
        return fallback(
            prepare,
            snapshot,
            context,
            "nothing that the model named may be offered",
        );
    }
    let mut made = made(prepare, built);
    made.audit.prompt_tokens = answer.prompt_tokens;
    made
}

/// The fallback in place of a list of the model: `reason` says why.
pub fn fallback(
    prepare: &PreparedRequest,
    snapshot: &Snapshot,
    context: &ListContext,
    reason: &str,
) -> FinishedList {
    let header = Header {
        reason: Some(reason.into()),
        ..prepare.header.clone()
    };
    made(prepare, recipe(prepare, snapshot, context).fallback(header))
}

fn recipe<'a>(
    prepare: &'a PreparedRequest,
    snapshot: &'a Snapshot,
    context: &'a ListContext,
) -> ListBuilder<'a> {
    ListBuilder {
        catalogue: &snapshot.catalogue,
        verdict: &prepare.verdict,
        demand: &snapshot.demand,
        policy: context.selection,
        names: context.arm.names,
        theta: context.arm.theta,
        draw: prepare.draw,
    }
}

fn made(prepare: &PreparedRequest, built: BuiltList) -> FinishedList {
    let audit = Audit {
        names: built.names,
        dropped: built.dropped,
        ..prepare.audit.clone()
    };
    FinishedList {
        document: built.document,
        audit,
    }
}

impl FinishedList {
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
