//! Decodes record bytes into an [`Event`], a [`Profile`], an erase or a [`Sku`], or a [`Reject`] with its code.
//!
//! Strict about required fields, tolerant of unknown ones. It does not know how a reject is handled.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::{IntoStaticStr, VariantNames};

use crate::user::record::{Position, Timestamp};

mod connect;
mod decode;
mod described;
mod envelope;
mod fields;
mod foreign;
mod reject;

pub(crate) use connect::{UNAVAILABLE, is_unavailable, is_undecoded};
pub(crate) use decode::parsable;
pub use decode::{
    Format, Limits, Source, check_year_range, decode_event, decode_profile, decode_sku,
    decode_user, event_type, key_user,
};
pub use described::{ChangeValue, EventValue, ProfileValue, SkuValue};
pub(crate) use envelope::{key_in_envelope, row_after as change_row};
pub use reject::Reject;

/// A user id as the source writes it; never empty.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct UserId(pub std::sync::Arc<str>);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Kind of an event. Its text is the same in JSON and in metrics.
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
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// A product was shown to the user.
    Impression,
    /// A product page was opened.
    View,
    /// A product was clicked in a list.
    Click,
    /// A product was put into the cart.
    Cart,
    /// A product was bought.
    Purchase,
    /// A search; the item is its query.
    Search,
}

/// Object of an event, by id: resolved against the catalogue only when a prompt is rendered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Item {
    /// A SKU id.
    Sku(String),
    /// A PU id.
    Pu(String),
    /// The words of a search.
    Query(String),
}

/// One event of `user-events`, without its user and record time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What the user did.
    pub kind: Kind,
    /// Product or query of the event.
    pub item: Item,
    /// Quantity; 1 if the source gives none.
    pub qty: u32,
    /// Price of one piece in the shop's currency.
    pub price: Option<f64>,
    /// Time that the source wrote into the event. No decision uses it; the record's timestamp counts.
    pub ts: Option<Timestamp>,
    /// Where the product was shown. No list is made from it: it is for evaluations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_in: Option<Box<ShownIn>>,
}

/// The list in which the product of an event was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownIn {
    /// Id of the list.
    pub list_id: String,
    /// The place of the SKU under its name, from 1.
    pub position: Option<u32>,
}

/// A whole profile as the source sent it. Its fields are sorted, so equal profiles have equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Profile(pub BTreeMap<String, Value>);

/// Content of a user's record.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// From `user-events`.
    Event(Event),
    /// From `profile-changes`: the whole profile.
    Profile(Profile),
    /// A null or a deleted row on `profile-changes`: erases everything up to its time.
    Erase,
}

/// A decoded record of a user, ready to be folded.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The user.
    pub user: UserId,
    /// Its position in the log.
    pub position: Position,
    /// Its Kafka timestamp.
    pub time: Timestamp,
    /// Its content.
    pub change: Change,
}

/// One SKU as a record of `catalog` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sku {
    /// SKU id (the record's key).
    pub sku: String,
    /// Standardised product name, normalised (NFC, single spaces).
    pub pu: String,
    /// Id of the PU; by default its name.
    pub pu_id: String,
    /// Category of the PU.
    pub category: Option<String>,
    /// Title shown to people.
    pub title: String,
    /// Pieces in stock; 0 or less is sold out.
    pub stock: i64,
    /// Price in the shop's currency.
    pub price: Option<f64>,
    /// Attributes of any name; rules read them.
    pub attributes: BTreeMap<String, Value>,
}
