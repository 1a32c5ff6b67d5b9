//! The store's double: the same contract in memory, deterministic and fast, for the simulation.
//!
//! Invariant: every operation answers what Redis would answer (`RedisStore` passes the same tests, and a differential
//! one). It does not know time: nothing expires. With [`Flaws`] it breaks one guard on purpose, so that the
//! simulation can prove that it would notice.

mod arms;
mod flaws;
mod list;
mod loss;
mod register;
mod sets;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use loss::{Contents, Lost};
use sets::Set;

use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Added, Block, Cell, Claim, ClaimOutcome, Claimed, Counts, Delta, Durability, Error, FoldWrite,
    Folded, Lineage, ListEdit, Namespaces, Peek, Publish, Published, Stock, StockRecord, Stored,
    Users,
};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};
use nearshore_core::user::state::{Activity, LoadedUser, Profiled, UserState};

pub use flaws::Flaws;

use list::{edit, is_fallback};

/// A store in memory. Clones are handles to the same one.
///
/// The lock is shared: an operation here is what a script is in Redis, atomic and without a wait inside, so the lock is
/// held for one operation only and never across an await.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    flaws: Flaws,
    /// Lineage in which this handle's conditional writes have effect; `None` = in any.
    lineage: Option<Lineage>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    spaces: BTreeMap<String, Space>,
    erased: BTreeMap<UserId, Timestamp>,
    sets: BTreeMap<u8, Set>,
    blocks: BTreeMap<String, Block>,
    active: Option<String>,
    /// How often writes were lost so far; names the lineage.
    losses: u64,
    /// Checkpoints per primary and reader.
    checkpoints: [BTreeMap<String, BTreeMap<Partition, Resume>>; loss::PRIMARIES],
    /// Register of namespaces.
    enrolled: BTreeMap<String, String>,
    live_behind: bool,
    /// Namespaces whose history is being folded, with how often that is still answered.
    history: BTreeMap<String, u32>,
    costs: BTreeMap<String, String>,
}

/// Memory has no time: the signal of history ends after so many answers.
const HISTORY_ANSWERS: u32 = 3;

#[derive(Clone, Debug, Default)]
struct Space {
    users: BTreeMap<UserId, User>,
    shards: BTreeMap<u8, Shard>,
    fallbacks: BTreeMap<String, String>,
    plan: Option<String>,
    earned: BTreeMap<ListKind, Earned>,
}

#[derive(Clone, Debug, Default)]
struct User {
    /// `None` if only a profile is left.
    row: Option<Row>,
    profile: Option<Profiled>,
    list: Option<Stored>,
    /// `erased_at` of the state that the list was made from.
    list_erased_at: Timestamp,
}

/// The state hash; `state.profile` is always `None` here.
#[derive(Clone, Debug)]
struct Row {
    state: UserState,
    activity: Activity,
    ver: u64,
    claim: u64,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    fences: BTreeMap<Partition, Offset>,
    cells: BTreeMap<Cell, u64>,
}

impl MemoryStore {
    /// A double without the guards that `flaws` names.
    pub fn broken(flaws: Flaws) -> Self {
        Self {
            flaws,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no operation panics while it holds the lock")
    }

    fn erased(&self, inner: &Inner, user: &UserId) -> Timestamp {
        if self.flaws.no_tombstone {
            return Timestamp(0);
        }
        inner.erased.get(user).copied().unwrap_or_default()
    }
}

/// A state as a reader sees it: with its profile, tombstone applied.
fn visible(state: &UserState, profile: Option<&Profiled>, erased: Timestamp) -> UserState {
    let mut state = state.clone();
    state.profile = profile.cloned();
    if erased > state.erased_at {
        nearshore_core::user::fold::erase(&mut state, erased);
    }
    state
}

impl Inner {
    fn user(&self, ns: &str, user: &UserId) -> Option<&User> {
        self.spaces.get(ns)?.users.get(user)
    }

