//! Promise: a backfill is a function of the bytes: killed at any step, with any batches, in any order of partitions, it
//! gives the same dump and folds nothing beyond its goal. Seeded, with the member's own code between a log and a store
//! in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nearshore::members::ingest::{self, Ingest, Now, Tally};
use nearshore::ops::backfill::{Group, OffsetRanges, Watch, catch_up};
use nearshore::ops::namespace::{Dump, dump};
use nearshore_core::ports::log::{self, Outgoing};
use nearshore_core::queue::replay::{Goal, Plan, Since, Stage};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_testkit::log::MemoryCluster;
use nearshore_testkit::store::MemoryStore;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::simulation::check::snapshot;

const GROUP: &str = "nearshore-ingest-b";
const SEEDS: u64 = 60;

/// Topics with the same records for every seed; with `beyond` also records after the goal.
fn cluster(seed: u64, topics: &Topics, beyond: bool) -> MemoryCluster {
    let cluster = MemoryCluster::new(seed);
    cluster.set_batch_max(1 + seed as usize % 9);
    cluster.create_topic(&topics.user_events, 3);
    cluster.create_topic(&topics.profile_changes, 2);
    let mut bytes = ChaCha8Rng::seed_from_u64(1);
    let start = 1_700_000_000_000;
    for nth in 0..120i64 {
        let user = format!("u{}", bytes.random_range(0..7));
        let time = Some(Timestamp(start + bytes.random_range(0..40) * 86_400_000));
        let (topic, value) = match bytes.random_range(0..10) {
            0 => (&topics.profile_changes, None),
            1 | 2 => (
                &topics.profile_changes,
                Some(json!({"age": nth % 40}).to_string()),
            ),
            3 => (&topics.user_events, Some("not JSON".to_owned())),
            _ => {
                let sku = format!("s{}", bytes.random_range(0..12));
                let event = json!({"type": "purchase", "sku": sku, "qty": 1 + nth % 3});
                (&topics.user_events, Some(event.to_string()))
            }
        };
        cluster.produce(Outgoing {
            topic: topic.clone(),
            key: Some(user.into()),
            value: value.map(Into::into),
            headers: Vec::new(),
            time,
        });
    }
    if beyond {
        for nth in 0..9 {
            let event = json!({"type": "purchase", "sku": "s1", "qty": 1}).to_string();
            cluster.produce(Outgoing {
                topic: topics.user_events.clone(),
                key: Some(format!("u{}", nth % 7).into()),
                value: Some(event.into()),
                headers: Vec::new(),
                time: Some(Timestamp(start + 41 * 86_400_000)),
            });
        }
    }
    cluster
}

fn plan(topics: &Topics) -> Plan {
    let whole = cluster(0, topics, false);
    let places = |of: fn(i64) -> i64| -> Since {
        [&topics.user_events, &topics.profile_changes]
            .into_iter()
            .flat_map(|topic| whole.ends(topic))
            .map(|(partition, end)| (partition, Resume(of(end.0))))
            .collect()
    };
    Plan {
        v: 1,
        from: "earliest".into(),
        to: "latest".into(),
        starts: places(|_| 0),
        ends: places(|end| end),
        complete_since: BTreeMap::new(),
        created_at: Timestamp(1_800_000_000_000),
        config: String::new(),
        stage: Stage::Profiles,
        cursor: None,
        totals: Default::default(),
    }
}

/// A group in memory. Every offset there has a record, so no stretch is empty.
struct InMemory(MemoryCluster);

impl Group for InMemory {
    async fn committed(&self) -> Result<Since, log::Error> {
        Ok(self.0.committed(GROUP))
    }

    async fn empty(&self, _: OffsetRanges) -> Result<BTreeSet<Partition>, log::Error> {
        Ok(BTreeSet::new())
    }
}

#[derive(Default)]
struct Counted(Tally);

impl Watch for Counted {
    async fn folded(&mut self, _: &Goal, tally: Tally) -> anyhow::Result<()> {
        self.0 += tally;
        Ok(())
    }
}

/// A member of the group folds a topic; after so many steps it is killed: its future is dropped.
async fn member(
    (cluster, store, topics): (&MemoryCluster, &MemoryStore, &Topics),
    (topic, steps): (&str, usize),
) -> Option<Tally> {
    let settings = ingest::IngestSettings {
        ns: "b".into(),
        group: GROUP.into(),
        topics: topics.clone(),
        limits: Default::default(),
        policy: Default::default(),
        ignore: Default::default(),
        window: 9,
        units_max: 20,
        clock: || Timestamp(1_800_000_000_000),
        cache_users: NonZeroUsize::new(2).expect("two"),
        triggers: false,
        hits_sample: 0.0,
        now: Now::Fixed(Timestamp(1_800_000_000_000)),
        complete_since: BTreeMap::new(),
    };
    let snapshot: Arc<ArcSwap<Snapshot>> = Arc::new(ArcSwap::from_pointee(snapshot()));
    let log = cluster.join(GROUP, &[topic]);
    let mut member = Ingest::new(log, store.clone(), snapshot, settings);
    let mut goal = plan(topics).goal(topic);
    let (group, mut counted) = (InMemory(cluster.clone()), Counted::default());
    let cancel = CancellationToken::new();
    let work = catch_up(&mut member, &mut goal, (&group, &mut counted), &cancel);
    let kill = async {
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        reached = work => assert!(reached.expect("no error in memory")),
        () = kill => return None,
    }
    Some(counted.0)
}

/// Fills a namespace, with kills chosen by the seed; the tally of the members that finished, and the dump.
async fn fill(seed: u64, kills: bool) -> (Tally, Dump) {
    let topics = Topics::default();
    let cluster = cluster(seed, &topics, true);
    let store = MemoryStore::default();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut sum = Tally::default();
    for topic in [&topics.profile_changes, &topics.user_events] {
        loop {
            let steps = if kills {
                random.random_range(1..80)
            } else {
                100_000
            };
            if let Some(done) = member((&cluster, &store, &topics), (topic, steps)).await {
                sum += done;
                break;
            }
            // Some members are not killed, so that every fold ends.
            cluster.rebalance(GROUP);
            if random.random_bool(0.1) {
                let done = member((&cluster, &store, &topics), (topic, 100_000)).await;
                sum += done.expect("it is not killed so late");
                break;
            }
        }
    }
    let committed = cluster.committed(GROUP);
    for (partition, end) in &plan(&topics).ends {
        assert_eq!(
            committed.get(partition).copied().unwrap_or(Resume(0)),
            *end,
            "{partition}"
        );
    }
    let found = dump(&store, "b", &mut std::io::sink()).await;
    (sum, found.expect("memory answers"))
}

#[tokio::test]
async fn a_backfill_is_a_function_of_the_bytes_wherever_it_is_killed() {
    let (tally, whole) = fill(0, false).await;
    assert_eq!(tally.folded + tally.dead, 120, "{tally:?}");
    assert!(
        tally.dead > 0 && tally.duplicate == 0 && tally.requests == 0,
        "{tally:?}"
    );
    let mut repeated = 0;
    for seed in 1..SEEDS {
        let (tally, found) = fill(seed, true).await;
        assert_eq!(found, whole, "seed {seed}");
        repeated += tally.duplicate;
    }
    assert!(repeated > 0, "no kill fell between a fold and its commit");
}
