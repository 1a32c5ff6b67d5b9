//! Decays integer counts to a time, and knows since when a SKU is on sale.
//!
//! A SKU is known to be on sale from the bucket of its first count. One without any counts may have been there always.
//! Invariant: the result does not depend on the order of cells. It does not know PUs' demand.

use std::collections::BTreeMap;

use crate::learn::choice::UNSOLD;
use crate::learn::choice::on_sale::OnSale;
use crate::learn::choice::replay::HALF_LIVES;
use crate::shop::catalogue::{Catalogue, PuIx, SkuIx};
use crate::shop::demand::{BUCKET_MS, SkuCounts};
use crate::shop::sums::Counter;
use crate::user::record::Timestamp;

/// Counts of SKUs by counter and bucket, sorted.
type Cells = [((SkuIx, Counter, i64), u64)];

/// Decay to a time: the weight halves with every half-life, measured from the middle of the bucket.
pub(super) struct Decay {
    /// Half-life in milliseconds.
    pub(super) half_life: f64,
    /// The time to which is decayed.
    pub(super) now: Timestamp,
}

/// What is bought of a SKU and of its product.
#[derive(Clone, Copy, Default)]
struct Sold {
    on_sale: OnSale,
    /// Whether the SKU has counts.
    is_known: bool,
}

impl Decay {
    fn weight(&self, bucket: i64) -> f64 {
        let middle = bucket
            .saturating_mul(BUCKET_MS)
            .saturating_add(BUCKET_MS / 2);
        let age = self.now.0.saturating_sub(middle).max(0) as f64;
        (-age / self.half_life).exp2()
    }

    /// The pieces of each SKU at the half-lives of the choice of SKUs, as logarithms.
    pub(super) fn logs(&self, cells: &Cells, catalogue: &Catalogue) -> Vec<[f32; 3]> {
        let mut logs = vec![[UNSOLD.ln(); 3]; catalogue.sku_len()];
        for (nth, factor) in HALF_LIVES.into_iter().enumerate() {
            let decay = Self {
                half_life: self.half_life * factor,
                now: self.now,
            };
            for (logs, sold) in logs.iter_mut().zip(decay.sold(cells, catalogue)) {
                if sold.is_known {
                    logs[nth] = (sold.on_sale.pieces() as f32 + UNSOLD).ln();
                }
            }
        }
        logs
    }

    pub(super) fn purchases(&self, cells: &[((u32, i64), u64)], len: usize) -> Vec<f64> {
        let mut pus = vec![0.0; len];
        for ((pu, bucket), n) in cells {
            pus[*pu as usize] += *n as f64 * self.weight(*bucket);
        }
        pus
    }

    pub(super) fn skus(&self, cells: &Cells, catalogue: &Catalogue) -> Vec<SkuCounts> {
        let mut skus = vec![SkuCounts::default(); catalogue.sku_len()];
        for ((ix, counter, bucket), n) in cells {
            let counts = &mut skus[ix.at()];
            let count = match counter {
                Counter::Impressions => &mut counts.impressions,
                Counter::Clicks => &mut counts.clicks,
                Counter::Purchases => &mut counts.purchases,
            };
            *count += (*n as f64 * self.weight(*bucket)) as f32;
        }
        for (counts, sold) in skus.iter_mut().zip(self.sold(cells, catalogue)) {
            let OnSale { first, offered, .. } = sold.on_sale;
            counts.offered = (first + offered) as f32;
        }
        skus
    }

    /// What is bought of each SKU, and of its product since the SKU is known to be on sale. What is bought of its product
    /// speaks against a SKU without counts, as if it had been there always.
    fn sold(&self, cells: &Cells, catalogue: &Catalogue) -> Vec<Sold> {
        let mut skus = vec![Sold::default(); catalogue.sku_len()];
        let mut since = vec![i64::MIN; skus.len()];
        let mut buckets: BTreeMap<(PuIx, i64), f64> = BTreeMap::new();
        // A SKU's cells of one counter come oldest first.
        for ((ix, counter, bucket), n) in cells {
            let (sold, since) = (&mut skus[ix.at()], &mut since[ix.at()]);
            if !sold.is_known || bucket < since {
                *since = *bucket;
                sold.on_sale.first = 0.0;
            }
            sold.is_known = true;
            if *counter == Counter::Purchases {
                let weight = self.weight(*bucket);
                if bucket == since {
                    sold.on_sale.first = weight;
                }
                sold.on_sale.pieces += *n as f64 * weight;
                *buckets.entry((catalogue.pu_of(*ix), *bucket)).or_default() += *n as f64 * weight;
            }
        }
        // Of each bucket, the sum of it and all later ones.
        let mut sum = (None, 0.0);
        for ((pu, _), bought) in buckets.iter_mut().rev() {
            if sum.0 != Some(*pu) {
                sum = (Some(*pu), 0.0);
            }
            sum.1 += *bought;
            *bought = sum.1;
        }
        for (ix, (sold, since)) in (0..).map(SkuIx).zip(skus.iter_mut().zip(since)) {
            let pu = catalogue.pu_of(ix);
            let from = |bucket: i64| {
                let first = buckets.range((pu, bucket)..=(pu, i64::MAX)).next();
                first.map_or(0.0, |(_, sum)| *sum)
            };
            sold.on_sale.all = from(i64::MIN);
            sold.on_sale.offered = (from(since) - sold.on_sale.first).max(0.0);
            sold.on_sale.skus = catalogue.pu(pu).skus.len();
        }
        skus
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::count_kind::CountKind;
    use crate::shop::demand::{Count, Demand};
    use crate::user::event::Kind;

    #[test]
    fn what_was_bought_before_a_skus_first_count_says_nothing_against_it() {
        let ids = ["old", "new", "never", "shown", "salt"];
        let pu = |id: &str| if id == "salt" { "SALT" } else { "TEA" };
        let catalogue = Catalogue::load(ids.map(|id| sku(id, pu(id), json!({}))).into());
        let count = |(sku, kind, bucket, n): (&'static str, Kind, i64, u64)| Count {
            sku,
            kind: CountKind::Event(kind),
            segment: "default",
            bucket,
            n,
        };
        let mut cells = [
            ("old", Kind::Purchase, 0, 100),
            ("old", Kind::Purchase, 3, 6),
            ("new", Kind::Purchase, 3, 5),
            ("shown", Kind::Impression, 3, 9),
            ("salt", Kind::Purchase, 1, 70),
        ]
        .map(count);
        let policy = crate::shop::demand::Policy {
            half_life: std::time::Duration::from_secs(10_000 * 86_400),
            ..Default::default()
        };
        let now = Timestamp(4 * BUCKET_MS);
        let demand = Demand::build(cells, &catalogue, &policy, now);
        let ix = |id: &str| catalogue.by_sku(id).expect("it is there");
        let offered = ids.map(|id| demand.sku_counts(ix(id)).offered.round());
        assert_eq!(offered, [111.0, 11.0, 111.0, 11.0, 70.0]);
        let pieces = |id: &str| demand.sku_logs(ix(id))[2].exp();
        assert!(
            pieces("old") < 107.0 && pieces("new") > 30.0,
            "{} {}",
            pieces("old"),
            pieces("new")
        );
        assert!(pieces("never") < 0.2 && pieces("shown") > 1.0);
        cells.reverse();
        let again = Demand::build(cells, &catalogue, &policy, now);
        assert!(
            ids.iter()
                .all(|id| again.sku_counts(ix(id)) == demand.sku_counts(ix(id)))
        );
    }
}
