//! How often each PU is bought, per segment, decayed in time: popularity baseline and prior.
//!
//! Invariant: sums of integer cells, so that adding commutes; decay and the mapping SKU -> PU happen here, at
//! read, on integers summed per PU and bucket: over one catalogue the result does not depend on how cells are
//! split or ordered. Every PU has a mass over 0. It does not know stock nor rules.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};

use crate::shop::catalogue::{Catalogue, SkuIx};
use crate::user::event::Kind;
use crate::user::record::Timestamp;

/// Length of a bucket of the counts: seven days of record time.
pub const BUCKET_MS: i64 = 7 * 86_400_000;

/// Length of a bucket of counts in milliseconds: 7 days.
const BUCKET: i64 = 7 * 86_400_000;

/// How counts become demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// After this long a purchase counts half.
    #[serde(with = "humantime_serde")]
    pub half_life: Duration,
    /// Buckets older than this are not read, and expire in the store.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// A segment's demand is mixed with everyone's by this many pseudo-purchases.
    pub smoothing: f64,
    /// How often changed counts are read.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Frozen: only buckets that ended by then are read, and ages count to their end. `None`: all, to the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<jiff::Timestamp>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(28 * 86_400),
            keep: Duration::from_secs(365 * 86_400),
            smoothing: 100.0,
            every: Duration::from_secs(30),
            as_of: None,
        }
    }
}

impl Policy {
    /// The end of the last bucket that is read, if counts are frozen. A bucket is in or out as a whole: what is
    /// added to later ones while a replay folds, or while live goes on, changes nothing.
    pub fn frozen(&self) -> Option<Timestamp> {
        let at = self.as_of?.as_millisecond();
        Some(Timestamp(at.div_euclid(BUCKET).saturating_mul(BUCKET)))
    }
}

/// One cell of the counts. Cells of the same key add up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count<'a> {
    /// SKU id.
    pub sku: &'a str,
    /// What was done.
    pub kind: Kind,
    /// Segment at fold time.
    pub segment: &'a str,
    /// 7-day bucket of record time.
    pub bucket: i64,
    /// How often.
    pub n: u64,
}

/// Decayed counts of one SKU, all segments together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SkuCounts {
    /// Times shown.
    pub impressions: f32,
    /// Times clicked or viewed.
    pub clicks: f32,
    /// Times bought.
    pub purchases: f32,
}

/// Demand of one reading of the counts, over the PUs and SKUs of one catalogue.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Hash of the cells that were read, in hex: the same cells, the same version.
    pub version: String,
    /// Time to which counts are decayed.
    pub at: Timestamp,
    /// Whether counts are frozen, at that time.
    pub frozen: bool,
    /// Events in cells whose SKU the catalogue does not know; they count for nothing.
    pub unknown: u64,
    everyone: Arc<[f32]>,
    segments: BTreeMap<String, Arc<[f32]>>,
    skus: Vec<SkuCounts>,
}

type Cells<K> = Vec<(K, u64)>;

/// Integers, sorted and each key once.
#[derive(Default)]
struct Sums<'a> {
    /// Purchases of (PU, bucket) by segment.
    bought: BTreeMap<&'a str, Cells<(u32, i64)>>,
    skus: Cells<(SkuIx, Shelf, i64)>,
    unknown: u64,
    digest: u64,
}

/// Which of a SKU's counts an event kind goes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shelf {
    Impressions,
    Clicks,
    Purchases,
}

impl Demand {
    /// Decays counts to `now` and makes them demand. Cells in buckets that ended before `now - keep` are left out.
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
            let end = count.bucket.saturating_add(1).saturating_mul(BUCKET);
            count.n > 0 && end > oldest && frozen.is_none_or(|at| end <= at.0)
        });
        let sums = Sums::of(read, catalogue);
        let fade = Fade {
            half_life: millis(policy.half_life).max(1) as f64,
            now,
        };
        let bought: BTreeMap<&str, Vec<f64>> = sums
            .bought
            .iter()
            .map(|(segment, cells)| (*segment, fade.purchases(cells, catalogue.pus().len())))
            .collect();
        let mut everyone = vec![0.0; catalogue.pus().len()];
        for pus in bought.values() {
            everyone
                .iter_mut()
                .zip(pus)
                .for_each(|(all, one)| *all += one);
        }
        fill_in(&mut everyone, catalogue);
        let everyone = shares(everyone);
        let smooth = |pus: &Vec<f64>| {
            let mixed = pus.iter().zip(&everyone);
            masses(shares(
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
            skus: fade.skus(&sums.skus, catalogue.sku_len()),
            everyone: masses(everyone),
        }
    }

    /// Share of each PU in the segment's purchases, smoothed with everyone's; each over 0, the sum 1.
    /// A segment without purchases has everyone's.
    pub fn mass(&self, segment: &str) -> Arc<[f32]> {
        Arc::clone(self.segments.get(segment).unwrap_or(&self.everyone))
    }

    /// Segments with purchases.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.segments.keys().map(String::as_str)
    }

    /// Decayed counts of a SKU; none for one newer than this reading.
    pub(crate) fn sku_counts(&self, ix: SkuIx) -> SkuCounts {
        self.skus.get(ix.at()).copied().unwrap_or_default()
    }

    /// How many PUs the masses are over; a catalogue with more needs a new reading.
    pub fn len(&self) -> usize {
        self.everyone.len()
    }

    /// Whether there is no PU.
    pub fn is_empty(&self) -> bool {
        self.everyone.is_empty()
    }
}

