//! Composes lists: from a claimed user to a score request, and from the score response to a finished list.
//!
//! Invariant: rules, needs and stock decide what may be offered before the model is run, and once more when its names
//! become SKUs. It does not know lanes, nor what claims mean, nor where lists are stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fixedbitset::FixedBitSet;

use crate::learn::choice::ChoiceModel;
use crate::list::choice::{Chooser, OwnSkus};
use crate::list::document::{
    Audit, BuiltList, Document, Header, ListBuilder, Model, Scored, Source, Stage, Times,
    WrittenAudit, list_id,
};
use crate::list::hits::is_sampled;
use crate::list::meant::{MeantTexts, TextContext, TextCounts, meant};
use crate::list::prompt::{Arm, Calibrations, Rendered, Template, View};
use crate::list::select;
use crate::list::terms::bound::Learned;
use crate::list::terms::{
    HEAD, MODEL, OwnText, TABLE, TEXT, TermInput, Texts, Weights, own_products, own_texts,
    score_terms,
};
use crate::names::scoring::{Calibration, HeadAsk, Prompt, ScoreRequest, ScoreResponse, Term};
use crate::shop::catalogue::PuIx;
use crate::shop::rules::{Needs, Verdict};
use crate::shop::snapshot::Snapshot;
use crate::user::record::Timestamp;
use crate::user::state::UserState;
use crate::user::trigger::Request;

/// A claimed user.
#[derive(Clone, Debug)]
pub struct ClaimedUser<'a> {
    /// The request.
    pub request: &'a Request,
    /// The state that the list is made from.
    pub state: &'a UserState,
    /// Claim number.
    pub claim: u64,
}

/// Context of all lists of one arm, beside the serving snapshot.
pub struct ListContext<'a> {
    /// The arm.
    pub arm: &'a Arm,
    /// Weights of its score terms.
    pub weights: &'a Weights,
    /// What `nearshore align` learned for it, bound to the snapshot's catalogue.
    pub learned: Option<&'a Learned>,
    /// Vectors of texts, bound to the snapshot's catalogue.
    pub texts: Option<&'a Texts>,
    /// How the users' searches and free texts are read; `None` reads none.
    pub meaning: Option<TextContext<'a>>,
    /// Its template.
    pub template: &'a Template,
    /// Its model, as written in audits.
    pub model: Model,
    /// Its calibration prompts, by visible history.
    pub calibrations: Calibrations,
    /// Counts tokens of a text.
    pub count: &'a (dyn Fn(&str) -> usize + Sync),
    /// The need filter.
    pub needs: &'a Needs,
    /// How SKUs are selected.
    pub selection: &'a select::Policy,
    /// Share of the users whose audits tell the SKUs that could have been shown, 0 to 1.
    pub candidates: f64,
}

/// A score request of a claimed user, with everything needed to finish the list.
#[derive(Clone, Debug)]
pub struct PreparedRequest {
    /// The score request; `None` if the template failed on this user.
    pub ask: Option<ScoreRequest>,
    /// Whether the model has a part in the lists of a user with as much visible history, by its own term or by a head.
    pub asks_model: bool,
    /// Number of the user's products that the terms can see.
    pub visible: usize,
    verdict: Verdict,
    header: Header,
    audit: Audit,
    /// See [`ListBuilder::draw`].
    draw: u64,
    without_vector: Vec<String>,
    text_counts: TextCounts,
    own: OwnSkus,
}

impl PreparedRequest {
    /// Ids of the rules that could not be applied, because the profile has a value that they cannot compare.
    pub fn unreadable_rules(&self) -> &[String] {
        &self.verdict.unreadable
    }

    /// The user's texts that the term `text` could not read, because they have no vector.
    pub fn without_vector(&self) -> &[String] {
        &self.without_vector
    }

    /// How many clauses of the user's texts were read.
    pub fn text_counts(&self) -> TextCounts {
        self.text_counts
    }
}

