//! Promise: each record is in the counts once; a sold-out set follows its records although some come twice or late; a
//! blocked product stays out; of two concurrent promotions one is refused.

use std::collections::BTreeMap;

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    self, Added, Block, Cell, Claim, Delta, Error, Lineage, Remedy, StockRecord, Store,
};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::Kind;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};

use crate::harness::fresh;
use crate::store::{list, load, partition, topic, user, write};

crate::for_every_store!(
    a_chain_of_deltas_adds_up,
    a_delta_that_is_sent_twice_is_added_once,
    a_stale_or_late_delta_is_refused_with_the_fence,
    deltas_of_different_partitions_are_independent,
    counts_since_a_bucket_leave_out_older_ones,
    a_shards_version_changes_with_its_fences,
    sold_out_sets_follow_the_records_in_their_order,
    skus_of_one_record_are_all_applied_and_none_of_them_twice,
    a_deleted_sku_leaves_its_set_when_no_list_can_name_it,
    a_late_stock_record_changes_nothing,
    a_blocked_sku_stays_out_until_it_is_unblocked,
    an_unblocked_sku_that_is_sold_out_stays_out,
    a_sku_under_two_blocks_stays_out_until_both_are_lifted,
    a_block_that_is_sent_twice_is_lifted_once,
    a_promotion_that_expects_another_namespace_is_refused,
    a_fallback_is_stored_for_each_segment,
    a_checkpoint_never_falls_and_belongs_to_one_reader,
    a_write_under_another_lineage_changes_nothing,
);

async fn a_checkpoint_never_falls_and_belongs_to_one_reader<S: Store>(store: S) {
    let (reader, other, p) = (fresh("reader"), fresh("reader"), partition("user-events"));
    assert_eq!(checkpoints(&store, &reader).await, []);
    for (resume, held) in [(7, 7), (5, 7), (9, 9)] {
        let done = [(p.clone(), Resume(resume))];
        store
            .checkpoint(&reader, &done)
            .await
            .expect("the store answers");
        assert_eq!(
            checkpoints(&store, &reader).await,
            [(p.clone(), Resume(held))]
        );
    }
    assert_eq!(checkpoints(&store, &other).await, []);
}

async fn checkpoints<S: Store>(store: &S, reader: &str) -> Vec<(Partition, Resume)> {
    let all = store.checkpoints(reader).await.expect("the store answers");
    all.into_iter().collect()
}