impl<'a> Sums<'a> {
    fn of(counts: impl Iterator<Item = Count<'a>>, catalogue: &Catalogue) -> Self {
        let mut sums = Self::default();
        for count in counts {
            let Some(ix) = catalogue.by_sku(count.sku) else {
                sums.unknown += count.n;
                continue;
            };
            if count.kind == Kind::Purchase {
                let pu = catalogue.pu_of(ix).0;
                let segment = sums.bought.entry(count.segment).or_default();
                segment.push(((pu, count.bucket), count.n));
            }
            if let Some(shelf) = shelf(count.kind) {
                sums.skus.push(((ix, shelf, count.bucket), count.n));
            }
            sums.digest = sums.digest.wrapping_add(digest(&count));
        }
        sums.bought.values_mut().for_each(add_up);
        add_up(&mut sums.skus);
        sums
    }
}

/// Sorts cells and adds those of one key.
fn add_up<K: Ord + Copy>(cells: &mut Cells<K>) {
    cells.sort_unstable();
    cells.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        kept.1 += if same { later.1 } else { 0 };
        same
    });
}

/// A cart is a step towards a purchase that is counted itself; a search names no SKU.
fn shelf(kind: Kind) -> Option<Shelf> {
    match kind {
        Kind::Impression => Some(Shelf::Impressions),
        Kind::View | Kind::Click => Some(Shelf::Clicks),
        Kind::Purchase => Some(Shelf::Purchases),
        Kind::Cart | Kind::Search => None,
    }
}

/// A cell's part of the digest: linear in `n`, so that cells may come split and in any order.
fn digest(count: &Count<'_>) -> u64 {
    let key = format!(
        "{}\0{:?}\0{}\0{}",
        count.sku, count.kind, count.segment, count.bucket
    );
    let mut hash = FnvHasher::default();
    hash.write(key.as_bytes());
    hash.finish().wrapping_mul(count.n)
}

/// Decay to a time: halves every half-erased_at, from the middle of the bucket on.
struct Fade {
    half_life: f64,
    now: Timestamp,
}

impl Fade {
    fn weight(&self, bucket: i64) -> f64 {
        let middle = bucket.saturating_mul(BUCKET).saturating_add(BUCKET / 2);
        let age = self.now.0.saturating_sub(middle).max(0) as f64;
        (-age / self.half_life).exp2()
    }

    fn purchases(&self, cells: &[((u32, i64), u64)], len: usize) -> Vec<f64> {
        let mut pus = vec![0.0; len];
        for ((pu, bucket), n) in cells {
            pus[*pu as usize] += *n as f64 * self.weight(*bucket);
        }
        pus
    }

    fn skus(&self, cells: &[((SkuIx, Shelf, i64), u64)], len: usize) -> Vec<SkuCounts> {
        let mut skus = vec![SkuCounts::default(); len];
        for ((ix, shelf, bucket), n) in cells {
            let counts = &mut skus[ix.at()];
            let count = match shelf {
                Shelf::Impressions => &mut counts.impressions,
                Shelf::Clicks => &mut counts.clicks,
                Shelf::Purchases => &mut counts.purchases,
            };
            *count += (*n as f64 * self.weight(*bucket)) as f32;
        }
        skus
    }
}

/// Gives each PU without history what its SKUs would sell at the rate of its category (of all, if the
/// category has none; one each, if nothing was ever sold), but no more than the mean PU there: many SKUs
/// of which none was ever bought are no evidence of a best-seller.
fn fill_in(everyone: &mut [f64], catalogue: &Catalogue) {
    #[derive(Clone, Copy, Default)]
    struct Sold {
        purchases: f64,
        skus: f64,
        pus: f64,
    }
    let mut all = Sold::default();
    let mut categories: BTreeMap<Option<&str>, Sold> = BTreeMap::new();
    for (pu, purchases) in catalogue.pus().iter().zip(&*everyone) {
        for sold in [
            &mut all,
            categories.entry(pu.category.as_deref()).or_default(),
        ] {
            sold.purchases += purchases;
            sold.skus += pu.skus.len().max(1) as f64;
            sold.pus += 1.0;
        }
    }
    for (pu, purchases) in catalogue.pus().iter().zip(everyone) {
        if *purchases > 0.0 {
            continue;
        }
        let own = categories.get(&pu.category.as_deref()).copied();
        let sold = own.filter(|sold| sold.purchases > 0.0).unwrap_or(all);
        let skus = pu.skus.len().max(1) as f64;
        *purchases = if sold.purchases > 0.0 {
            (sold.purchases / sold.skus * skus).min(sold.purchases / sold.pus)
        } else {
            skus
        };
    }
}