/// A list with its audit.
#[derive(Clone, Debug)]
pub struct FinishedList {
    /// The list.
    pub document: Document,
    /// The audit; [`FinishedList::audited`] adds the times.
    pub audit: Audit,
}

/// Prepares a score request: judges the user, computes permitted products and terms, and, for a list with the model,
/// renders the prompt. A list of [`Stage::Mixture`] gives the model no weight, whatever the arm's weights say.
pub fn prepare(
    user: &ClaimedUser,
    (snapshot, stage): (&Snapshot, Stage),
    context: &ListContext,
) -> PreparedRequest {
    let ClaimedUser {
        request,
        state,
        claim,
    } = *user;
    let profile = state.profile.as_ref().map(|profiled| &profiled.profile);
    let (at, draw) = time_and_draw(user, snapshot);
    let mut verdict = snapshot.judge(profile, at);
    context
        .needs
        .add(&mut verdict, &state.window, &snapshot.catalogue, at);
    let segment = snapshot.rules.segment(profile, at).to_owned();
    let texts = texts_of(user, (snapshot, at), context);
    let shown = (state, texts.audit.as_ref());
    let view = View::new(shown, &snapshot.catalogue, &segment, at);
    let permitted = searched(&verdict, snapshot, &segment);
    let Asked {
        terms,
        weight,
        head,
        asks_model,
        visible,
        calibration,
        without_vector,
    } = asked((state, &texts), snapshot, (&segment, at), context).at(stage);
    let is_asked = weight != 0.0 || head.is_some();
    let rendered = rendered(&view, is_asked, context);
    let made = if is_asked { stage } else { Stage::Mixture };
    let id = list_id(&request.ns, &request.user.0, (claim, made), state.erased_at);
    let mut audit = Audit {
        list_id: id.clone(),
        segment: segment.clone(),
        model: is_asked.then(|| context.model.clone()),
        asked: asked_text(stage, asks_model).into(),
        calibration: calibration
            .as_ref()
            .map_or_else(|| "none".into(), |set| set.hash.clone()),
        texts: texts.audit,
        ..audit_of(user, (snapshot, &verdict), context)
    };
    let ask = rendered.map(|rendered| {
        let prompt = note_prompt(&mut audit, rendered, is_asked);
        ScoreRequest {
            prompt,
            n: ranked(context.arm.names, weight, (snapshot, &permitted)),
            permitted: Some(Arc::new(permitted)),
            terms,
            weight,
            calibration,
            head,
            ..ScoreRequest::default()
        }
    });
    PreparedRequest {
        ask,
        asks_model,
        visible,
        verdict,
        header: header(user, (id, segment, at), context),
        audit,
        draw,
        without_vector,
        text_counts: texts.counts,
        own: OwnSkus::of(state, &snapshot.catalogue),
    }
}

/// What the user's searches and free texts mean; nothing if they are not read.
fn texts_of(
    user: &ClaimedUser,
    (snapshot, at): (&Snapshot, Timestamp),
    context: &ListContext,
) -> MeantTexts {
    let read = |texts: &TextContext<'_>| {
        let user = (&*user.request.user.0, user.state);
        meant(user, (&*snapshot.catalogue, at), texts)
    };
    context.meaning.as_ref().map(read).unwrap_or_default()
}

/// What the document says beside its names.
fn header(
    user: &ClaimedUser,
    (list_id, segment, at): (String, String, Timestamp),
    context: &ListContext,
) -> Header {
    Header {
        list_id,
        user: Some(user.request.user.0.to_string()),
        arm: context.arm.id.clone(),
        at,
        segment,
        reason: None,
    }
}

/// The prompt, if the model reads one: it costs more than the terms. `None` if the template failed on this user.
fn rendered(view: &View, is_asked: bool, context: &ListContext) -> Option<Rendered> {
    if !is_asked {
        return Some(Rendered {
            events: view.positions(),
            ..Rendered::default()
        });
    }
    let rendered = context
        .template
        .render(view, context.arm.prompt_tokens, context.count);
    rendered.ok()
}

