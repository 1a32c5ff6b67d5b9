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

fn committable(queue: &mut Queue) -> Option<i64> {
    queue.take_commits().first().map(|(_, resume)| resume.0)
}

#[test]
fn only_offsets_of_served_batches_and_rejects_are_committed() {
    let due = |user| json(&request(user, Duration::ZERO));
    let values: Vec<String> = std::iter::once("no JSON".into())
        .chain((0..2 * BATCH_MAX).map(due))
        .collect();
    let (mut queue, mut log, _) = received(&values);
    assert_eq!(committable(&mut queue), Some(1), "the reject");
    assert!(queue.cut(&mut log, NOW));
    assert_eq!(queue.batches().len(), 2);
    assert_eq!(committable(&mut queue), None, "cut, not served");
    queue.finish(1, Vec::new());
    let half = 1 + BATCH_MAX as i64;
    assert_eq!(committable(&mut queue), Some(half));
    // The batch that was not served is the next turn's.
    assert!(queue.cut(&mut log, NOW));
    assert_eq!(queue.batches().len(), 1);
    queue.finish(1, Vec::new());
    assert_eq!(committable(&mut queue), Some(half + BATCH_MAX as i64));
    assert!(!queue.cut(&mut log, NOW));
}

/// Two requests, of which the first waits for the model.
fn asking() -> (Queue, MemoryLog) {
    let due = |user| json(&request(user, Duration::ZERO));
    let (mut queue, mut log, _) = received(&[due(1), due(2)]);
    assert!(queue.cut(&mut log, NOW));
    let work = queue.batches()[0][0].clone();
    let ask = Ask {
        work,
        claim: 1,
        gain: 1.0,
    };
    queue.finish(1, vec![ask]);
    (queue, log)
}

#[test]
fn a_request_that_waits_for_the_model_is_not_committed_until_it_has_answered() {
    let (mut queue, _log) = asking();
    assert_eq!(
        committable(&mut queue),
        None,
        "the second is done, the first is not"
    );
    assert_eq!(queue.pick(NOW).len(), 1);
    assert_eq!(
        queue.pick(NOW).len(),
        1,
        "until it is taken, after an error too"
    );
    let picked = queue.take_picked().remove(0);
    assert_eq!(committable(&mut queue), None, "the model works");
    queue.done(&picked.work);
    assert_eq!(committable(&mut queue), Some(2));
}

#[test]
fn a_request_that_waited_too_long_for_the_model_is_released() {
    let (mut queue, _log) = asking();
    let max_wait = Policy::default().max_wait;
    queue.release(NOW.after(max_wait));
    assert!(queue.refused().is_empty());
    queue.release(NOW.after(max_wait + Duration::from_millis(1)));
    assert!(matches!(queue.refused(), [(_, Refused::Late)]));
    assert_eq!(committable(&mut queue), None, "not reported yet");
    queue.end_refused();
    assert_eq!(committable(&mut queue), Some(2));
}

#[test]
fn a_postponed_user_waits_for_the_model_no_more_wherever_the_request_is() {
    let user = UserId("u1".into());
    let postpone = |queue: &mut Queue| queue.postpone((&user, Vec::new()), NOW);
    let (mut queue, _log) = asking();
    assert!(postpone(&mut queue), "waiting");
    assert!(queue.pick(NOW).is_empty());
    let (mut queue, _log) = asking();
    assert_eq!(queue.pick(NOW).len(), 1);
    assert!(postpone(&mut queue), "picked");
    assert!(queue.take_picked().is_empty());
    let (mut queue, _log) = asking();
    queue.release(NOW.after(Duration::from_secs(3_600)));
    assert!(postpone(&mut queue), "refused");
    assert!(queue.refused().is_empty());
    assert!(!postpone(&mut queue), "nothing is left");
}

#[test]
fn a_revoked_request_does_not_wait_for_the_model() {
    let (mut queue, _log) = asking();
    assert_eq!(queue.lanes().room(), Policy::default().unserved_max - 1);
    queue.revoke(&[partition()]);
    assert!(queue.pick(NOW).is_empty());
    assert_eq!(queue.lanes().room(), Policy::default().unserved_max);
    let (mut queue, _log) = asking();
    assert_eq!(queue.pick(NOW).len(), 1);
    queue.revoke(&[partition()]);
    assert!(queue.take_picked().is_empty(), "picked already");
}

#[test]
fn batches_of_a_revoked_partition_are_dropped() {
    let due = |user| json(&request(user, Duration::ZERO));
    let (mut queue, mut log, _) = received(&[due(1), due(2)]);
    assert!(queue.cut(&mut log, NOW));
    queue.revoke(&[partition()]);
    assert!(!queue.cut(&mut log, NOW));
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
