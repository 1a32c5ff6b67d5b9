//! What lists are shown, and what they earned; the trait [`Arms`].

use std::collections::BTreeMap;
use std::future::Future;

use crate::list::hits::{Earned, ListKind};
use crate::user::event::UserId;
use crate::user::record::Timestamp;

use super::Error;

/// A stored list as clients read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownDoc {
    /// The recall document (JSON).
    pub doc: String,
    /// Epoch of its arm.
    pub epoch: u64,
    /// When it was stored, by the store's clock; a double without a clock gives the time of the list's request. `None`
    /// for a list that an older version stored.
    pub stored_at: Option<Timestamp>,
}

/// Lists as clients read them, and counts of what lists earned. The counts are approximate: they are not fenced.
pub trait Arms: Send + Sync {
    /// Reads lists, and nothing else of the users; `None` without a list, or with an incomplete one.
    fn shown(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<Option<ShownDoc>>, Error>> + Send;

    /// Adds to the counts of a namespace. A call that fails may have added some of it.
    fn add_earned(
        &self,
        ns: &str,
        earned: &BTreeMap<ListKind, Earned>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// The counts of a namespace since it was created.
    fn earned(
        &self,
        ns: &str,
    ) -> impl Future<Output = Result<BTreeMap<ListKind, Earned>, Error>> + Send;
}
