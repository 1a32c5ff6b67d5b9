//! Says what a user's list would be with further events: the list with them, without them, and the one that is stored.
//!
//! Invariant: both lists are composed by the code that composes all lists, of the same snapshot at the same time, so
//! that they differ by the events alone. The model is not asked. Nothing is stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::list::compose::{ClaimedUser, ListContext, finish, prepare};
use crate::list::document::{Document, Shown, Stage};
use crate::names::sum;
use crate::shop::snapshot::Snapshot;
use crate::user::event::Accepted;
use crate::user::fold::fold_again;

/// The list of a user with further events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhatIf {
    /// The names that the list would have, best first.
    pub names: Vec<Placed>,
    /// Names of the stored list, or of a list without the events, that it would not have.
    pub gone: Vec<Placed>,
}

/// A name and its places, from 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Placed {
    /// Id of the product.
    pub pu: String,
    /// Its name.
    pub name: String,
    /// The SKUs that the list would have under it.
    pub skus: Vec<String>,
    /// Its place with the events.
    pub place: Option<usize>,
    /// Its place on a list that is made now without the events.
    pub without: Option<usize>,
    /// Its place on the stored list.
    pub stored: Option<usize>,
}

/// Composes the list with the events, in their order, and compares it. `window`: how many events a state keeps.
pub fn what_if(
    user: &ClaimedUser,
    (events, window): (&[Accepted], usize),
    snapshot: &Snapshot,
    context: &ListContext,
    stored: Option<&Document>,
) -> WhatIf {
    let mut state = user.state.clone();
    for event in events {
        fold_again(&mut state, event, window);
    }
    let with = composed(
        &ClaimedUser {
            state: &state,
            ..*user
        },
        snapshot,
        context,
    );
    let without = composed(user, snapshot, context);
    let stored = stored.map_or(&[][..], |list| &list.pus);
    let placed = |shown: &Shown| {
        let place = |list: &[Shown]| {
            let mut all = list.iter();
            all.position(|it| it.pu == shown.pu).map(|nth| nth + 1)
        };
        Placed {
            pu: shown.pu.clone(),
            name: shown.name.clone(),
            skus: Vec::new(),
            place: place(&with),
            without: place(&without),
            stored: place(stored),
        }
    };
    let names = with.iter().map(|shown| Placed {
        skus: shown.skus.clone(),
        ..placed(shown)
    });
    let mut gone: Vec<Placed> = Vec::new();
    for shown in stored.iter().chain(&without) {
        let is_new = gone.iter().all(|it| it.pu != shown.pu);
        let place = placed(shown);
        if place.place.is_none() && is_new {
            gone.push(place);
        }
    }
    WhatIf {
        names: names.collect(),
        gone,
    }
}

/// The names of a list that is made now, without the model.
fn composed(user: &ClaimedUser, snapshot: &Snapshot, context: &ListContext) -> Vec<Shown> {
    let prepared = prepare(user, (snapshot, Stage::Mixture), context);
    let Some(ask) = &prepared.ask else {
        return Vec::new();
    };
    let response = sum::best(ask, snapshot.catalogue.pus().len());
    finish(&prepared, &response, snapshot, context).document.pus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::document::Source;
    use crate::list::why_not::tests::{NOW, with_context};
    use crate::user::event::{Change, Event, Item, Kind};
    use crate::user::record::Timestamp;
    use crate::user::state::UserState;

    fn bought(sku: &str, offset: u32) -> Accepted {
        Accepted {
            user: crate::user::event::UserId("u".into()),
            position: format!("0/what-if/0:{offset}").parse().expect("a position"),
            time: NOW,
            change: Change::Event(Event {
                kind: Kind::Purchase,
                item: Item::Sku(sku.into()),
                qty: 1,
                price: None,
                ts: None,
                shown_in: None,
            }),
        }
    }

    fn stored(pus: &[&str]) -> Document {
        let shown = |pu: &&str| Shown {
            pu: (*pu).to_owned(),
            name: (*pu).to_owned(),
            score: 0.0,
            skus: vec!["x".into()],
        };
        Document {
            list_id: "0".into(),
            user: None,
            arm: "a".into(),
            source: Source::Model,
            at: Timestamp(0),
            segment: "default".into(),
            stale: false,
            reason: None,
            pus: pus.iter().map(shown).collect(),
        }
    }

    fn asked(events: &[Accepted], list: Option<&Document>) -> WhatIf {
        let state = UserState::default();
        with_context(&state, |user, (snapshot, _), context| {
            what_if(user, (events, 50), snapshot, context, list)
        })
    }

    /// Each product with its places: with the events, without them, on the stored list.
    fn places(names: &[Placed]) -> Vec<(&str, [Option<usize>; 3])> {
        let place = |it: &Placed| [it.place, it.without, it.stored];
        names.iter().map(|it| (&*it.pu, place(it))).collect()
    }

    #[test]
    fn a_purchase_takes_its_product_off_the_list_for_a_while() {
        let found = asked(&[bought("b1", 0)], Some(&stored(&["MILK", "WINE"])));
        // `food` is not needed again within 10 s: without the purchase BREAD is the first of two names.
        let without = asked(&[], None).names;
        let without: Vec<&str> = without.iter().map(|it| &*it.pu).collect();
        assert_eq!(without, ["BREAD", "MILK"]);
        assert!(found.names.iter().all(|it| it.pu != "BREAD"), "{found:?}");
        assert!(found.names.iter().all(|it| !it.skus.is_empty()));
        assert!(places(&found.gone).contains(&("BREAD", [None, Some(1), None])));
    }

    #[test]
    fn without_events_only_the_stored_list_can_differ() {
        let found = asked(&[], Some(&stored(&["MILK", "JAM"])));
        assert_eq!(
            places(&found.names),
            [
                ("BREAD", [Some(1), Some(1), None]),
                ("MILK", [Some(2), Some(2), Some(1)])
            ]
        );
        assert_eq!(places(&found.gone), [("JAM", [None, None, Some(2)])]);
    }
}
