//! Promise: the memory double answers what Redis answers, for random calls in random order.

use nearshore_core::list::document::Stage;
use nearshore_core::ports::store::{
    Availability, Block, Cell, Claim, Counts, Delta, FoldWrite, ListEdit, Publish, Stock,
    StockRecord, Stored, Users,
};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Offset, Partition, Timestamp};
use nearshore_core::user::state::{Activity, LoadedUser, Pending};
use nearshore_redis::RedisStore;
use nearshore_testkit::store::MemoryStore;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::fresh;
use crate::store::{cluster, event, memory, partition, position, profile, single, topic};

/// The two stores, and few names, so that the calls often concern the same ones.
struct Pair {
    memory: MemoryStore,
    redis: RedisStore,
    random: ChaCha8Rng,
    namespaces: Vec<String>,
    users: Vec<UserId>,
    skus: Vec<String>,
    blocks: Vec<String>,
    stock: Partition,
    offset: i64,
}

/// Calls both stores and compares their answers.
macro_rules! same {
    ($pair:ident, $what:ident ( $($arg:expr),* )) => {{
        let expected = $pair.memory.$what($($arg),*).await.expect("memory answers");
        let found = $pair.redis.$what($($arg),*).await.expect("Redis answers");
        assert_eq!(expected, found, stringify!($what));
        expected
    }};
}

impl Pair {
    fn new(redis: RedisStore, seed: u64) -> Self {
        let names = |what: &str, n: usize| (0..n).map(|_| fresh(what)).collect::<Vec<_>>();
        Self {
            memory: memory(),
            redis,
            random: ChaCha8Rng::seed_from_u64(seed),
            namespaces: names("ns", 2),
            users: names("u{%}", 3)
                .iter()
                .map(|u| UserId(u.as_str().into()))
                .collect(),
            skus: names("sku", 6),
            blocks: names("pu", 2),
            stock: partition(&topic()),
            offset: 0,
        }
    }

