//! A gate between the members and their log and store. It yields to the scheduler before and after each call, and may
//! lose the call, lose its answer, or delay it: a late write that is executed when its caller no longer waits.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use nearshore_core::list::document::Stage;
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::log::{self, Committed, Delivery, Log, Outgoing};
use nearshore_core::ports::store::{self, *};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Fences, Offset, Partition, Resume, Timestamp};
use nearshore_core::user::state::LoadedUser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns to the scheduler once; a member that is dropped here has crashed at this step.
#[derive(Default)]
pub struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

type Late = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A list that was stored.
pub struct PublishedList {
    pub ns: String,
    pub user: UserId,
    pub erased_at: Timestamp,
    pub claim: u64,
    pub stage: Stage,
    pub seen: Fences,
    /// The moments between which it was stored: a real store serves several callers at once, so the order of answers is
    /// not that of the writes.
    pub between: (u64, u64),
}

/// What passed the gate.
#[derive(Default)]
pub struct Journal {
    /// Lists stored, in the order of their answers.
    pub published: Vec<PublishedList>,
    /// Calls that began or ended so far.
    pub moments: u64,
    /// Claims per user.
    pub claims: BTreeMap<UserId, u64>,
    /// Calls that were lost, unanswered or late.
    pub faults: u64,
    /// How many lists had been stored each time the store lost its last writes.
    pub losses: Vec<usize>,
}

struct Inner {
    rng: ChaCha8Rng,
    calm: bool,
    late: Vec<Late>,
    journal: Journal,
}

/// Decides what happens to each call of a history; shared by all members.
#[derive(Clone)]
pub struct Gate(Arc<Mutex<Inner>>);

enum Fate {
    Done,
    Lost,
    Unanswered,
    Late,
}

impl Gate {
    pub fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15);
        let inner = Inner {
            rng,
            calm: false,
            late: Vec::new(),
            journal: Journal::default(),
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("one thread runs a simulation")
    }

    /// From now on no call fails or is late.
    pub fn calm(&self) {
        self.lock().calm = true;
    }

    pub fn is_calm(&self) -> bool {
        self.lock().calm
    }

    /// True with this chance; always when calm.
    pub fn coin(&self, chance: f64) -> bool {
        let mut inner = self.lock();
        inner.calm || inner.rng.random_bool(chance)
    }

    /// Takes one of the delayed calls, chosen by the seed; `None` if there is none.
    pub fn late(&self) -> Option<Late> {
        let mut inner = self.lock();
        if inner.late.is_empty() {
            return None;
        }
        let count = inner.late.len();
        let at = inner.rng.random_range(0..count);
        Some(inner.late.swap_remove(at))
    }

    pub fn journal<T>(&self, with: impl FnOnce(&mut Journal) -> T) -> T {
        with(&mut self.lock().journal)
    }

    fn moment(&self) -> u64 {
        self.journal(|journal| {
            journal.moments += 1;
            journal.moments
        })
    }

    fn draw(&self) -> Fate {
        let mut inner = self.lock();
        if inner.calm {
            return Fate::Done;
        }
        let fate = match inner.rng.random_range(0..40) {
            0 => Fate::Lost,
            1 => Fate::Unanswered,
            2 => Fate::Late,
            _ => return Fate::Done,
        };
        inner.journal.faults += 1;
        fate
    }

    /// A call to the store. Sometimes it is made twice and the caller gets the second answer: so does a client that
    /// lost the first answer and repeats the call by itself, as that of a Redis Cluster.
    async fn store<T, F>(&self, call: impl Fn() -> F) -> Result<T, store::Error>
    where
        T: Send,
        F: Future<Output = Result<T, store::Error>> + Send + 'static,
    {
        if self.is_calm() || !self.coin(0.03) {
            return self.pass(call, no_store).await;
        }
        self.journal(|journal| journal.faults += 1);
        let (first, second) = (call(), call());
        let both = || async move {
            let _ = first.await;
            second.await
        };
        self.pass(both, no_store).await
    }

    async fn pass<T, E, F>(&self, call: impl FnOnce() -> F, timeout: fn() -> E) -> Result<T, E>
    where
        T: Send,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        Yield::default().await;
        match self.draw() {
            Fate::Done => {
                let answer = call().await;
                Yield::default().await;
                answer
            }
            Fate::Lost => Err(timeout()),
            Fate::Unanswered => {
                let _ = call().await;
                Err(timeout())
            }
            Fate::Late => {
                let call = call();
                self.lock().late.push(Box::pin(async move {
                    let _ = call.await;
                }));
                Err(timeout())
            }
        }
    }
}

fn no_store() -> store::Error {
    store::Error::Timeout {
        addr: "simulation".into(),
        limit: Duration::from_secs(1),
    }
}

fn no_log() -> log::Error {
    log::Error::Timeout {
        topic: "simulation".into(),
        limit: Duration::from_secs(1),
    }
}

/// A store behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    pub inner: S,
    pub gate: Gate,
}

