//! What each arm's lists earned, and whether users are spread as the shares say: [`arms`].
//!
//! Invariant: it only reads. Users are counted by the lists that are stored, so an arm whose lists fail to be made is
//! seen; what lists earned is counted by ingest and generate (decision 38), approximately.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Config;
use crate::ops::coverage::shown;
use nearshore_core::list::document::{Document, Source};
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::list::prompt::Arm;
use nearshore_core::ports::store::{ShownDoc, Store};
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::shares::{self, ShareTest};
use nearshore_core::user::event::UserId;

/// One arm in one epoch, or the lists that no arm made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct ArmRow {
    /// Id of the arm; empty for lists that no arm made, of earlier releases.
    pub arm: String,
    /// Epoch of the arm.
    pub epoch: u64,
    /// Its share of users as configured, 0 to 1; `None` if this epoch is not configured for the namespace.
    pub share: Option<f64>,
    /// Users with a stored list of this arm and epoch.
    pub users: u64,
    /// Lists of the model that generate stored: exposures, as far as the store knows.
    pub exposures: u64,
    /// Fallbacks that generate stored in their place.
    pub fallbacks: u64,
    /// Purchases by sampled users who had a list of the model.
    pub purchases: u64,
    /// Those of them whose product was on the list.
    pub hits: u64,
    /// Those of them whose product was on the fallback.
    pub fallback_hits: u64,
}

/// The arms of a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Arms {
    /// The namespace.
    pub namespace: String,
    /// Configured arms first, in their order; then what else has lists or counts.
    pub arms: Vec<ArmRow>,
    /// Users of the namespace without a list.
    pub without_list: u64,
    /// Users whose list is of another arm than theirs is now: shares, seed or arms were changed since.
    pub moved: u64,
    /// Test of the users per arm against the shares; `None` with fewer than two arms, or without users.
    pub test: Option<ShareTest>,
    /// Whether the test says that the users do not fit the shares.
    pub mismatch: bool,
    /// Share of the users whose purchases are compared with their lists now.
    pub hits_sample: f64,
}

/// Users by arm and epoch, as the scan found them.
#[derive(Debug, Default)]
struct Found {
    users: BTreeMap<(String, u64), u64>,
    without_list: u64,
    moved: u64,
}