async fn a_write_under_another_lineage_changes_nothing<S: Store>(store: S) {
    let (ns, reader, p) = (fresh("ns"), fresh("reader"), partition("user-events"));
    let lineage = store.lineage().await.expect("the store answers");
    assert_eq!(store.lineage().await.expect("the store answers"), lineage);
    let current = store.under(&lineage);
    let one = |last| delta(&p, None, last, &[(cell("a", 1), 1)]);
    assert_eq!(add(&current, &ns, one(3)).await, Added::Stored);
    let other = store.under(&Lineage("0123456789".into()));
    let user = user("u");
    let claim = Claim {
        user: user.clone(),
        due: Timestamp(1),
        expected: 0,
    };
    let out = StockRecord {
        sku: fresh("sku"),
        partition: p.clone(),
        offset: Offset(1),
        availability: store::Availability::SoldOut,
        time: Timestamp(0),
    };
    let refused = [
        other.add(&ns, &[one(4)]).await.map(drop),
        other.fold(&ns, &[write(&user, 0, 1)]).await.map(drop),
        other.claim(&ns, &[claim]).await.map(drop),
        other.publish(&ns, &[list(&user, 1)]).await.map(drop),
        other.stock(std::slice::from_ref(&out)).await,
        other.checkpoint(&reader, &[(p.clone(), Resume(9))]).await,
    ];
    for refused in refused {
        let error = refused.expect_err("another lineage");
        assert!(matches!(error, Error::Regressed { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Rewind);
    }
    assert_eq!(counts(&store, &ns, 0).await.len(), 1);
    assert_eq!(load(&other, &ns, &user).await.ver, 0, "reading is allowed");
    assert_eq!(checkpoints(&store, &reader).await, []);
    assert_eq!(
        store.sold_out(&[out.sku]).await.expect("the store answers"),
        [false]
    );
}

fn cell(sku: &str, bucket: i64) -> Cell {
    Cell {
        sku: sku.into(),
        kind: CountKind::Event(Kind::Purchase),
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
    let mut answers = store.add(ns, &[delta]).await.expect("the store answers");
    answers.pop().expect("one answer")
}

async fn counts<S: Store>(store: &S, ns: &str, since: i64) -> BTreeMap<Cell, u64> {
    store.counts(ns, 7, since).await.expect("the store answers")
}

async fn a_chain_of_deltas_adds_up<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let view = Cell {
        kind: CountKind::Buyer,
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
    let fences = store
        .count_fences(&ns, &p)
        .await
        .expect("the store answers");
    assert_eq!(fences, [(7, Offset(10))].into());
}

async fn a_delta_that_is_sent_twice_is_added_once<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let once = delta(&p, None, 4, &[(cell("a", 1), 2)]);
    assert_eq!(add(&store, &ns, once.clone()).await, Added::Stored);
    let refused_with = Added::Fence(Some(Offset(4)));
    assert_eq!(add(&store, &ns, once).await, refused_with);
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
}

async fn a_stale_or_late_delta_is_refused_with_the_fence<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let gap = delta(&p, Some(3), 5, &[(cell("a", 1), 1)]);
    assert_eq!(add(&store, &ns, gap.clone()).await, Added::Fence(None));
    for (prev, last) in [(None, 3), (Some(3), 8)] {
        let next = delta(&p, prev, last, &[(cell("a", 1), 1)]);
        assert_eq!(add(&store, &ns, next).await, Added::Stored);
    }
    // The first sender's delta arrives late; it spans other offsets than its successor's.
    let refused_with = Added::Fence(Some(Offset(8)));
    assert_eq!(add(&store, &ns, gap).await, refused_with);
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
}

async fn deltas_of_different_partitions_are_independent<S: Store>(store: S) {
    let ns = fresh("ns");
    let (one, two) = (partition("one"), partition("two"));
    let deltas = [
        delta(&one, None, 4, &[(cell("a", 1), 1)]),
        delta(&two, None, 7, &[(cell("a", 1), 1)]),
        delta(&one, Some(7), 9, &[(cell("a", 1), 1)]),
    ];
    let expected = [Added::Stored, Added::Stored, Added::Fence(Some(Offset(4)))];
    for (delta, answer) in deltas.into_iter().zip(expected) {
        assert_eq!(add(&store, &ns, delta).await, answer);
    }
    assert_eq!(counts(&store, &ns, 0).await, [(cell("a", 1), 2)].into());
    let fences = store
        .count_fences(&ns, &two)
        .await
        .expect("the store answers");
    assert_eq!(fences, [(7, Offset(7))].into());
}

async fn counts_since_a_bucket_leave_out_older_ones<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let cells = [(cell("a", 1), 1), (cell("a", 2), 2), (cell("a", 30), 4)];
    assert_eq!(
        add(&store, &ns, delta(&p, None, 3, &cells)).await,
        Added::Stored
    );
    let recent = counts(&store, &ns, 2).await;
    assert_eq!(recent, [(cell("a", 2), 2), (cell("a", 30), 4)].into());
    let other = store.counts(&ns, 8, 0).await.expect("the store answers");
    assert!(other.is_empty());
}

async fn a_shards_version_changes_with_its_fences<S: Store>(store: S) {
    let (ns, p) = (fresh("ns"), partition("user-events"));
    let versions = async || store.count_versions(&ns).await.expect("the store answers");
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

/// One SKU whose records are on a topic of its own.
struct Sku<'a, S> {
    store: &'a S,
    sku: String,
    partition: Partition,
}

impl<'a, S: Store> Sku<'a, S> {
    fn new(store: &'a S) -> Self {
        Self {
            store,
            sku: fresh("sku"),
            partition: partition(&topic()),
        }
    }

