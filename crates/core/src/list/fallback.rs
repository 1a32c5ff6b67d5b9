//! Fallback lists: made from demand alone, before any model was asked.
//!
//! Builds the serving snapshot with one fallback per segment, and a user's own copy of one. Invariant: a segment's
//! fallback is judged for a user without a profile, so every `required` rule forbids. It does not know models.

use std::sync::Arc;

use crate::list::choice::SkuFeaturesOnce;
use crate::list::document::{Document, Header, ListBuilder, Stage, list_id};
use crate::list::select::{self, Contests};
use crate::shop::catalogue::{Catalogue, Pu};
use crate::shop::demand::Demand;
use crate::shop::merchant::Merchant;
use crate::shop::rules::{DEFAULT_SEGMENT, Table, Verdict};
use crate::shop::snapshot::Snapshot;
use crate::user::event::UserId;
use crate::user::record::Timestamp;

/// Parts of a serving snapshot, which must belong together: `rules` and `merchant` are compiled for `catalogue`, and
/// `demand` is indexed by its products.
pub struct SnapshotParts {
    /// Products and SKUs.
    pub catalogue: Arc<Catalogue>,
    /// Rules and segments.
    pub rules: Arc<Table>,
    /// Decayed purchases.
    pub demand: Arc<Demand>,
    /// The merchant's boosts, pins and most names of one category.
    pub merchant: Arc<Merchant>,
}

/// How the fallbacks of a snapshot are made.
#[derive(Clone, Copy)]
pub struct FallbackSettings<'a> {
    /// Ids of the configured segments; `default` is added.
    pub segments: &'a [String],
    /// Products per list, at most.
    pub names: usize,
    /// How many SKUs each product shows.
    pub selection: &'a select::Policy,
}

/// Builds a serving snapshot with a fallback for each segment and for `default`.
pub fn serving_snapshot(parts: SnapshotParts, settings: FallbackSettings) -> Snapshot {
    let mut snapshot = Snapshot {
        assortment: assortment(&parts.catalogue),
        contests: Contests::new(parts.catalogue.pus().len()),
        sku_features: SkuFeaturesOnce::default(),
        catalogue: parts.catalogue,
        rules: parts.rules,
        demand: parts.demand,
        merchant: parts.merchant,
        fallbacks: Arc::default(),
        fallback_names: settings.names,
        selection: settings.selection.clone(),
        others: Arc::default(),
    };
    let segments = settings.segments.iter().map(String::as_str);
    let lists = segments.chain([DEFAULT_SEGMENT]).map(|segment| {
        let list = built(&snapshot, segment, &snapshot.judge(None, Timestamp(0)));
        (segment.to_owned(), list)
    });
    snapshot.fallbacks = Arc::new(lists.collect());
    snapshot
}

/// Log share of each PU among the SKUs of the catalogue; a PU without SKUs counts as one with one.
fn assortment(catalogue: &Catalogue) -> Arc<[f32]> {
    let skus = |pu: &Pu| pu.skus.len().max(1) as f64;
    let all: f64 = catalogue.pus().iter().map(skus).sum();
    let shares = catalogue
        .pus()
        .iter()
        .map(|pu| (skus(pu) / all).ln() as f32);
    shares.collect()
}

/// Whether a list may be stored: it names a product, or it is empty because rules forbid everything that is in stock.
///
/// Empty for another cause (no catalogue yet, all sold out), it would hide the segment's fallback from a client.
pub fn is_storable(list: &Document) -> bool {
    !list.is_empty() || list.reason.as_deref() == Some(FORBIDDEN)
}

/// The reason of a list that is empty because rules forbid everything that is in stock. A client shows nothing then.
pub(crate) const FORBIDDEN: &str = "rules forbid all that is in stock";

/// The fallback of a segment for a user with this verdict, or why it is empty; `None` if nothing is in stock at all.
///
/// What rules leave of the segment's fallback, or else a list of everything that they permit.
pub(crate) fn of_segment(
    snapshot: &Snapshot,
    segment: &str,
    verdict: &Verdict,
) -> Option<Document> {
    let rest = snapshot.fallback(segment, verdict);
    if let Some(list) = rest.filter(|list| !list.is_empty()) {
        return Some(list);
    }
    Some(built(snapshot, segment, verdict)).filter(is_storable)
}

/// A fallback of a segment by this verdict. For a user without a profile, `required` rules forbid.
fn built(snapshot: &Snapshot, segment: &str, verdict: &Verdict) -> Document {
    let builder = ListBuilder {
        catalogue: &snapshot.catalogue,
        verdict,
        demand: &snapshot.demand,
        policy: &snapshot.selection,
        contests: None,
        chooser: None,
        names: snapshot.fallback_names,
        theta: None,
        draw: 0,
    };
    let header = Header {
        list_id: list_id("", segment, (0, Stage::Mixture), Timestamp(0)),
        segment: segment.into(),
        reason: Some("no list of the model yet".into()),
        ..Header::default()
    };
    builder
        .arranged_fallback(header, &snapshot.merchant)
        .document
}

/// Turns a segment's fallback into the user's own copy: with an id, the user and the time.
pub(crate) fn for_user(mut list: Document, user: &UserId, at: Timestamp) -> Document {
    list.list_id = list_id("", &user.0, (0, Stage::Mixture), at);
    list.user = Some(user.0.to_string());
    list.at = at;
    list
}