    fn one_of<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())].clone()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn time(&mut self) -> Timestamp {
        Timestamp(self.random.random_range(0..20_000))
    }

    async fn step(&mut self) {
        let (namespaces, users) = (self.namespaces.clone(), self.users.clone());
        let (ns, user) = (self.one_of(&namespaces), self.one_of(&users));
        match self.random.random_range(0..100) {
            0..40 => self.fold(&ns, user).await,
            40..55 => {
                let due = Timestamp(self.random.random_range(0..300_000_000));
                // Some expect an old version.
                let users = [user.clone()];
                let now = same!(self, peek(&ns, &users))[0].ver;
                let expected = now.saturating_sub(u64::from(self.chance(20)));
                let claims = [Claim {
                    user,
                    due,
                    expected,
                }];
                same!(self, claim(&ns, &claims));
            }
            55..75 => self.publish(&ns, user).await,
            75..85 => self.add(&ns).await,
            85..95 => self.stock().await,
            _ => self.block().await,
        }
    }

    async fn load(&self, ns: &str, user: &UserId) -> LoadedUser {
        let users = [user.clone()];
        same!(self, load(ns, &users)).pop().expect("one answer")
    }

    async fn fold(&mut self, ns: &str, user: UserId) {
        let loaded = self.load(ns, &user).await;
        let peeks = same!(self, peek(ns, std::slice::from_ref(&user)));
        let claim = peeks[0].list.as_ref().map_or(0, |list| list.claim);
        let mut state = loaded.state;
        let time = self.time();
        self.offset += 1;
        if time > state.erased_at {
            state.window.push(event(self.offset, time.0));
            state
                .window
                .sort_by_key(|event| (event.time, event.position.offset));
        }
        state.fences.raise(&position(self.offset));
        let mut profile_changed = false;
        match self.random.random_range(0..10) {
            0 if time > state.erased_at => {
                state.erased_at = time;
                state.window.retain(|event| event.time > time);
                profile_changed = state.profile.take_if(|p| p.time <= time).is_some();
            }
            1 => state.erased_at = Timestamp(state.erased_at.0 / 2),
            2..4 if time > state.erased_at => {
                state.profile = Some(profile(self.offset, time.0));
                profile_changed = true;
            }
            _ => {}
        }
        let wrong = self.chance(15);
        let writes = [FoldWrite {
            user,
            expected: loaded.ver + u64::from(wrong),
            state,
            activity: self.activity(loaded.activity),
            profile_changed,
            list: self.edit(claim),
        }];
        same!(self, fold(ns, &writes));
    }

    fn activity(&mut self, before: Activity) -> Activity {
        let source = self.chance(50).then(|| position(self.offset));
        let due = self.time();
        Activity {
            pending: self.chance(50).then_some(Pending { source, due }),
            score: self.random.random_range(0..500),
            claim_rate: before.claim_rate,
        }
    }

    fn stage(&mut self) -> Stage {
        if self.chance(50) {
            Stage::Mixture
        } else {
            Stage::Model
        }
    }

    fn edit(&mut self, claim: u64) -> ListEdit {
        match self.random.random_range(0..3) {
            0 => ListEdit::Strip {
                claim: claim + u64::from(self.chance(30)),
                stage: self.stage(),
                doc: r#"{"source":"model","stripped":true}"#.into(),
            },
            _ => ListEdit::Keep,
        }
    }

    async fn publish(&mut self, ns: &str, user: UserId) {
        let loaded = self.load(ns, &user).await;
        let source = if self.chance(50) { "model" } else { "fallback" };
        let wrong_erase = self.chance(20);
        let lists = [Publish {
            list: Stored {
                doc: format!(r#"{{"source":"{source}"}}"#),
                claim: (loaded.claim + 1).saturating_sub(self.random.random_range(0..4)),
                stage: self.stage(),
                seen: loaded.state.fences,
                epoch: self.random.random_range(1..4),
                at: self.time(),
                audit: "{}".into(),
            },
            erased_at: if wrong_erase {
                self.time()
            } else {
                loaded.state.erased_at
            },
            force: self.chance(30),
            only_if_absent: self.chance(30),
            user,
        }];
        same!(self, publish(ns, &lists));
    }

    async fn add(&mut self, ns: &str) {
        let skus = self.skus.clone();
        let shard = self.random.random_range(0..3);
        let topics = ["one", "two"];
        let partition = partition(self.one_of(&topics));
        let fences = same!(self, count_fences(ns, &partition));
        let wrong = self.chance(20).then_some(Offset(99));
        self.offset += 1;
        let mut cells = std::collections::BTreeMap::new();
        for _ in 0..self.random.random_range(0..3) {
            let cell = Cell {
                sku: self.one_of(&skus),
                kind: self.one_of(&CountKind::ALL),
                segment: self.one_of(&["default", "a:b"]).into(),
                bucket: self.random.random_range(0..3),
            };
            cells.insert(cell, self.random.random_range(1..5));
        }
        let deltas = [Delta {
            shard,
            partition,
            prev: wrong.or(fences.get(&shard).copied()),
            last: Offset(self.offset),
            cells,
        }];
        same!(self, add(ns, &deltas));
        same!(self, counts(ns, shard, 1));
        same!(self, count_versions(ns));
    }

    async fn stock(&mut self) {
        let skus = self.skus.clone();
        self.offset += 1;
        let behind = self.random.random_range(0..4);
        let ops: Vec<StockRecord> = (0..self.random.random_range(1..5))
            .map(|nth| StockRecord {
                sku: self.one_of(&skus),
                partition: self.stock.clone(),
                offset: Offset(self.offset + nth - behind),
                availability: [
                    Availability::InStock,
                    Availability::SoldOut,
                    Availability::Delisted,
                ][self.random.random_range(0..3)],
                // Sometimes so late that SKUs that are gone leave the set.
                time: Timestamp(self.random.random_range(0..4) * 20 * 24 * 3_600_000),
            })
            .collect();
        same!(self, stock(&ops));
        same!(self, sold_out(&skus));
    }

    async fn block(&mut self) {
        let (ids, skus) = (self.blocks.clone(), self.skus.clone());
        let id = self.one_of(&ids);
        let at = self.time();
        if self.chance(50) {
            let block = Block {
                id,
                pu: self.chance(50),
                skus: vec![self.one_of(&skus), self.one_of(&skus)],
                reason: "recall".into(),
                by: "ops".into(),
                at,
            };
            same!(self, block(&block));
        } else {
            same!(self, unblock(&id, "ops", at));
        }
        same!(self, sold_out(&skus));
    }

    async fn compare(&self) {
        for ns in &self.namespaces {
            same!(self, load(ns, &self.users));
            same!(self, peek(ns, &self.users));
            for shard in 0..3 {
                same!(self, counts(ns, shard, 0));
            }
        }
    }
}

async fn run(redis: RedisStore, seed: u64, steps: usize) {
    println!("seed {seed}");
    let mut pair = Pair::new(redis, seed);
    for _ in 0..steps {
        pair.step().await;
        pair.compare().await;
    }
}

#[tokio::test]
async fn memory_and_one_redis_give_the_same_answers() {
    for seed in 0..4 {
        run(single(), seed, 500).await;
    }
}

#[tokio::test]
async fn memory_and_a_cluster_give_the_same_answers() {
    run(cluster(), 7, 500).await;
}
