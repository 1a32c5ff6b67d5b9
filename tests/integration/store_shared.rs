//! Promise: each record is in the sums once; a stock set follows its stream whatever comes twice or
//! late, and a blocked product stays out; of two that promote at once, one is refused.

use std::collections::BTreeMap;

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    self, Added, Block, Cell, Claim, Delta, Error, Lineage, Remedy, StockOp, Store,
};
use nearshore_core::user::event::Kind;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};

use crate::harness::fresh;
use crate::store::{list, load, partition, topic, user, write};

crate::for_every_store!(
    a_chain_of_deltas_adds_up,
    a_delta_that_is_sent_twice_is_added_once,
    a_stale_or_late_delta_is_told_the_fence,
    partitions_chain_on_their_own,
    old_buckets_are_left_out_on_request,
    a_shards_version_changes_with_its_fences,
    stock_follows_its_records_in_their_order,
    a_gone_sku_leaves_its_set_when_no_list_can_name_it,
    a_late_stock_record_changes_nothing,
    a_blocked_sku_stays_out_until_it_is_unblocked,
    an_unblocked_sku_that_is_sold_out_stays_out,
    a_sku_under_two_blocks_waits_for_both,
    a_block_that_is_sent_twice_is_in_force_once,
    one_who_expects_another_namespace_is_refused,
    fallbacks_are_kept_by_segment,
    a_checkpoint_only_rises_and_is_each_readers_own,
    a_write_for_another_lineage_changes_nothing,
);

async fn a_checkpoint_only_rises_and_is_each_readers_own<S: Store>(store: S) {
    let (reader, other, p) = (fresh("reader"), fresh("reader"), partition("user-events"));
    assert_eq!(noted(&store, &reader).await, []);
    for (resume, held) in [(7, 7), (5, 7), (9, 9)] {
        let done = [(p.clone(), Resume(resume))];
        store.checkpoint(&reader, &done).await.expect("noted");
        assert_eq!(noted(&store, &reader).await, [(p.clone(), Resume(held))]);
    }
    assert_eq!(noted(&store, &other).await, []);
}

async fn noted<S: Store>(store: &S, reader: &str) -> Vec<(Partition, Resume)> {
    let noted = store.checkpoints(reader).await.expect("answered");
    noted.into_iter().collect()
}

