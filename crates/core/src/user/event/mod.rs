//! Record bytes become an [`Event`], a [`Profile`], an erase or a [`Sku`] — or a [`Reject`] with its code.
//!
//! Strict about what is needed, tolerant of what is unknown. It does not know what becomes of a reject.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::{IntoStaticStr, VariantNames};

use crate::user::record::{Position, Timestamp};

mod decode;
mod fields;
mod reject;

pub use decode::{
    Format, Limits, Source, decode_event, decode_profile, decode_sku, decode_user, key_user,
    normalise_name, sane,
};
pub use reject::Reject;

/// A user's id as the source writes it; never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserId(pub std::sync::Arc<str>);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user did. Its text is the same in JSON and in metrics.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// Shown to the user.
    Impression,
    /// Product page opened.
    View,
    /// Clicked in a list.
    Click,
    /// Put into the cart.
    Cart,
    /// Bought.
    Purchase,
    /// Searched; the item is a query.
    Search,
}

/// What it was done to, by id: resolved against the catalogue only when rendered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Item {
    /// A SKU id.
    Sku(String),
    /// A PU id.
    Pu(String),
    /// Words typed into the search box.
    Query(String),
}

/// One event of `user-events`, without who and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What was done.
    pub kind: Kind,
    /// To what.
    pub item: Item,
    /// How many; 1 if the source is silent.
    pub qty: u32,
    /// Price of one in the shop's currency.
    pub price: Option<f64>,
    /// The event's own time: a feature, nothing more.
    pub ts: Option<Timestamp>,
}

/// A whole profile as the source sent it. Sorted, so that equal profiles have equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Profile(pub BTreeMap<String, Value>);

/// What a record of a user says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// From `user-events`.
    Event(Event),
    /// From `profile-changes`: the whole profile.
    Profile(Profile),
    /// A null on `profile-changes`: everything up to its time is gone.
    Erase,
}

/// A decoded record of a user, ready to be folded.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Whose it is.
    pub user: UserId,
    /// Where it stands.
    pub position: Position,
    /// Its Kafka timestamp.
    pub time: Timestamp,
    /// What it says.
    pub change: Change,
}

/// One SKU of `catalog`, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sku {
    /// SKU id (the record's key).
    pub sku: String,
    /// Standardised product name, normalised (NFC, single spaces).
    pub pu: String,
    /// Id of the PU; by default its name.
    pub pu_id: String,
    /// Category of the PU.
    pub category: Option<String>,
    /// Text for people.
    pub title: String,
    /// Pieces in stock; 0 or less is sold out.
    pub stock: i64,
    /// Price in the shop's currency.
    pub price: Option<f64>,
    /// Free attributes; rules read them.
    pub attributes: BTreeMap<String, Value>,
}
