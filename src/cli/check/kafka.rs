//! Checks brokers, consumer groups and topics: whether they answer, and whether topics have the settings that the
//! guarantees need.

use std::time::Duration;

use super::{Item, acl};
use crate::config::Config;
use crate::members::{generate, ingest, stock};
use nearshore_core::map::ReadAs;
use nearshore_core::ports::log;
use nearshore_kafka::{Admin, Topic};

/// The longest that a broker may take to answer a request or a connection.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The longest that internal requests and rejected records may be kept.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Checks everything about Kafka.
pub(super) async fn check(config: &Config, login: acl::Login) -> Vec<Item> {
    let mut settings = config.kafka.clone();
    settings.ack_timeout = settings.ack_timeout.min(ANSWER_MAX);
    let admin = match Admin::new(&settings) {
        Ok(admin) => admin,
        Err(error) => return vec![Item::fail("kafka", error.to_string())],
    };
    let brokers = match admin.brokers().await {
        Ok(brokers) => brokers,
        // It says what to do.
        Err(log::Error::Unreachable(fault)) => return vec![Item::fail("kafka", fault)],
        Err(error) => {
            let advice = "is kafka.brokers right, do the brokers listen, are the TLS and SASL settings right?";
            let why = match error {
                log::Error::Timeout { limit, .. } => format!("no answer within {limit:?}"),
                other => other.to_string(),
            };
            let found = format!("{}: {why}", settings.brokers);
            return vec![Item::fail("kafka", found).advise(advice)];
        }
    };
    let mut items = Vec::new();
    for broker in brokers {
        items.push(reachable(&broker).await);
    }
    let names = config.topics.keyed().map(|(_, name)| name);
    match admin.describe(&names).await {
        Ok(topics) => {
            items.extend(of_topics(config, &topics));
            items.extend(of_inputs(config, &admin).await);
        }
        Err(error) => {
            let advice = "the ACL needs Describe and DescribeConfigs on the topics of [topics]";
            items.push(Item::fail("topics", error.to_string()).advise(advice));
        }
    }
    items.extend(groups(config, &admin).await);
    items.extend(acl::check(config, &admin, login).await);
    items
}

/// Checks that the topics of `[[inputs]]` are there. Their settings are the shop's.
async fn of_inputs(config: &Config, admin: &Admin) -> Vec<Item> {
    let names: Vec<&str> = config.inputs.iter().map(|input| &*input.topic).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let item = |topic: &Topic| {
        let item = format!("topic {}", topic.name);
        match topic.partitions {
            0 => Item::fail(
                item,
                "does not exist, or the ACL does not allow Describe on it",
            )
            .advise("is the name in [[inputs]] right? the ACL needs Read and Describe on it"),
            partitions => Item::ok(item, format!("{partitions} partitions, mapped")),
        }
    };
    match admin.describe(&names).await {
        Ok(topics) => topics.iter().map(item).collect(),
        Err(error) => vec![Item::fail("topics of [[inputs]]", error.to_string())],
    }
}

/// Checks whether each consumer group's positions can be read, which needs Describe on the group and a coordinator that
/// runs. What else the ACL permits is for [`acl`].
async fn groups(config: &Config, admin: &Admin) -> Vec<Item> {
    let topics = &config.topics;
    let ingest = ingest::group(&config.kafka, &config.namespace);
    let (stock, generate) = (stock::group(&config.kafka), generate::group(&config.kafka));
    let [urgent, live, backfill] = topics.lanes();
    let (of_users, of_skus) = (topics.of_users(), topics.read_as(ReadAs::Catalog));
    let groups: [(&str, Vec<&str>); 3] = [
        (&ingest, of_users.iter().map(|topic| &**topic).collect()),
        (&stock, of_skus.iter().map(|topic| &**topic).collect()),
        (&generate, vec![&urgent, &live, &backfill]),
    ];
    let mut items = Vec::new();
    for (group, topics) in groups {
        let item = format!("acl group {group}");
        let mut answer = admin.committed(group, &topics).await;
        if let Err(log::Error::Timeout { .. }) = answer {
            // A cluster that no group has used yet starts its coordinator at the first request.
            answer = admin.committed(group, &topics).await;
        }
        items.push(match answer {
            Ok(_) => Item::ok(item, "positions can be read"),
            Err(log::Error::Timeout { limit, .. }) => {
                let found = format!("no answer within {:?}", limit * 2);
                Item::fail(item, found)
                    .advise("is the group's coordinator running? see the logs of the brokers")
            }
            Err(error) => {
                let advice = format!("the ACL needs Read and Describe on group {group}");
                Item::fail(item, error.to_string()).advise(advice)
            }
        });
    }
    items
}