/// Whether the model is asked for a list, as its audit says it.
fn asked_text(stage: Stage, asks_model: bool) -> &'static str {
    match stage {
        _ if !asks_model => "no_weight",
        Stage::Mixture => "waits",
        Stage::Model => "asked",
    }
}

/// What the audit of a list says before the model is asked.
fn audit_of(
    user: &ClaimedUser,
    (snapshot, verdict): (&Snapshot, &Verdict),
    context: &ListContext,
) -> Audit {
    let learned = context
        .learned
        .map(|learned| learned.artefact().hash.clone());
    Audit {
        arm: context.arm.id.clone(),
        epoch: context.arm.epoch,
        artefact: learned.unwrap_or_default(),
        template: context.template.hash.clone(),
        claim: user.claim,
        seen: user.state.fences.clone(),
        rules: verdict.fired.clone(),
        rules_unknown: verdict.unknown.clone(),
        demand: snapshot.demand.version.clone(),
        catalogue: snapshot.catalogue.version(),
        times: Times {
            source: user.request.time,
            due: user.request.due,
            ..Times::default()
        },
        ..Audit::default()
    }
}

/// What depends on how much of a user's history is visible.
struct Asked {
    /// The terms beside the model's.
    terms: Vec<Term>,
    /// The model's weight.
    weight: f32,
    /// The head, if it has a weight.
    head: Option<HeadAsk>,
    /// Whether the model has a part, in a list of [`Stage::Model`].
    asks_model: bool,
    /// Number of the user's products.
    visible: usize,
    calibration: Option<Arc<Calibration>>,
    /// The user's texts without a vector.
    without_vector: Vec<String>,
}

impl Asked {
    /// What is asked for a list of a stage.
    fn at(self, stage: Stage) -> Self {
        match stage {
            Stage::Model => self,
            Stage::Mixture => Self {
                weight: 0.0,
                head: None,
                calibration: None,
                ..self
            },
        }
    }
}

/// What is asked by the weights for as much visible history as the user has.
fn asked(
    (state, meant): (&UserState, &MeantTexts),
    snapshot: &Snapshot,
    (segment, at): (&str, Timestamp),
    context: &ListContext,
) -> Asked {
    let own = own_products(state, &snapshot.catalogue);
    let weights = context.weights.at(own.len());
    let texts = context
        .texts
        .filter(|_| weights.get(TEXT).is_some_and(|weight| *weight != 0.0));
    let reads_table = weights.get(TABLE).is_some_and(|weight| *weight != 0.0);
    let own_texts: Vec<OwnText> = match texts.is_some() || reads_table {
        true => own_texts(state, (&own, &meant.own), &snapshot.catalogue),
        false => Vec::new(),
    };
    let without = texts.map(|texts| texts.without(&own_texts).map(str::to_owned));
    let input = TermInput {
        snapshot,
        segment,
        own: &own,
        at,
        learned: context.learned,
        texts: context.texts,
        own_texts: &own_texts,
        meant: &meant.interests,
    };
    let weight = weights.get(MODEL).copied().unwrap_or_default() as f32;
    let head = head_of(weights, context.learned);
    Asked {
        terms: score_terms(weights, &input),
        asks_model: weight != 0.0 || head.is_some(),
        weight,
        head,
        visible: own.len(),
        calibration: context.calibrations.at(own.len()).cloned(),
        without_vector: without.into_iter().flatten().collect(),
    }
}

/// The head with its weight; `None` without one.
fn head_of(weights: &BTreeMap<String, f64>, learned: Option<&Learned>) -> Option<HeadAsk> {
    let weight = weights.get(HEAD).copied().unwrap_or_default() as f32;
    let head = learned?.head()?;
    (weight != 0.0).then(|| HeadAsk {
        weight,
        head: Arc::clone(head),
    })
}

