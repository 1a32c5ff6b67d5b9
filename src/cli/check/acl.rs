//! The rights that a configuration needs on Kafka and Redis, by role: `nearshore check --acl` prints them, and
//! `nearshore check` looks whether they are there.
//!
//! Invariant: what is printed is what is looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::Item;
use crate::cli::config::{WRONG, read};
use crate::config::Config;
use crate::members::{generate, ingest, stock};
use crate::ops::visible::{visible_json, visible_lines};
use nearshore_core::map::ReadAs;
use nearshore_kafka::{Admin, Operation, Permitted};
use nearshore_redis::Use;

/// Who logs in to Kafka and Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Login {
    /// `run --role ingest`.
    Ingest,
    /// `run --role generate`.
    Generate,
    /// `run --role all`.
    All,
    /// Every command: backfill, promote, forget, dlq, block and the others.
    Operator,
    /// What shows lists to users: it reads Redis alone.
    Client,
}

impl Login {
    pub(super) fn uses(self) -> &'static [Use] {
        match self {
            Self::Ingest => &[Use::Ingest],
            Self::Generate => &[Use::Generate],
            Self::All => &[Use::Ingest, Use::Generate],
            Self::Operator => &[Use::Operate],
            Self::Client => &[Use::Serve],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Topic,
    Group,
    /// All groups whose names begin so.
    Groups,
}

/// What a login needs on Kafka: operations by topic or group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grants(BTreeMap<(Kind, String), BTreeSet<Operation>>);

impl Grants {
    fn add(&mut self, kind: Kind, name: impl Into<String>, operations: &[Operation]) {
        let entry = self.0.entry((kind, name.into())).or_default();
        entry.extend(operations);
    }

    fn of(config: &Config, login: Login) -> Self {
        use Operation::{Describe, DescribeConfigs, Read, Write};
        let mut grants = Self::default();
        let (topics, kafka) = (&config.topics, &config.kafka);
        if login == Login::Client {
            return grants;
        }
        let [urgent, live, backfill] = topics.lanes();
        let lanes = [&*urgent, &*live, &*backfill];
        let named = topics.keyed().map(|(_, name)| name);
        let inputs = config.inputs.iter().map(|input| &*input.topic);
        let all: BTreeSet<&str> = named.into_iter().chain(inputs).collect();
        for name in &all {
            grants.add(Kind::Topic, *name, &[Describe, DescribeConfigs]);
        }
        if login == Login::Operator {
            for name in &all {
                grants.add(Kind::Topic, *name, &[Read, Write]);
            }
            grants.add(Kind::Groups, kafka.group(""), &[Read, Describe]);
            return grants;
        }
        let own = [
            (ingest::group(kafka, &config.namespace), Login::Ingest),
            (stock::group(kafka), Login::Ingest),
            (generate::group(kafka), Login::Generate),
        ];
        for (group, role) in own {
            // Members of another installation are looked for in all of them.
            grants.add(Kind::Group, &group, &[Describe]);
            if login == role || login == Login::All {
                grants.add(Kind::Group, &group, &[Read]);
            }
        }
        // librdkafka asks for the coordinator of the name that the readers of the catalogue have.
        grants.add(Kind::Group, kafka.group("tail"), &[Describe]);
        for name in topics.read_as(ReadAs::Catalog) {
            grants.add(Kind::Topic, &*name, &[Read]);
        }
        if login != Login::Generate {
            for name in topics.of_users() {
                grants.add(Kind::Topic, &*name, &[Read]);
            }
        }
        for lane in lanes {
            grants.add(Kind::Topic, lane, &[Write]);
            if login != Login::Ingest {
                grants.add(Kind::Topic, lane, &[Read]);
            }
        }
        for name in [&topics.recall_updates, &topics.dlq] {
            grants.add(Kind::Topic, &**name, &[Write]);
        }
        grants
    }

    fn names(&self, kind: Kind) -> Vec<&str> {
        let all = self.0.keys().filter(|(found, _)| *found == kind);
        all.map(|(_, name)| &**name).collect()
    }

    /// Names by what they need, so that a command has as many as it can.
    fn together(&self) -> BTreeMap<(Kind, &BTreeSet<Operation>), Vec<&str>> {
        let mut together: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for ((kind, name), operations) in &self.0 {
            together.entry((*kind, operations)).or_default().push(name);
        }
        together
    }

    /// What is not permitted, in words. What the brokers do not say is not counted.
    fn lacking(&self, permitted: &BTreeMap<Kind, Permitted>) -> Vec<String> {
        let mut lacking = Vec::new();
        for ((kind, name), needed) in &self.0 {
            let found = permitted.get(kind).and_then(|found| found.get(name));
            let Some(Some(found)) = found else {
                continue;
            };
            for operation in needed.difference(found) {
                let kind = if *kind == Kind::Topic {
                    "topic"
                } else {
                    "group"
                };
                lacking.push(format!("{operation} on {kind} {name}"));
            }
        }
        lacking
    }

