//! The need filter: forbids products that the user bought recently and does not need again yet.
//!
//! Invariant: a purchase forbids its PU from its record time on, for the period of the PU's category. It reads the
//! window alone: purchases that the window no longer has do not filter.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Needs, Verdict};
use crate::shop::catalogue::{Catalogue, PuIx};
use crate::text::same;
use crate::user::event::Kind;
use crate::user::record::Timestamp;
use crate::user::state::WindowEvent;

/// PUs bought less than `within` before `at`, in the catalogue's order.
fn recently_bought(
    window: &[WindowEvent],
    catalogue: &Catalogue,
    within: Duration,
    at: Timestamp,
) -> BTreeSet<PuIx> {
    let bought = window.iter().filter(|event| event.kind == Kind::Purchase);
    bought
        .filter(|event| at.since(event.time) < within)
        .filter_map(|event| catalogue.pu_of_item(&event.item))
        .collect()
}

impl Needs {
    /// Forbids the PUs that the user does not need again yet, each category as the rule `need:<category>`.
    pub(crate) fn add(
        &self,
        verdict: &mut Verdict,
        window: &[WindowEvent],
        catalogue: &Catalogue,
        at: Timestamp,
    ) {
        for (category, within) in &self.not_again_within {
            let bought = recently_bought(window, catalogue, *within, at);
            let pus: Vec<_> = bought
                .into_iter()
                .filter(|pu| {
                    let found = catalogue.pu(*pu).category.as_deref();
                    found.is_some_and(|found| same(found, category))
                })
                .collect();
            if !pus.is_empty() {
                verdict.forbid_pus(format!("need:{category}"), &pus);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::rules::Table;
    use crate::user::event::Item;

    fn event(time: i64, kind: Kind, id: &str) -> WindowEvent {
        WindowEvent {
            time: Timestamp(time),
            position: "0/user-events/0:1".parse().expect("a position"),
            kind,
            item: Item::Sku(id.into()),
            qty: 1,
            price: None,
        }
    }

    #[test]
    fn a_purchase_forbids_its_product_until_the_period_is_over() {
        let catalogue = Catalogue::load(vec![
            sku("b", "BREAD", json!({})),
            sku("m", "MILK", json!({})),
        ]);
        let needs: Needs = toml::from_str("not_again_within = { food = \"10s\", wine = \"1day\" }")
            .expect("needs");
        let window = [
            event(0, Kind::Purchase, "b"),
            event(0, Kind::View, "m"),
            event(0, Kind::Purchase, "unknown"),
        ];
        let table = Table::compile(&[], &[], &catalogue);
        for (at, forbidden) in [(9_999, true), (10_000, false)] {
            let mut verdict = table.judge(None, Timestamp(at));
            needs.add(&mut verdict, &window, &catalogue, Timestamp(at));
            assert_eq!(verdict.forbidden_pus.contains(0), forbidden, "{at}");
            assert!(!verdict.forbidden_pus.contains(1));
            let fired: &[&str] = if forbidden { &["need:food"] } else { &[] };
            assert_eq!(verdict.fired, fired);
        }
        let text = toml::to_string(&needs).expect("toml");
        assert_eq!(toml::from_str::<Needs>(&text).expect("needs"), needs);
    }
}
