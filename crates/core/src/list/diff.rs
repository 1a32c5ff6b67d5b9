//! Compares the lists of two namespaces: pairs of lists -> sums by segment -> a report.
//!
//! Invariant: a sum of pairs does not depend on their order, so the same lists give the same report. Measures cover
//! lists of the model; a fallback counts as no list. It does not know where lists come from.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::list::document::Document;

/// Number of first names compared for overlap.
const DEPTH: usize = 10;
/// Most products listed as new or lost.
const NAMED: usize = 20;

/// One user's lists in both namespaces.
pub struct Pair<'a> {
    /// Segment of the user.
    pub segment: &'a str,
    /// The list of the first namespace.
    pub a: Option<&'a Document>,
    /// Whether it has seen the whole state.
    pub a_covered: bool,
    /// The list of the second namespace.
    pub b: Option<&'a Document>,
    /// Whether it has seen the whole state.
    pub b_covered: bool,
}

/// Sums over pairs of lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    users: u64,
    covered: [u64; 2],
    listed: [u64; 2],
    both: u64,
    same: u64,
    overlap: f64,
    ranked: u64,
    tau: f64,
    /// By product: number of lists of the first and of the second namespace with it.
    shown: BTreeMap<String, [u64; 2]>,
}

impl Sums {
    fn add(&mut self, pair: &Pair) {
        let of_arm = |doc: &&Document| doc.source.is_exposure();
        let (a, b) = (pair.a.filter(of_arm), pair.b.filter(of_arm));
        self.users += 1;
        self.covered[0] += u64::from(a.is_some() && pair.a_covered);
        self.covered[1] += u64::from(b.is_some() && pair.b_covered);
        for (side, list) in [a, b].into_iter().enumerate() {
            self.listed[side] += u64::from(list.is_some());
            for shown in list.into_iter().flat_map(|list| &list.pus) {
                self.shown.entry(shown.name.clone()).or_default()[side] += 1;
            }
        }
        let (Some(a), Some(b)) = (a, b) else { return };
        let (a, b) = (names(a), names(b));
        self.both += 1;
        self.same += u64::from(a == b);
        self.overlap += overlap(&a, &b);
        if let Some(tau) = tau(&a, &b) {
            self.ranked += 1;
            self.tau += tau;
        }
    }

    /// Computes the report of these sums.
    pub fn report(&self) -> Report {
        let share = |part: f64, of: u64| (of > 0).then(|| part / of as f64);
        let side = |side: usize| Side {
            listed: self.listed[side],
            coverage: share(self.covered[side] as f64, self.users),
        };
        let only = |here: usize, there: usize| {
            let of = self
                .shown
                .iter()
                .filter(|(_, n)| n[here] > 0 && n[there] == 0);
            let mut of: Vec<(String, u64)> = of.map(|(name, n)| (name.clone(), n[here])).collect();
            of.sort_by(|x, y| y.1.cmp(&x.1).then_with(|| x.0.cmp(&y.0)));
            let count = of.len();
            of.truncate(NAMED);
            Products { count, most: of }
        };
        Report {
            users: self.users,
            a: side(0),
            b: side(1),
            both: self.both,
            same: self.same,
            overlap_at_10: share(self.overlap, self.both),
            rank_correlation: share(self.tau, self.ranked),
            new_products: only(1, 0),
            lost_products: only(0, 1),
        }
    }
}

/// Sums over all users and by segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// All users.
    pub all: Sums,
    /// By segment.
    pub segments: BTreeMap<String, Sums>,
}

impl Comparison {
    /// Adds one user's lists.
    pub fn add(&mut self, pair: &Pair) {
        self.all.add(pair);
        self.segments
            .entry(pair.segment.to_owned())
            .or_default()
            .add(pair);
    }
}

/// Measures of one namespace's lists.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Side {
    /// Number of users with a list of the model.
    pub listed: u64,
    /// Share of users whose list has seen the whole state.
    pub coverage: Option<f64>,
}

/// Products that only one namespace's lists have.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Products {
    /// Their number.
    pub count: usize,
    /// The products on most lists, with the number of lists.
    pub most: Vec<(String, u64)>,
}

/// Report of the differences between lists.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    /// Number of users compared.
    pub users: u64,
    /// The first namespace.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Number of users with a list in both.
    pub both: u64,
    /// Number of these whose lists have the same names in the same order.
    pub same: u64,
    /// Mean share of the first ten names that both lists have.
    pub overlap_at_10: Option<f64>,
    /// Mean Kendall's tau over the names that both lists have, over pairs with at least two.
    pub rank_correlation: Option<f64>,
    /// Products that only the second namespace's lists have.
    pub new_products: Products,
    /// Products that only the first namespace's lists have.
    pub lost_products: Products,
}

