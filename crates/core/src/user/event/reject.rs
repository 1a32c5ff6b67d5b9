//! Why a record was refused: [`Reject`], whose code is dlq header and metric label in one.
//!
//! Invariant: codes are stable, and [`Reject::ALL_CODES`] holds each. Texts say what is wrong with the value.

/// Why a record cannot be decoded. Closed: dashboards and `dlq list` know every code.
/// A variant's name is its code, so renaming one breaks them.
#[derive(Clone, Debug, PartialEq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Reject {
    /// No key at all.
    #[error("the record has no key")]
    NoKey,
    /// An empty key.
    #[error("the key is empty")]
    EmptyKey,
    /// Key bytes that are no text.
    #[error("the key is not UTF-8: byte {at} of {len}")]
    KeyNotUtf8 {
        /// First bad byte.
        at: usize,
        /// Length of the key.
        len: usize,
    },
    /// A tombstone where it means nothing.
    #[error("the value is null, which means nothing on this topic")]
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
    /// Value bytes that are no text.
    #[error("the value is not UTF-8: byte {at} of {len}")]
    NotUtf8 {
        /// First bad byte.
        at: usize,
        /// Length of the value.
        len: usize,
    },
    /// Starts with a zero byte, as a schema registry's serialisers frame their bytes.
    #[error(
        "the {part} starts with a 0x00 byte, as a schema registry frames it; `topics.profile_format` knows only \"plain\" and \"debezium\" JSON"
    )]
    FramedPayload {
        /// `key` or `value`.
        part: &'static str,
    },
    /// Looks like a change event's envelope although `format` is plain.
    #[error(
        "the value is a change event's envelope ({fields}), not a profile: set `topics.profile_format = \"debezium\"`"
    )]
    Enveloped {
        /// The fields by which it was recognised.
        fields: &'static str,
    },
    /// No JSON.
    #[error("the value is not JSON: {0}")]
    MalformedJson(String),
    /// Nested deeper than `limits.max_depth`.
    #[error("the value is nested more than {limit} deep")]
    TooDeep {
        /// Depth allowed.
        limit: usize,
    },
    /// JSON, but no object.
    #[error("the value is {found}, not an object")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field that is needed is absent, null or empty.
    #[error("{0} is missing or empty")]
    MissingField(&'static str),
    /// A field of the wrong type.
    #[error("{field} is {found}, not {wanted}")]
    WrongType {
        /// Which field.
        field: &'static str,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// An event type nobody knows.
    #[error("type {0:?} is none of impression, view, click, cart, purchase, search")]
    UnknownType(String),
    /// Less than none.
    #[error("qty is {0}, less than 0")]
    NegativeQuantity(String),
    /// A number that no such field can have.
    #[error("{field} is {found}: not finite, negative or too large")]
    BadNumber {
        /// Which field.
        field: &'static str,
        /// The number.
        found: String,
    },
    /// A request for what cannot be a namespace.
    #[error("ns {0:?} is no namespace: 1 to 32 of a-z, 0-9 and -")]
    BadNamespace(String),
    /// Kafka timestamp outside the years 2000-2100.
    #[error("the timestamp {0} ms is outside the years 2000-2100")]
    TimeOutOfRange(i64),
    /// Kafka timestamp too far ahead on a live topic with CreateTime.
    #[error("the record's timestamp is {ahead:?} ahead of now, more than {limit:?}")]
    TimeAhead {
        /// How far.
        ahead: std::time::Duration,
        /// How far is allowed.
        limit: std::time::Duration,
    },
}

impl Reject {
    /// Every code, so that each metric series exists at zero from the start.
    pub const ALL_CODES: &'static [&'static str] = <Self as strum::VariantNames>::VARIANTS;

    /// The stable code: the variant's name in snake case; dlq header and metric label.
    pub fn code(&self) -> &'static str {
        self.into()
    }
}
