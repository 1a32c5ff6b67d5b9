//! Demand: how many users buy each PU, per segment, decayed in time. Used as score term and for fallbacks.
//!
//! A user counts once per SKU and 7-day bucket: those are the cells of buyers, and a PU's demand is the sum of its SKUs'.
//!
//! Invariant: cells are integers and are summed first, per PU and bucket; decay and the mapping SKU -> PU apply to the
//! sums. So over one catalogue the result does not depend on how cells are split or ordered. Every PU has a mass over
//! 0. It does not know stock nor rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::learn::choice::UNSOLD;
use crate::shop::catalogue::{Catalogue, SkuIx};
use crate::shop::count_kind::CountKind;
use crate::shop::decay::Decay;
use crate::shop::sums::Sums;
use crate::user::record::Timestamp;

/// Length of a bucket of counts in milliseconds of record time: 7 days.
pub const BUCKET_MS: i64 = 7 * 86_400_000;

/// Settings by which counts become demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Time after which a purchase counts half.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub half_life: Duration,
    /// Buckets older than this are not read, and expire in the store.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub keep: Duration,
    /// Pseudo-buyers with which a segment's demand is mixed with the demand of all users.
    pub smoothing: f64,
    /// Most units that one purchase adds to its SKU's counts, which choose the SKUs under a name: a quantity may be in
    /// grams, or a mistake.
    pub units_max: u32,
    /// Time between two reads of changed counts.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub every: Duration,
    /// Freezes counts: only buckets that ended by this time are read, and ages count to the end of the last one. `None`
    /// reads all buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<jiff::Timestamp>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(28 * 86_400),
            keep: Duration::from_secs(365 * 86_400),
            smoothing: 100.0,
            units_max: 20,
            every: Duration::from_secs(30),
            as_of: None,
        }
    }
}

impl Policy {
    /// End of the last bucket that is read, if counts are frozen. Buckets are read whole or not at all, so counts added
    /// to later buckets by a replay or by live traffic change nothing.
    pub fn frozen(&self) -> Option<Timestamp> {
        let at = self.as_of?.as_millisecond();
        Some(Timestamp(
            at.div_euclid(BUCKET_MS).saturating_mul(BUCKET_MS),
        ))
    }
}

/// One cell of the counts. Cells with the same key are summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count<'a> {
    /// SKU id.
    pub sku: &'a str,
    /// What is counted.
    pub kind: CountKind,
    /// Segment at fold time.
    pub segment: &'a str,
    /// Number of the 7-day bucket of record time.
    pub bucket: i64,
    /// Count.
    pub n: u64,
}

/// Decayed counts of one SKU over all segments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SkuCounts {
    /// Impressions.
    pub impressions: f32,
    /// Clicks and views.
    pub clicks: f32,
    /// Pieces bought.
    pub purchases: f32,
    /// Pieces bought of all SKUs of its product since the SKU is known to be on sale: each could have been of this SKU.
    pub offered: f32,
}

/// Demand computed from one read of the counts, over the PUs and SKUs of one catalogue.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Hash of the cells read, in hex: equal cells give an equal version.
    pub version: String,
    /// Time to which counts are decayed.
    pub at: Timestamp,
    /// Whether counts are frozen at that time.
    pub frozen: bool,
    /// Number of events in cells whose SKU is not in the catalogue; they are ignored.
    pub unknown: u64,
    all_users: Shares,
    segments: BTreeMap<String, Shares>,
    skus: Vec<SkuCounts>,
    /// See [`Demand::sku_logs`].
    logs: Vec<[f32; 3]>,
}

/// Shares of PUs, each over 0, with sum 1.
#[derive(Clone, Debug)]
struct Shares {
    mass: Arc<[f32]>,
    /// Their natural logarithms.
    logs: Arc<[f32]>,
}

