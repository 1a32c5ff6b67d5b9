//! The need filter: what was bought lately and is not needed again yet.
//!
//! Invariant: a purchase forbids its PU from its own time on, for the period of the PU's category, by
//! record time. It knows only the window: what was bought before it does not filter.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Needs, Verdict};
use crate::shop::catalogue::{Catalogue, PuIx};
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
    let bought = window.iter().filter(|seen| seen.kind == Kind::Purchase);
    bought
        .filter(|seen| at.since(seen.time) < within)
        .filter_map(|seen| catalogue.pu_of_item(&seen.item))
        .collect()
}

impl Needs {
    /// Adds to a verdict the PUs that the user does not need again yet, each category as `need:<category>`.
    pub fn add(&self, verdict: &mut Verdict, window: &[WindowEvent], at: (&Catalogue, Timestamp)) {
        let (catalogue, at) = at;
        for (category, within) in &self.not_again_within {
            let bought = recently_bought(window, catalogue, *within, at);
            let pus: Vec<_> = bought
                .into_iter()
                .filter(|pu| catalogue.pu(*pu).category.as_ref() == Some(category))
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

    fn seen(time: i64, kind: Kind, id: &str) -> WindowEvent {
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
    fn what_was_just_bought_is_not_needed_again_until_its_period_is_over() {
        let catalogue = Catalogue::load(vec![
            sku("b", "BREAD", json!({})),
            sku("m", "MILK", json!({})),
        ]);
        let needs: Needs = toml::from_str("not_again_within = { food = \"10s\", wine = \"1day\" }")
            .expect("needs");
        let window = [
            seen(0, Kind::Purchase, "b"),
            seen(0, Kind::View, "m"),
            seen(0, Kind::Purchase, "unknown"),
        ];
        let table = Table::compile(&[], &[], &catalogue);
        for (at, forbidden) in [(9_999, true), (10_000, false)] {
            let mut verdict = table.judge(None, Timestamp(at));
            needs.add(&mut verdict, &window, (&catalogue, Timestamp(at)));
            assert_eq!(verdict.forbidden_pus.contains(0), forbidden, "{at}");
            assert!(!verdict.forbidden_pus.contains(1));
            let fired: &[&str] = if forbidden { &["need:food"] } else { &[] };
            assert_eq!(verdict.fired, fired);
        }
        let text = toml::to_string(&needs).expect("toml");
        assert_eq!(toml::from_str::<Needs>(&text).expect("needs"), needs);
    }
}
