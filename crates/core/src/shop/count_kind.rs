//! What a cell of the counts counts: events of one kind, or buyers.
//!
//! Invariant: each kind has one text, which is stored in Redis and is in every dump, and is read back as that kind.

use std::str::FromStr;

use crate::user::event::Kind;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CountKind {
    /// Events of a kind; of purchases the pieces.
    Event(Kind),
    /// Users who bought the SKU in the 7-day bucket, each once.
    Buyer,
}

impl CountKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Event(Kind::Impression),
        Self::Event(Kind::View),
        Self::Event(Kind::Click),
        Self::Event(Kind::Cart),
        Self::Event(Kind::Purchase),
        Self::Event(Kind::Search),
        Self::Buyer,
    ];

    /// Its text: that of the event's kind in JSON, or `buyer`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event(kind) => kind.into(),
            Self::Buyer => "buyer",
        }
    }
}

/// A text that names no kind of count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of count")]
pub struct UnknownCountKind(String);

impl FromStr for CountKind {
    type Err = UnknownCountKind;

    fn from_str(text: &str) -> Result<Self, UnknownCountKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownCountKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_from_its_text() {
        for kind in CountKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("Buyer".parse::<CountKind>().is_err());
        assert_eq!(CountKind::Event(Kind::Purchase).as_str(), "purchase");
    }
}