/// How many names are ranked for a list of `names`. The merchant's most names of a category and pins need more than
/// are shown: without the model all, and with it three times as many, because each costs model time.
fn ranked(names: usize, weight: f32, (snapshot, permitted): (&Snapshot, &FixedBitSet)) -> usize {
    match (snapshot.merchant.arranges(), weight == 0.0) {
        (false, _) => names,
        (true, true) => permitted.count_ones(..),
        (true, false) => names.saturating_mul(3),
    }
}

/// The order of a list by the merchant's pins and most names of a category. A pin that was not ranked has the last
/// ranked name's score, and no terms.
fn arranged(
    scored: Vec<Scored>,
    (names, permitted): (usize, &FixedBitSet),
    snapshot: &Snapshot,
) -> Vec<Scored> {
    if !snapshot.merchant.arranges() {
        return scored;
    }
    let ranking: Vec<PuIx> = scored.iter().map(|scored| PuIx(scored.pu)).collect();
    let least = scored.last().map_or(0.0, |scored| scored.score);
    let mut by_pu: BTreeMap<u32, Scored> = scored
        .into_iter()
        .map(|scored| (scored.pu, scored))
        .collect();
    let order = snapshot.merchant.arrange(&ranking, names, permitted);
    let of = order.into_iter().map(|PuIx(pu)| {
        let pinned = || Scored {
            pu,
            score: least,
            terms: Vec::new(),
        };
        by_pu.remove(&pu).unwrap_or_else(pinned)
    });
    of.collect()
}

/// The PUs among which the model names: those that may be offered, one of each label.
fn searched(verdict: &Verdict, snapshot: &Snapshot, segment: &str) -> FixedBitSet {
    let mut permitted = verdict.permitted(&snapshot.catalogue);
    let mass = snapshot.demand.mass(segment);
    snapshot.catalogue.keep_one_per_label(&mut permitted, &mass);
    permitted
}

/// Time as of which the list is made, and the seed of its exploration: the request's time and the claim number.
///
/// If counts are frozen and no record caused the request (a sweep, a refresh), the list must depend on state, counts
/// and arm alone, not on when or how often it is requested. Then the time is that of the counts, or of the user's
/// newest record if that is later, and the seed is made from the seen offsets.
fn time_and_draw(user: &ClaimedUser, snapshot: &Snapshot) -> (Timestamp, u64) {
    let ClaimedUser {
        request,
        state,
        claim,
    } = *user;
    if !snapshot.demand.frozen || request.source.is_some() {
        return (request.time, claim);
    }
    let event = state.window.last().map(|event| event.time);
    let profile = state.profile.as_ref().map(|profiled| profiled.time);
    let newest = event.max(profile).unwrap_or_default();
    (newest.max(snapshot.demand.at), select::draw(&state.fences))
}

/// Writes into the audit what the prompt was made from, and returns the prompt, which only the model gets.
fn note_prompt(audit: &mut Audit, rendered: Rendered, is_asked: bool) -> Prompt {
    if is_asked {
        audit.prompt = rendered.hash();
    }
    audit.events_cut = u32::try_from(rendered.events_cut).unwrap_or(u32::MAX);
    audit.events = rendered.events;
    rendered.prompt
}

