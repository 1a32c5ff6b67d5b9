//! The products that a user bought, from the purchases in their state.
//!
//! Invariant: one entry per product, ascending by index; a purchase of a SKU counts for the product that the SKU
//! belongs to now, and one of an unknown SKU does not count.

use std::collections::BTreeMap;

use crate::shop::catalogue::{Catalogue, PuIx};
use crate::user::event::{Item, Kind};
use crate::user::record::Timestamp;
use crate::user::state::UserState;

/// A product that the user bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnProduct {
    /// Index of the PU.
    pub pu: u32,
    /// Time of the last purchase.
    pub last: Timestamp,
    /// Number of purchases.
    pub count: u32,
    /// Number of purchases of the SKU that was bought most often; 0 if no SKU is known.
    pub same_sku: u32,
}

/// The products that `state` knows the user bought: their number is the user's *visible history*.
pub fn own_products(state: &UserState, catalogue: &Catalogue) -> Vec<OwnProduct> {
    let mut own: BTreeMap<u32, OwnProduct> = BTreeMap::new();
    let mut add = |pu: PuIx, last: Timestamp, count: u32, same_sku: u32| {
        let new = OwnProduct {
            pu: pu.0,
            last,
            count: 0,
            same_sku: 0,
        };
        let product = own.entry(pu.0).or_insert(new);
        product.last = product.last.max(last);
        product.count = product.count.saturating_add(count);
        product.same_sku = product.same_sku.max(same_sku);
    };
    for bought in state.register.skus() {
        if let Some(sku) = catalogue.by_sku(bought.sku) {
            add(
                catalogue.pu_of(sku),
                bought.last,
                bought.count,
                bought.count,
            );
        }
    }
    // The register has SKUs alone.
    for event in &state.window {
        if let (Kind::Purchase, Item::Pu(id)) = (event.kind, &event.item)
            && let Some(pu) = catalogue.by_pu(id)
        {
            add(pu, event.time, 1, 0);
        }
    }
    own.into_values().collect()
}