/// Checks that a broker's advertised address, which clients use, accepts connections.
async fn reachable(broker: &str) -> Item {
    let item = format!("broker {broker}");
    let advice = "the broker advertises this address: see its advertised.listeners";
    match tokio::time::timeout(ANSWER_MAX, tokio::net::TcpStream::connect(broker)).await {
        Ok(Ok(_)) => Item::ok(item, "answers"),
        Ok(Err(error)) => Item::fail(item, error.to_string()).advise(advice),
        Err(_) => Item::fail(item, format!("no connection within {ANSWER_MAX:?}")).advise(advice),
    }
}

/// Checks each topic's settings; what a topic is used for decides which it needs.
fn of_topics(config: &Config, topics: &[Topic]) -> Vec<Item> {
    let mut items = Vec::new();
    for ((key, _), topic) in config.topics.keyed().into_iter().zip(topics) {
        let item = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            let found = "does not exist, or the ACL does not allow Describe on it";
            let advice = create(config, key, &topic.name);
            items.push(Item::fail(item, found).advise(advice));
            continue;
        }
        let weak = weak_settings(key, topic);
        if weak.is_empty() {
            items.push(Item::ok(&item, described(topic)));
        }
        for (found, setting) in weak {
            let alter = alter(config, &topic.name, setting);
            items.push(Item::warn(&item, found).advise(alter));
        }
    }
    items.extend(erasure(config, topics));
    items
}

fn described(topic: &Topic) -> String {
    let unknown = if topic.config.is_none() {
        ", settings not readable"
    } else {
        ""
    };
    format!("{} partitions{unknown}", topic.partitions)
}

const STAMPED: &str = "message.timestamp.type=LogAppendTime";
const COMPACTED: &str = "cleanup.policy=compact";
const BOTH: &str = "cleanup.policy=[compact,delete]";
const A_WEEK: &str = "retention.ms=604800000";

/// The command that changes a setting of a topic.
fn alter(config: &Config, topic: &str, setting: &str) -> String {
    let brokers = &config.kafka.brokers;
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --topic {topic} --add-config '{setting}'"
    )
}

/// The command that creates a topic, with the settings that a topic of this key needs.
fn create(config: &Config, key: &str, topic: &str) -> String {
    let settings: &[&str] = match key {
        "user_events" => &[STAMPED],
        "profile_changes" | "catalog" => &[STAMPED, COMPACTED],
        "recall_updates" => &[BOTH],
        _ => &[A_WEEK],
    };
    let brokers = &config.kafka.brokers;
    // kafka-configs.sh wants brackets around a list, kafka-topics.sh refuses them.
    let options: String = settings
        .iter()
        .map(|setting| format!(" --config {}", setting.replace(['[', ']'], "")))
        .collect();
    format!(
        "kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions 16{options}"
    )
}

/// Settings that weaken a guarantee, each with the setting that fixes it; settings that cannot be read are not listed.
fn weak_settings(key: &str, topic: &Topic) -> Vec<(String, &'static str)> {
    let mut weak = Vec::new();
    let source = matches!(key, "user_events" | "profile_changes" | "catalog");
    if source && topic.log_append_time() == Some(false) {
        let found =
            "timestamps are set by producers (CreateTime): their clocks decide order and age";
        weak.push((found.to_owned(), STAMPED));
    }
    let keeps_last = match key {
        "profile_changes" | "catalog" => Some(COMPACTED),
        "recall_updates" => Some(BOTH),
        _ => None,
    };
    if let (Some(setting), Some(false)) = (keeps_last, topic.compacted()) {
        let found =
            "is not compacted: it grows without limit, or loses records that are not sent again";
        weak.push((found.to_owned(), setting));
    }
    let whole = matches!(key, "profile_changes" | "catalog");
    if whole && topic.compacted() == Some(true) && matches!(topic.retention(), Some(Some(_))) {
        let found = "also deletes old records: records that are not sent again are lost";
        weak.push((found.to_owned(), COMPACTED));
    }
    let short_lived = key.starts_with("regen_") || key == "dlq";
    let kept = topic.retention();
    if short_lived && kept.is_some_and(|kept| kept.is_none_or(|kept| kept > WEEK)) {
        let found = "keeps records longer than 7 days: records of an erased user stay as long";
        weak.push((found.to_owned(), A_WEEK));
    }
    weak
}