    /// `kafka-acls.sh` lines.
    fn commands(&self, brokers: &str, principal: &str) -> Vec<String> {
        let line = |((kind, operations), names): ((Kind, &BTreeSet<Operation>), Vec<&str>)| {
            let operations: String = operations
                .iter()
                .map(|it| format!(" --operation {it}"))
                .collect();
            let word = if kind == Kind::Topic {
                "--topic"
            } else {
                "--group"
            };
            let names: String = names
                .iter()
                .map(|name| format!(" {word} {}", quoted(name)))
                .collect();
            let pattern = match kind {
                Kind::Groups => " --resource-pattern-type prefixed",
                Kind::Topic | Kind::Group => "",
            };
            let principal = quoted(&format!("User:{principal}"));
            format!(
                "kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal {principal}{operations}{names}{pattern}"
            )
        };
        self.together().into_iter().map(line).collect()
    }

    /// A KafkaUser of Strimzi.
    fn strimzi(&self, name: &str) -> serde_json::Value {
        let acl = |((kind, name), operations): (&(Kind, String), &BTreeSet<Operation>)| {
            let (kind, pattern) = match kind {
                Kind::Topic => ("topic", "literal"),
                Kind::Group => ("group", "literal"),
                Kind::Groups => ("group", "prefix"),
            };
            let operations: Vec<String> = operations.iter().map(ToString::to_string).collect();
            json!({
                "resource": { "type": kind, "name": name, "patternType": pattern },
                "operations": operations,
            })
        };
        json!({
            "apiVersion": "kafka.strimzi.io/v1",
            "kind": "KafkaUser",
            "metadata": { "name": name, "labels": { "strimzi.io/cluster": "CLUSTER" } },
            "spec": { "authorization": { "type": "simple", "acls": self.0.iter().map(acl).collect::<Vec<_>>() } },
        })
    }
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    match word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// What `check --acl --json` prints.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Granted<'a> {
    /// The login.
    login: &'a str,
    /// `ACL SETUSER` of Redis, without the password.
    redis: String,
    /// The same of the Sentinels; null without them, or without a user of theirs.
    sentinels: Option<String>,
    /// Commands of `kafka-acls`.
    kafka: Vec<String>,
    /// A KafkaUser of Strimzi; null if the login needs nothing of Kafka.
    strimzi: Option<serde_json::Value>,
}

/// `nearshore check --acl`: prints what a login needs, and returns the exit code.
pub(crate) fn print(path: Option<&Path>, login: Login, principal: Option<&str>, json: bool) -> u8 {
    let config = match read(path) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                note!("{}", visible_lines(&problem.to_string()));
            }
            return WRONG;
        }
    };
    let named = config.kafka.properties.get("sasl.username");
    let principal = principal
        .or(named.map(String::as_str))
        .unwrap_or("nearshore");
    let user = config.redis.username.as_deref().unwrap_or("nearshore");
    let rules = nearshore_redis::acl(user, login.uses(), &config.redis)
        .and_then(|rule| Ok((rule, nearshore_redis::sentinel_acl(&config.redis)?)));
    let (rule, sentinels) = match rules {
        Ok(rules) => rules,
        Err(error) => {
            note!("{}", visible_lines(&error.to_string()));
            return 1;
        }
    };
    let grants = Grants::of(&config, login);
    let commands = grants.commands(&config.kafka.brokers, principal);
    let strimzi = (!grants.0.is_empty()).then(|| grants.strimzi(principal));
    let role: &str = login.into();
    if json {
        let all = json!(Granted {
            login: role,
            redis: rule,
            sentinels,
            kafka: commands,
            strimzi,
        });
        out!("{}", visible_json(&all.to_string()));
        return 0;
    }
    out!("# Redis, for {role}: on every node, then `>PASSWORD` of redis.password_file.\n{rule}");
    if let Some(rule) = sentinels {
        out!(
            "\n# The Sentinels: on every one, then `>PASSWORD` of redis.sentinel_password_file.\n{rule}"
        );
    }
    if let Some(strimzi) = strimzi {
        out!(
            "\n# Kafka, for {role}; add --command-config FILE with an administrator's login.\n{}",
            commands.join("\n")
        );
        out!(
            "\n# Or with Strimzi, as JSON, which kubectl apply -f takes; CLUSTER is the name of the Kafka.\n{strimzi:#}"
        );
    }
    0
}

