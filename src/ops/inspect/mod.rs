//! Everything there is to see of one user, [`View`], as a page and as text.
//!
//! Invariant: what users, shops and profiles wrote is shown, never interpreted: the page escapes all of
//! it. It does not know where a view comes from; a role gathers it.

use std::collections::BTreeMap;

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// Whose.
    pub user: String,
    /// In which namespace.
    pub namespace: String,
    /// The segment of the profile; empty if unknown.
    pub segment: String,
    /// The profile, if one was ever sent.
    pub profile: Option<ProfileView>,
    /// The window, oldest first.
    pub events: Vec<EventView>,
    /// What guards the state.
    pub state: StateView,
    /// The list that is served.
    pub list: Option<ListView>,
    /// How the list came about.
    pub audit: Option<AuditView>,
    /// The prompt, rendered again.
    pub prompt: Option<PromptView>,
}

/// A profile as stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileView {
    /// Kafka timestamp of its record.
    pub time: Timestamp,
    /// Where that record stands.
    pub position: String,
    /// The fields.
    pub fields: BTreeMap<String, Value>,
}

/// One event of the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventView {
    /// Kafka timestamp.
    pub time: Timestamp,
    /// Where it stands.
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

/// What guards the state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateView {
    /// `incarnation/topic/partition:offset` of each partition folded.
    pub fences: Vec<String>,
    /// Time of the last erase; 0 if never.
    pub erased_at: Timestamp,
    /// Version; 0 when nothing is stored.
    pub ver: u64,
    /// Number of the last take.
    pub claim: u64,
    /// How far the user moved since then, in lists.
    pub activity: f64,
    /// The request that is out.
    pub pending: Option<PendingView>,
}

/// A request that is out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingView {
    /// The record that asked; none from a sweep or a refresh.
    pub source: Option<String>,
    /// When it may be taken.
    pub due: Timestamp,
}

/// The list that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListView {
    /// Its id.
    pub list_id: String,
    /// `model` or `fallback`.
    pub source: String,
    /// Why it is a fallback, or stale; empty if neither.
    pub note: String,
    /// Arm.
    pub arm: String,
    /// Epoch of the arm.
    pub epoch: u64,
    /// The take that it was made from.
    pub claim: u64,
    /// What it has seen, as the state's fences.
    pub seen: Vec<String>,
    /// Whether it has seen all that the state has.
    pub current: bool,
    /// Source time of its request.
    pub at: Timestamp,
    /// The names, best first.
    pub names: Vec<NameView>,
}

/// One name of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameView {
    /// The product's name.
    pub name: String,
    /// Its id.
    pub pu: String,
    /// Score: a log-probability.
    pub score: f64,
    /// The score's terms by name.
    pub terms: BTreeMap<String, f64>,
    /// Its SKUs, best first.
    pub skus: Vec<SkuView>,
}

/// One SKU under a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkuView {
    /// SKU id.
    pub sku: String,
    /// Title; empty if the catalogue lost it.
    pub title: String,
    /// EE: the probability of being the best of its product; none in a fallback, which does not explore.
    pub ee: Option<f64>,
    /// Whether it sold out or was blocked since.
    pub sold_out: bool,
}

/// How the list came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditView {
    /// Ids of the rules that fired.
    pub rules: Vec<String>,
    /// Names that were kept off.
    pub dropped: Vec<DroppedView>,
    /// Versions by name: model, revision, template, catalogue, demand, ...
    pub versions: BTreeMap<String, String>,
    /// When it happened.
    pub times: Times,
}

/// A name that was kept off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DroppedView {
    /// The name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The prompt, rendered again: it is not stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptView {
    /// As the model would be given it now.
    pub text: String,
    /// Hash that the list's audit has.
    pub hash: String,
    /// Whether this text has another hash: state, catalogue or template have moved on.
    pub moved_on: bool,
}

impl View {
    /// For a terminal.
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
