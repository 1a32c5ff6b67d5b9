//! What the stored lists of two namespaces were worth: each purchase is judged by the lists that stood in both
//! namespaces when it was made: [`since`].
//!
//! Invariant: no list is judged by a purchase that it has seen. It does not know where lists and purchases came from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use nearshore_core::learn::bootstrap::{Interval, Resampling, mean, paired};
use nearshore_core::learn::measures::recall;
use nearshore_core::list::document::{Document, Stage};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::record::{Fences, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;

use super::Problem;
use super::history::purchase;
use crate::ops::files::Logs;

/// Names of a list that are judged.
const LIST: usize = 10;

/// What a list has seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    /// The records up to these offsets.
    Offsets(Fences),
    /// Everything up to a time.
    Until(Timestamp),
}

impl Seen {
    fn contains(&self, record: &Accepted) -> bool {
        match self {
            Self::Offsets(fences) => fences.contains(&record.position),
            Self::Until(time) => record.time <= *time,
        }
    }
}

/// One list of a user.
#[derive(Clone, Debug, PartialEq)]
struct List {
    claim: (u64, Stage),
    seen: Seen,
    /// Numbers of products, best first; [`u32::MAX`] for one that the catalogue does not have.
    products: Vec<u32>,
}

/// Lists of the users of a namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists(BTreeMap<UserId, Vec<List>>);

impl Lists {
    /// Adds a list. One that is added again changes nothing.
    pub(crate) fn add(
        &mut self,
        user: UserId,
        (claim, seen): (u64, Seen),
        doc: &Document,
        catalogue: &Catalogue,
    ) {
        let shown = doc.pus.iter().take(LIST);
        let products = shown.map(|it| catalogue.by_pu(&it.pu).map_or(u32::MAX, |pu| pu.0));
        let list = List {
            claim: (claim, doc.source.stage()),
            seen,
            products: products.collect(),
        };
        let lists = self.0.entry(user).or_default();
        let place = lists.partition_point(|other| other.claim < list.claim);
        match lists.get_mut(place) {
            // The last record of a list is what is stored: products may have been taken from it.
            Some(other) if other.claim == list.claim => *other = list,
            _ => lists.insert(place, list),
        }
    }

    /// Removes the lists of an erased user: claims are counted anew after it.
    pub(crate) fn erase(&mut self, user: &UserId) {
        self.0.remove(user);
    }

    /// The number of the newest list of the record's user that has not seen the record.
    fn standing(&self, record: &Accepted) -> Option<(usize, &List)> {
        let lists = self.0.get(&record.user)?.iter().enumerate();
        lists.rev().find(|(_, list)| !list.seen.contains(record))
    }
}

/// What the lists of two namespaces were worth.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Since {
    /// The first namespace.
    pub(crate) a: String,
    /// The second.
    pub(crate) b: String,
    /// Users with a purchase that is judged.
    pub(crate) users: usize,
    /// Purchases that are judged.
    pub(crate) purchases: usize,
    /// Purchases left out because the user had no list in both namespaces that had not seen them.
    pub(crate) without_list: usize,
    /// Purchases left out because the catalogue does not have what was bought.
    pub(crate) unknown: usize,
    /// Recall@10 of the first namespace's lists: of the products bought while a list stood, how many were on it.
    pub(crate) recall_a: Interval,
    /// The same of the second.
    pub(crate) recall_b: Interval,
    /// The second less the first, paired by user.
    pub(crate) b_less_a: Interval,
}