    /// Writes a record of the SKU: sold out or in stock.
    async fn record(&self, offset: i64, out: bool) {
        self.record_at(offset, stock(out), 0).await;
    }

    async fn record_at(&self, offset: i64, availability: store::Availability, days: i64) {
        let op = StockRecord {
            sku: self.sku.clone(),
            partition: self.partition.clone(),
            offset: Offset(offset),
            availability,
            time: Timestamp(days * 24 * 3_600_000),
        };
        self.store.stock(&[op]).await.expect("the store answers");
    }

    /// Whether the SKU is in a sold-out set.
    async fn out(&self) -> bool {
        let skus = [fresh("other"), self.sku.clone()];
        self.store.sold_out(&skus).await.expect("the store answers")[1]
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
        lifted.await.expect("the store answers")
    }
}

async fn sold_out_sets_follow_the_records_in_their_order<S: Store>(store: S) {
    let partition = partition(&topic());
    let skus: Vec<String> = (0..80).map(|_| fresh("sku")).collect();
    // In one batch every SKU is sold out and every second is in stock again.
    let out = skus.iter().map(|sku| (sku, true));
    let back = skus.iter().step_by(2).map(|sku| (sku, false));
    let ops: Vec<StockRecord> = (0..)
        .zip(out.chain(back))
        .map(|(offset, (sku, out))| StockRecord {
            sku: sku.clone(),
            partition: partition.clone(),
            offset: Offset(offset),
            availability: stock(out),
            time: Timestamp(0),
        })
        .collect();
    for _ in 0..2 {
        store.stock(&ops).await.expect("the store answers");
        let out = store.sold_out(&skus).await.expect("the store answers");
        for (nth, out) in out.into_iter().enumerate() {
            assert_eq!(out, nth % 2 == 1, "{nth}");
        }
    }
    let nothing = store.sold_out(&[]).await.expect("the store answers");
    assert!(nothing.is_empty());
}

async fn skus_of_one_record_are_all_applied_and_none_of_them_twice<S: Store>(store: S) {
    let partition = partition(&topic());
    let skus: Vec<String> = (0..80).map(|_| fresh("sku")).collect();
    // One record of a mapped topic: a sold-out SKU of each, so that several are in one set.
    let of_record = |offset: i64, out: bool| -> Vec<StockRecord> {
        let each = skus.iter().map(|sku| StockRecord {
            sku: sku.clone(),
            partition: partition.clone(),
            offset: Offset(offset),
            availability: stock(out),
            time: Timestamp(0),
        });
        each.collect()
    };
    let (first, second) = (of_record(1, true), of_record(2, false));
    for (ops, out) in [
        (first.clone(), true),
        (second.clone(), false),
        (first.clone(), false),
        ([first.clone(), second].concat(), false),
    ] {
        store.stock(&ops).await.expect("the store answers");
        let found = store.sold_out(&skus).await.expect("the store answers");
        assert!(found.iter().all(|it| *it == out), "{found:?}");
    }
}

fn stock(out: bool) -> store::Availability {
    if out {
        store::Availability::SoldOut
    } else {
        store::Availability::InStock
    }
}

async fn a_deleted_sku_leaves_its_set_when_no_list_can_name_it<S: Store>(store: S) {
    let sku = Sku::new(&store);
    sku.record_at(1, store::Availability::Delisted, 0).await;
    assert!(sku.out().await, "lists may still name it");
    // Records of another SKU of the same set follow.
    let set = keys::set(&sku.sku);
    let mut candidates = (0..).map(|nth| format!("{}-{nth}", sku.sku));
    let found = candidates.find(|id| keys::set(id) == set);
    let other = Sku {
        store: &store,
        sku: found.expect("one id in sixteen"),
        partition: sku.partition.clone(),
    };
    other.record_at(2, store::Availability::InStock, 29).await;
    assert!(
        sku.out().await,
        "the last list that may name it lives one more day"
    );
    other.record_at(3, store::Availability::InStock, 31).await;
    assert!(!sku.out().await);
}

