//! A Kafka inside the process, for the demo and for tests: librdkafka's mock cluster, over real TCP.
//!
//! Its limits: it keeps 5 MiB per partition and drops the oldest records beyond that, it has no compaction, no
//! offsets by time and no admin requests, and the first join of a group takes 3 s. Whatever needs those runs on a
//! real broker. The cluster runs as long as its [`Embedded`] exists, on a thread of its own, since it must not move
//! between threads.

use std::sync::mpsc;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::KafkaSettings;
use nearshore_core::ports::log::Error;

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Task = Box<dyn FnOnce(&Cluster) + Send>;

/// A running cluster of one broker; ends when dropped.
pub struct Embedded {
    brokers: String,
    tasks: mpsc::Sender<Task>,
}

impl Embedded {
    /// Starts a cluster with these topics and numbers of partitions.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, Error> {
        let (tasks, queue) = mpsc::channel::<Task>();
        let (started, start) = mpsc::channel();
        std::thread::Builder::new()
            .name("log-embedded".into())
            .spawn(move || {
                let cluster = match Cluster::new(1) {
                    Ok(cluster) => cluster,
                    Err(error) => return drop(started.send(Err(error.to_string()))),
                };
                let _ = started.send(Ok(cluster.bootstrap_servers()));
                for task in queue {
                    task(&cluster);
                }
            })
            .map_err(|error| Error::Stopped(error.to_string()))?;
        let brokers = start
            .recv()
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|reason| Error::Refused {
                what: "embedded Kafka".into(),
                reason,
            })?;
        let cluster = Self { brokers, tasks };
        for (topic, partitions) in topics {
            cluster.create(topic, *partitions)?;
        }
        Ok(cluster)
    }

    /// Its bootstrap servers, `host:port`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Settings for its clients: a short session timeout, since members can join only once in each.
    pub fn settings(&self) -> KafkaSettings {
        KafkaSettings {
            session_timeout: Duration::from_secs(6),
            ..KafkaSettings::of(&self.brokers)
        }
    }

    /// Creates a topic.
    pub fn create(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        let name = topic.to_owned();
        self.run(move |cluster| cluster.create_topic(&name, partitions, 1))?
            .map_err(|error| Error::Refused {
                what: format!("create {topic}"),
                reason: error.to_string(),
            })
    }

    /// Takes the broker down, or up again, as a network failure would.
    pub fn reachable(&self, yes: bool) -> Result<(), Error> {
        self.run(move |cluster| match yes {
            true => cluster.broker_up(1),
            false => cluster.broker_down(1),
        })?
        .map_err(|error| Error::Stopped(error.to_string()))
    }

    /// Runs a task on the cluster's thread and waits for its result.
    fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let stopped = || Error::Stopped("the embedded Kafka has ended".into());
        let (reply, answer) = mpsc::channel();
        self.tasks
            .send(Box::new(move |cluster| drop(reply.send(task(cluster)))))
            .map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())
    }
}