    fn user_mut(&mut self, ns: &str, user: &UserId) -> &mut User {
        if !self.spaces.contains_key(ns) {
            self.spaces.insert(ns.into(), Space::default());
        }
        let space = self.spaces.get_mut(ns).expect("just inserted");
        space.users.entry(user.clone()).or_default()
    }

    fn load(&self, ns: &str, user: &UserId, erased: Timestamp) -> LoadedUser {
        let found = self.user(ns, user);
        let profile = found.and_then(|user| user.profile.as_ref());
        match found.and_then(|user| user.row.as_ref()) {
            Some(row) => LoadedUser {
                erased_elsewhere: erased > row.state.erased_at,
                state: visible(&row.state, profile, erased),
                activity: row.activity.clone(),
                ver: row.ver,
                claim: row.claim,
            },
            None => {
                let state = visible(&UserState::default(), profile, erased);
                LoadedUser {
                    erased_elsewhere: profile.is_some() && state.profile.is_none(),
                    state,
                    ..LoadedUser::default()
                }
            }
        }
    }

    fn fold(&mut self, ns: &str, write: &FoldWrite, erased: Timestamp, flaws: Flaws) -> Folded {
        let erased_at = write.state.erased_at;
        if erased_at < erased {
            return Folded::Erased { at: erased };
        }
        let user = self.user_mut(ns, &write.user);
        let stored = user.row.as_ref();
        let (ver, claim) = stored.map_or((0, 0), |row| (row.ver, row.claim));
        let stored_erased_at = stored.map_or(Timestamp(0), |row| row.state.erased_at);
        if ver != write.expected && !flaws.blind_write {
            return Folded::Stale;
        }
        let erased_again = erased_at > stored_erased_at;
        let list_claim = user.list.as_ref().map(|list| (list.claim, list.stage));
        // A list that was published after this erase, by its tombstone, is kept.
        let drop_list = erased_again && user.list_erased_at < erased_at;
        if let ListEdit::Strip { claim, stage, .. } = &write.list
            && !drop_list
            && list_claim != Some((*claim, *stage))
        {
            return Folded::Stale;
        }
        if write.profile_changed || (erased_again && write.state.profile.is_none()) {
            user.profile.clone_from(&write.state.profile);
        }
        let mut state = write.state.clone();
        state.profile = None;
        user.row = Some(Row {
            state,
            activity: write.activity.clone(),
            ver: ver + 1,
            claim,
        });
        if drop_list {
            user.list = None;
        }
        if user.list.is_none() {
            user.list_erased_at = erased_at;
        }
        edit(&mut user.list, &write.list, drop_list);
        if erased_at > erased {
            self.erased.insert(write.user.clone(), erased_at);
        }
        Folded::Stored { ver: ver + 1 }
    }

    fn claim(&mut self, ns: &str, claim: &Claim, erased: Timestamp) -> ClaimOutcome {
        let space = self.spaces.get_mut(ns);
        let Some(user) = space.and_then(|space| space.users.get_mut(&claim.user)) else {
            return ClaimOutcome::NoState;
        };
        let Some(row) = user.row.as_mut() else {
            return ClaimOutcome::NoState;
        };
        if row.ver != claim.expected {
            return ClaimOutcome::Stale;
        }
        let pending = row.activity.pending.clone();
        nearshore_core::user::trigger::claimed(&mut row.activity, claim.due);
        row.ver += 1;
        row.claim += 1;
        ClaimOutcome::Claimed(Box::new(Claimed {
            state: visible(&row.state, user.profile.as_ref(), erased),
            claim: row.claim,
            pending,
        }))
    }

