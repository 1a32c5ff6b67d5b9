//! A write of planned users, started before it is waited for: [`Write`].
//!
//! Invariant: a write that is dropped before its end may still land. It is fenced by the version of the state, so the
//! next try either finds its result or writes the same again.

use std::pin::Pin;

use futures::FutureExt;
use futures::future::{BoxFuture, MaybeDone, maybe_done};

use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::store::{self, FoldWrite, Folded, ListEdit, Store};
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::plan::{Edit, Plan};

/// One user's records and their plan.
pub(super) struct Planned {
    pub(super) user: UserId,
    pub(super) records: Vec<Accepted>,
    pub(super) plan: Plan,
    /// What the user's stored list earned by the records.
    pub(super) earned: Option<(ListKind, Earned)>,
}

/// Plans, each with the store's answer; `None` for a plan that changes nothing and was not written.
pub(super) type Written = Vec<(Planned, Option<Folded>)>;

/// A write that is under way, or done and not yet asked for.
pub(super) struct Write(MaybeDone<BoxFuture<'static, Result<Written, store::Error>>>);

impl Write {
    /// Starts a write and does not wait for it.
    ///
    /// It is polled once: the command is then on its way to the store while the caller plans the next users. A spawned
    /// task would outlive its caller, and a stream of `buffered` writes would plan two chunks before it starts the
    /// first write, and would share the cache of states between planning and the end of a write.
    pub(super) async fn start<S: Store>(store: &S, ns: &str, plans: Vec<Planned>) -> Self {
        let mut write = maybe_done(write(store.clone(), ns.to_owned(), plans).boxed());
        let _ = futures::poll!(&mut write);
        Self(write)
    }

    /// Waits for the store's answers.
    pub(super) async fn finish(mut self) -> Result<Written, store::Error> {
        (&mut self.0).await;
        let written = Pin::new(&mut self.0).take_output();
        written.expect("it was awaited and its output is taken once")
    }
}

/// Writes the plans that change something.
async fn write<S: Store>(
    store: S,
    ns: String,
    mut plans: Vec<Planned>,
) -> Result<Written, store::Error> {
    let changed = plans.iter_mut().filter(|planned| planned.plan.changed);
    let writes: Vec<FoldWrite> = changed
        .map(|planned| take_write(&planned.user, &mut planned.plan))
        .collect();
    let outcomes = match writes.is_empty() {
        true => Vec::new(),
        false => store.fold(&ns, &writes).await?,
    };
    let mut stored = writes.into_iter().zip(outcomes);
    let written = plans.into_iter().map(|mut planned| {
        if !planned.plan.changed {
            return (planned, None);
        }
        let (write, outcome) = stored.next().expect("an outcome for each write");
        planned.plan.held.state = write.state;
        (planned, Some(outcome))
    });
    Ok(written.collect())
}

/// Makes the write of a plan. It takes the state out of the plan, because copying a window for each write is too slow;
/// the caller puts the state back.
fn take_write(user: &UserId, plan: &mut Plan) -> FoldWrite {
    let list = match &plan.edit {
        Edit::Keep => ListEdit::Keep,
        Edit::Strip(list) => ListEdit::Strip {
            claim: list.claim,
            stage: list.stage,
            doc: list.doc.to_json(),
        },
    };
    FoldWrite {
        user: user.clone(),
        expected: plan.held.ver,
        state: std::mem::take(&mut plan.held.state),
        activity: plan.held.activity.clone(),
        profile_changed: plan.profile_changed,
        list,
    }
}