/// Checks whether a replay into an empty Redis could restore an erased user: tombstones must be kept as long as events.
fn erasure(config: &Config, topics: &[Topic]) -> Option<Item> {
    let find = |name: &str| topics.iter().find(|topic| topic.name == name);
    let events = find(&config.topics.user_events)?.retention()?;
    let profiles = find(&config.topics.profile_changes)?;
    let deletes = profiles.config.as_ref()?.get("delete.retention.ms")?;
    let deletes = Duration::from_millis(deletes.parse().ok()?);
    let words = |kept: Duration| humantime::format_duration(kept).to_string();
    let longer = events.is_none_or(|events| events > deletes);
    let kept = events.map_or("forever".to_owned(), words);
    let found = format!(
        "events are kept {kept}, tombstones of profiles {}",
        words(deletes)
    );
    Some(if longer {
        let longer = alter(config, &profiles.name, "delete.retention.ms=...");
        let advice = format!(
            "a replay into an empty Redis could restore erased users: keep the list of erased users outside of Redis \
             (nearshore forget --export), or {longer}"
        );
        Item::warn("erasure", found).advise(advice)
    } else {
        Item::ok("erasure", found)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    fn topic(name: &str, settings: &[(&str, &str)]) -> Topic {
        let settings = settings
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        Topic {
            name: name.into(),
            partitions: 4,
            config: Some(settings.collect()),
        }
    }

    fn marks(topics: &[Topic]) -> Vec<(Mark, String)> {
        let items = of_topics(&Config::default(), topics);
        items
            .into_iter()
            .map(|item| {
                (
                    item.mark,
                    format!("{}: {}", item.item, item.advice.unwrap_or_default()),
                )
            })
            .collect()
    }

    fn good() -> Vec<Topic> {
        let append = ("message.timestamp.type", "LogAppendTime");
        let compact = ("cleanup.policy", "compact");
        let short_lived = [("cleanup.policy", "delete"), ("retention.ms", "604800000")];
        vec![
            topic("user-events", &[append, short_lived[0], short_lived[1]]),
            topic(
                "profile-changes",
                &[append, compact, ("delete.retention.ms", "700000000")],
            ),
            topic("catalog", &[append, compact]),
            topic("regen-urgent", &short_lived),
            topic("regen-live", &short_lived),
            topic("regen-backfill", &short_lived),
            topic(
                "recall-updates",
                &[("cleanup.policy", "compact,delete"), ("retention.ms", "1")],
            ),
            topic("dlq", &short_lived),
        ]
    }

    #[test]
    fn topics_with_all_needed_settings_pass() {
        let marks = marks(&good());
        assert_eq!(marks.len(), 9);
        assert!(marks.iter().all(|(mark, _)| *mark == Mark::Ok), "{marks:?}");
    }

    #[test]
    fn each_weak_setting_is_reported_with_the_command_that_fixes_it() {
        let forever = [("cleanup.policy", "delete"), ("retention.ms", "-1")];
        let cases = [
            (
                0,
                topic("user-events", &[("message.timestamp.type", "CreateTime")]),
                "--topic user-events --add-config 'message.timestamp.type=LogAppendTime'",
            ),
            (
                1,
                topic(
                    "profile-changes",
                    &[("cleanup.policy", "delete"), ("retention.ms", "5")],
                ),
                "--topic profile-changes --add-config 'cleanup.policy=compact'",
            ),
            (
                2,
                topic(
                    "catalog",
                    &[("cleanup.policy", "compact,delete"), ("retention.ms", "5")],
                ),
                "--topic catalog --add-config 'cleanup.policy=compact'",
            ),
            (
                4,
                topic("regen-live", &forever),
                "--topic regen-live --add-config 'retention.ms=604800000'",
            ),
            (
                6,
                topic("recall-updates", &forever),
                "--topic recall-updates --add-config 'cleanup.policy=[compact,delete]'",
            ),
            (
                7,
                topic(
                    "dlq",
                    &[("cleanup.policy", "delete"), ("retention.ms", "604800001")],
                ),
                "--topic dlq --add-config 'retention.ms=604800000'",
            ),
        ];
        for (nth, weak, command) in cases {
            let mut topics = good();
            topics[nth] = weak;
            let marks = marks(&topics);
            let warned: Vec<_> = marks
                .iter()
                .filter(|(mark, _)| *mark == Mark::Warn)
                .collect();
            assert!(
                warned.len() == 1 && warned[0].1.ends_with(command),
                "{command}: {marks:?}"
            );
        }
    }

    #[test]
    fn a_missing_topic_fails_with_the_command_that_creates_it() {
        let mut topics = good();
        topics[2].partitions = 0;
        let marks = marks(&topics);
        let (mark, text) = &marks[2];
        assert_eq!(*mark, Mark::Fail);
        assert!(text.contains("--bootstrap-server localhost:9092 --create --topic catalog --partitions 16 --config message.timestamp.type=LogAppendTime --config cleanup.policy=compact"), "{text}");
    }

    #[test]
    fn events_kept_longer_than_tombstones_are_warned_of() {
        let mut topics = good();
        topics[0] = topic(
            "user-events",
            &[("cleanup.policy", "delete"), ("retention.ms", "-1")],
        );
        assert!(
            marks(&topics).iter().any(|(mark, text)| *mark == Mark::Warn
                && text.contains("keep the list of erased users"))
        );
    }
}
