//! Administration of the cluster, outside any group: topics, end offsets, positions and lag of groups.
//!
//! Lag computed here is right even if a consumer is stuck and reports nothing. Each call runs on a blocking thread
//! and is bounded by `ack_timeout`. It does not judge what it finds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;
use rdkafka::{ClientContext, TopicPartitionList};

use super::KafkaSettings;
use super::health::{Health, Watch};
use super::kafka::{positions, unanswered};
use super::login::Login;
use super::native;
use super::producer::refused;
use super::settings::INSTALLATION_MARK;
use nearshore_core::ports::log::Error;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};

impl ConsumerContext for Watch {}

/// How long an answer waits for the explanation of a fault.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// A topic to create.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Topic configuration, e.g. `cleanup.policy`.
    pub config: BTreeMap<String, String>,
}

/// A member of a group, as the broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its client id.
    pub client_id: String,
    /// Its address.
    pub host: String,
}

impl GroupMember {
    fn new(client_id: String, host: &str) -> Self {
        Self {
            client_id,
            host: host.trim_start_matches('/').into(),
        }
    }

    /// The id of its installation; `None` if it is no member of a role that runs.
    pub fn installation(&self) -> Option<&str> {
        Some(self.client_id.rsplit_once(INSTALLATION_MARK)?.1)
    }
}

/// A topic as the broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Name.
    pub name: String,
    /// Number of partitions; 0 if the topic does not exist or this client may not describe it.
    pub partitions: usize,
    /// Topic configuration; `None` if the broker does not answer that (the embedded one, or a missing right).
    pub config: Option<BTreeMap<String, String>>,
}

impl Topic {
    fn entry(&self, key: &str) -> Option<&str> {
        self.config.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether the broker sets the records' timestamps; `None` if unknown.
    pub fn log_append_time(&self) -> Option<bool> {
        Some(self.entry("message.timestamp.type")? == "LogAppendTime")
    }

    /// Whether the topic is compacted; `None` if unknown.
    pub fn compacted(&self) -> Option<bool> {
        Some(self.entry("cleanup.policy")?.contains("compact"))
    }

    /// Retention time: `None` if unknown, `Some(None)` if records are kept for ever.
    pub fn retention(&self) -> Option<Option<Duration>> {
        if !self.entry("cleanup.policy")?.contains("delete") {
            return Some(None);
        }
        let limit: i64 = self.entry("retention.ms")?.parse().ok()?;
        Some(u64::try_from(limit).ok().map(Duration::from_millis))
    }
}

/// First and end offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The partition.
    pub partition: Partition,
    /// Offset of the first record that is not deleted.
    pub begin: Offset,
    /// One past the last record.
    pub end: Offset,
}

/// An administrative client. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    client: Arc<BaseConsumer<Watch>>,
    login: Arc<Login>,
    settings: KafkaSettings,
}

impl Admin {
    /// Creates a client, which connects in the background.
    pub fn new(settings: &KafkaSettings) -> Result<Self, Error> {
        Ok(Self {
            client: Arc::new(client(settings, None)?),
            login: Arc::new(Login::new(settings)),
            settings: settings.clone(),
        })
    }

    /// Addresses of the cluster's brokers, sorted.
    pub async fn brokers(&self) -> Result<Vec<String>, Error> {
        self.ask(|admin| {
            let metadata = admin.metadata(None)?;
            let address = |broker: &rdkafka::metadata::MetadataBroker| {
                format!("{}:{}", broker.host(), broker.port())
            };
            let mut found: Vec<_> = metadata.brokers().iter().map(address).collect();
            found.sort();
            Ok(found)
        })
        .await
    }