async fn a_late_stock_record_changes_nothing<S: Store>(store: S) {
    let sku = Sku::new(&store);
    sku.record(5, true).await;
    sku.record(9, false).await;
    for late in [5, 9] {
        sku.record(late, true).await;
        assert!(!sku.out().await, "{late}");
    }
    sku.record(10, true).await;
    assert!(sku.out().await);
}

async fn a_blocked_sku_stays_out_until_it_is_unblocked<S: Store>(store: S) {
    let sku = Sku::new(&store);
    let id = fresh("pu");
    assert!(!sku.unblock(&id).await);
    let block = sku.block(&id, true);
    store.block(&block).await.expect("the store answers");
    assert!(sku.out().await);
    let listed = store.blocks().await.expect("the store answers");
    assert!(listed.contains(&block));
    sku.record(1, true).await;
    sku.record(2, false).await;
    assert!(sku.out().await, "it is in stock but blocked");
    assert!(sku.unblock(&id).await);
    assert!(!sku.out().await);
    assert!(!sku.unblock(&id).await);
    let listed = store.blocks().await.expect("the store answers");
    assert!(!listed.contains(&block));
}

async fn an_unblocked_sku_that_is_sold_out_stays_out<S: Store>(store: S) {
    for before in [true, false] {
        let sku = Sku::new(&store);
        let id = fresh("sku");
        sku.record(1, before).await;
        let block = sku.block(&id, false);
        store.block(&block).await.expect("the store answers");
        if !before {
            sku.record(2, true).await;
        }
        assert!(sku.unblock(&id).await);
        assert!(sku.out().await, "sold out before: {before}");
        sku.record(3, false).await;
        assert!(!sku.out().await);
    }
}

async fn a_sku_under_two_blocks_stays_out_until_both_are_lifted<S: Store>(store: S) {
    let sku = Sku::new(&store);
    let (pu, id) = (fresh("pu"), fresh("sku"));
    for block in [sku.block(&pu, true), sku.block(&id, false)] {
        store.block(&block).await.expect("the store answers");
    }
    assert!(sku.unblock(&pu).await);
    assert!(sku.out().await);
    assert!(sku.unblock(&id).await);
    assert!(!sku.out().await);
}

async fn a_block_that_is_sent_twice_is_lifted_once<S: Store>(store: S) {
    let sku = Sku::new(&store);
    let id = fresh("pu");
    let block = sku.block(&id, true);
    for _ in 0..2 {
        store.block(&block).await.expect("the store answers");
    }
    let listed = store.blocks().await.expect("the store answers");
    assert_eq!(listed.iter().filter(|b| **b == block).count(), 1);
    assert!(sku.unblock(&id).await);
    assert!(!sku.out().await);
}

async fn a_promotion_that_expects_another_namespace_is_refused<S: Store>(store: S) {
    let now = store.active().await.expect("the store answers");
    let (old, new) = (fresh("ns"), fresh("ns"));
    let set = async |ns: &str, expected: Option<&str>| {
        let set = store.set_active(ns, expected).await;
        set.expect("the store answers")
    };
    assert!(set(&old, now.as_deref()).await);
    assert!(!set(&new, now.as_deref()).await);
    assert!(!set(&new, Some(&new)).await);
    assert!(set(&new, Some(&old)).await);
    let active = store.active().await.expect("the store answers");
    assert_eq!(active, Some(new));
}

async fn a_fallback_is_stored_for_each_segment<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    for (segment, doc) in [("default", "{}"), ("50+ {w}", r#"{"a":1}"#)] {
        let set = store.set_fallback(&ns, segment, doc).await;
        set.expect("the store answers");
        let read = store
            .fallback(&ns, segment)
            .await
            .expect("the store answers");
        assert_eq!(read.as_deref(), Some(doc));
        let beside = store
            .fallback(&other, segment)
            .await
            .expect("the store answers");
        assert_eq!(beside, None);
    }
    assert!(store.set_fallback(&ns, "", "{}").await.is_err());
}