    fn publish(
        &mut self,
        ns: &str,
        publish: &Publish,
        erased: Timestamp,
        flaws: Flaws,
    ) -> Published {
        let list = &publish.list;
        let user = self.user_mut(ns, &publish.user);
        if flaws.blind_publish {
            user.list = Some(list.clone());
            user.list_erased_at = publish.erased_at;
            return Published::Stored;
        }
        let stored = user.row.as_ref();
        let stored_erased_at = stored.map_or(Timestamp(0), |row| row.state.erased_at);
        let erased_at = stored_erased_at.max(erased);
        if publish.erased_at < erased_at && !flaws.no_tombstone {
            return Published::Erased;
        }
        let Some(row) = &user.row else {
            return Published::NoState;
        };
        if publish.erased_at != erased_at && !flaws.no_tombstone {
            return Published::Erased;
        }
        if list.claim > row.claim {
            return Published::NoState;
        }
        if stored_erased_at.max(user.list_erased_at) < erased {
            user.list = None;
        }
        if let Some(stored) = &user.list {
            if (stored.claim, stored.stage) >= (list.claim, list.stage) {
                return Published::Older;
            }
            if publish.only_if_absent && !is_fallback(&stored.doc) {
                return Published::Kept;
            }
            if stored.epoch > list.epoch && !publish.force {
                return Published::Epoch;
            }
        }
        user.list = Some(list.clone());
        user.list_erased_at = publish.erased_at;
        Published::Stored
    }

    fn add(&mut self, ns: &str, delta: &Delta, flaws: Flaws) -> Added {
        let space = self.spaces.entry(ns.into()).or_default();
        let shard = space.shards.entry(delta.shard).or_default();
        let fence = shard.fences.get(&delta.partition).copied();
        if fence != delta.prev && !flaws.no_fence {
            return Added::Fence(fence);
        }
        shard.fences.insert(delta.partition.clone(), delta.last);
        for (cell, n) in &delta.cells {
            *shard.cells.entry(cell.clone()).or_default() += n;
        }
        Added::Stored
    }
}

/// Users on a page of [`Namespaces::scan`]; few, so that tests see more than one page.
const PAGE: usize = 10;

impl Users for MemoryStore {
    async fn load(&self, ns: &str, users: &[UserId]) -> Result<Vec<LoadedUser>, Error> {
        let inner = self.lock();
        let load = |user| {
            keys::user(ns, user)?;
            Ok(inner.load(ns, user, self.erased(&inner, user)))
        };
        users.iter().map(load).collect()
    }

    async fn fold(&self, ns: &str, writes: &[FoldWrite]) -> Result<Vec<Folded>, Error> {
        let mut inner = self.writable()?;
        let fold = |write: &FoldWrite| {
            keys::user(ns, &write.user)?;
            let erased = self.erased(&inner, &write.user);
            Ok(inner.fold(ns, write, erased, self.flaws))
        };
        writes.iter().map(fold).collect()
    }

    async fn claim(&self, ns: &str, claims: &[Claim]) -> Result<Vec<ClaimOutcome>, Error> {
        let mut inner = self.writable()?;
        let claim = |claim: &Claim| {
            keys::user(ns, &claim.user)?;
            let erased = self.erased(&inner, &claim.user);
            Ok(inner.claim(ns, claim, erased))
        };
        claims.iter().map(claim).collect()
    }

    async fn peek(&self, ns: &str, users: &[UserId]) -> Result<Vec<Peek>, Error> {
        let inner = self.lock();
        let peek = |user| {
            keys::user(ns, user)?;
            let loaded = inner.load(ns, user, Timestamp(0));
            let found = inner.user(ns, user);
            let list_erased_at = found.map_or(Timestamp(0), |u| u.list_erased_at);
            let known = loaded.state.erased_at.max(list_erased_at);
            let erased_since = self.erased(&inner, user) > known;
            Ok(Peek {
                list: found.and_then(|u| u.list.clone()).filter(|_| !erased_since),
                fences: loaded.state.fences,
                claim: loaded.claim,
                ver: loaded.ver,
                pending: loaded.activity.pending,
            })
        };
        users.iter().map(peek).collect()
    }

    async fn publish(&self, ns: &str, lists: &[Publish]) -> Result<Vec<Published>, Error> {
        let mut inner = self.writable()?;
        let publish = |list: &Publish| {
            keys::user(ns, &list.user)?;
            let erased = self.erased(&inner, &list.user);
            Ok(inner.publish(ns, list, erased, self.flaws))
        };
        lists.iter().map(publish).collect()
    }