    /// Describes these topics, in the same order. Creates none.
    pub async fn describe(&self, topics: &[&str]) -> Result<Vec<Topic>, Error> {
        let names: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let mut found = self
            .ask(move |admin| {
                let topic = |name: String| {
                    let partitions = admin.partitions(&name)?;
                    Ok(Topic {
                        name,
                        partitions,
                        config: None,
                    })
                };
                names.into_iter().map(topic).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        for topic in found.iter_mut().filter(|topic| topic.partitions > 0) {
            topic.config = self.config(&topic.name).await?;
        }
        Ok(found)
    }

    async fn config(&self, topic: &str) -> Result<Option<BTreeMap<String, String>>, Error> {
        let client = self.admin()?;
        let answer = client
            .describe_configs([&ResourceSpecifier::Topic(topic)], &self.options())
            .await;
        match answer.map(|mut found| found.pop()) {
            Ok(Some(Ok(found))) => {
                let entry = |entry: rdkafka::admin::ConfigEntry| Some((entry.name, entry.value?));
                Ok(Some(found.entries.into_iter().filter_map(entry).collect()))
            }
            // A broker may refuse to show the configuration; the rest is still usable.
            Ok(_) => Ok(None),
            Err(error) if unsupported(&error) => Ok(None),
            Err(error) => Err(unanswered("describe", &error, self.settings.ack_timeout)),
        }
    }

    /// Creates the missing topics, and returns their names.
    pub async fn ensure(&self, topics: &[NewTopic]) -> Result<Vec<String>, Error> {
        let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
        let found = self.describe(&names).await?;
        let missing: Vec<_> = topics
            .iter()
            .zip(found)
            .filter(|(_, found)| found.partitions == 0)
            .map(|(topic, _)| {
                let new = rdkafka::admin::NewTopic::new(
                    &topic.name,
                    topic.partitions,
                    TopicReplication::Fixed(-1),
                );
                topic
                    .config
                    .iter()
                    .fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let limit = self.settings.ack_timeout;
        let answers = self
            .admin()?
            .create_topics(&missing, &self.options())
            .await
            .map_err(|error| unanswered("create topics", &error, limit))?;
        let mut created = Vec::new();
        for answer in answers {
            match answer {
                Ok(name) => created.push(name),
                // Another process created it first.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(Error::Refused {
                        what: format!("create topic {name}"),
                        reason: code.to_string(),
                    });
                }
            }
        }
        Ok(created)
    }

    /// Extent of each partition of a topic; empty if there is no such topic.
    pub async fn extents(&self, topic: &str) -> Result<Vec<Extent>, Error> {
        let topic = topic.to_owned();
        self.ask(move |admin| {
            let partitions = i32::try_from(admin.partitions(&topic)?).unwrap_or(i32::MAX);
            (0..partitions)
                .map(|number| admin.extent(&topic, number))
                .collect()
        })
        .await
    }

    /// Committed positions of a group on these topics; a partition without one is left out.
    pub async fn committed(
        &self,
        group: &str,
        topics: &[&str],
    ) -> Result<BTreeMap<Partition, Resume>, Error> {
        let (group, topics) = (group.to_owned(), topics.join("\n"));
        self.ask(move |admin| {
            let mut list = TopicPartitionList::new();
            for topic in topics.lines() {
                for number in 0..admin.partitions(topic)? {
                    list.add_partition(topic, i32::try_from(number).unwrap_or(i32::MAX));
                }
            }
            if list.count() == 0 {
                return Ok(BTreeMap::new());
            }
            let client = client(&admin.settings, Some(&group))?;
            admin.with_login(client.client());
            let found = client.committed_offsets(list, admin.limit());
            let found = found.map_err(|error| {
                // librdkafka looks for the coordinator until the timeout, even if the broker refuses to name it.
                let events = std::iter::from_fn(|| client.poll(Duration::ZERO)).take(64);
                let refusal = events.filter_map(Result::err).find(|error| {
                    let code = error.rdkafka_error_code();
                    code.is_some_and(super::producer::permanent)
                });
                match refusal {
                    Some(refusal) => refused("committed offsets", &refusal),
                    None => unanswered("committed offsets", &error, admin.limit()),
                }
            })?;
            Ok(admin.absolute(&found).collect())
        })
        .await
    }

    /// Number of members that a group has now; see [`Admin::describe_all_members`].
    pub async fn members(&self, group: &str) -> Result<usize, Error> {
        Ok(self.describe_all_members(group).await?.len())
    }

    /// The members that a group of the classic protocol has now; those of KIP-848 are not seen by this request.
    pub async fn describe_members(&self, group: &str) -> Result<Vec<GroupMember>, Error> {
        let group = group.to_owned();
        self.ask(move |admin| admin.classic_members(&group)).await
    }

    /// The members that a group has now, by the classic protocol or that of KIP-848.
    ///
    /// Not for a process that must live through an outage: librdkafka aborts it if the broker goes away while this is
    /// asked (librdkafka's issue 4605; `scripts/chaos` saw it).
    pub async fn describe_all_members(&self, group: &str) -> Result<Vec<GroupMember>, Error> {
        let group = group.to_owned();
        self.ask(move |admin| {
            let found = admin.classic_members(&group)?;
            if !found.is_empty() {
                return Ok(found);
            }
            // The embedded cluster does not know the question, and a broker that refuses it answered the other one.
            let more = native::members(admin.native(), &group, admin.limit());
            let more = more.ok().flatten().unwrap_or_default().into_iter();
            let member = |(client_id, host): (String, String)| GroupMember::new(client_id, &host);
            Ok(more.map(member).collect())
        })
        .await
    }

    fn classic_members(&self, group: &str) -> Result<Vec<GroupMember>, Error> {
        let found = self
            .client
            .fetch_group_list(Some(group), self.limit())
            .map_err(|error| unanswered("members of a group", &error, self.limit()))?;
        let members = found.groups().iter().flat_map(|group| group.members());
        let member = |it: &rdkafka::groups::GroupMemberInfo| {
            GroupMember::new(it.client_id().into(), it.client_host())
        };
        Ok(members.map(member).collect())
    }

    /// Lag of a group on these topics, in records; a partition without a committed position counts as a whole.
    pub async fn lag(
        &self,
        group: &str,
        topics: &[&str],
    ) -> Result<BTreeMap<Partition, u64>, Error> {
        let committed = self.committed(group, topics).await?;
        let mut lag = BTreeMap::new();
        for topic in topics {
            for extent in self.extents(topic).await? {
                let from = committed
                    .get(&extent.partition)
                    .map_or(extent.begin.0, |resume| resume.0.max(extent.begin.0));
                let left = u64::try_from(extent.end.0 - from).unwrap_or(0);
                lag.insert(extent.partition, left);
            }
        }
        Ok(lag)
    }

    /// Where reading starts for records at or after `time`: the first such record of each partition, or its end. The
    /// embedded cluster does not support this and answers the end.
    pub async fn since(
        &self,
        topic: &str,
        time: Timestamp,
    ) -> Result<BTreeMap<Partition, Resume>, Error> {
        let topic = topic.to_owned();
        self.ask(move |admin| {
            let mut wanted = TopicPartitionList::new();
            for number in 0..admin.partitions(&topic)? {
                let number = i32::try_from(number).unwrap_or(i32::MAX);
                wanted
                    .add_partition_offset(&topic, number, rdkafka::Offset::Offset(time.0))
                    .map_err(|error| refused("time", &error))?;
            }
            if wanted.count() == 0 {
                return Ok(BTreeMap::new());
            }
            let found = admin
                .client
                .offsets_for_times(wanted, admin.limit())
                .map_err(|error| unanswered("offsets by time", &error, admin.limit()))?;
            let mut starts: BTreeMap<_, _> = admin.absolute(&found).collect();
            for element in found.elements() {
                let partition = admin.settings.partition(&topic, element.partition());
                if let Entry::Vacant(start) = starts.entry(partition) {
                    let end = admin.extent(&topic, element.partition())?.end;
                    start.insert(Resume(end.0));
                }
            }
            Ok(starts)
        })
        .await
    }

    /// Commits positions for a group. Kafka refuses that while the group has members.
    pub async fn place(&self, group: &str, at: &BTreeMap<Partition, Resume>) -> Result<(), Error> {
        if at.is_empty() {
            return Ok(());
        }
        let done: Vec<_> = at
            .iter()
            .map(|(partition, resume)| (partition.clone(), *resume, String::new()))
            .collect();
        let group = group.to_owned();
        self.ask(move |admin| {
            client(&admin.settings, Some(&group))?
                .commit(&positions(&done)?, CommitMode::Sync)
                .map_err(|error| refused(&format!("place group {group}"), &error))
        })
        .await
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let admin = self.clone();
        tokio::task::spawn_blocking(move || {
            let health = &admin.client.context().health;
            admin.login.ready(admin.client.client(), health);
            let answer = question(&admin);
            // Log lines and errors wait in the client's queue until it is polled.
            for _ in 0..64 {
                drop(admin.client.poll(Duration::ZERO));
            }
            admin.explained(answer)
        })
        .await
        .unwrap_or_else(|error| Err(Error::Stopped(error.to_string())))
    }

    /// Says why there was no answer, if the client knows.
    fn explained<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        let health = &self.client.context().health;
        match answer {
            Err(Error::Timeout { topic, limit }) => Err(match health.explained(LOOK_MAX) {
                Some(fault) => Error::Unreachable(fault),
                None => Error::Timeout { topic, limit },
            }),
            Ok(answer) => {
                // This client has no statistics, which clear the fault of others.
                health.clear();
                Ok(answer)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets another client of a question log in.
    fn with_login<C: ClientContext>(&self, client: &rdkafka::client::Client<C>) {
        Login::new(&self.settings).ready(client, &self.client.context().health);
    }

    pub(super) fn native(&self) -> &rdkafka::client::Client<Watch> {
        self.client.client()
    }

    pub(super) fn limit(&self) -> Duration {
        self.settings.ack_timeout
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.limit()))
            .operation_timeout(Some(self.limit()))
    }

    fn admin(&self) -> Result<AdminClient<Watch>, Error> {
        let mut config = self.settings.producing()?;
        config.set("statistics.interval.ms", "0");
        let client: AdminClient<Watch> = config
            .create_with_context(Watch::new(&self.settings, Health::default()))
            .map_err(|error| refused("admin client", &error))?;
        self.with_login(client.inner());
        Ok(client)
    }

    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, Error> {
        self.client
            .fetch_metadata(topic, self.limit())
            .map_err(|error| unanswered("metadata", &error, self.limit()))
    }

    pub(super) fn partitions(&self, topic: &str) -> Result<usize, Error> {
        let metadata = self.metadata(Some(topic))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map_or(0, |found| found.partitions().len()))
    }