impl Demand {
    /// Computes demand from counts decayed to `now`. Cells in buckets that ended before `now - keep` are ignored.
    pub fn build<'a>(
        counts: impl IntoIterator<Item = Count<'a>>,
        catalogue: &Catalogue,
        policy: &Policy,
        now: Timestamp,
    ) -> Self {
        let frozen = policy.frozen();
        let now = frozen.unwrap_or(now);
        let oldest = now.0.saturating_sub(millis(policy.keep));
        let read = counts.into_iter().filter(|count| {
            let end = count.bucket.saturating_add(1).saturating_mul(BUCKET_MS);
            count.n > 0 && end > oldest && frozen.is_none_or(|at| end <= at.0)
        });
        let sums = Sums::of(read, catalogue);
        let decay = Decay {
            half_life: millis(policy.half_life).max(1) as f64,
            now,
        };
        let bought: BTreeMap<&str, Vec<f64>> = sums
            .bought
            .iter()
            .map(|(segment, cells)| (*segment, decay.purchases(cells, catalogue.pus().len())))
            .collect();
        let mut all_users = vec![0.0; catalogue.pus().len()];
        for pus in bought.values() {
            all_users
                .iter_mut()
                .zip(pus)
                .for_each(|(all, one)| *all += one);
        }
        fill_in(&mut all_users, catalogue);
        let all_users = shares(all_users);
        let smooth = |pus: &Vec<f64>| {
            let mixed = pus.iter().zip(&all_users);
            Shares::new(shares(
                mixed
                    .map(|(one, all)| one + policy.smoothing.max(0.0) * all)
                    .collect(),
            ))
        };
        Self {
            version: format!("{:016x}", sums.digest),
            at: now,
            frozen: frozen.is_some(),
            unknown: sums.unknown,
            segments: bought
                .iter()
                .map(|(segment, pus)| ((*segment).to_owned(), smooth(pus)))
                .collect(),
            skus: decay.skus(&sums.skus, catalogue),
            logs: decay.logs(&sums.skus, catalogue),
            all_users: Shares::new(all_users),
        }
    }

    /// Share of each PU in the segment's buyers, smoothed with the shares of all users: each over 0, with sum 1. A
    /// segment without purchases has the shares of all users.
    pub fn mass(&self, segment: &str) -> Arc<[f32]> {
        Arc::clone(&self.shares(segment).mass)
    }

    /// Natural logarithms of the shares of [`mass`](Self::mass): one table per segment, however often it is asked for.
    pub fn log_shares(&self, segment: &str) -> Arc<[f32]> {
        Arc::clone(&self.shares(segment).logs)
    }

    fn shares(&self, segment: &str) -> &Shares {
        self.segments.get(segment).unwrap_or(&self.all_users)
    }

    /// Segments with purchases.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.segments.keys().map(String::as_str)
    }

    /// Decayed counts of a SKU; 0 for a SKU newer than this demand.
    pub(crate) fn sku_counts(&self, ix: SkuIx) -> SkuCounts {
        self.skus.get(ix.at()).copied().unwrap_or_default()
    }

    /// Logarithms of the pieces of a SKU, decayed with the half-life, a quarter of it, and four times it; each with the
    /// pieces added that it would have sold before its first count, and those that a SKU without any counts as.
    pub(crate) fn sku_logs(&self, ix: SkuIx) -> [f32; 3] {
        let unsold = [UNSOLD.ln(); 3];
        self.logs.get(ix.at()).copied().unwrap_or(unsold)
    }

    /// Number of PUs; a catalogue with more PUs needs a new demand.
    pub fn len(&self) -> usize {
        self.all_users.mass.len()
    }

    /// Whether there are no PUs.
    pub fn is_empty(&self) -> bool {
        self.all_users.mass.is_empty()
    }
}

/// Estimates the purchases of each PU without history: its number of SKUs times the purchases per SKU of its category
/// (of all PUs, if the category has no purchases; 1 per SKU, if nothing was ever bought). The estimate is at most the
/// mean PU's purchases: many SKUs without any purchase do not make a best-seller.
fn fill_in(all_users: &mut [f64], catalogue: &Catalogue) {
    #[derive(Clone, Copy, Default)]
    struct Sold {
        purchases: f64,
        skus: f64,
        pus: f64,
    }
    let mut all = Sold::default();
    let mut categories: BTreeMap<Option<&str>, Sold> = BTreeMap::new();
    for (pu, purchases) in catalogue.pus().iter().zip(&*all_users) {
        for sold in [
            &mut all,
            categories.entry(pu.category.as_deref()).or_default(),
        ] {
            sold.purchases += purchases;
            sold.skus += pu.skus.len().max(1) as f64;
            sold.pus += 1.0;
        }
    }
    for (pu, purchases) in catalogue.pus().iter().zip(all_users) {
        if *purchases > 0.0 {
            continue;
        }
        let of_category = categories.get(&pu.category.as_deref()).copied();
        let sold = of_category
            .filter(|sold| sold.purchases > 0.0)
            .unwrap_or(all);
        let skus = pu.skus.len().max(1) as f64;
        *purchases = if sold.purchases > 0.0 {
            (sold.purchases / sold.skus * skus).min(sold.purchases / sold.pus)
        } else {
            skus
        };
    }
}

/// Scales purchases to a sum of 1; equal shares if all purchases have decayed to 0.
fn shares(mut pus: Vec<f64>) -> Vec<f64> {
    let (sum, len) = (pus.iter().sum::<f64>(), pus.len() as f64);
    pus.iter_mut()
        .for_each(|pu| *pu = if sum > 0.0 { *pu / sum } else { 1.0 / len });
    pus
}