    async fn discard(&self, ns: &str, user: &UserId, at: Timestamp) -> Result<(), Error> {
        keys::user(ns, user)?;
        let mut inner = self.writable()?;
        *inner.user_mut(ns, user) = User::default();
        let erased = inner.erased.entry(user.clone()).or_default();
        *erased = (*erased).max(at);
        Ok(())
    }
}

impl Counts for MemoryStore {
    async fn add(&self, ns: &str, deltas: &[Delta]) -> Result<Vec<Added>, Error> {
        keys::namespace(ns)?;
        let mut inner = self.writable()?;
        let add = |delta| inner.add(ns, delta, self.flaws);
        Ok(deltas.iter().map(add).collect())
    }

    async fn count_fences(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> Result<BTreeMap<u8, Offset>, Error> {
        keys::namespace(ns)?;
        let inner = self.lock();
        let shards = inner.spaces.get(ns).into_iter().flat_map(|s| &s.shards);
        let fence = |(&nth, shard): (&u8, &Shard)| Some((nth, *shard.fences.get(partition)?));
        Ok(shards.filter_map(fence).collect())
    }

    async fn counts(&self, ns: &str, shard: u8, since: i64) -> Result<BTreeMap<Cell, u64>, Error> {
        keys::namespace(ns)?;
        let inner = self.lock();
        let shard = inner.spaces.get(ns).and_then(|s| s.shards.get(&shard));
        let cells = shard.into_iter().flat_map(|shard| &shard.cells);
        let recent = cells.filter(|(cell, _)| cell.bucket >= since);
        Ok(recent.map(|(cell, n)| (cell.clone(), *n)).collect())
    }

    async fn count_versions(&self, ns: &str) -> Result<BTreeMap<u8, u64>, Error> {
        keys::namespace(ns)?;
        let inner = self.lock();
        let shards = inner.spaces.get(ns).into_iter().flat_map(|s| &s.shards);
        let digest = |(&nth, shard): (&u8, &Shard)| {
            let fences: Vec<(String, i64)> = shard
                .fences
                .iter()
                .map(|(partition, offset)| (partition.to_string(), offset.0))
                .collect();
            let texts = fences.iter().map(|(text, offset)| (text.as_str(), *offset));
            (nth, keys::digest(texts))
        };
        let written = shards.filter(|(_, shard)| !shard.fences.is_empty());
        Ok(written.map(digest).collect())
    }
}

impl Stock for MemoryStore {
    async fn stock(&self, ops: &[StockRecord]) -> Result<(), Error> {
        self.writable()?.stock(ops);
        Ok(())
    }

    async fn sold_out(&self, skus: &[String]) -> Result<Vec<bool>, Error> {
        let inner = self.lock();
        let out = |sku: &String| {
            let set = inner.sets.get(&keys::set(sku));
            set.is_some_and(|set| set.out.contains(sku))
        };
        Ok(skus.iter().map(out).collect())
    }

    async fn block(&self, block: &Block) -> Result<(), Error> {
        self.lock().block(block);
        Ok(())
    }

    async fn unblock(&self, id: &str, _by: &str, _at: Timestamp) -> Result<bool, Error> {
        let mut inner = self.lock();
        let pu = inner.unblock(&keys::block(id, true));
        let sku = inner.unblock(&keys::block(id, false));
        Ok(pu || sku)
    }

    async fn blocks(&self) -> Result<Vec<Block>, Error> {
        Ok(self.lock().blocks.values().cloned().collect())
    }
}

impl Namespaces for MemoryStore {
    async fn set_fallback(&self, ns: &str, segment: &str, doc: &str) -> Result<(), Error> {
        keys::fallback(ns, segment)?;
        let mut inner = self.lock();
        let space = inner.spaces.entry(ns.into()).or_default();
        space.fallbacks.insert(segment.into(), doc.into());
        Ok(())
    }

