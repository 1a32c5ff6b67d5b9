//! Namespaces as wholes, and what all processes share: the trait [`Namespaces`].

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use crate::user::event::UserId;

use super::Error;

/// Register of namespaces, the served one, their plans and fallbacks, scanning and deleting, shared signals.
pub trait Namespaces: Send + Sync {
    /// Writes a segment's fallback document.
    fn set_fallback(
        &self,
        ns: &str,
        segment: &str,
        doc: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads a segment's fallback document.
    fn fallback(
        &self,
        ns: &str,
        segment: &str,
    ) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// A page of users with a state, and the cursor of the next page; `None` at the end. Users may repeat.
    fn scan(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> impl Future<Output = Result<(Vec<UserId>, Option<String>), Error>> + Send;

    /// Deletes some keys of a namespace: returns how many were deleted, and the cursor of the next step, `None` at the
    /// end. The caller checks that `ns` may be deleted.
    fn delete(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> impl Future<Output = Result<(u64, Option<String>), Error>> + Send;

    /// The served namespace.
    fn active(&self) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Makes `ns` the served namespace iff `expected` is served now.
    fn set_active(
        &self,
        ns: &str,
        expected: Option<&str>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// The plan of the namespace's backfill, as it was written.
    fn plan(&self, ns: &str) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Writes the plan iff the stored one is `expected`.
    fn set_plan(
        &self,
        ns: &str,
        plan: &str,
        expected: Option<&str>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// All namespaces that were ever filled and not retired, each with its note (JSON).
    fn namespaces(&self) -> impl Future<Output = Result<BTreeMap<String, String>, Error>> + Send;

    /// Writes a namespace and its note into the register; `None` removes the namespace.
    fn enroll(
        &self,
        ns: &str,
        note: Option<&str>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Signals to every process that live is behind its objective; the signal expires after `ttl`.
    fn signal_live_behind(&self, ttl: Duration) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether some process signals that live is behind its objective.
    fn live_behind(&self) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Signals for `ttl` that history of a namespace is being folded: its backfill requests wait meanwhile.
    fn signal_history(
        &self,
        ns: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether some process signals that history of the namespace is being folded.
    fn in_history(&self, ns: &str) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Stores the cost per user of an arm's model (JSON), from which a backfill's duration is estimated.
    fn set_cost(&self, arm: &str, note: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// The last stored cost of each arm.
    fn costs(&self) -> impl Future<Output = Result<BTreeMap<String, String>, Error>> + Send;
}