    fn extent(&self, topic: &str, number: i32) -> Result<Extent, Error> {
        let (begin, end) = self
            .client
            .fetch_watermarks(topic, number, self.limit())
            .map_err(|error| unanswered("watermarks", &error, self.limit()))?;
        Ok(Extent {
            partition: self.settings.partition(topic, number),
            begin: Offset(begin),
            end: Offset(end),
        })
    }

    /// The elements of a list that have an absolute offset.
    fn absolute(
        &self,
        list: &TopicPartitionList,
    ) -> impl Iterator<Item = (Partition, Resume)> + use<> {
        let found: Vec<_> = list
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                rdkafka::Offset::Offset(at) => {
                    let partition = self
                        .settings
                        .partition(element.topic(), element.partition());
                    Some((partition, Resume(at)))
                }
                _ => None,
            })
            .collect();
        found.into_iter()
    }
}

fn client(settings: &KafkaSettings, group: Option<&str>) -> Result<BaseConsumer<Watch>, Error> {
    let mut config = settings.consuming(group.unwrap_or_default())?;
    config.set("statistics.interval.ms", "0");
    if group.is_none() {
        config.remove("group.id");
    }
    config
        .create_with_context(Watch::new(settings, Health::default()))
        .map_err(|error| refused("client", &error))
}

fn unsupported(error: &rdkafka::error::KafkaError) -> bool {
    let text = error.to_string();
    text.contains("UnsupportedFeature")
        || text.contains("not supported")
        || text.contains("UnsupportedVersion")
}