/// Scaled to a sum of 1; alike, where everything has decayed away.
fn shares(mut pus: Vec<f64>) -> Vec<f64> {
    let (sum, len) = (pus.iter().sum::<f64>(), pus.len() as f64);
    pus.iter_mut()
        .for_each(|pu| *pu = if sum > 0.0 { *pu / sum } else { 1.0 / len });
    pus
}

/// Rounding must not make a mass 0: its log is taken.
fn masses(pus: Vec<f64>) -> Arc<[f32]> {
    pus.into_iter()
        .map(|pu| (pu as f32).max(f32::MIN_POSITIVE))
        .collect()
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

    const NOW: Timestamp = Timestamp(100 * BUCKET + BUCKET / 2);

    fn snapshot() -> Catalogue {
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
        let kind = Kind::Purchase;
        Count {
            sku,
            kind,
            segment,
            bucket,
            n,
        }
    }

    fn build(counts: &[Count<'_>]) -> Demand {
        Demand::build(counts.iter().copied(), &snapshot(), &Policy::default(), NOW)
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
        let everyone = [4.0, 4.0, 2.0, 1.6].map(|n| n / 11.6);
        check(&demand.mass("all others"), &everyone);
        let own = [4.0, 4.0, 0.0, 0.0];
        let mixed: Vec<f32> = own
            .iter()
            .zip(everyone)
            .map(|(n, all)| (n + 100.0 * all) / 108.0)
            .collect();
        check(&demand.mass("s"), &mixed);
        assert_eq!(demand.sku_counts(SkuIx(1)).purchases, 1.0);
        assert_eq!(demand.unknown, 0);
    }

    #[test]
    fn a_segment_leans_on_everyone_until_it_has_its_own_history() {
        let many = build(&[bought("b1", "s", 100, 1_000_000), bought("m1", "t", 100, 1)]);
        let (s, t) = (many.mass("s"), many.mass("t"));
        assert!(
            s[0] > 0.99 && t[0] > 0.6 && t[1] > 50.0 * s[1],
            "{s:?} {t:?}"
        );
        assert_eq!(many.mass("nobody yet"), many.mass("default"));
    }

    #[test]
    fn without_any_history_demand_follows_the_number_of_skus() {
        let demand = build(&[]);
        check(&demand.mass("s"), &[0.4, 0.2, 0.2, 0.2]);
    }

    #[test]
    fn what_is_old_unknown_or_no_purchase_is_no_demand() {
        let view = Count {
            kind: Kind::View,
            ..bought("b1", "s", 100, 7)
        };
        let cart = Count {
            kind: Kind::Cart,
            ..bought("b1", "s", 100, 7)
        };
        let demand = build(&[
            view,
            cart,
            bought("b1", "s", 40, 9),
            bought("gone", "s", 100, 5),
        ]);
        check(&demand.mass("s"), &[0.4, 0.2, 0.2, 0.2]);
        let counts = demand.sku_counts(SkuIx(0));
        assert_eq!((counts.clicks, counts.purchases), (7.0, 0.0));
        assert_eq!(demand.unknown, 5);
    }

    #[test]
    fn a_mass_is_over_zero_even_where_a_segment_leans_on_nobody() {
        let policy = Policy {
            smoothing: 0.0,
            ..Policy::default()
        };
        let counts = [bought("b1", "s", 100, 1)];
        let demand = Demand::build(counts, &snapshot(), &policy, NOW);
        let mass = demand.mass("s");
        assert!(
            mass[0] > 0.99 && mass.iter().all(|pu| pu.ln().is_finite()),
            "{mass:?}"
        );
    }

    fn cells() -> impl Strategy<Value = Vec<(usize, usize, usize, i64, u64)>> {
        prop::collection::vec(
            (0usize..5, 0usize..3, 0usize..3, 90i64..103, 1u64..1000),
            0..60,
        )
    }

    proptest! {
        #[test]
        fn neither_order_nor_split_of_cells_matters_and_every_mass_is_over_zero(
            cells in cells(), cut in any::<prop::sample::Index>(), smoothing in 0.0f64..200.0,
        ) {
            let kinds = [Kind::Purchase, Kind::Impression, Kind::Click];
            let count = |&(sku, segment, kind, bucket, n): &(usize, usize, usize, i64, u64)| Count {
                sku: ["b1", "b2", "m1", "n1", "t1"][sku], kind: kinds[kind], bucket, n,
                segment: ["default", "x", "y"][segment],
            };
            let policy = Policy { smoothing, ..Policy::default() };
            let catalogue = snapshot();
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
    fn a_year_of_a_whole_shop_is_read_quickly() {
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
        let started = std::time::Instant::now();
        let demand = Demand::build(cells, &catalogue, &Policy::default(), NOW);
        println!("{weeks} x 92,000 cells: {:?}", started.elapsed());
        assert_eq!(demand.len(), 2240);
    }
}
