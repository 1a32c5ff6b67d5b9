//! Shows everything stored of one user, a [`View`], as an HTML page and as text.
//!
//! Invariant: text from events, catalogue and profiles is shown, never interpreted: the page escapes all of it. Nothing
//! here reads a store: [`Sources`] are read by [`crate::ops::namespace::Inspector`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use nearshore_core::user::record::Timestamp;

mod gather;
mod html;
#[cfg(test)]
mod tests;
mod text;
mod times;

pub use gather::Sources;
pub use html::{Page, STYLE, html};
pub use times::{Part, Times};

/// One user, from events to SKUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct View {
    /// The user's id.
    pub user: String,
    /// The namespace that was read.
    pub namespace: String,
    /// The segment of the profile; empty if unknown.
    pub segment: String,
    /// The profile, if one was ever sent.
    pub profile: Option<ProfileView>,
    /// The window, oldest first.
    pub events: Vec<EventView>,
    /// Fences, version, claim number and activity.
    pub state: StateView,
    /// The list that is served.
    pub list: Option<ListView>,
    /// How the list was made.
    pub audit: Option<AuditView>,
    /// The prompt, rendered again from the present state.
    pub prompt: Option<PromptView>,
}

/// A profile as stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProfileView {
    /// Kafka timestamp of its record.
    pub time: Timestamp,
    /// Position of that record.
    pub position: String,
    /// The fields.
    pub fields: BTreeMap<String, Value>,
}

/// One event of the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventView {
    /// Kafka timestamp.
    pub time: Timestamp,
    /// Position of its record.
    pub position: String,
    /// `purchase`, `view`, ...
    pub kind: String,
    /// SKU id, PU id or the words of a search.
    pub item: String,
    /// Product name; none if the catalogue does not know the item.
    pub name: Option<String>,
    /// How many.
    pub qty: u32,
    /// Price of one.
    pub price: Option<f64>,
}

/// Fences, version, claim number and activity of a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StateView {
    /// `incarnation/topic/partition:offset` of each partition folded.
    pub fences: Vec<String>,
    /// Time of the last erase; 0 if never.
    pub erased_at: Timestamp,
    /// Version; 0 when nothing is stored.
    pub ver: u64,
    /// Number of the last claim.
    pub claim: u64,
    /// Activity since that claim, in lists; at 1 a list is requested.
    pub activity: f64,
    /// The request that is out.
    pub pending: Option<PendingView>,
}

/// A request that is out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PendingView {
    /// The record that caused the request; none from a sweep or a refresh.
    pub source: Option<String>,
    /// When it may be claimed.
    pub due: Timestamp,
}

/// The list that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListView {
    /// Its id.
    pub list_id: String,
    /// `model` or `fallback`.
    pub source: String,
    /// Why it is a fallback, or stale; empty if neither.
    pub note: String,
    /// The arm that made it.
    pub arm: String,
    /// Epoch of the arm.
    pub epoch: u64,
    /// Number of the claim that it was made from.
    pub claim: u64,
    /// Its seen offsets, written like the fences of the state.
    pub seen: Vec<String>,
    /// Whether it has seen all that the state has.
    pub current: bool,
    /// Source time of its request.
    pub at: Timestamp,
    /// The names, best first.
    pub names: Vec<NameView>,
}

/// One name of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NameView {
    /// The product's name.
    pub name: String,
    /// Its id.
    pub pu: String,
    /// Score: the sum of the weighted terms.
    pub score: f64,
    /// The score's terms by name.
    pub terms: BTreeMap<String, f64>,
    /// Its SKUs, best first.
    pub skus: Vec<SkuView>,
}

/// One SKU under a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SkuView {
    /// SKU id.
    pub sku: String,
    /// Title; empty if the catalogue no longer has the SKU.
    pub title: String,
    /// The probability (EE) that it is the best SKU of its product; none in a fallback, which does not explore.
    pub ee: Option<f64>,
    /// Whether it was sold out or blocked after the list was made.
    pub sold_out: bool,
}

/// How the list was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AuditView {
    /// Ids of the rules that fired.
    pub rules: Vec<String>,
    /// Names that were not allowed on the list.
    pub dropped: Vec<DroppedView>,
    /// What the user's searches and free texts were read as.
    pub texts: Vec<String>,
    /// Versions by name: model, revision, template, catalogue, demand, ...
    pub versions: BTreeMap<String, String>,
    /// When each step happened.
    pub times: Times,
}

/// A name that was not allowed on the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DroppedView {
    /// The name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The prompt, rendered again, because it is not stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PromptView {
    /// The text that the model would get now.
    pub text: String,
    /// Hash of this text, comparable with the hash in the list's audit.
    pub hash: String,
    /// Whether the audit has another hash: state, catalogue or template changed after the list was made.
    pub moved_on: bool,
}

impl View {
    /// The view as text for a terminal.
    pub fn text(&self) -> String {
        text::text(self)
    }
}

/// RFC 3339 in UTC, to the millisecond; a dash for 0, which means never.
pub(crate) fn moment(time: Timestamp) -> String {
    if time.0 == 0 {
        return "–".into();
    }
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(moment) => format!("{moment:.3}"),
        Err(_) => format!("{} ms", time.0),
    }
}