/// Reads the lists of all users and the counts of the namespace.
pub async fn arms<S: Store>(config: &Config, store: &S) -> anyhow::Result<Arms> {
    let ns = &config.namespace;
    let configured = arms_for(ns, &config.arms);
    let (mut found, mut seen) = (Found::default(), BTreeSet::new());
    let mut cursor = None;
    loop {
        let (mut users, next) = store.scan(ns, cursor).await?;
        // A scan may give a user twice.
        users.retain(|user| seen.insert(user.clone()));
        let shown = shown(store, ns, &mut users).await?;
        for (user, shown) in users.iter().zip(shown) {
            found.add(user, shown, &config.arm_seed, &configured);
        }
        match next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let earned = store.earned(ns).await?;
    let mut arms = report(ns, &configured, &found, &earned);
    arms.hits_sample = config.metrics.hits_sample;
    Ok(arms)
}

impl Found {
    fn add(&mut self, user: &UserId, shown: Option<ShownDoc>, seed: &str, arms: &[Arm]) {
        let Some((doc, epoch)) =
            shown.and_then(|shown| Some((Document::parse(&shown.doc).ok()?, shown.epoch)))
        else {
            self.without_list += 1;
            return;
        };
        let now = arm_of(&user.0, seed, arms).map(|arm| arm.id.as_str());
        self.moved += u64::from(!doc.arm.is_empty() && now != Some(&doc.arm));
        *self.users.entry((doc.arm, epoch)).or_default() += 1;
    }
}

/// Joins configuration, users and counts.
fn report(
    ns: &str,
    configured: &[Arm],
    found: &Found,
    earned: &BTreeMap<ListKind, Earned>,
) -> Arms {
    let shares: u64 = configured.iter().map(|arm| u64::from(arm.share)).sum();
    let mut rows: Vec<ArmRow> = configured
        .iter()
        .map(|arm| ArmRow {
            arm: arm.id.clone(),
            epoch: arm.epoch,
            share: Some(f64::from(arm.share) / shares.max(1) as f64),
            ..ArmRow::default()
        })
        .collect();
    for ((arm, epoch), users) in &found.users {
        row(&mut rows, arm, *epoch).users = *users;
    }
    for (kind, earned) in earned {
        let row = row(&mut rows, &kind.arm, kind.epoch);
        match kind.source {
            Source::Fallback => row.fallbacks += earned.lists,
            _ => {
                row.exposures += earned.lists;
                row.purchases += earned.purchases;
                row.hits += earned.hits;
                row.fallback_hits += earned.fallback_hits;
            }
        }
    }
    // An arm's users are those of all its epochs: a new epoch reaches them one by one.
    let of_arm = |arm: &Arm| {
        let users = found.users.iter().filter(|((id, _), _)| *id == arm.id);
        (users.map(|(_, n)| n).sum(), arm.share)
    };
    let counts: Vec<(u64, u32)> = configured.iter().map(of_arm).collect();
    let test = shares::test(&counts);
    Arms {
        namespace: ns.to_owned(),
        arms: rows,
        without_list: found.without_list,
        moved: found.moved,
        mismatch: test.is_some_and(|test| test.is_mismatch()),
        test,
        hits_sample: 0.0,
    }
}

/// The row of an arm and epoch, added if there is none.
fn row<'a>(rows: &'a mut Vec<ArmRow>, arm: &str, epoch: u64) -> &'a mut ArmRow {
    let at = rows
        .iter()
        .position(|row| row.arm == arm && row.epoch == epoch)
        .unwrap_or(rows.len());
    if at == rows.len() {
        rows.push(ArmRow {
            arm: arm.to_owned(),
            epoch,
            ..ArmRow::default()
        });
    }
    &mut rows[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(shares: &[(&str, u64, u32)]) -> Vec<Arm> {
        let arm = |(id, epoch, share): &(&str, u64, u32)| {
            serde_json::from_value(serde_json::json!({
                "id": id, "epoch": epoch, "share": share, "template": "t", "model": "m"
            }))
            .expect("an arm")
        };
        shares.iter().map(arm).collect()
    }

    #[test]
    fn users_of_all_epochs_of_an_arm_are_tested_and_counts_stay_apart() {
        let configured = configured(&[("a", 2, 1), ("b", 3, 1)]);
        let mut found = Found::default();
        for (arm, epoch, users) in [("a", 1, 300), ("a", 2, 210), ("b", 3, 490), ("", 0, 9)] {
            found.users.insert((arm.to_owned(), epoch), users);
        }
        let kind = |arm: &str, epoch, source| ListKind {
            arm: arm.into(),
            epoch,
            source,
        };
        let earned = Earned {
            lists: 7,
            purchases: 5,
            hits: 3,
            fallback_hits: 2,
        };
        let counts = [
            (kind("a", 2, Source::Model), earned),
            (kind("a", 2, Source::Fallback), earned),
            (kind("b", 1, Source::Model), earned),
        ];
        let arms = report("n", &configured, &found, &counts.into());
        let rows = arms.arms.iter();
        let rows: Vec<_> = rows
            .map(|row| {
                (
                    &*row.arm,
                    row.epoch,
                    row.users,
                    row.exposures,
                    row.fallbacks,
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("a", 2, 210, 7, 7),
                ("b", 3, 490, 0, 0),
                ("", 0, 9, 0, 0),
                ("a", 1, 300, 0, 0),
                ("b", 1, 0, 7, 0),
            ]
        );
        assert_eq!((arms.arms[0].purchases, arms.arms[0].hits), (5, 3));
        assert_eq!((arms.arms[0].share, arms.arms[3].share), (Some(0.5), None));
        let test = arms.test.expect("two arms");
        assert!((test.chi_square - 0.4).abs() < 1e-9, "{test:?}");
        assert!(!arms.mismatch);
    }
}
