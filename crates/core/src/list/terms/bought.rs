//! `bought`, `bought_age`, `bought_count`, `bought_sku`: that the user bought a product, how long ago, how often, and how
//! often the same SKU of it.
//!
//! `repeat` says how much likelier a product is bought again than by anyone, as far as the shop's log tells. These are
//! what it is told from, as they are: in a list of ten, what is bought again competes with what is not, and their
//! weights say how much of each there should be. They need no artefact.

use super::{Need, OwnProduct, ScoreTerm, TermInput};
use crate::names::scoring::Values;
use crate::user::record::Timestamp;

/// 1 of what was bought.
pub(super) struct Bought;

/// ln(1 + days since the last purchase).
pub(super) struct BoughtAge;

/// ln of the number of purchases.
pub(super) struct BoughtCount;

/// ln of the number of purchases of the SKU that was bought most often.
pub(super) struct BoughtSku;

impl ScoreTerm for Bought {
    fn name(&self) -> &'static str {
        "bought"
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        each(input, |_, _| 1.0)
    }
}

impl ScoreTerm for BoughtAge {
    fn name(&self) -> &'static str {
        "bought_age"
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        each(input, |own, at| {
            (at.since(own.last).as_secs_f64() / 86_400.0).ln_1p() as f32
        })
    }
}

impl ScoreTerm for BoughtCount {
    fn name(&self) -> &'static str {
        "bought_count"
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        each(input, |own, _| (own.count.max(1) as f32).ln())
    }
}

impl ScoreTerm for BoughtSku {
    fn name(&self) -> &'static str {
        "bought_sku"
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        each(input, |own, _| (own.same_sku.max(1) as f32).ln())
    }
}

/// A value for each product that was bought; `None` if none was.
fn each(input: &TermInput<'_>, value: impl Fn(&OwnProduct, Timestamp) -> f32) -> Option<Values> {
    let of = |own: &OwnProduct| (own.pu, value(own, input.at));
    (!input.own.is_empty()).then(|| Values::Sparse(input.own.iter().map(of).collect()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
    use crate::list::terms::{own_products, table, term};
    use crate::shop::catalogue::Catalogue;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::demand::Demand;
    use crate::shop::rules::Table;
    use crate::shop::snapshot::Snapshot;
    use crate::user::event::{Accepted, Change, Event, Item, Kind, UserId};
    use crate::user::fold::fold;
    use crate::user::record::{Offset, Partition, Position};
    use crate::user::state::UserState;

    const DAY: i64 = 86_400_000;

    fn snapshot() -> Snapshot {
        let skus = [("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C")];
        let skus = skus.map(|(id, name)| sku(id, name, json!({})));
        let catalogue = Arc::new(Catalogue::load(skus.to_vec()));
        let demand = Demand::build([], &catalogue, &Default::default(), Timestamp(0));
        let parts = SnapshotParts {
            rules: Arc::new(Table::compile(&[], &[], &catalogue)),
            demand: Arc::new(demand),
            merchant: Arc::default(),
            catalogue,
        };
        let fallbacks = FallbackSettings {
            segments: &[],
            names: 3,
            selection: &Default::default(),
        };
        serving_snapshot(parts, fallbacks)
    }

    fn bought(offset: i64, day: i64, sku: &str) -> Accepted {
        let event = Event {
            kind: Kind::Purchase,
            item: Item::Sku(sku.into()),
            qty: 1,
            price: None,
            ts: None,
            shown_in: None,
        };
        Accepted {
            user: UserId("u".into()),
            position: Position {
                partition: Partition {
                    incarnation: 0,
                    topic: "t".into(),
                    number: 0,
                },
                offset: Offset(offset),
            },
            time: Timestamp(day * DAY),
            change: Change::Event(event),
        }
    }

    #[test]
    fn what_was_bought_has_its_age_and_its_counts_and_all_else_is_0() {
        let snapshot = snapshot();
        let mut state = UserState::default();
        let days = [(1, "a1"), (3, "a2"), (4, "a1"), (10, "b1")];
        for (nth, (day, sku)) in (0..).zip(days) {
            fold(&mut state, &bought(nth, day, sku), 50);
        }
        let own = own_products(&state, &snapshot.catalogue);
        let input = TermInput {
            snapshot: &snapshot,
            segment: "",
            own: &own,
            at: Timestamp(11 * DAY),
            learned: None,
            texts: None,
            own_texts: &[],
            meant: &[],
        };
        let ln = f32::ln;
        for (name, expected) in [
            ("bought", [1.0, 1.0, 0.0]),
            ("bought_age", [ln(8.0), ln(2.0), 0.0]),
            ("bought_count", [ln(3.0), 0.0, 0.0]),
            ("bought_sku", [ln(2.0), 0.0, 0.0]),
        ] {
            let values = term(name).and_then(|term| term.values(&input));
            let found = table(values.expect(name), 3);
            let close = found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "{name}: {found:?}");
        }
        let nobody = TermInput { own: &[], ..input };
        assert!(term("bought").is_some_and(|term| term.values(&nobody).is_none()));
    }
}
