//! Wakes librdkafka's fetchers after a resume.
//!
//! A broker thread that finds all its partitions paused sleeps until a request for that broker comes, for a second at
//! most. A resume sends no request. librdkafka 2.12 pauses a whole assignment around each rebalance callback, and the
//! poll thread pauses while a member is stalled. So without this module, kept partitions were not fetched for a
//! second in about every other rebalance. A request for an end offset wakes each leader's thread and changes nothing.
//!
//! Invariant: nothing waits for the answers, least of all a callback; surplus requests are dropped.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

/// Timeout of a request: a fetcher sleeps no longer, so a later answer is useless.
const LIMIT: Duration = Duration::from_secs(1);

/// Requests wakes.
pub(super) struct Waker(SyncSender<TopicPartitionList>);

/// The requested wakes.
pub(super) struct Wakes(Receiver<TopicPartitionList>);

/// Creates both ends of the channel.
pub(super) fn channel() -> (Waker, Wakes) {
    // Capacity 2: one request that is being sent, and one for what was resumed since.
    let (waker, wakes) = sync_channel(2);
    (Waker(waker), Wakes(wakes))
}

impl Waker {
    /// Wakes the fetchers of these partitions soon. Never blocks, so a callback may call it.
    pub(super) fn wake(&self, partitions: &TopicPartitionList) {
        let mut list = TopicPartitionList::with_capacity(partitions.count());
        // `elements` of an empty list reads a null pointer.
        if partitions.count() == 0 {
            return;
        }
        for element in partitions.elements() {
            // Sent as one request to each leader, for all its partitions.
            let added =
                list.add_partition_offset(element.topic(), element.partition(), Offset::End);
            if let Err(error) = added {
                tracing::debug!(target: "kafka", %error, "a partition cannot be woken; its fetcher wakes within a second");
            }
        }
        let _ = self.0.try_send(list);
    }
}

impl Wakes {
    /// Sends requests until the consumer, which owns the other end, is dropped. The weak handle does not keep it alive.
    pub(super) fn run<C: ConsumerContext>(self, consumer: &Weak<BaseConsumer<C>>) {
        while let Ok(list) = self.0.recv() {
            let Some(consumer) = consumer.upgrade() else {
                return;
            };
            if let Err(error) = consumer.offsets_for_times(list, LIMIT) {
                tracing::debug!(target: "kafka", %error, "a leader did not answer; its fetcher wakes within a second");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::DefaultConsumerContext;

    use super::*;
    use crate::{Embedded, Producer};
    use nearshore_core::ports::log::Outgoing;

    type Plain = BaseConsumer<DefaultConsumerContext>;

    /// Long enough for a running fetch to end, so that the fetcher finds everything paused and sleeps.
    const ASLEEP: Duration = Duration::from_millis(300);

    fn whole() -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 0, Offset::Beginning)
            .expect("an offset");
        list
    }

    /// Time from a resume to the next record.
    fn silence(consumer: &Plain, waker: Option<&Waker>) -> Duration {
        consumer.pause(&whole()).expect("paused");
        assert!(
            consumer.poll(ASLEEP).is_none(),
            "a paused partition returns no record"
        );
        let start = Instant::now();
        consumer.resume(&whole()).expect("resumed");
        if let Some(waker) = waker {
            waker.wake(&whole());
        }
        next(consumer);
        start.elapsed()
    }

    fn next(consumer: &Plain) {
        let deadline = Instant::now() + Duration::from_secs(20);
        // A poll may end early, without a record.
        while consumer.poll(Duration::from_secs(1)).is_none() {
            assert!(Instant::now() < deadline, "no record");
        }
    }

    /// If this fails with a newer librdkafka, the module may be unnecessary.
    #[tokio::test]
    async fn a_woken_fetcher_returns_records_sooner_after_a_resume() {
        let cluster = Embedded::start(&[("t", 1)]).expect("starts");
        let producer = Producer::new(&cluster.settings()).expect("a producer");
        let record = |nth: i32| Outgoing {
            topic: "t".into(),
            key: Some(nth.to_string().into()),
            value: Some("{}".into()),
            headers: Vec::new(),
            time: None,
        };
        producer
            .send((0..100).map(record).collect())
            .await
            .expect("written");
        let consumer: Plain = ClientConfig::new()
            .set("bootstrap.servers", cluster.brokers())
            .set("group.id", "g")
            .set("fetch.wait.max.ms", "50")
            .create()
            .expect("valid settings");
        let consumer = Arc::new(consumer);
        consumer.assign(&whole()).expect("assigned");
        next(&consumer);
        let (waker, wakes) = channel();
        let weak = Arc::downgrade(&consumer);
        let thread = std::thread::spawn(move || wakes.run(&weak));
        let (mut woken, mut asleep) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..8 {
            asleep += silence(&consumer, None);
            woken += silence(&consumer, Some(&waker));
        }
        assert!(woken < asleep / 2, "woken {woken:?}, asleep {asleep:?}");
        drop(waker);
        thread.join().expect("ends with the other end");
    }
}
