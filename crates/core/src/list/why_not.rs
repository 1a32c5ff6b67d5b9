//! Says why a product is not on a user's list: what keeps it off, or its rank and the terms that cost it.
//!
//! Invariant: what is said follows from the code that composes lists, applied to the state, the catalogue and the
//! counts that it is given. The model is not asked: ranks are those of the terms without it. It does not know stored
//! lists.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::list::compose::{ClaimedUser, ListContext, prepare};
use crate::list::document::Stage;
use crate::names::scoring::ScoreRequest;
use crate::names::sum;
use crate::shop::catalogue::PuIx;
use crate::shop::rules::{Rule, Table, Verdict};
use crate::shop::snapshot::Snapshot;
use crate::text::same;

/// Why a product is not on a list that would be made now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhyNot {
    /// Id of the product.
    pub pu: String,
    /// Its name.
    pub name: String,
    /// Whether the product may be offered to this user now.
    pub permitted: bool,
    /// Ids of the rules and needs that forbid it, or some of its SKUs.
    pub forbidden_by: Vec<String>,
    /// Number of its SKUs.
    pub skus: usize,
    /// Number of those that are in stock and not blocked.
    pub available: usize,
    /// Id of the product that is offered in its place, because both have the same name and category.
    pub same_name: Option<String>,
    /// Its rank among the products that may be offered, from 1; if it may not, the rank that it would have.
    pub rank: usize,
    /// Number of products that may be offered.
    pub of: usize,
    /// Number of names of a list.
    pub names: usize,
    /// Whether the merchant's pins or most names of a category take a place that its rank would give it.
    pub displaced: bool,
    /// Name of the last product that has a place.
    pub last: String,
    /// The parts of the score by term, the one that costs the most first.
    pub terms: Vec<ComparedTerm>,
}

/// What a term adds to the score of the product, and of the last one that has a place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedTerm {
    /// Name of the term.
    pub term: String,
    /// Weight times value, of the product.
    pub product: f32,
    /// Weight times value, of the last product that has a place.
    pub last: f32,
}

/// Explains a product's place for a user. `rules` are those that the snapshot's table was compiled of.
pub fn why_not(
    user: &ClaimedUser,
    (snapshot, rules): (&Snapshot, &[Rule]),
    context: &ListContext,
    product: PuIx,
) -> WhyNot {
    let catalogue = &*snapshot.catalogue;
    let ask = prepare(user, (snapshot, Stage::Mixture), context).ask;
    let ask = ask.unwrap_or_default();
    let permitted = ask.permitted.as_deref().cloned().unwrap_or_default();
    let is_permitted = permitted.contains(product.at());
    let skus = &catalogue.pu(product).skus;
    let mut found = WhyNot {
        pu: catalogue.pu(product).id.to_string(),
        name: catalogue.label(product).into_owned(),
        permitted: is_permitted,
        skus: skus.len(),
        available: skus.iter().filter(|ix| catalogue.available(**ix)).count(),
        forbidden_by: forbidden_by(user, (snapshot, rules), context, product),
        names: context.arm.names,
        ..WhyNot::default()
    };
    if !is_permitted && found.available > 0 && found.forbidden_by.is_empty() {
        let label = catalogue.label(product);
        let offered = permitted.ones().map(|at| PuIx(at as u32));
        let mut twins = offered.filter(|other| catalogue.label(*other) == label);
        found.same_name = twins.next().map(|other| catalogue.pu(other).id.to_string());
    }
    rank(&mut found, ask, snapshot, product);
    found
}

/// Ids of the rules and needs that forbid the product, or some of its SKUs.
fn forbidden_by(
    user: &ClaimedUser,
    (snapshot, rules): (&Snapshot, &[Rule]),
    context: &ListContext,
    product: PuIx,
) -> Vec<String> {
    let (catalogue, at) = (&*snapshot.catalogue, user.request.time);
    let profile = user.state.profile.as_ref();
    let profile = profile.map(|profiled| &profiled.profile);
    let pu = catalogue.pu(product);
    let forbids = |rule: &&Rule| {
        let table = Table::compile(std::slice::from_ref(*rule), &[], catalogue);
        let verdict = table.judge(profile, at);
        pu.skus.iter().any(|ix| verdict.forbids_sku(*ix))
    };
    let of_rules = rules.iter().filter(forbids).map(|rule| rule.id.clone());
    let mut found: Vec<String> = of_rules.collect();
    let mut needs = Verdict::default();
    (context.needs).add(&mut needs, &user.state.window, catalogue, at);
    if needs.forbidden_pus.contains(product.at()) {
        let category = pu.category.as_deref().unwrap_or_default();
        let is_its = |id: &String| {
            let named = id.strip_prefix("need:");
            named.is_some_and(|named| same(named, category))
        };
        found.extend(needs.fired.into_iter().filter(is_its));
    }
    found
}

