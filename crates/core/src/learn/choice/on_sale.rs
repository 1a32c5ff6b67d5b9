//! What a SKU would have sold, had it been on sale for as long as the others of its product.
//!
//! A SKU is known to be on sale since its first count. Before that it could not be bought, so its sum is smaller than
//! that of a SKU that is taken as often. Invariant: a SKU that was on sale all the time keeps its sum.

/// Purchases of the product for which a SKU of which little is known counts as average. Chosen by `nearshore simulate`: of
/// 3, 10 and 30 it loses least in a shop without launches, and as much as the others in one with them.
const AVERAGE: f64 = 3.0;

/// Pieces of a SKU and of its product, all decayed alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OnSale {
    /// Pieces of the SKU.
    pub pieces: f64,
    /// Those of them that were its first count. They say that it is on sale, and nothing of how often it is taken:
    /// without them it would not be looked at.
    pub first: f64,
    /// Pieces of the product since the first count, without it.
    pub offered: f64,
    /// Pieces of the product.
    pub all: f64,
    /// Number of SKUs of the product.
    pub skus: usize,
}

impl OnSale {
    /// The pieces, with those that it would have sold before its first count.
    pub(crate) fn pieces(self) -> f64 {
        let missed = (self.all - self.offered - self.first).max(0.0);
        let taken = (self.pieces - self.first).max(0.0) + AVERAGE / self.skus.max(1) as f64;
        self.pieces + missed * (taken / (self.offered.max(0.0) + AVERAGE)).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sku_that_was_always_on_sale_keeps_its_sum_and_a_new_one_gets_what_it_missed() {
        let always = OnSale {
            pieces: 40.0,
            first: 1.0,
            offered: 199.0,
            all: 200.0,
            skus: 10,
        };
        assert_eq!(always.pieces(), 40.0);
        // Half of what was bought since its first count: it would have sold most of half of all.
        let new = OnSale {
            pieces: 11.0,
            offered: 20.0,
            ..always
        };
        assert!((11.0 + 179.0 * 10.3 / 23.0 - new.pieces()).abs() < 1e-9);
        // Bought once, just now: that says nothing of how often, so it is average.
        let once = OnSale {
            pieces: 1.0,
            offered: 0.0,
            ..always
        };
        assert!((1.0 + 199.0 / 10.0 - once.pieces()).abs() < 1e-9);
    }
}
