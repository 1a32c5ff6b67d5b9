//! `nearshore check`: checks everything that must be right, and says what to do where it is not.
//!
//! Invariant: it writes nothing but short-lived keys of probes in Redis. It does not stop at a failure: a broker that is
//! down does not hide what is wrong with Redis.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::config::{WRONG, read};
use super::{Common, block_on};
use crate::config::{Config, Problem};
use crate::ops::visible::{visible_json, visible_lines};
use crate::run::{ADVICE, Asker, strangers};
use nearshore_core::ports::store::Error;

pub(crate) mod acl;
mod catalogue;
mod endpoint;
mod inputs;
mod kafka;
mod model;
mod rules;
#[cfg(test)]
mod tests;
mod texts;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// It works, but a guarantee is weaker than it could be.
    Warn,
    /// It does not work.
    Fail,
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Item {
    /// The result.
    pub mark: Mark,
    /// What was checked.
    pub item: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Item {
    fn of(mark: Mark, item: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            mark,
            item: item.into(),
            found: found.into(),
            advice: None,
        }
    }

    fn ok(item: impl Into<String>, found: impl Into<String>) -> Self {
        Self::of(Mark::Ok, item, found)
    }

    fn warn(item: impl Into<String>, found: impl Into<String>) -> Self {
        Self::of(Mark::Warn, item, found)
    }

    fn fail(item: impl Into<String>, found: impl Into<String>) -> Self {
        Self::of(Mark::Fail, item, found)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// What `check --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Checked<'a> {
    /// Whether no check fails.
    ok: bool,
    /// In the order of the checks.
    items: &'a [Item],
}

/// All checks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// In the order of the checks.
    pub items: Vec<Item>,
    /// Whether the configuration has problems, so that nothing else was checked.
    pub refused: bool,
}

impl Report {
    /// 0 if no check fails, 1 if one does, 2 if the configuration has problems.
    pub fn exit_code(&self) -> u8 {
        let failed = self.items.iter().any(|item| item.mark == Mark::Fail);
        if self.refused {
            WRONG
        } else {
            u8::from(failed)
        }
    }

    /// The report as text: a line per check, and below it what to do.
    pub fn text(&self) -> String {
        let longest = self
            .items
            .iter()
            .map(|item| item.item.chars().count())
            .max();
        let width = longest.unwrap_or(0).min(40);
        let mut out = String::new();
        for item in &self.items {
            let mark = match item.mark {
                Mark::Ok => "[ok]  ",
                Mark::Warn => "[warn]",
                Mark::Fail => "[fail]",
            };
            // Writing into a String cannot fail.
            let _infallible = writeln!(out, "{mark} {:<width$}  {}", item.item, item.found);
            if let Some(advice) = &item.advice {
                let _infallible = writeln!(out, "       -> {advice}");
            }
        }
        out
    }

    /// The report as JSON: `{"ok": …, "items": [{"mark", "item", "found", "advice"}]}`.
    pub fn json(&self) -> String {
        serde_json::json!(Checked {
            ok: self.exit_code() == 0,
            items: &self.items,
        })
        .to_string()
    }
}

/// The options of `nearshore check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Check only what needs no network.
    #[arg(long)]
    offline: bool,
    /// Whose rights on Kafka and Redis are checked or printed.
    #[arg(long, value_enum, default_value = "all")]
    role: acl::Login,
    /// Print the rights that this configuration needs, and check nothing.
    #[arg(long, conflicts_with = "offline")]
    acl: bool,
    /// Kafka's principal in what is printed, without `User:` [default: sasl.username, or nearshore].
    #[arg(long, requires = "acl", value_name = "NAME")]
    principal: Option<String>,
}