async fn a_write_for_another_lineage_changes_nothing<S: Store>(store: S) {
    let (ns, reader, p) = (fresh("ns"), fresh("reader"), partition("user-events"));
    let lineage = store.lineage().await.expect("answered");
    assert_eq!(store.lineage().await.expect("answered"), lineage);
    let ours = store.under(&lineage);
    let one = |last| delta(&p, None, last, &[(cell("a", 1), 1)]);
    assert_eq!(add(&ours, &ns, one(3)).await, Added::Stored);
    let theirs = store.under(&Lineage("0123456789".into()));
    let user = user("u");
    let claim = Claim {
        user: user.clone(),
        due: Timestamp(1),
        expected: 0,
    };
    let out = StockOp {
        sku: fresh("sku"),
        partition: p.clone(),
        offset: Offset(1),
        shelf: store::Shelf::Out,
        time: Timestamp(0),
    };
    let refused = [
        theirs.add(&ns, &[one(4)]).await.map(drop),
        theirs.fold(&ns, &[write(&user, 0, 1)]).await.map(drop),
        theirs.claim(&ns, &[claim]).await.map(drop),
        theirs.publish(&ns, &[list(&user, 1)]).await.map(drop),
        theirs.stock(std::slice::from_ref(&out)).await,
        theirs.checkpoint(&reader, &[(p.clone(), Resume(9))]).await,
    ];
    for refused in refused {
        let error = refused.expect_err("another lineage");
        assert!(matches!(error, Error::Regressed { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Rewind);
    }
    assert_eq!(counts(&store, &ns, 0).await.len(), 1);
    assert_eq!(load(&theirs, &ns, &user).await.ver, 0, "reading goes on");
    assert_eq!(noted(&store, &reader).await, []);
    assert_eq!(store.sold_out(&[out.sku]).await.expect("answered"), [false]);
}

fn cell(sku: &str, bucket: i64) -> Cell {
    Cell {
        sku: sku.into(),
        kind: Kind::Purchase,
        segment: "50+: women".into(),
        bucket,
    }
}

fn delta(partition: &Partition, prev: Option<i64>, last: i64, cells: &[(Cell, u64)]) -> Delta {
    Delta {
        shard: 7,
        partition: partition.clone(),
        prev: prev.map(Offset),
        last: Offset(last),
        cells: cells.iter().cloned().collect(),
    }
}

async fn add<S: Store>(store: &S, ns: &str, delta: Delta) -> Added {
    let mut answers = store.add(ns, &[delta]).await.expect("add answers");
    answers.pop().expect("one answer")
}

async fn counts<S: Store>(store: &S, ns: &str, since: i64) -> BTreeMap<Cell, u64> {
    store.counts(ns, 7, since).await.expect("counts answer")
}

async fn a_chain_of_deltas_adds_up<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let view = Cell {
        kind: Kind::View,
        segment: "default".into(),
        ..cell("sku:with:colons", 9)
    };
    let (a, b) = (cell("a", 10), cell("b", 11));
    let chain = [
        delta(&p, None, 4, &[(a.clone(), 2), (view.clone(), 1)]),
        delta(&p, Some(4), 9, &[(a.clone(), 3), (b.clone(), 1)]),
        delta(&p, Some(9), 10, &[]),
    ];
    for delta in chain {
        assert_eq!(add(&store, &ns, delta).await, Added::Stored);
    }
    let expected: BTreeMap<Cell, u64> = [(a, 5), (b, 1), (view, 1)].into();
    assert_eq!(counts(&store, &ns, 0).await, expected);
    let fences = store.count_fences(&ns, &p).await.expect("fences answer");
    assert_eq!(fences, [(7, Offset(10))].into());
}

async fn a_delta_that_is_sent_twice_is_added_once<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let once = delta(&p, None, 4, &[(cell("a", 1), 2)]);
    assert_eq!(add(&store, &ns, once.clone()).await, Added::Stored);
    let told = Added::Fence(Some(Offset(4)));
    assert_eq!(add(&store, &ns, once).await, told);
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
}

async fn a_stale_or_late_delta_is_told_the_fence<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let gap = delta(&p, Some(3), 5, &[(cell("a", 1), 1)]);
    assert_eq!(add(&store, &ns, gap.clone()).await, Added::Fence(None));
    for (prev, last) in [(None, 3), (Some(3), 8)] {
        let next = delta(&p, prev, last, &[(cell("a", 1), 1)]);
        assert_eq!(add(&store, &ns, next).await, Added::Stored);
    }
    // The first sender's write lands after all, cut otherwise than its successor's.
    let told = Added::Fence(Some(Offset(8)));
    assert_eq!(add(&store, &ns, gap).await, told);
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
}

async fn partitions_chain_on_their_own<S: Store>(store: S) {
    let ns = fresh("ns");
    let (one, two) = (partition("one"), partition("two"));
    let deltas = [
        delta(&one, None, 4, &[(cell("a", 1), 1)]),
        delta(&two, None, 7, &[(cell("a", 1), 1)]),
        delta(&one, Some(7), 9, &[(cell("a", 1), 1)]),
    ];
    let expected = [Added::Stored, Added::Stored, Added::Fence(Some(Offset(4)))];
    for (delta, told) in deltas.into_iter().zip(expected) {
        assert_eq!(add(&store, &ns, delta).await, told);
    }
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
    let fences = store.count_fences(&ns, &two).await.expect("fences answer");
    assert_eq!(fences, [(7, Offset(7))].into());
}

async fn old_buckets_are_left_out_on_request<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let cells = [(cell("a", 1), 1), (cell("a", 2), 2), (cell("a", 30), 4)];
    assert_eq!(
        add(&store, &ns, delta(&p, None, 3, &cells)).await,
        Added::Stored
    );
    let recent = counts(&store, &ns, 2).await;
    assert_eq!(recent, [(cell("a", 2), 2), (cell("a", 30), 4)].into());
    let other = store.counts(&ns, 8, 0).await.expect("counts answer");
    assert!(other.is_empty());
}