/// Checks that the brokers permit what the login needs.
pub(super) async fn check(config: &Config, admin: &Admin, login: Login) -> Option<Item> {
    let grants = Grants::of(config, login);
    let (topics, mut groups) = (grants.names(Kind::Topic), grants.names(Kind::Group));
    if groups.is_empty() && topics.is_empty() {
        return None;
    }
    // Rights of a prefix are those of each group under it: one of them is asked about.
    let sample = ingest::group(&config.kafka, &config.namespace);
    let prefixes = grants.names(Kind::Groups);
    if !prefixes.is_empty() {
        groups.push(&sample);
    }
    let of_topics = admin.rights_on_topics(&topics).await;
    let of_groups = admin.rights_in_groups(&groups).await;
    let (of_topics, of_groups) = match (of_topics, of_groups) {
        (Ok(topics), Ok(groups)) => (topics, groups),
        (Err(error), _) | (_, Err(error)) => {
            return Some(Item::warn(
                "kafka rights",
                format!("cannot be read: {error}"),
            ));
        }
    };
    let under = prefixes.iter().filter_map(|prefix| {
        let found = of_groups.get(&sample)?.clone();
        Some(((*prefix).to_owned(), found))
    });
    let under: Permitted = under.collect();
    let known = of_topics
        .values()
        .chain(of_groups.values())
        .flatten()
        .count();
    let permitted = BTreeMap::from([
        (Kind::Topic, of_topics),
        (Kind::Groups, under),
        (Kind::Group, of_groups),
    ]);
    let lacking = grants.lacking(&permitted);
    Some(match lacking.is_empty() {
        true if known == 0 => Item::ok("kafka rights", "the brokers do not say"),
        true => Item::ok(
            "kafka rights",
            format!("all that are needed, on {known} topics and groups"),
        ),
        false => Item::fail(
            "kafka rights",
            format!("this login lacks {}", lacking.join(", ")),
        )
        .advise(ADVICE),
    })
}

/// What to do about a missing right.
pub(super) const ADVICE: &str = "nearshore check --acl --role ROLE prints what grants it";

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(login: Login) -> Grants {
        Grants::of(&Config::default(), login)
    }

    /// What a broker says of a login that has all of this but one operation.
    fn permitted_but(grants: &Grants, but: (&Kind, &str, Operation)) -> BTreeMap<Kind, Permitted> {
        let mut permitted: BTreeMap<Kind, Permitted> = BTreeMap::new();
        for ((kind, name), operations) in &grants.0 {
            let mut found = operations.clone();
            if (kind, &**name) == (but.0, but.1) {
                found.remove(&but.2);
            }
            permitted
                .entry(*kind)
                .or_default()
                .insert(name.clone(), Some(found));
        }
        permitted
    }

    #[test]
    fn each_right_that_is_taken_away_is_named_alone() {
        for login in [Login::Ingest, Login::Generate, Login::All, Login::Operator] {
            let grants = grants(login);
            for ((kind, name), operations) in &grants.0 {
                for &operation in operations {
                    let lacking = grants.lacking(&permitted_but(&grants, (kind, name, operation)));
                    assert_eq!(lacking.len(), 1, "{lacking:?}");
                    assert!(
                        lacking[0].starts_with(&operation.to_string()),
                        "{lacking:?}"
                    );
                    assert!(lacking[0].ends_with(name.as_str()), "{lacking:?}");
                }
            }
        }
    }

    #[test]
    fn a_role_reads_and_writes_no_topic_of_the_other() {
        let has = |login, topic: &str, operation| {
            let key = (Kind::Topic, topic.to_owned());
            grants(login)
                .0
                .get(&key)
                .is_some_and(|found| found.contains(&operation))
        };
        assert!(has(Login::Ingest, "user-events", Operation::Read));
        assert!(!has(Login::Generate, "user-events", Operation::Read));
        assert!(!has(Login::Ingest, "user-events", Operation::Write));
        assert!(has(Login::Generate, "regen-live", Operation::Read));
        assert!(!has(Login::Ingest, "regen-live", Operation::Read));
        assert!(has(Login::All, "regen-live", Operation::Read));
        assert!(!has(Login::All, "catalog", Operation::Write));
        assert!(has(Login::Operator, "dlq", Operation::Read));
        assert_eq!(grants(Login::Client), Grants::default());
    }

    #[test]
    fn commands_grant_everything_once() {
        let grants = grants(Login::Generate);
        let lines = grants.commands("b:1", "CN=shop, O=x");
        for line in &lines {
            assert!(
                line.contains(" --allow-principal 'User:CN=shop, O=x' "),
                "{line}"
            );
        }
        for ((kind, name), operations) in &grants.0 {
            let word = if *kind == Kind::Topic {
                "--topic"
            } else {
                "--group"
            };
            let names = |line: &&String| {
                line.ends_with(name.as_str()) || line.contains(&format!("{word} {name} "))
            };
            let of: Vec<_> = lines.iter().filter(names).collect();
            assert_eq!(of.len(), 1, "{name}: {lines:#?}");
            for operation in operations {
                assert!(
                    of[0].contains(&format!(" --operation {operation}")),
                    "{name}"
                );
            }
        }
        let operator = super::tests::grants(Login::Operator).commands("b:1", "op");
        assert!(
            operator
                .iter()
                .any(|line| line.contains("--group nearshore- --resource-pattern-type prefixed"))
        );
    }

    #[test]
    fn strimzi_gets_the_same_grants() {
        let grants = grants(Login::Ingest);
        let user = grants.strimzi("shop");
        let acls = user["spec"]["authorization"]["acls"]
            .as_array()
            .expect("a list");
        assert_eq!(acls.len(), grants.0.len());
        let events = acls
            .iter()
            .find(|acl| acl["resource"]["name"] == "user-events")
            .expect("the topic");
        assert_eq!(
            events["operations"],
            json!(["Read", "Describe", "DescribeConfigs"])
        );
    }
}
