//! What a fold does to a stored list, and what a list says of itself.

use nearshore_core::ports::store::{ListEdit, Stored};

/// What a fold does to the list once it is written.
pub(super) fn edit(list: &mut Option<Stored>, edit: &ListEdit, reborn: bool) {
    match edit {
        ListEdit::Keep => {}
        ListEdit::First { doc, audit, at } => {
            list.get_or_insert_with(|| Stored {
                doc: doc.clone(),
                claim: 0,
                seen: Default::default(),
                epoch: 0,
                at: *at,
                audit: audit.clone(),
            });
        }
        ListEdit::Strip { doc, .. } => {
            if let Some(list) = list.as_mut().filter(|_| !reborn) {
                list.doc.clone_from(doc);
            }
        }
    }
}

/// Whether a document says that it is no list of the model.
pub(super) fn is_fallback(doc: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(doc).is_ok_and(|doc| doc["source"] == "fallback")
}
