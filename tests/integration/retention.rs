//! Promise: no record is skipped in silence: the records that the broker deleted before they were read are counted
//! exactly.

use nearshore_core::ports::log::Log;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use crate::harness::{eventually, fresh};
use crate::log::{Kafka, LIMIT, Rig, Witness, numbered, watch};

async fn delete(kafka: &Kafka, topic: &str, below: i64) {
    let admin: AdminClient<DefaultClientContext> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &kafka.settings.brokers)
        .create()
        .expect("valid settings");
    let mut places = TopicPartitionList::new();
    places
        .add_partition_offset(topic, 0, rdkafka::Offset::Offset(below))
        .expect("an offset");
    admin
        .delete_records(&places, &AdminOptions::new())
        .await
        .expect("Kafka answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_deleted_before_they_were_read_are_counted_as_lost() {
    let kafka = Kafka::real();
    let topic = kafka.topic(1).await;
    let group = fresh("g");
    kafka.send(numbered(&topic, 0, 10)).await;
    let (mut log, mut witness) = (kafka.join(&group, &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() == 10).await;
    log.commit(&witness.resumes())
        .await
        .expect("it is a member");
    log.close().await;

    kafka.send(numbered(&topic, 10, 60)).await;
    delete(&kafka, &topic, 40).await;
    let (mut log, mut witness) = (kafka.join(&group, &topic), Witness::default());
    let (mut new, mut new_witness) = (kafka.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() == 20).await;
    watch(&mut new, &mut new_witness, |it| it.records.len() == 20).await;
    let lost = |log: &nearshore_kafka::KafkaLog, many: u64| {
        let found = log.health().lost();
        async move {
            match found == many {
                true => Ok(()),
                false => Err(format!("{found} instead of {many}")),
            }
        }
    };
    eventually(LIMIT, || lost(&log, 30)).await;

    // Members that are reading lose records, too: the log grows from 60 to 70 and all is deleted except what was
    // fetched before.
    log.pause(&[topic.as_str().into()]);
    new.pause(&[topic.as_str().into()]);
    kafka.send(numbered(&topic, 60, 70)).await;
    delete(&kafka, &topic, 70).await;
    log.pause(&[]);
    new.pause(&[]);
    kafka.send(numbered(&topic, 70, 71)).await;
    let at_70 = |it: &Witness| it.owned.values().any(|last| *last == Some(70));
    watch(&mut log, &mut witness, at_70).await;
    watch(&mut new, &mut new_witness, at_70).await;
    let read = |it: &Witness| it.records.len() as u64 - 21;
    eventually(LIMIT, || lost(&log, 40 - read(&witness))).await;
    // A group that had committed nothing lost nothing before.
    eventually(LIMIT, || lost(&new, 10 - read(&new_witness))).await;
    log.close().await;
    new.close().await;
}
