//! What a fold does to a stored list, and whether a list is a fallback.

use nearshore_core::ports::store::{ListEdit, Stored};

/// Applies a fold's edit to the list; `dropped` says that the same fold deleted the list.
pub(super) fn edit(list: &mut Option<Stored>, edit: &ListEdit, dropped: bool) {
    match edit {
        ListEdit::Keep => {}
        ListEdit::Strip { doc, .. } => {
            if let Some(list) = list.as_mut().filter(|_| !dropped) {
                list.doc.clone_from(doc);
            }
        }
    }
}

/// Whether a document is a fallback and no list of the model.
pub(super) fn is_fallback(doc: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(doc).is_ok_and(|doc| doc["source"] == "fallback")
}