impl Shares {
    /// Rounds shares, never to 0: their logarithms are taken.
    fn new(pus: Vec<f64>) -> Self {
        let mass = pus.iter().map(|pu| (*pu as f32).max(f32::MIN_POSITIVE));
        let mass: Arc<[f32]> = mass.collect();
        let logs = mass.iter().map(|share| f64::from(*share).ln() as f32);
        Self {
            logs: logs.collect(),
            mass,
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;
    use crate::user::event::Kind;

    const NOW: Timestamp = Timestamp(100 * BUCKET_MS + BUCKET_MS / 2);

    fn small_catalogue() -> Catalogue {
        let of = |category: &str, id: &str, pu: &str| crate::user::event::Sku {
            category: Some(category.into()),
            ..sku(id, pu, json!({}))
        };
        Catalogue::load(vec![
            of("food", "b1", "BREAD"),
            of("food", "b2", "BREAD"),
            of("food", "m1", "MILK"),
            of("food", "n1", "NEW"),
            of("toys", "t1", "BALL"),
        ])
    }

    fn bought<'a>(sku: &'a str, segment: &'a str, bucket: i64, n: u64) -> Count<'a> {
        let kind = CountKind::Buyer;
        Count {
            sku,
            kind,
            segment,
            bucket,
            n,
        }
    }

    fn of_kind(kind: Kind, count: Count<'_>) -> Count<'_> {
        let kind = CountKind::Event(kind);
        Count { kind, ..count }
    }

    fn build(counts: &[Count<'_>]) -> Demand {
        Demand::build(
            counts.iter().copied(),
            &small_catalogue(),
            &Policy::default(),
            NOW,
        )
    }

    fn check(mass: &[f32], expected: &[f32]) {
        let near = mass.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(
            near && mass.len() == expected.len(),
            "{mass:?} is not {expected:?}"
        );
    }

    #[test]
    fn purchases_halve_with_each_half_life_and_skus_add_up_to_their_pu() {
        let demand = build(&[
            bought("b1", "s", 100, 3),
            bought("b2", "s", 96, 2),
            bought("m1", "s", 100, 4),
        ]);
        // BREAD 3 + 2/2, MILK 4; NEW at the rate of food, 8 on 4 SKUs; BALL at that of all, 8 on 5.
        let all_users = [4.0, 4.0, 2.0, 1.6].map(|n| n / 11.6);
        check(&demand.mass("all others"), &all_users);
        let own = [4.0, 4.0, 0.0, 0.0];
        let mixed: Vec<f32> = own
            .iter()
            .zip(all_users)
            .map(|(n, all)| (n + 100.0 * all) / 108.0)
            .collect();
        check(&demand.mass("s"), &mixed);
        assert_eq!(demand.sku_counts(SkuIx(1)).purchases, 0.0);
        assert_eq!(demand.unknown, 0);
    }

    #[test]
    fn a_bucket_with_buyers_does_not_count_pieces_and_one_without_does() {
        let pieces = |sku, bucket, n| of_kind(Kind::Purchase, bought(sku, "s", bucket, n));
        let buyers = [bought("b1", "s", 100, 3), bought("m1", "s", 96, 8)];
        let both = [pieces("b1", 100, 900), pieces("t1", 96, 800)];
        let demand = build(&[&buyers[..], &both].concat());
        assert_eq!(demand.mass("s"), build(&buyers).mass("s"));
        assert_eq!(demand.sku_counts(SkuIx(0)).purchases, 900.0);
        // A bucket of an older release.
        let older = pieces("m1", 96, 8);
        assert_eq!(
            build(&[buyers[0], older]).mass("s"),
            build(&buyers).mass("s")
        );
        // Buyers of a SKU that left the catalogue are buyers all the same, and no events.
        let gone = build(&[bought("gone", "s", 100, 1), pieces("m1", 100, 7)]);
        assert_eq!(gone.mass("s"), build(&[]).mass("s"));
        assert_eq!(gone.unknown, 0);
    }

    #[test]
    fn a_segment_follows_all_users_until_it_has_its_own_history() {
        let many = build(&[bought("b1", "s", 100, 1_000_000), bought("m1", "t", 100, 1)]);
        let (s, t) = (many.mass("s"), many.mass("t"));
        assert!(
            s[0] > 0.99 && t[0] > 0.6 && t[1] > 50.0 * s[1],
            "{s:?} {t:?}"
        );
        assert_eq!(many.mass("without purchases"), many.mass("default"));
    }

    #[test]
    fn without_any_history_demand_follows_the_number_of_skus() {
        let demand = build(&[]);
        check(&demand.mass("s"), &[0.4, 0.2, 0.2, 0.2]);
    }

    #[test]
    fn old_cells_unknown_skus_and_other_kinds_add_no_demand() {
        let view = of_kind(Kind::View, bought("b1", "s", 100, 7));
        let cart = of_kind(Kind::Cart, bought("b1", "s", 100, 7));
        let demand = build(&[
            view,
            cart,
            bought("b1", "s", 40, 9),
            of_kind(Kind::Purchase, bought("gone", "s", 100, 5)),
        ]);
        check(&demand.mass("s"), &[0.4, 0.2, 0.2, 0.2]);
        let counts = demand.sku_counts(SkuIx(0));
        assert_eq!((counts.clicks, counts.purchases), (7.0, 0.0));
        assert_eq!(demand.unknown, 5);
    }

    #[test]
    fn without_smoothing_every_mass_is_still_over_zero() {
        let policy = Policy {
            smoothing: 0.0,
            ..Policy::default()
        };
        let counts = [bought("b1", "s", 100, 1)];
        let demand = Demand::build(counts, &small_catalogue(), &policy, NOW);
        let mass = demand.mass("s");
        assert!(
            mass[0] > 0.99 && mass.iter().all(|pu| pu.ln().is_finite()),
            "{mass:?}"
        );
    }

    #[test]
    fn log_shares_are_the_logarithms_of_the_shares_in_one_table_per_segment() {
        let demand = build(&[bought("b1", "s", 100, 3), bought("m1", "t", 100, 9)]);
        for segment in ["s", "t", "without purchases"] {
            let (mass, logs) = (demand.mass(segment), demand.log_shares(segment));
            let expected: Vec<f32> = mass.iter().map(|share| share.ln()).collect();
            check(&logs, &expected);
            assert!(Arc::ptr_eq(&logs, &demand.log_shares(segment)), "{segment}");
        }
        assert_ne!(demand.log_shares("s"), demand.log_shares("t"));
    }

    fn cells() -> impl Strategy<Value = Vec<(usize, usize, usize, i64, u64)>> {
        prop::collection::vec(
            (0usize..5, 0usize..3, 0usize..4, 90i64..103, 1u64..1000),
            0..60,
        )
    }

    proptest! {
        #[test]
        fn neither_order_nor_split_of_cells_matters_and_every_mass_is_over_zero(
            cells in cells(), cut in any::<prop::sample::Index>(), smoothing in 0.0f64..200.0,
        ) {
            let kinds = [Kind::Purchase, Kind::Impression, Kind::Click].map(CountKind::Event);
            let kinds = [kinds[0], kinds[1], kinds[2], CountKind::Buyer];
            let count = |&(sku, segment, kind, bucket, n): &(usize, usize, usize, i64, u64)| Count {
                sku: ["b1", "b2", "m1", "n1", "t1"][sku], kind: kinds[kind], bucket, n,
                segment: ["default", "x", "y"][segment],
            };
            let policy = Policy { smoothing, ..Policy::default() };
            let catalogue = small_catalogue();
            let one = Demand::build(cells.iter().map(count), &catalogue, &policy, NOW);
            let split = cells.iter().rev().flat_map(|cell| {
                let (whole, first) = (count(cell), cell.4 * cut.index(100) as u64 / 100);
                [Count { n: first, ..whole }, Count { n: whole.n - first, ..whole }]
            });
            let other = Demand::build(split, &catalogue, &policy, NOW);
            prop_assert_eq!(&one.version, &other.version);
            for segment in ["default", "x", "y", "none"] {
                let mass = one.mass(segment);
                prop_assert_eq!(&mass, &other.mass(segment));
                prop_assert!(mass.iter().all(|pu| *pu > 0.0));
                prop_assert!((mass.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            }
            for ix in (0..5).map(SkuIx) {
                prop_assert_eq!(one.sku_counts(ix), other.sku_counts(ix));
            }
        }
    }

    #[test]
    fn a_year_of_a_whole_catalogue_is_computed_quickly() {
        let ids: Vec<String> = (0..92_000).map(|n: u32| n.to_string()).collect();
        let catalogue = Catalogue::load(
            ids.iter()
                .enumerate()
                .map(|(n, id)| sku(id, &format!("P{}", n % 2240), json!({})))
                .collect(),
        );
        let weeks = if cfg!(debug_assertions) { 1 } else { 10 };
        let cells = ids
            .iter()
            .flat_map(|id| (0..weeks).map(move |week| bought(id, "default", 91 + week, 3)));
        let demand = Demand::build(cells, &catalogue, &Policy::default(), NOW);
        assert_eq!(demand.len(), 2240);
    }
}