/// Judges the purchases from a time on by the lists of two namespaces.
///
/// Errors: [`Problem::NoList`], [`Problem::NotBought`].
pub(crate) fn since(
    logs: &Logs,
    (names, lists): ([&str; 2], &[Lists; 2]),
    from: Option<Timestamp>,
    how: Resampling,
) -> Result<Since, Problem> {
    if let Some(nth) = lists.iter().position(|lists| lists.0.is_empty()) {
        let namespace = names[nth].to_owned();
        return Err(Problem::NoList { namespace });
    }
    let (mut purchases, mut without_list, mut unknown) = (0, 0, 0);
    // Products bought while the same two lists stood; a product that is bought twice counts once.
    let mut bought: BTreeMap<(&UserId, usize, usize), BTreeSet<u32>> = BTreeMap::new();
    for record in &logs.records {
        if from.is_some_and(|from| record.time < from) {
            continue;
        }
        let Some(product) = purchase(record, &logs.catalogue) else {
            continue;
        };
        let Some(product) = product else {
            unknown += 1;
            continue;
        };
        let (Some((a, _)), Some((b, _))) = (lists[0].standing(record), lists[1].standing(record))
        else {
            without_list += 1;
            continue;
        };
        purchases += 1;
        let products = bought.entry((&record.user, a, b)).or_default();
        products.insert(product.0);
    }
    let of = |lists: &Lists, user: &UserId, nth: usize, targets: &[u32]| {
        let list = lists.0.get(user).and_then(|lists| lists.get(nth));
        list.and_then(|list| recall(&list.products, targets, LIST))
    };
    let mut cases: Vec<(&UserId, f64, f64)> = Vec::new();
    for ((user, a, b), targets) in &bought {
        let targets: Vec<u32> = targets.iter().copied().collect();
        let pair = of(&lists[0], user, *a, &targets).zip(of(&lists[1], user, *b, &targets));
        cases.extend(pair.map(|(a, b)| (*user, a, b)));
    }
    if cases.is_empty() {
        return Err(Problem::NotBought { without_list });
    }
    let b_less_a = paired(cases.iter().map(|(user, a, b)| (*user, *b, *a)), how);
    Ok(Since {
        a: names[0].to_owned(),
        b: names[1].to_owned(),
        users: b_less_a.users,
        purchases,
        without_list,
        unknown,
        recall_a: mean(cases.iter().map(|(user, a, _)| (*user, *a)), how),
        recall_b: mean(cases.iter().map(|(user, _, b)| (*user, *b)), how),
        b_less_a,
    })
}

