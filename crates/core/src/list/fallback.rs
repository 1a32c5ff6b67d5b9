//! Fallback lists: made from demand alone, before any model was asked.
//!
//! Builds the serving snapshot with one fallback per segment, and a user's own copy of one. Invariant: a segment's
//! fallback is judged for a user without a profile, so every `required` rule forbids. It does not know models.

use std::sync::Arc;

use crate::list::document::{Document, Header, ListBuilder, list_id};
use crate::list::select;
use crate::shop::catalogue::Catalogue;
use crate::shop::demand::Demand;
use crate::shop::rules::{DEFAULT_SEGMENT, Table};
use crate::shop::snapshot::Snapshot;
use crate::user::event::UserId;
use crate::user::record::Timestamp;

/// Parts of a serving snapshot, which must belong together: `rules` are compiled for `catalogue`, and `demand` is
/// indexed by its products.
pub struct SnapshotParts {
    /// Products and SKUs.
    pub catalogue: Arc<Catalogue>,
    /// Rules and segments.
    pub rules: Arc<Table>,
    /// Decayed purchases.
    pub demand: Arc<Demand>,
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
        catalogue: parts.catalogue,
        rules: parts.rules,
        demand: parts.demand,
        fallbacks: Arc::default(),
        others: Arc::default(),
    };
    let segments = settings.segments.iter().map(String::as_str);
    let lists = segments.chain([DEFAULT_SEGMENT]).map(|segment| {
        let list = segment_fallback(&snapshot, segment, settings);
        (segment.to_owned(), list)
    });
    snapshot.fallbacks = Arc::new(lists.collect());
    snapshot
}

/// The fallback of a segment for a user without a profile: rules fail closed.
fn segment_fallback(snapshot: &Snapshot, segment: &str, settings: FallbackSettings) -> Document {
    let verdict = snapshot.judge(None, Timestamp(0));
    let builder = ListBuilder {
        catalogue: &snapshot.catalogue,
        verdict: &verdict,
        demand: &snapshot.demand,
        policy: settings.selection,
        names: settings.names,
        theta: None,
        draw: 0,
    };
    let header = Header {
        list_id: list_id("", segment, 0, Timestamp(0)),
        segment: segment.into(),
        reason: Some("no list of the model yet".into()),
        ..Header::default()
    };
    builder.fallback(header).document
}

/// Turns a segment's fallback into the user's own copy: with an id, the user and the time.
pub(crate) fn for_user(mut list: Document, user: &UserId, at: Timestamp) -> Document {
    list.list_id = list_id("", &user.0, 0, at);
    list.user = Some(user.0.to_string());
    list.at = at;
    list
}
