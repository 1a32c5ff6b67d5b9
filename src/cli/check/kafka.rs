//! Brokers and topics: whether they answer, and whether topics are set up as the promises need.

use std::time::Duration;

use super::Item;
use crate::config::Config;
use nearshore_core::ports::log;
use nearshore_kafka::{Admin, Topic};

/// How long a broker may take to answer a question or a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest that internal requests and rejected records may be kept.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Everything about Kafka.
pub(super) async fn check(config: &Config) -> Vec<Item> {
    let mut settings = config.kafka.clone();
    settings.ack_timeout = settings.ack_timeout.min(PATIENCE);
    let admin = match Admin::new(&settings) {
        Ok(admin) => admin,
        Err(error) => return vec![Item::fail("kafka", error.to_string())],
    };
    let brokers = match admin.brokers().await {
        Ok(brokers) => brokers,
        Err(error) => {
            let advice = "is kafka.brokers right, do they listen, do TLS and SASL settings fit?";
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
        items.push(connects(&broker).await);
    }
    let names = config.topics.keyed().map(|(_, name)| name);
    match admin.describe(&names).await {
        Ok(topics) => items.extend(of_topics(config, &topics)),
        Err(error) => {
            let advice = "the ACL needs Describe and DescribeConfigs on the topics of [topics]";
            items.push(Item::fail("topics", error.to_string()).advise(advice));
        }
    }
    items.extend(groups(config, &admin).await);
    items
}

/// Whether the ACL lets us see each consumer group. Asking for its positions needs Describe on the group; the right
/// to join it, and to write to topics, shows only when it is used: nothing is joined or written here.
async fn groups(config: &Config, admin: &Admin) -> Vec<Item> {
    let topics = &config.topics;
    let ingest = crate::members::ingest::group(&config.namespace);
    let [urgent, live, backfill] = topics.lanes();
    let groups: [(&str, Vec<&str>); 3] = [
        (&ingest, vec![&topics.user_events, &topics.profile_changes]),
        (crate::members::stock::GROUP, vec![&topics.catalog]),
        (
            crate::members::generate::GROUP,
            vec![&urgent, &live, &backfill],
        ),
    ];
    let mut items = Vec::new();
    for (group, topics) in groups {
        let item = format!("acl group {group}");
        let mut answer = admin.committed(group, &topics).await;
        if let Err(log::Error::Timeout { .. }) = answer {
            // A cluster that no group has used yet makes its coordinator on the first question.
            answer = admin.committed(group, &topics).await;
        }
        items.push(match answer {
            Ok(_) => Item::ok(item, "positions can be read"),
            Err(log::Error::Timeout { limit, .. }) => {
                let found = format!("no answer within {:?}", limit * 2);
                Item::fail(item, found)
                    .advise("is the group's coordinator up? see the brokers' logs")
            }
            Err(error) => {
                let advice = format!("the ACL needs Read and Describe on group {group}");
                Item::fail(item, error.to_string()).advise(advice)
            }
        });
    }
    items
}

/// The address that the cluster advertises, which clients must reach.
async fn connects(broker: &str) -> Item {
    let item = format!("broker {broker}");
    let advice = "it is the address that the broker advertises: see advertised.listeners";
    match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(broker)).await {
        Ok(Ok(_)) => Item::ok(item, "answers"),
        Ok(Err(error)) => Item::fail(item, error.to_string()).advise(advice),
        Err(_) => Item::fail(item, format!("no connection within {PATIENCE:?}")).advise(advice),
    }
}

/// What a topic is for decides what it must be.
fn of_topics(config: &Config, topics: &[Topic]) -> Vec<Item> {
    let mut items = Vec::new();
    for ((key, _), topic) in config.topics.keyed().into_iter().zip(topics) {
        let item = format!("topic {}", topic.name);
        if topic.partitions == 0 {
            let found = "is not there, or we may not see it";
            let advice = create(config, key, &topic.name);
            items.push(Item::fail(item, found).advise(advice));
            continue;
        }
        let wrong = wrongs(key, topic);
        if wrong.is_empty() {
            items.push(Item::ok(&item, described(topic)));
        }
        for (found, setting) in wrong {
            let alter = alter(config, &topic.name, setting);
            items.push(Item::warn(&item, found).advise(alter));
        }
    }
    items.extend(erasure(config, topics));
    items
}

fn described(topic: &Topic) -> String {
    let unknown = if topic.config.is_none() {
        ", settings not told"
    } else {
        ""
    };
    format!("{} partitions{unknown}", topic.partitions)
}

