//! Wakes librdkafka's fetchers after a resume.
//!
//! A broker's thread that finds all of its partitions paused sleeps until something is asked of that broker, for a second
//! at most; a resume asks nothing of it. librdkafka 2.12 itself pauses a whole assignment around each rebalance callback, and
//! we pause while a role is stalled. So partitions that a member keeps were silent for a second in about every other
//! rebalance. Asking each leader for an end offset is a question that wakes it, and changes nothing.
//!
//! Invariant: nothing waits for the answers, least of all a callback; a question too many is dropped.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

/// As long as a fetcher sleeps by itself: a later answer would wake nobody.
const LIMIT: Duration = Duration::from_secs(1);

/// Asks for a wake.
pub(super) struct Waker(SyncSender<TopicPartitionList>);

/// What is to be woken.
pub(super) struct Wakes(Receiver<TopicPartitionList>);

/// Both ends.
pub(super) fn channel() -> (Waker, Wakes) {
    // Two: one that is being asked, and one for what was resumed since.
    let (waker, wakes) = sync_channel(2);
    (Waker(waker), Wakes(wakes))
}

impl Waker {
    /// Wakes the leaders of these partitions, soon. A callback may call it.
    pub fn wake(&self, partitions: &TopicPartitionList) {
        let mut ask = TopicPartitionList::with_capacity(partitions.count());
        // `elements` of an empty list reads a null pointer.
        if partitions.count() == 0 {
            return;
        }
        for of in partitions.elements() {
            // One request to each leader, for all of its partitions.
            let named = ask.add_partition_offset(of.topic(), of.partition(), Offset::End);
            if let Err(error) = named {
                tracing::debug!(target: "kafka", %error, "a partition that cannot be asked for");
            }
        }
        let _ = self.0.try_send(ask);
    }
}

impl Wakes {
    /// Serves until the consumer, which owns the other end, is gone. It is not kept alive by us.
    pub fn run<C: ConsumerContext>(self, consumer: &Weak<BaseConsumer<C>>) {
        while let Ok(ask) = self.0.recv() {
            let Some(consumer) = consumer.upgrade() else {
                return;
            };
            if let Err(error) = consumer.offsets_for_times(ask, LIMIT) {
                tracing::debug!(target: "kafka", %error, "a leader is not there to be woken");
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

    /// Long enough for a fetch under way to end, so that the fetcher finds everything paused and sleeps.
    const ASLEEP: Duration = Duration::from_millis(300);

    fn whole() -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 0, Offset::Beginning)
            .expect("an offset");
        list
    }

    /// From a resume to the next record.
    fn silence(consumer: &Plain, waker: Option<&Waker>) -> Duration {
        consumer.pause(&whole()).expect("paused");
        assert!(consumer.poll(ASLEEP).is_none(), "paused means silent");
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

    /// Were it not so any more, this module could go.
    #[tokio::test]
    async fn a_fetcher_that_is_woken_goes_on_sooner_than_one_that_is_not() {
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
        let (mut woken, mut left) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..8 {
            left += silence(&consumer, None);
            woken += silence(&consumer, Some(&waker));
        }
        assert!(woken < left / 2, "woken {woken:?}, left alone {left:?}");
        drop(waker);
        thread.join().expect("ends with the other end");
    }
}