async fn a_shards_version_changes_with_its_fences<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let versions = async || store.count_versions(&ns).await.expect("versions answer");
    assert!(versions().await.is_empty());
    assert_eq!(
        add(&store, &ns, delta(&p, None, 3, &[])).await,
        Added::Stored
    );
    let one = versions().await;
    assert_eq!(one.keys().copied().collect::<Vec<u8>>(), [7]);
    let text = p.to_string();
    assert_eq!(one[&7], keys::digest([(text.as_str(), 3)]));
    add(&store, &ns, delta(&p, None, 3, &[])).await;
    assert_eq!(versions().await, one);
    assert_eq!(
        add(&store, &ns, delta(&p, Some(3), 4, &[])).await,
        Added::Stored
    );
    assert_ne!(versions().await, one);
}

/// A SKU's records on a topic of its own.
struct Shelf<'a, S> {
    store: &'a S,
    sku: String,
    partition: Partition,
}

impl<'a, S: Store> Shelf<'a, S> {
    fn new(store: &'a S) -> Self {
        Self {
            store,
            sku: fresh("sku"),
            partition: partition(&topic()),
        }
    }

    async fn record(&self, offset: i64, out: bool) {
        self.record_at(offset, shelf(out), 0).await;
    }

    async fn record_at(&self, offset: i64, shelf: store::Shelf, days: i64) {
        let op = StockOp {
            sku: self.sku.clone(),
            partition: self.partition.clone(),
            offset: Offset(offset),
            shelf,
            time: Timestamp(days * 24 * 3_600_000),
        };
        self.store.stock(&[op]).await.expect("stock answers");
    }

    async fn out(&self) -> bool {
        let skus = [fresh("other"), self.sku.clone()];
        self.store.sold_out(&skus).await.expect("sold_out answers")[1]
    }

    fn block(&self, id: &str, pu: bool) -> Block {
        Block {
            id: id.into(),
            pu,
            skus: vec![self.sku.clone()],
            reason: "recall".into(),
            by: "ops".into(),
            at: Timestamp(5),
        }
    }

    async fn unblock(&self, id: &str) -> bool {
        let lifted = self.store.unblock(id, "ops", Timestamp(6));
        lifted.await.expect("unblock answers")
    }
}

async fn stock_follows_its_records_in_their_order<S: Store>(store: S) {
    let partition = partition(&topic());
    let skus: Vec<String> = (0..80).map(|_| fresh("sku")).collect();
    // Every SKU goes out, every second comes back, in one batch.
    let gone = skus.iter().map(|sku| (sku, true));
    let back = skus.iter().step_by(2).map(|sku| (sku, false));
    let ops: Vec<StockOp> = (0..)
        .zip(gone.chain(back))
        .map(|(offset, (sku, out))| StockOp {
            sku: sku.clone(),
            partition: partition.clone(),
            offset: Offset(offset),
            shelf: shelf(out),
            time: Timestamp(0),
        })
        .collect();
    for _ in 0..2 {
        store.stock(&ops).await.expect("stock answers");
        let out = store.sold_out(&skus).await.expect("sold_out answers");
        for (nth, out) in out.into_iter().enumerate() {
            assert_eq!(out, nth % 2 == 1, "{nth}");
        }
    }
    let nothing = store.sold_out(&[]).await.expect("sold_out answers");
    assert!(nothing.is_empty());
}

fn shelf(out: bool) -> store::Shelf {
    if out {
        store::Shelf::Out
    } else {
        store::Shelf::In
    }
}

async fn a_gone_sku_leaves_its_set_when_no_list_can_name_it<S: Store>(store: S) {
    let shelf = Shelf::new(&store);
    shelf.record_at(1, store::Shelf::Gone, 0).await;
    assert!(shelf.out().await, "lists may name it");
    // The stream goes on with another SKU of the same set.
    let set = keys::set(&shelf.sku);
    let mut others = (0..).map(|nth| format!("{}-{nth}", shelf.sku));
    let sku = others.find(|sku| keys::set(sku) == set);
    let other = Shelf {
        store: &store,
        sku: sku.expect("one in sixteen"),
        partition: shelf.partition.clone(),
    };
    other.record_at(2, store::Shelf::In, 29).await;
    assert!(shelf.out().await, "the last list is a day from its end");
    other.record_at(3, store::Shelf::In, 31).await;
    assert!(!shelf.out().await);
}