impl Since {
    /// The comparison as lines for a terminal.
    pub(crate) fn text(&self) -> String {
        let Self { a, b, .. } = self;
        let figures = |it: &Interval| format!("{:+.4} [{:+.4}, {:+.4}]", it.mean, it.low, it.high);
        let mut out = format!(
            "{} purchases by {} users, each judged by the newest list in {a} and in {b} that had not seen it\n",
            self.purchases, self.users
        );
        let left_out = [
            (self.without_list, "no such list in both"),
            (self.unknown, "a product that the catalogue does not have"),
        ];
        for (number, why) in left_out.iter().filter(|(number, _)| *number > 0) {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{number} purchases are left out: {why}");
        }
        let rows = [
            (format!("Recall@10 of {a}"), &self.recall_a),
            (format!("Recall@10 of {b}"), &self.recall_b),
            (format!("{b} less {a}"), &self.b_less_a),
        ];
        for (what, interval) in rows {
            let _ = writeln!(out, "{what:<32} {}", figures(interval));
        }
        out += "users saw the lists of the served namespace alone, which favours it\n";
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::files::{Decoding, Topic};
    use bytes::Bytes;
    use nearshore_core::list::document::{Shown, Source};
    use nearshore_core::queue::topics::Topics;
    use nearshore_core::user::event::Limits;
    use nearshore_core::user::record::{Offset, Partition, Position, Record};
    use std::collections::BTreeSet;

    fn position(offset: i64) -> Position {
        Position {
            partition: Partition {
                incarnation: 0,
                topic: "user-events".into(),
                number: 0,
            },
            offset: Offset(offset),
        }
    }

    /// A log with products `p0` to `p9`, each with one SKU of the same name; purchases are user and product.
    fn logs(bought: &[(&str, &str)]) -> Logs {
        let decoding = Decoding {
            topics: Topics::default(),
            limits: Limits::default(),
            ignore: BTreeSet::new(),
            naming: None,
        };
        let mut logs = Logs::default();
        let mut add = |topic, key: &str, value: String, offset| {
            let record = Record {
                position: position(offset),
                time: Timestamp(1_700_000_000_000 + offset),
                key: Some(Bytes::from(key.to_owned())),
                value: Some(value.into()),
                headers: Vec::new(),
            };
            logs.add(topic, &[record], &decoding, String::new);
        };
        for nth in 0..10 {
            let value = format!(r#"{{"pu": "p{nth}", "stock": 5}}"#);
            add(Topic::Catalog, &format!("p{nth}"), value, nth);
        }
        for (nth, (user, sku)) in (0..).zip(bought) {
            let value = format!(r#"{{"type": "purchase", "sku": "{sku}"}}"#);
            add(Topic::Events, user, value, nth);
        }
        assert_eq!(logs.rejects.total(), 0, "{:?}", logs.rejects);
        logs.finished()
    }

    fn document(source: Source, products: &[&str]) -> Document {
        let shown = |product: &&str| Shown {
            pu: (*product).into(),
            name: (*product).into(),
            score: 0.0,
            skus: vec![(*product).into()],
        };
        Document {
            list_id: String::new(),
            user: None,
            arm: "a".into(),
            source,
            at: Timestamp(0),
            segment: "default".into(),
            stale: false,
            reason: None,
            pus: products.iter().map(shown).collect(),
        }
    }

    /// What a list has seen: all records before this offset.
    fn before(offset: i64) -> Seen {
        let seen = (offset > 0).then(|| position(offset - 1));
        Seen::Offsets(seen.into_iter().collect())
    }

    fn lists(logs: &Logs, of: &[(&str, u64, i64, &[&str])]) -> Lists {
        let mut lists = Lists::default();
        for (user, claim, seen, products) in of {
            let doc = document(Source::Mixture, products);
            let made = (*claim, before(*seen));
            lists.add(UserId((*user).into()), made, &doc, &logs.catalogue);
        }
        lists
    }

    fn compared(logs: &Logs, lists: &[Lists; 2]) -> Result<Since, Problem> {
        since(logs, (["a", "b"], lists), None, Resampling::default())
    }

    #[test]
    fn a_purchase_is_judged_by_the_newest_list_that_has_not_seen_it() {
        let logs = logs(&[("u", "p0"), ("u", "p1"), ("u", "p2"), ("v", "p3")]);
        // The first list of a has the first purchase, the second the others; b repeats what was bought.
        let a = lists(&logs, &[("u", 1, 0, &["p0"]), ("u", 2, 1, &["p1", "p2"])]);
        let b = lists(&logs, &[("u", 2, 1, &["p0"]), ("u", 3, 2, &["p2"])]);
        let found = compared(&logs, &[a.clone(), b]).expect("purchases");
        // b has no list from before the first purchase; v has none.
        assert_eq!(
            (found.purchases, found.without_list, found.users),
            (2, 2, 1)
        );
        assert_eq!((found.recall_a.mean, found.recall_a.cases), (1.0, 2));
        assert_eq!((found.recall_b.mean, found.b_less_a.mean), (0.5, -0.5));
        let late = lists(&logs, &[("u", 1, 9, &["p0"])]);
        let refused = compared(&logs, &[a.clone(), late]).expect_err("it has seen all");
        assert!(matches!(refused, Problem::NotBought { without_list: 4 }));
        let refused = compared(&logs, &[a, Lists::default()]).expect_err("no list");
        assert!(matches!(refused, Problem::NoList { namespace } if namespace == "b"));
    }

    #[test]
    fn the_second_list_of_a_claim_replaces_the_first_and_an_erase_removes_all() {
        let logs = logs(&[("u", "p0")]);
        let u = UserId("u".into());
        let mut lists = [lists(&logs, &[("u", 1, 0, &["p1"])]), Lists::default()];
        for (source, product) in [(Source::Model, "p0"), (Source::Mixture, "p2")] {
            let doc = document(source, &[product]);
            lists[1].add(u.clone(), (1, before(0)), &doc, &logs.catalogue);
        }
        let found = compared(&logs, &lists).expect("a purchase");
        assert_eq!((found.recall_a.mean, found.recall_b.mean), (0.0, 1.0));
        assert_eq!(found.b_less_a.mean, 1.0);
        lists[1].erase(&u);
        assert!(matches!(
            compared(&logs, &lists),
            Err(Problem::NoList { .. })
        ));
    }

    #[test]
    fn a_list_with_a_time_is_judged_by_what_was_bought_after() {
        let logs = logs(&[("u", "p0"), ("u", "p1")]);
        let until = |offset: i64| Seen::Until(Timestamp(1_700_000_000_000 + offset));
        let mut lists = [Lists::default(), Lists::default()];
        for (nth, product) in ["p0", "p1"].iter().enumerate() {
            let doc = document(Source::Mixture, &[product]);
            let user = UserId("u".into());
            lists[nth].add(user, (1, until(0)), &doc, &logs.catalogue);
        }
        let found = compared(&logs, &lists).expect("a purchase");
        assert_eq!((found.purchases, found.without_list), (1, 1));
        assert_eq!((found.recall_a.mean, found.recall_b.mean), (0.0, 1.0));
        let from = Some(Timestamp(1_700_000_000_002));
        let none = since(&logs, (["a", "b"], &lists), from, Resampling::default());
        assert!(matches!(none, Err(Problem::NotBought { without_list: 0 })));
    }
}
