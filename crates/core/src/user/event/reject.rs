//! Reasons why a record is refused: [`Reject`], whose code is both the dlq header and the metric label.
//!
//! Invariant: codes are stable, and [`Reject::ALL_CODES`] lists each one. An error text says what is wrong with the
//! value.

/// Reason why a record cannot be decoded.
///
/// A variant's name in snake case is its code. Dashboards and `dlq list` know every code, so no variant is renamed.
#[derive(Clone, Debug, PartialEq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Reject {
    /// The record has no key.
    #[error("the record has no key")]
    NoKey,
    /// The key is empty.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is not UTF-8.
    #[error("the key is not UTF-8: byte {at} of {len}")]
    KeyNotUtf8 {
        /// First bad byte.
        at: usize,
        /// Length of the key.
        len: usize,
    },
    /// A tombstone on a topic where null has no meaning.
    #[error("the value is null, which has no meaning on this topic")]
    NullValue,
    /// Larger than `limits.max_bytes`.
    #[error("the value has {found} bytes, more than {limit}")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// An id or a name longer than `limits.max_text`.
    #[error("{field} has {found} bytes, more than {limit}")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A SKU id with a character that cannot be seen, with spaces at its ends, or not in NFC.
    #[error(
        "{field} has U+{code:04X} at character {at}: an id has no characters that cannot be seen, no spaces at its ends \
         or two together, and is in NFC"
    )]
    UnseenCharacter {
        /// Which field.
        field: &'static str,
        /// Place of the first such character, from 1.
        at: usize,
        /// The character.
        code: u32,
    },
    /// The value is not UTF-8.
    #[error("the value is not UTF-8: byte {at} of {len}")]
    NotUtf8 {
        /// First bad byte.
        at: usize,
        /// Length of the value.
        len: usize,
    },
    /// Starts with a zero byte, as the serialisers of a schema registry do.
    #[error(
        "the {part} starts with a 0x00 byte, as a schema registry frames it; `topics.profile_format` supports only \"plain\" and \"debezium\" JSON"
    )]
    FramedPayload {
        /// `key` or `value`.
        part: &'static str,
    },
    /// A change event's envelope where a plain value is expected, or an event that was deleted at its source.
    #[error("the value is that of a change event ({fields}), not a plain one: {advice}")]
    Enveloped {
        /// The fields that identify it.
        fields: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A record of a tracker on a topic that has no mapping.
    #[error("the value looks like {looks}; map its topic by [[inputs]], see docs/mapping.md#{see}")]
    Foreign {
        /// What it looks like.
        looks: &'static str,
        /// The section of docs/mapping.md about it.
        see: &'static str,
    },
    /// A value without the frame that its topic's mapping expects.
    #[error("the value is not framed as its mapping says: {0}")]
    BadFrame(String),
    /// A record of which the pointers of its topic's mapping make nothing.
    #[error("the mapping makes no record of it: {0}")]
    Unmapped(String),
    /// A record for which the program of its topic's mapping failed.
    #[error("the mapping's program failed: {0}")]
    ProgramFailed(String),
    /// The value is not JSON.
    #[error("the value is not JSON: {0}")]
    MalformedJson(String),
    /// The value is nested deeper than `limits.max_depth`.
    #[error("the value is nested more than {limit} deep")]
    TooDeep {
        /// Depth allowed.
        limit: usize,
    },
    /// The value is JSON but not an object.
    #[error("the value is {found}, not an object")]
    NotAnObject {
        /// Type found.
        found: &'static str,
    },
    /// A required field is absent, null or empty.
    #[error("{0} is missing or empty")]
    MissingField(&'static str),
    /// A field has the wrong type.
    #[error("{field} is {found}, not {wanted}")]
    WrongType {
        /// Which field.
        field: &'static str,
        /// Type found.
        found: &'static str,
        /// Type wanted.
        wanted: &'static str,
    },
    /// An unknown event type.
    #[error("type {0:?} is not one of impression, view, click, cart, purchase, search")]
    UnknownType(String),
    /// A quantity below 0.
    #[error("qty is {0}, less than 0")]
    NegativeQuantity(String),
    /// A number outside the range of its field.
    #[error("{field} is {found}: not finite, too small or too large")]
    BadNumber {
        /// Which field.
        field: &'static str,
        /// The number.
        found: String,
    },
    /// A request whose `ns` is not a valid namespace.
    #[error("ns {0:?} is not a namespace: 1 to 32 of a-z, 0-9 and -")]
    BadNamespace(String),
    /// The record is good, and a stored value of its user cannot be used.
    #[error("{0}")]
    UnreadableValue(String),
    /// The Kafka timestamp is outside the years 2000-2100.
    #[error("the timestamp {0} ms is outside the years 2000-2100")]
    TimeOutOfRange(i64),
    /// The Kafka timestamp is too far ahead, on a live topic with CreateTime.
    #[error("the record's timestamp is {ahead:?} ahead of now, more than {limit:?}")]
    TimeAhead {
        /// How far it is ahead.
        ahead: std::time::Duration,
        /// Most that is allowed.
        limit: std::time::Duration,
    },
}

impl Reject {
    /// Every code, so that each metric series exists with value 0 from the start.
    pub const ALL_CODES: &'static [&'static str] = <Self as strum::VariantNames>::VARIANTS;

    /// The stable code: dlq header and metric label.
    pub fn code(&self) -> &'static str {
        self.into()
    }
}