fn names(list: &Document) -> Vec<&str> {
    list.pus.iter().map(|shown| shown.name.as_str()).collect()
}

/// Number of names in the first ten of both, divided by the length of the longer of the two.
fn overlap(a: &[&str], b: &[&str]) -> f64 {
    let top = |names: &[&str]| -> BTreeSet<String> {
        names
            .iter()
            .take(DEPTH)
            .map(|name| (*name).to_owned())
            .collect()
    };
    let (a, b) = (top(a), top(b));
    match a.len().max(b.len()) {
        0 => 1.0,
        most => a.intersection(&b).count() as f64 / most as f64,
    }
}

/// Kendall's tau over the names in both: (pairs in the same order - pairs in reversed order) / all pairs.
fn tau(a: &[&str], b: &[&str]) -> Option<f64> {
    let places: Vec<usize> = a
        .iter()
        .filter_map(|name| b.iter().position(|other| other == name))
        .collect();
    let pairs = places.len() * places.len().saturating_sub(1) / 2;
    let mut order = 0i64;
    for (nth, first) in places.iter().enumerate() {
        for second in &places[nth + 1..] {
            order += if first < second { 1 } else { -1 };
        }
    }
    (pairs > 0).then(|| order as f64 / pairs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Document {
        let columns: Vec<Vec<String>> = names.iter().map(|_| vec!["s".to_owned()]).collect();
        let json = serde_json::json!({
            "schema": 1, "list_id": "l", "arm": "a", "source": "model", "at": 0, "segment": "default",
            "names": names, "scores": vec![0.0; names.len()], "skus": columns,
        });
        serde_json::from_value(json).expect("a document")
    }

    fn compare(pairs: &[(&[&str], &[&str])]) -> Report {
        let mut all = Comparison::default();
        for (a, b) in pairs {
            let (a, b) = (list(a), list(b));
            all.add(&Pair {
                segment: "default",
                a: Some(&a),
                a_covered: true,
                b: Some(&b),
                b_covered: false,
            });
        }
        all.all.report()
    }

    #[test]
    fn equal_lists_have_overlap_and_correlation_one() {
        let report = compare(&[(&["x", "y", "z"], &["x", "y", "z"])]);
        assert_eq!(
            (report.overlap_at_10, report.rank_correlation),
            (Some(1.0), Some(1.0))
        );
        assert_eq!((report.same, report.both), (1, 1));
        assert_eq!(
            (report.a.coverage, report.b.coverage),
            (Some(1.0), Some(0.0))
        );
        assert_eq!(report.new_products.count + report.lost_products.count, 0);
    }

    #[test]
    fn a_reversed_order_has_correlation_minus_one_and_other_names_are_new_or_lost() {
        let report = compare(&[(&["x", "y"], &["y", "x"]), (&["x", "old"], &["x", "new"])]);
        assert_eq!(report.overlap_at_10, Some(0.75));
        // The second pair has one name in common, so it has no order.
        assert_eq!(report.rank_correlation, Some(-1.0));
        assert_eq!(report.new_products.most, [("new".to_owned(), 1)]);
        assert_eq!(report.lost_products.most, [("old".to_owned(), 1)]);
    }

    #[test]
    fn a_fallback_counts_as_no_list() {
        let mut fallback = list(&["x"]);
        fallback.source = crate::list::document::Source::Fallback;
        let mut all = Comparison::default();
        all.add(&Pair {
            segment: "s",
            a: Some(&fallback),
            a_covered: true,
            b: None,
            b_covered: false,
        });
        let report = all.segments["s"].report();
        assert_eq!((report.users, report.a.listed, report.both), (1, 0, 0));
        assert_eq!(report.a.coverage, Some(0.0));
        assert_eq!(report.overlap_at_10, None);
    }

    #[test]
    fn a_shorter_list_is_compared_over_the_longer_ones_length() {
        assert_eq!(overlap(&["a"], &["a", "b"]), 0.5);
        assert_eq!(overlap(&[], &[]), 1.0);
        let twelve: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        let twelve: Vec<&str> = twelve.iter().map(String::as_str).collect();
        assert_eq!(overlap(&twelve, &twelve[2..]), 0.8);
    }
}