/// Calls the method of the inner store through the gate, with owned arguments: the call may outlive its caller.
macro_rules! through {
    ($self:ident.$name:ident($($arg:ident),*)) => {{
        let inner = $self.inner.clone();
        $(let $arg = $arg.to_owned();)*
        let call = move || {
            let inner = inner.clone();
            $(let $arg = $arg.clone();)*
            async move { inner.$name($(&$arg),*).await }
        };
        $self.gate.store(call).await
    }};
}

impl<S: Store> Users for Gated<S> {
    async fn load(&self, ns: &str, users: &[UserId]) -> Result<Vec<LoadedUser>, store::Error> {
        through!(self.load(ns, users))
    }

    async fn discard(&self, ns: &str, user: &UserId, at: Timestamp) -> Result<(), store::Error> {
        let (inner, ns, user) = (self.inner.clone(), ns.to_owned(), user.clone());
        let call = move || {
            let (inner, ns, user) = (inner.clone(), ns.clone(), user.clone());
            async move { inner.discard(&ns, &user, at).await }
        };
        self.gate.store(call).await
    }

    async fn fold(&self, ns: &str, writes: &[FoldWrite]) -> Result<Vec<Folded>, store::Error> {
        through!(self.fold(ns, writes))
    }

    async fn claim(&self, ns: &str, claims: &[Claim]) -> Result<Vec<ClaimOutcome>, store::Error> {
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        let (ns, claims) = (ns.to_owned(), claims.to_vec());
        let call = move || {
            let (inner, gate, ns, claims) =
                (inner.clone(), gate.clone(), ns.clone(), claims.clone());
            async move {
                let claimed = inner.claim(&ns, &claims).await?;
                gate.journal(|journal| {
                    for (claim, claimed) in claims.iter().zip(&claimed) {
                        if matches!(claimed, ClaimOutcome::Claimed(_)) {
                            *journal.claims.entry(claim.user.clone()).or_default() += 1;
                        }
                    }
                });
                Ok(claimed)
            }
        };
        self.gate.store(call).await
    }

    async fn peek(&self, ns: &str, users: &[UserId]) -> Result<Vec<Peek>, store::Error> {
        through!(self.peek(ns, users))
    }

    async fn publish(&self, ns: &str, lists: &[Publish]) -> Result<Vec<Published>, store::Error> {
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        let (ns, lists) = (ns.to_owned(), lists.to_vec());
        let call = move || {
            let (inner, gate, ns, lists) = (inner.clone(), gate.clone(), ns.clone(), lists.clone());
            async move {
                let began = gate.moment();
                let outcomes = inner.publish(&ns, &lists).await?;
                let between = (began, gate.moment());
                gate.journal(|journal| {
                    for (list, outcome) in lists.iter().zip(&outcomes) {
                        if *outcome == Published::Stored {
                            let Publish {
                                user,
                                erased_at,
                                list,
                                ..
                            } = list.clone();
                            journal.published.push(PublishedList {
                                ns: ns.clone(),
                                user,
                                erased_at,
                                claim: list.claim,
                                stage: list.stage,
                                seen: list.seen,
                                between,
                            });
                        }
                    }
                });
                Ok(outcomes)
            }
        };
        self.gate.store(call).await
    }
}

impl<S: Store> Counts for Gated<S> {
    async fn add(&self, ns: &str, deltas: &[Delta]) -> Result<Vec<Added>, store::Error> {
        through!(self.add(ns, deltas))
    }

    async fn count_fences(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> Result<BTreeMap<u8, Offset>, store::Error> {
        through!(self.count_fences(ns, partition))
    }

    async fn counts(
        &self,
        ns: &str,
        shard: u8,
        since: i64,
    ) -> Result<BTreeMap<Cell, u64>, store::Error> {
        self.inner.counts(ns, shard, since).await
    }

    async fn count_versions(&self, ns: &str) -> Result<BTreeMap<u8, u64>, store::Error> {
        self.inner.count_versions(ns).await
    }
}

/// What is only measured passes no gate: nothing depends on it.
impl<S: Store> Arms for Gated<S> {
    async fn shown(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> Result<Vec<Option<ShownDoc>>, store::Error> {
        self.inner.shown(ns, users).await
    }

    async fn add_earned(
        &self,
        ns: &str,
        earned: &BTreeMap<ListKind, Earned>,
    ) -> Result<(), store::Error> {
        self.inner.add_earned(ns, earned).await
    }

    async fn earned(&self, ns: &str) -> Result<BTreeMap<ListKind, Earned>, store::Error> {
        self.inner.earned(ns).await
    }
}

impl<S: Store> Stock for Gated<S> {
    async fn stock(&self, ops: &[StockRecord]) -> Result<(), store::Error> {
        through!(self.stock(ops))
    }

    async fn sold_out(&self, skus: &[String]) -> Result<Vec<bool>, store::Error> {
        self.inner.sold_out(skus).await
    }

    async fn block(&self, block: &Block) -> Result<(), store::Error> {
        self.inner.block(block).await
    }

    async fn unblock(&self, id: &str, by: &str, at: Timestamp) -> Result<bool, store::Error> {
        self.inner.unblock(id, by, at).await
    }