/// Finishes the list of a score response. If it has no names, or none that may be offered, the list is the fallback.
pub fn finish(
    prepared: &PreparedRequest,
    response: &ScoreResponse,
    snapshot: &Snapshot,
    context: &ListContext,
) -> FinishedList {
    let weights = prepared.ask.iter().flat_map(|ask| {
        let model = (ask.weight != 0.0).then_some((MODEL, ask.weight));
        let others = ask.terms.iter().map(|term| (term.name, term.weight));
        // The engine adds it behind the others.
        let head = ask.head.iter().map(|ask| (HEAD, ask.weight));
        model.into_iter().chain(others).chain(head)
    });
    let weights: Vec<(&str, f32)> = weights.collect();
    let ask = prepared.ask.as_ref();
    let by_search = ask.is_some_and(|ask| ask.weight != 0.0);
    let of_model = by_search || ask.is_some_and(|ask| ask.head.is_some());
    let scored = response.named.iter().map(|named| {
        let model = by_search.then_some(named.model);
        let values = model.into_iter().chain(named.terms.iter().copied());
        let share =
            |((name, weight), value): (&(&str, f32), f32)| ((*name).to_owned(), weight * value);
        Scored {
            pu: named.pu,
            score: named.score,
            terms: weights.iter().zip(values).map(share).collect(),
        }
    });
    let scored: Vec<Scored> = scored.collect();
    let permitted = prepared
        .ask
        .as_ref()
        .and_then(|ask| ask.permitted.as_deref());
    let scored = match permitted {
        Some(permitted) => arranged(scored, (context.arm.names, permitted), snapshot),
        None => scored,
    };
    let source = match of_model {
        true => Source::Model,
        false => Source::Mixture,
    };
    let model = context.learned.and_then(Learned::choice);
    let model = model.map_or_else(Default::default, Arc::clone);
    let chooser = chooser(prepared, snapshot, &model);
    let builder = ListBuilder {
        chooser: Some(&chooser),
        ..list_builder(prepared, snapshot, context)
    };
    let built = builder.build(prepared.header.clone(), source, &scored);
    if built.document.is_empty() {
        return fallback(prepared, snapshot, context, "no scored name may be offered");
    }
    let mut finished = finished(prepared, built);
    finished.audit.prompt_tokens = response.prompt_tokens;
    let written = response.written.as_deref();
    finished.audit.written = written.map(|it| WrittenAudit::of(it, &snapshot.catalogue));
    let user = prepared.header.user.as_deref().unwrap_or_default();
    if is_sampled(user, context.candidates) {
        builder.tell_candidates(&mut finished.audit);
    }
    finished
}

/// Makes the fallback in place of a list of the model, with the reason in the document.
pub fn fallback(
    prepared: &PreparedRequest,
    snapshot: &Snapshot,
    context: &ListContext,
    reason: &str,
) -> FinishedList {
    let header = Header {
        reason: Some(reason.into()),
        ..prepared.header.clone()
    };
    finished(
        prepared,
        list_builder(prepared, snapshot, context).fallback(header),
    )
}

/// Orders the SKUs under the names of a list for its user.
fn chooser<'a>(
    prepared: &'a PreparedRequest,
    snapshot: &'a Snapshot,
    model: &'a ChoiceModel,
) -> Chooser<'a> {
    let Snapshot {
        catalogue, demand, ..
    } = snapshot;
    let features = snapshot.sku_features.get(catalogue, demand);
    Chooser::new(
        (model, features),
        (catalogue, demand),
        (&prepared.own, prepared.header.at),
    )
}

fn list_builder<'a>(
    prepared: &'a PreparedRequest,
    snapshot: &'a Snapshot,
    context: &'a ListContext,
) -> ListBuilder<'a> {
    ListBuilder {
        catalogue: &snapshot.catalogue,
        verdict: &prepared.verdict,
        demand: &snapshot.demand,
        policy: context.selection,
        contests: Some(&snapshot.contests),
        chooser: None,
        names: context.arm.names,
        theta: context.arm.theta,
        draw: prepared.draw,
    }
}

fn finished(prepared: &PreparedRequest, built: BuiltList) -> FinishedList {
    let audit = Audit {
        names: built.names,
        dropped: built.dropped,
        ..prepared.audit.clone()
    };
    FinishedList {
        document: built.document,
        audit,
    }
}

impl FinishedList {
    /// The audit with the times that the list was queued, generated and published.
    pub fn audited(&self, (queued, generated, published): (Duration, Duration, Duration)) -> Audit {
        let times = Times {
            queued,
            generated,
            published,
            ..self.audit.times
        };
        Audit {
            times,
            ..self.audit.clone()
        }
    }
}