/// Adds the rank of a product, and what the terms say of it and of the last product that has a place.
fn rank(found: &mut WhyNot, mut ask: ScoreRequest, snapshot: &Snapshot, product: PuIx) {
    let catalogue = &snapshot.catalogue;
    let mut permitted = ask.permitted.as_deref().cloned().unwrap_or_default();
    found.of = permitted.count_ones(..);
    permitted.grow(product.at() + 1);
    permitted.insert(product.at());
    ask.n = permitted.count_ones(..);
    let permitted = Arc::new(permitted);
    ask.permitted = Some(Arc::clone(&permitted));
    let ranked = sum::best(&ask, catalogue.pus().len()).named;
    let Some(place) = ranked.iter().position(|named| named.pu == product.0) else {
        return;
    };
    found.rank = place + 1;
    if snapshot.merchant.arranges() && place < found.names {
        let ranking: Vec<PuIx> = ranked.iter().map(|named| PuIx(named.pu)).collect();
        let order = snapshot.merchant.arrange(&ranking, found.names, &permitted);
        found.displaced = !order.contains(&product);
    }
    let mut others = ranked.iter().filter(|named| named.pu != product.0);
    let with_place = others.by_ref().take(found.names);
    let (Some(own), Some(last)) = (ranked.get(place), with_place.last()) else {
        return;
    };
    found.last = catalogue.label(PuIx(last.pu)).into_owned();
    let values = own.terms.iter().zip(&last.terms);
    let compared = ask
        .terms
        .iter()
        .zip(values)
        .map(|(term, (own, last))| ComparedTerm {
            term: term.name.to_owned(),
            product: term.weight * own,
            last: term.weight * last,
        });
    found.terms = compared.collect();
    let cost = |it: &ComparedTerm| it.last - it.product;
    found.terms.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::list::document::Model;
    use crate::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
    use crate::list::prompt::{Arm, Calibrations, Template};
    use crate::list::select::Policy;
    use crate::list::terms::Weights;
    use crate::shop::catalogue::Catalogue;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::demand::Demand;
    use crate::shop::rules::Needs;
    use crate::user::event::{Item, Kind};
    use crate::user::record::Timestamp;
    use crate::user::state::{Profiled, UserState, WindowEvent};
    use crate::user::trigger::{Lane, Reason, Request};

    pub(crate) const NOW: Timestamp = Timestamp(1_000_000);

    /// Three SKUs of bread, two of milk, one each of tea, wine and a sold-out jam; a list has two names.
    fn catalogue() -> Catalogue {
        let mut jam = sku("j1", "JAM", json!({}));
        jam.stock = 0;
        let others = [("m1", "MILK"), ("m2", "MILK"), ("t1", "TEA")];
        let bread = ["b1", "b2", "b3"].map(|id| sku(id, "BREAD", json!({})));
        let mut all: Vec<_> = others.map(|(id, pu)| sku(id, pu, json!({}))).into();
        all.extend(bread);
        all.extend([sku("w1", "WINE", json!({"alcohol": true})), jam]);
        Catalogue::load(all)
    }

    fn explained(state: &UserState, product: &str) -> WhyNot {
        with_context(state, |user, (snapshot, rules), context| {
            let product = snapshot.catalogue.by_pu(product).expect("a product");
            why_not(user, (snapshot, rules), context, product)
        })
    }

    /// A user with this state, a snapshot of the catalogue above with its rules, and an arm whose lists have two names.
    pub(crate) fn with_context<T>(
        state: &UserState,
        ask: impl FnOnce(&ClaimedUser, (&Snapshot, &[Rule]), &ListContext) -> T,
    ) -> T {
        let catalogue = Arc::new(catalogue());
        let rules: Vec<Rule> = serde_json::from_value(json!([
            {"id": "minor", "when": {"field": "age", "below": 18}, "forbid": {"attributes": {"alcohol": [true]}}},
            {"id": "old", "when": {"field": "age", "at_least": 60}, "forbid": {"attributes": {"alcohol": [true]}}},
        ]))
        .expect("rules");
        let demand = Demand::build(std::iter::empty(), &catalogue, &Default::default(), NOW);
        let parts = SnapshotParts {
            rules: Arc::new(Table::compile(&rules, &[], &catalogue)),
            demand: Arc::new(demand),
            merchant: Arc::default(),
            catalogue,
        };
        let selection = Policy::default();
        let fallbacks = FallbackSettings {
            segments: &[],
            names: 2,
            selection: &selection,
        };
        let snapshot = serving_snapshot(parts, fallbacks);
        let arm = json!({"id": "a", "epoch": 1, "template": "", "model": "", "names": 2});
        let arm: Arm = serde_json::from_value(arm).expect("an arm");
        let weights = [("assortment".to_owned(), 1.0)].into();
        let weights = Weights::by_hand(&weights).expect("weights");
        let template = Template::load("{{ segment }}", "t").expect("a template");
        let needs: Needs = toml::from_str("not_again_within = { food = \"10s\" }").expect("needs");
        let context = ListContext {
            arm: &arm,
            weights: &weights,
            learned: None,
            texts: None,
            meaning: None,
            template: &template,
            model: Model::default(),
            calibrations: Calibrations::default(),
            count: &str::len,
            needs: &needs,
            selection: &selection,
            candidates: 0.0,
        };
        let request = Request {
            v: 1,
            ns: "main".into(),
            user: crate::user::event::UserId("u".into()),
            reason: Reason::Refresh,
            source: None,
            time: NOW,
            due: NOW,
            lane: Lane::Live,
            force: false,
        };
        let user = ClaimedUser {
            request: &request,
            state,
            claim: 1,
        };
        ask(&user, (&snapshot, &rules), &context)
    }

    fn of_age(age: Value) -> UserState {
        let profile = serde_json::from_value(json!({"age": age})).expect("a profile");
        let profiled = Profiled {
            time: NOW,
            position: "0/user-profiles/0:1".parse().expect("a position"),
            profile,
            kept: Default::default(),
        };
        UserState {
            profile: Some(profiled),
            ..UserState::default()
        }
    }

    #[test]
    fn a_product_of_low_rank_is_told_by_the_term_that_costs_it() {
        let found = explained(&UserState::default(), "TEA");
        assert!(found.permitted && found.forbidden_by.is_empty());
        // Wine has one SKU, too, and a higher number.
        assert_eq!((found.rank, found.of, found.names), (3, 4, 2));
        assert_eq!(found.last, "MILK");
        let [term] = &found.terms[..] else {
            panic!("{found:?}")
        };
        assert_eq!(term.term, "assortment");
        assert!(
            (term.last - term.product - 2f32.ln()).abs() < 1e-5,
            "{term:?}"
        );
        // Of a product with a place the last one beside it is shown.
        assert_eq!(explained(&UserState::default(), "BREAD").rank, 1);
    }

    #[test]
    fn the_rule_that_forbids_it_is_named_and_its_rank_is_the_one_that_it_would_have() {
        let found = explained(&of_age(json!(17)), "WINE");
        assert_eq!((found.permitted, found.rank, found.of), (false, 4, 3));
        assert_eq!(found.forbidden_by, ["minor"]);
        let adult = explained(&of_age(json!(30)), "WINE");
        assert!(adult.permitted && adult.forbidden_by.is_empty());
    }

    #[test]
    fn what_was_just_bought_and_what_is_sold_out_are_told_apart() {
        let bought = WindowEvent {
            time: NOW,
            position: "0/user-events/0:1".parse().expect("a position"),
            kind: Kind::Purchase,
            item: Item::Sku("t1".into()),
            qty: 1,
            price: None,
        };
        let state = UserState {
            window: vec![bought],
            ..UserState::default()
        };
        let tea = explained(&state, "TEA");
        assert_eq!((tea.permitted, tea.available), (false, 1));
        assert_eq!(tea.forbidden_by, ["need:food"]);
        let jam = explained(&state, "JAM");
        assert_eq!((jam.permitted, jam.skus, jam.available), (false, 1, 0));
        assert!(jam.forbidden_by.is_empty());
    }
}