const STAMPED: &str = "message.timestamp.type=LogAppendTime";
const COMPACTED: &str = "cleanup.policy=compact";
const BOTH: &str = "cleanup.policy=[compact,delete]";
const A_WEEK: &str = "retention.ms=604800000";

fn alter(config: &Config, topic: &str, setting: &str) -> String {
    let brokers = &config.kafka.brokers;
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --topic {topic} --add-config '{setting}'"
    )
}

/// With the settings that a new topic of this key should have.
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

/// What weakens a promise, and the setting that mends it; unknown settings are no wrongs.
fn wrongs(key: &str, topic: &Topic) -> Vec<(String, &'static str)> {
    let mut wrong = Vec::new();
    let source = matches!(key, "user_events" | "profile_changes" | "catalog");
    if source && topic.log_append_time() == Some(false) {
        let found = "timestamps are the producers' (CreateTime): their clocks decide order and age";
        wrong.push((found.to_owned(), STAMPED));
    }
    let keeps_last = match key {
        "profile_changes" | "catalog" => Some(COMPACTED),
        "recall_updates" => Some(BOTH),
        _ => None,
    };
    if let (Some(setting), Some(false)) = (keeps_last, topic.compacted()) {
        let found = "is not compacted: it grows for ever, or forgets what nobody sends again";
        wrong.push((found.to_owned(), setting));
    }
    let whole = matches!(key, "profile_changes" | "catalog");
    if whole && topic.compacted() == Some(true) && matches!(topic.retention(), Some(Some(_))) {
        let found = "deletes old records too: what nobody sends again is forgotten";
        wrong.push((found.to_owned(), COMPACTED));
    }
    let brief = key.starts_with("regen_") || key == "dlq";
    let kept = topic.retention();
    if brief && kept.is_some_and(|kept| kept.is_none_or(|kept| kept > WEEK)) {
        let found = "keeps records longer than 7 days: an erased user's stay as long";
        wrong.push((found.to_owned(), A_WEEK));
    }
    wrong
}

/// Whether a replay into an empty Redis could bring an erased user back.
fn erasure(config: &Config, topics: &[Topic]) -> Option<Item> {
    let named = |name: &str| topics.iter().find(|topic| topic.name == name);
    let events = named(&config.topics.user_events)?.retention()?;
    let profiles = named(&config.topics.profile_changes)?;
    let deletes = profiles.config.as_ref()?.get("delete.retention.ms")?;
    let deletes = Duration::from_millis(deletes.parse().ok()?);
    let words = |kept: Duration| humantime::format_duration(kept).to_string();
    let longer = events.is_none_or(|events| events > deletes);
    let kept = events.map_or("for ever".to_owned(), words);
    let found = format!("events are kept {kept}, deletes {}", words(deletes));
    Some(if longer {
        let longer = alter(config, &profiles.name, "delete.retention.ms=...");
        let advice = format!(
            "a replay into an empty Redis could bring erased users back: keep the list of erased users elsewhere, or {longer}"
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
        let brief = [("cleanup.policy", "delete"), ("retention.ms", "604800000")];
        vec![
            topic("user-events", &[append, brief[0], brief[1]]),
            topic(
                "profile-changes",
                &[append, compact, ("delete.retention.ms", "700000000")],
            ),
            topic("catalog", &[append, compact]),
            topic("regen-urgent", &brief),
            topic("regen-live", &brief),
            topic("regen-backfill", &brief),
            topic(
                "recall-updates",
                &[("cleanup.policy", "compact,delete"), ("retention.ms", "1")],
            ),
            topic("dlq", &brief),
        ]
    }

    #[test]
    fn topics_as_the_promises_need_them_are_fine() {
        let marks = marks(&good());
        assert_eq!(marks.len(), 9);
        assert!(marks.iter().all(|(mark, _)| *mark == Mark::Ok), "{marks:?}");
    }

    #[test]
    fn each_weak_setting_is_named_with_the_command_that_mends_it() {
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
    fn a_missing_topic_fails_with_the_command_that_makes_it() {
        let mut topics = good();
        topics[2].partitions = 0;
        let marks = marks(&topics);
        let (mark, text) = &marks[2];
        assert_eq!(*mark, Mark::Fail);
        assert!(text.contains("--bootstrap-server localhost:9092 --create --topic catalog --partitions 16 --config message.timestamp.type=LogAppendTime --config cleanup.policy=compact"), "{text}");
    }

    #[test]
    fn events_that_outlive_deletes_are_warned_of() {
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