/// `nearshore check`.
pub(crate) fn command(options: Options) -> anyhow::Result<ExitCode> {
    let Options {
        common,
        offline,
        role,
        acl,
        principal,
    } = options;
    let path = common.config.as_deref();
    if acl {
        let code = acl::print(path, role, principal.as_deref(), common.json);
        return Ok(ExitCode::from(code));
    }
    if role == acl::Login::Client {
        anyhow::bail!("a client has no part in what is checked: --role client goes with --acl");
    }
    block_on(async { Ok(ExitCode::from(run(path, offline, role, common.json).await)) })
}

/// Prints the report and returns the exit code.
async fn run(path: Option<&Path>, offline: bool, login: acl::Login, json: bool) -> u8 {
    let shown = path.unwrap_or(Path::new("(defaults)"));
    let report = match read(path) {
        Ok(config) => check_as(&config, shown, offline, login).await,
        Err(problems) => refused(&problems),
    };
    if json {
        out!("{}", visible_json(&report.json()));
    } else {
        out_part!("{}", visible_lines(&report.text()));
    }
    report.exit_code()
}

fn refused(problems: &[Problem]) -> Report {
    let items = problems
        .iter()
        .map(|problem| Item::fail("config", problem.to_string()));
    Report {
        items: items.collect(),
        refused: true,
    }
}

/// Checks everything that the configuration names; with `offline` only files.
pub async fn check(config: &Config, path: &Path, offline: bool) -> Report {
    check_as(config, path, offline, acl::Login::All).await
}

/// Checks as [`check`] does, with the rights that this login needs.
async fn check_as(config: &Config, path: &Path, offline: bool, login: acl::Login) -> Report {
    let mut items = vec![file(path)];
    items.extend(settings(config));
    items.extend(model::files(config));
    items.extend(endpoint::files(config));
    items.extend(texts::files(config));
    items.extend(inputs::check(config).await);
    if !offline {
        let kafka = kafka::check(config, login).await;
        let answers = kafka.iter().all(|item| item.mark != Mark::Fail);
        items.extend(kafka);
        if answers {
            items.extend(catalogue::check(config).await);
        }
        items.extend(redis(config, login).await);
        items.extend(installation(config).await);
        items.extend(rules::check(config).await);
        items.extend(model::loads(config).await);
        items.extend(endpoint::answers(config).await);
    }
    Report {
        items,
        refused: false,
    }
}

/// The configuration file. An empty one is valid, and often one that was cut off: it has no rules.
fn file(path: &Path) -> Item {
    let shown = path.display().to_string();
    match crate::files::read_filled(path, "every key has its default, and there are no rules") {
        Err(error @ crate::files::Error::Empty { .. }) => {
            Item::warn("config", error.to_string()).advise("restore it, or leave out --config")
        }
        _ => Item::ok("config", shown),
    }
}

/// Warns of settings that weaken a guarantee; wrong settings were refused before.
fn settings(config: &Config) -> Vec<Item> {
    let required = config.rules.iter().filter(|rule| rule.required).count();
    let rules = format!(
        "{} rules, {required} of them required; {} segments and default",
        config.rules.len(),
        config.segments.len()
    );
    let mut items = vec![Item::ok("rules", rules)];
    let http = &config.http;
    if http.inspect && http.inspect_token_file.is_none() && !http.listen.ip().is_loopback() {
        let found = format!(
            "/inspect is refused at {}: it shows the events of single users, and there is no token",
            http.listen
        );
        let advice = "set http.inspect_token_file, http.inspect = false, or listen on 127.0.0.1";
        items.push(Item::warn("http", found).advise(advice));
    }
    if config.redis.min_replicas == 0 {
        let found = "redis.min_replicas is 0: a failover can lose acknowledged writes";
        let advice = "set it to 1 where Redis has replicas";
        items.push(Item::warn("redis replication", found).advise(advice));
    }
    items
}