    async fn blocks(&self) -> Result<Vec<Block>, store::Error> {
        self.inner.blocks().await
    }
}

impl<S: Store> Namespaces for Gated<S> {
    async fn set_fallback(&self, ns: &str, segment: &str, doc: &str) -> Result<(), store::Error> {
        self.inner.set_fallback(ns, segment, doc).await
    }

    async fn fallback(&self, ns: &str, segment: &str) -> Result<Option<String>, store::Error> {
        self.inner.fallback(ns, segment).await
    }

    async fn scan(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<UserId>, Option<String>), store::Error> {
        self.inner.scan(ns, cursor).await
    }

    async fn delete(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(u64, Option<String>), store::Error> {
        self.inner.delete(ns, cursor).await
    }

    async fn active(&self) -> Result<Option<String>, store::Error> {
        self.inner.active().await
    }

    async fn set_active(&self, ns: &str, expected: Option<&str>) -> Result<bool, store::Error> {
        self.inner.set_active(ns, expected).await
    }

    async fn plan(&self, ns: &str) -> Result<Option<String>, store::Error> {
        self.inner.plan(ns).await
    }

    async fn set_plan(
        &self,
        ns: &str,
        plan: &str,
        expected: Option<&str>,
    ) -> Result<bool, store::Error> {
        self.inner.set_plan(ns, plan, expected).await
    }

    async fn namespaces(&self) -> Result<BTreeMap<String, String>, store::Error> {
        self.inner.namespaces().await
    }

    async fn enroll(&self, ns: &str, note: Option<&str>) -> Result<(), store::Error> {
        self.inner.enroll(ns, note).await
    }

    async fn signal_live_behind(&self, ttl: Duration) -> Result<(), store::Error> {
        self.inner.signal_live_behind(ttl).await
    }

    async fn live_behind(&self) -> Result<bool, store::Error> {
        self.inner.live_behind().await
    }

    async fn signal_history(&self, ns: &str, _: Duration) -> Result<(), store::Error> {
        // A real Redis has real time, in which a history ends within milliseconds.
        self.inner
            .signal_history(ns, Duration::from_millis(5))
            .await
    }

    async fn in_history(&self, ns: &str) -> Result<bool, store::Error> {
        self.inner.in_history(ns).await
    }

    async fn set_cost(&self, arm: &str, note: &str) -> Result<(), store::Error> {
        self.inner.set_cost(arm, note).await
    }

    async fn costs(&self) -> Result<BTreeMap<String, String>, store::Error> {
        self.inner.costs().await
    }
}

impl<S: Store> Durability for Gated<S> {
    async fn flush(&self) -> Result<(), store::Error> {
        through!(self.flush())
    }

    async fn lineage(&self) -> Result<Lineage, store::Error> {
        through!(self.lineage())
    }

    fn under(&self, lineage: &Lineage) -> Self {
        Self {
            inner: self.inner.under(lineage),
            gate: self.gate.clone(),
        }
    }

    async fn checkpoint(
        &self,
        reader: &str,
        done: &[(Partition, Resume)],
    ) -> Result<(), store::Error> {
        through!(self.checkpoint(reader, done))
    }

    async fn checkpoints(&self, reader: &str) -> Result<BTreeMap<Partition, Resume>, store::Error> {
        through!(self.checkpoints(reader))
    }
}

/// A log behind the gate. Deliveries always succeed; writes and commits may fail.
pub struct GatedLog<L> {
    pub inner: L,
    pub gate: Gate,
}

impl<L: Log> Log for GatedLog<L> {
    async fn next(&mut self) -> Result<Delivery, log::Error> {
        self.inner.next().await
    }

    async fn notice(&mut self) -> Result<Delivery, log::Error> {
        self.inner.notice().await
    }

    fn pause(&mut self, topics: &[Arc<str>]) {
        self.inner.pause(topics);
    }

    async fn commit(&self, done: &[(Partition, Resume)]) -> Result<(), log::Error> {
        Yield::default().await;
        match self.gate.draw() {
            Fate::Done | Fate::Late => self.inner.commit(done).await,
            Fate::Lost => Err(no_log()),
            Fate::Unanswered => {
                let _ = self.inner.commit(done).await;
                Err(no_log())
            }
        }
    }

    async fn committed(&self, of: &[Partition]) -> Result<Vec<Committed>, log::Error> {
        Yield::default().await;
        self.inner.committed(of).await
    }

    async fn rewind(&mut self, to: &[(Partition, Resume)]) -> Result<(), log::Error> {
        Yield::default().await;
        self.inner.rewind(to).await
    }

    async fn end(&self, partition: &Partition) -> Result<Offset, log::Error> {
        self.inner.end(partition).await
    }

    async fn send(&self, records: Vec<Outgoing>) -> Result<(), log::Error> {
        Yield::default().await;
        match self.gate.draw() {
            Fate::Done | Fate::Late => {
                let sent = self.inner.send(records).await;
                Yield::default().await;
                sent
            }
            Fate::Lost => Err(no_log()),
            Fate::Unanswered => {
                let _ = self.inner.send(records).await;
                Err(no_log())
            }
        }
    }

    async fn close(self) {
        self.inner.close().await;
    }
}