    async fn fallback(&self, ns: &str, segment: &str) -> Result<Option<String>, Error> {
        keys::fallback(ns, segment)?;
        let inner = self.lock();
        let space = inner.spaces.get(ns);
        Ok(space.and_then(|space| space.fallbacks.get(segment).cloned()))
    }

    async fn scan(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<UserId>, Option<String>), Error> {
        keys::namespace(ns)?;
        let inner = self.lock();
        let users = inner.spaces.get(ns).into_iter().flat_map(|s| &s.users);
        let stored = users.filter(|(_, user)| user.row.is_some());
        let mut rest = stored
            .map(|(id, _)| id)
            .skip_while(|id| cursor.as_deref().is_some_and(|cursor| *id.0 <= *cursor));
        let page: Vec<UserId> = rest.by_ref().take(PAGE).cloned().collect();
        let next = rest.next().and(page.last()).map(|id| id.0.to_string());
        Ok((page, next))
    }

    async fn delete(
        &self,
        ns: &str,
        _cursor: Option<String>,
    ) -> Result<(u64, Option<String>), Error> {
        keys::namespace(ns)?;
        let deleted = self.lock().spaces.remove(ns);
        let users = deleted.map_or(0, |space| space.users.len());
        Ok((users as u64, None))
    }

    async fn active(&self) -> Result<Option<String>, Error> {
        Ok(self.lock().active.clone())
    }

    async fn set_active(&self, ns: &str, expected: Option<&str>) -> Result<bool, Error> {
        keys::namespace(ns)?;
        let mut inner = self.lock();
        let matches = inner.active.as_deref() == expected;
        if matches {
            inner.active = Some(ns.into());
        }
        Ok(matches)
    }

    async fn plan(&self, ns: &str) -> Result<Option<String>, Error> {
        self.get_plan(ns)
    }

    async fn set_plan(&self, ns: &str, plan: &str, expected: Option<&str>) -> Result<bool, Error> {
        self.put_plan(ns, plan, expected)
    }

    async fn namespaces(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(self.lock().enrolled.clone())
    }

    async fn enroll(&self, ns: &str, note: Option<&str>) -> Result<(), Error> {
        self.put_registered(ns, note)
    }

    async fn set_cost(&self, arm: &str, note: &str) -> Result<(), Error> {
        self.lock().costs.insert(arm.into(), note.into());
        Ok(())
    }

    async fn costs(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(self.lock().costs.clone())
    }

    async fn signal_live_behind(&self, _: Duration) -> Result<(), Error> {
        // Nothing expires here.
        self.lock().live_behind = true;
        Ok(())
    }

    async fn live_behind(&self) -> Result<bool, Error> {
        Ok(self.lock().live_behind)
    }

    async fn signal_history(&self, ns: &str, _: Duration) -> Result<(), Error> {
        self.lock().history.insert(ns.into(), HISTORY_ANSWERS);
        Ok(())
    }

    async fn in_history(&self, ns: &str) -> Result<bool, Error> {
        let mut inner = self.lock();
        let Some(left) = inner.history.get_mut(ns).filter(|left| **left > 0) else {
            return Ok(false);
        };
        *left -= 1;
        Ok(true)
    }
}

impl Durability for MemoryStore {
    async fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn lineage(&self) -> Result<Lineage, Error> {
        Ok(self.lock().lineage())
    }

    fn under(&self, lineage: &Lineage) -> Self {
        Self {
            lineage: Some(lineage.clone()),
            ..self.clone()
        }
    }

    async fn checkpoint(&self, reader: &str, done: &[(Partition, Resume)]) -> Result<(), Error> {
        self.writable()?.raise(reader, done);
        Ok(())
    }

    async fn checkpoints(&self, reader: &str) -> Result<BTreeMap<Partition, Resume>, Error> {
        if self.flaws.blind_checkpoint {
            return Ok(loss::everything());
        }
        Ok(self.lock().least(reader))
    }
}