async fn redis(config: &Config, login: acl::Login) -> Vec<Item> {
    let store = match nearshore_redis::RedisStore::new(config.redis.clone()) {
        Ok(store) => store,
        Err(error) => return vec![Item::fail("redis", error.to_string())],
    };
    // Each query has its own limit; this one is for a network that drops all packets.
    let limit = Duration::from_secs(30);
    let checked = async {
        match store.ready().await {
            // A Redis that does not answer the first query is not asked further ones.
            Err(error @ (Error::Unavailable { .. } | Error::Timeout { .. })) => {
                vec![("redis answers".to_owned(), Err(error.to_string()))]
            }
            _ => {
                let mut checks = store.check().await;
                match store.check_rights(login.uses()).await {
                    Ok(rights) => checks.extend(rights),
                    Err(error) => checks.push(("redis rights".into(), Err(error.to_string()))),
                }
                checks
            }
        }
    };
    let Ok(checks) = tokio::time::timeout(limit, checked).await else {
        let found = format!("no answer within {limit:?}");
        return vec![
            Item::fail("redis", found)
                .advise("is redis.url right, is there a firewall in between?"),
        ];
    };
    let item = |(name, found): nearshore_redis::Check| {
        match found {
        // It runs, with one promise less.
        Ok(found) if name.ends_with("failovers") => Item::warn(name, found).advise(
            "use a Redis that tells them, or restart all processes after a failover: at their start they compare positions",
        ),
        Ok(found) => Item::ok(name, found),
        Err(wrong) => Item {
            advice: advice(&name, &wrong).map(str::to_owned),
            ..Item::fail(name, wrong)
        },
    }
    };
    checks.into_iter().map(item).collect()
}

/// Checks whether another installation, with another Redis, reads this one's consumer groups. Nothing is said where
/// Kafka or Redis does not answer: the checks before say that.
async fn installation(config: &Config) -> Option<Item> {
    let mut kafka = config.kafka.clone();
    kafka.ack_timeout = kafka.ack_timeout.min(kafka::ANSWER_MAX);
    let store = nearshore_redis::RedisStore::new(config.redis.clone()).ok()?;
    let own = store.known_installation().await.ok()?.unwrap_or_default();
    let admin = nearshore_kafka::Admin::new(&kafka).ok()?;
    let found = strangers(config, &admin, &own, Asker::Command).await.ok()?;
    let item = "installation";
    Some(match found.first() {
        None => Item::ok(item, "no other one is in the consumer groups"),
        Some(first) => Item::fail(item, first).advise(ADVICE),
    })
}

/// Says what to do about a failed check of the store: by what Redis said, else by the end of the check's name.
fn advice(name: &str, wrong: &str) -> Option<&'static str> {
    let said = [
        (
            "login is refused",
            "redis.username and redis.password_file (or user and password in redis.url) must be a login of this Redis",
        ),
        (
            "switch database",
            "the number behind the address in redis.url is a database: Redis has 0 to 15 unless its `databases` says otherwise, a cluster only 0",
        ),
    ];
    let ours = ["redis.url: ", "redis.username: ", "redis.tls_"];
    if ours.iter().any(|key| wrong.contains(key)) {
        // It says what to do.
        return None;
    }
    if let Some((_, advice)) = said.iter().find(|(part, _)| wrong.contains(part)) {
        return Some(advice);
    }
    let known = [
        (
            "answers",
            "is redis.url right, is Redis running, does its ACL allow redis.username?",
        ),
        (
            "takes writes",
            "point redis.url at the primary; nearshore check --acl prints the rights that the login needs",
        ),
        ("rights", acl::ADVICE),
        ("version", "use Redis 7.0 or newer"),
        (
            "maxmemory-policy",
            "CONFIG SET maxmemory-policy noeviction: evicted state is lost without a trace",
        ),
        (
            "mode",
            "write redis+cluster:// for a cluster, redis:// for a single primary",
        ),
        ("replicas", "attach replicas, or lower redis.min_replicas"),
    ];
    let found = known.iter().find(|(end, _)| name.ends_with(end));
    found.map(|(_, advice)| *advice)
}