async fn a_late_stock_record_changes_nothing<S: Store>(store: S) {
    let shelf = Shelf::new(&store);
    shelf.record(5, true).await;
    shelf.record(9, false).await;
    for late in [5, 9] {
        shelf.record(late, true).await;
        assert!(!shelf.out().await, "{late}");
    }
    shelf.record(10, true).await;
    assert!(shelf.out().await);
}

async fn a_blocked_sku_stays_out_until_it_is_unblocked<S: Store>(store: S) {
    let shelf = Shelf::new(&store);
    let id = fresh("pu");
    assert!(!shelf.unblock(&id).await);
    let block = shelf.block(&id, true);
    store.block(&block).await.expect("block answers");
    assert!(shelf.out().await);
    let listed = store.blocks().await.expect("blocks answer");
    assert!(listed.contains(&block));
    shelf.record(1, true).await;
    shelf.record(2, false).await;
    assert!(shelf.out().await, "in stock, and blocked");
    assert!(shelf.unblock(&id).await);
    assert!(!shelf.out().await);
    assert!(!shelf.unblock(&id).await);
    let listed = store.blocks().await.expect("blocks answer");
    assert!(!listed.contains(&block));
}

async fn an_unblocked_sku_that_is_sold_out_stays_out<S: Store>(store: S) {
    for before in [true, false] {
        let shelf = Shelf::new(&store);
        let id = fresh("sku");
        shelf.record(1, before).await;
        let block = shelf.block(&id, false);
        store.block(&block).await.expect("block answers");
        if !before {
            shelf.record(2, true).await;
        }
        assert!(shelf.unblock(&id).await);
        assert!(shelf.out().await, "sold out before: {before}");
        shelf.record(3, false).await;
        assert!(!shelf.out().await);
    }
}

async fn a_sku_under_two_blocks_waits_for_both<S: Store>(store: S) {
    let shelf = Shelf::new(&store);
    let (pu, sku) = (fresh("pu"), fresh("sku"));
    for block in [shelf.block(&pu, true), shelf.block(&sku, false)] {
        store.block(&block).await.expect("block answers");
    }
    assert!(shelf.unblock(&pu).await);
    assert!(shelf.out().await);
    assert!(shelf.unblock(&sku).await);
    assert!(!shelf.out().await);
}

async fn a_block_that_is_sent_twice_is_in_force_once<S: Store>(store: S) {
    let shelf = Shelf::new(&store);
    let id = fresh("pu");
    let block = shelf.block(&id, true);
    for _ in 0..2 {
        store.block(&block).await.expect("block answers");
    }
    let listed = store.blocks().await.expect("blocks answer");
    assert_eq!(listed.iter().filter(|b| **b == block).count(), 1);
    assert!(shelf.unblock(&id).await);
    assert!(!shelf.out().await);
}

async fn one_who_expects_another_namespace_is_refused<S: Store>(store: S) {
    let now = store.active().await.expect("active answers");
    let (old, new) = (fresh("ns"), fresh("ns"));
    let set = async |ns: &str, expected: Option<&str>| {
        let set = store.set_active(ns, expected).await;
        set.expect("set_active answers")
    };
    assert!(set(&old, now.as_deref()).await);
    assert!(!set(&new, now.as_deref()).await);
    assert!(!set(&new, Some(&new)).await);
    assert!(set(&new, Some(&old)).await);
    let active = store.active().await.expect("active answers");
    assert_eq!(active, Some(new));
}

async fn fallbacks_are_kept_by_segment<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    for (segment, doc) in [("default", "{}"), ("50+ {w}", r#"{"a":1}"#)] {
        let set = store.set_fallback(&ns, segment, doc).await;
        set.expect("set_fallback answers");
        let read = store.fallback(&ns, segment).await.expect("answers");
        assert_eq!(read.as_deref(), Some(doc));
        let beside = store.fallback(&other, segment).await.expect("answers");
        assert_eq!(beside, None);
    }
    assert!(store.set_fallback(&ns, "", "{}").await.is_err());
}
