//! The tables of terms from a log of purchases.
//!
//! Decides from which cuts a hazard is fitted and what counts as bought together. Invariant: nothing at or after the cut
//! is in a table. It does not know who is a train user: its caller gives their purchases only.

use std::collections::BTreeMap;

use super::log::{DAY_MS, Purchases, demand, reach};
use super::neighbours::{NeighbourOptions, NeighbourTable, by_period};
use super::repeat::{RepeatOptions, RepeatTable, cases, intervals};
use super::walk::{WalkOptions, WalkTable};

/// Products that one user bought in one such period go together.
const TOGETHER_MS: i64 = 7 * DAY_MS;

/// Windows of the hazard, one month after the other, back from the cut.
const HAZARD_CUTS: i64 = 6;

/// Time between two of them.
const HAZARD_STEP_MS: i64 = 28 * DAY_MS;

/// Histories of the hazard's cases, in distinct products. Fitted to whole histories alone, it would rank users of whom
/// little is visible worse than a constant does.
const HAZARD_VISIBLE: [usize; 4] = [1, 3, 10, usize::MAX];

/// The long periods of [`reach`] by the name of their term: eight weeks, and all.
const REACHES: [(&str, i64); 2] = [("reach", 56 * DAY_MS), ("reach_ever", i64::MAX / 4)];

/// The repeat hazard, from windows that end at `until` or before.
pub fn repeat(purchases: &Purchases, until: i64, window_ms: i64) -> RepeatTable {
    let options = RepeatOptions::default();
    let first = purchases
        .users
        .iter()
        .filter_map(|user| Some(user.lines.first()?.at))
        .min();
    let back = (0..HAZARD_CUTS).map(|nth| until - window_ms - nth * HAZARD_STEP_MS);
    let cuts: Vec<i64> = back
        .filter(|cut| first.is_some_and(|first| *cut > first))
        .collect();
    let cases = cases(purchases, &cuts, window_ms, &HAZARD_VISIBLE);
    RepeatTable::fit(&intervals(purchases, until, options), &cases, options)
}

/// Neighbours by what one user bought within a week, before `until`. Pairs of fewer than `users_min` users are not kept.
pub fn neighbours(purchases: &Purchases, until: i64, users_min: u32) -> NeighbourTable {
    let options = NeighbourOptions {
        users_min,
        ..NeighbourOptions::default()
    };
    let groups = by_period(purchases, until, TOGETHER_MS);
    NeighbourTable::fit(purchases.products, &groups, options)
}

/// Random walks over all that users bought before `until`. Pairs of fewer than `users_min` users are not kept.
pub fn walk(purchases: &Purchases, until: i64, users_min: u32) -> WalkTable {
    let options = WalkOptions {
        users_min,
        ..WalkOptions::default()
    };
    WalkTable::fit(purchases, until, options)
}

/// A number per product for each term that says the same to everyone.
pub fn columns(purchases: &Purchases, until: i64) -> BTreeMap<String, Vec<f32>> {
    let of = |(name, long): (&str, i64)| {
        let column = reach(purchases, until, long, 7 * DAY_MS);
        (name.to_owned(), column)
    };
    let mut columns: BTreeMap<String, Vec<f32>> = REACHES.into_iter().map(of).collect();
    columns.insert("weeks".to_owned(), weeks(purchases, until));
    columns
}

/// Of each product ln(share in weeks of buyers / share in lines bought), with two lines of the mean ratio added to both.
fn weeks(purchases: &Purchases, until: i64) -> Vec<f32> {
    let weeks = demand(purchases, until, 7 * DAY_MS, None);
    let mut lines = vec![0.0; purchases.products];
    for line in purchases.users.iter().flat_map(|user| user.before(until)) {
        lines[line.product as usize] += 1.0;
    }
    let (all_weeks, all_lines) = (weeks.iter().sum::<f64>(), lines.iter().sum::<f64>());
    if all_lines == 0.0 {
        return vec![0.0; purchases.products];
    }
    let shrink = all_weeks / all_lines;
    let ratio = |(weeks, lines): (&f64, &f64)| {
        let (weeks, lines) = (weeks + 2.0 * shrink, lines + 2.0);
        ((weeks / all_weeks) / (lines / all_lines)).ln() as f32
    };
    weeks.iter().zip(&lines).map(ratio).collect()
}
