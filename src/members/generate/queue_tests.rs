//! What the queue keeps, drops and lets be committed, on a log in memory.

use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Offset;
use nearshore_core::user::trigger::{Lane, Reason};
use nearshore_testkit::log::{MemoryCluster, MemoryLog};

use super::*;

const NOW: Timestamp = Timestamp(1_750_000_000_000);

fn partition() -> Partition {
    Partition {
        incarnation: 0,
        topic: Topics::default().regen_live,
        number: 0,
    }
}

/// A request of one user, due so long after now.
fn request(user: usize, wait: Duration) -> Request {
    Request {
        v: 1,
        ns: "n".into(),
        user: UserId(format!("u{user}").into()),
        reason: Reason::Activity,
        source: None,
        time: NOW,
        due: NOW.after(wait),
        lane: Lane::Live,
        force: false,
    }
}

/// A batch with a record for each of these values, and its last offset's successor as end.
fn batch(values: &[String]) -> Batch {
    let record = |(offset, value): (usize, &String)| Record {
        position: nearshore_core::user::record::Position {
            partition: partition(),
            offset: Offset(offset as i64),
        },
        time: NOW,
        key: None,
        value: Some(value.clone().into()),
        headers: Vec::new(),
    };
    Batch {
        partition: partition(),
        records: values.iter().enumerate().map(record).collect(),
        end: Offset(values.len() as i64),
    }
}

fn json(request: &Request) -> String {
    serde_json::to_string(request).expect("plain data")
}

/// A queue with batches of one user, which has received these values, and its log.
fn received(values: &[String]) -> (Queue, MemoryLog, MemoryCluster) {
    let topics = Topics::default();
    let cluster = MemoryCluster::new(1);
    cluster.create_topic(&topics.regen_live, 1);
    let mut log = cluster.join("g", &[&topics.regen_live]);
    let policy = Policy {
        batch_max: 1,
        ..Policy::default()
    };
    let mut queue = Queue::new(topics, policy);
    let batch = batch(values);
    queue.add(&mut log, &batch, DecodedBatch::new(&batch), NOW);
    (queue, log, cluster)
}

/// Costs of a model that is quick enough for several batches in a turn.
fn quick() -> UserCosts {
    let costs = UserCosts::new(1);
    costs.note(0, Duration::from_millis(1), 1);
    costs
}

fn committable(queue: &mut Queue) -> Option<i64> {
    queue.take_commits().first().map(|(_, resume)| resume.0)
}

#[test]
fn only_offsets_of_served_batches_and_rejects_are_committed() {
    let due = |user| json(&request(user, Duration::ZERO));
    let (mut queue, mut log, _) = received(&["no JSON".into(), due(1), due(2), due(3)]);
    assert_eq!(committable(&mut queue), Some(1), "the reject");
    assert!(queue.cut(&mut log, &quick(), NOW));
    assert_eq!(queue.batches().len(), 3);
    assert_eq!(committable(&mut queue), None, "cut, not served");
    queue.finish(2);
    assert_eq!(committable(&mut queue), Some(3));
    // The batch that was not served is the next turn's.
    assert!(queue.cut(&mut log, &quick(), NOW));
    assert_eq!(queue.batches().len(), 1);
    queue.finish(1);
    assert_eq!(committable(&mut queue), Some(4));
    assert!(!queue.cut(&mut log, &quick(), NOW));
}

#[test]
fn a_model_of_unknown_cost_gets_one_batch_in_a_turn() {
    let due = |user| json(&request(user, Duration::ZERO));
    let (mut queue, mut log, _) = received(&[due(1), due(2)]);
    assert!(queue.cut(&mut log, &UserCosts::new(1), NOW));
    assert_eq!(queue.batches().len(), 1);
}

#[test]
fn batches_of_a_revoked_partition_are_dropped() {
    let due = |user| json(&request(user, Duration::ZERO));
    let (mut queue, mut log, _) = received(&[due(1), due(2)]);
    assert!(queue.cut(&mut log, &quick(), NOW));
    queue.revoke(&[partition()]);
    assert!(!queue.cut(&mut log, &quick(), NOW));
    assert_eq!(committable(&mut queue), None);
}

#[tokio::test]
async fn a_deferred_request_is_done_when_its_new_record_is_acknowledged() {
    let hour = Duration::from_secs(3_600);
    let (mut queue, log, cluster) = received(&[json(&request(1, hour))]);
    let later = NOW.after(Policy::default().requeue_after);
    queue.requeue(&log, later).await.expect("a log in memory");
    let lane = cluster.records(&Topics::default().regen_live);
    assert_eq!(lane.len(), 1);
    assert_eq!(waited(&lane[0]), Policy::default().requeue_after);
    assert_eq!(committable(&mut queue), Some(1));
    assert!(queue.lanes().is_empty());
}
