//! The rights that a login of Redis needs: the rule to give it (`ACL SETUSER`), and the check of what it has.
//!
//! Invariant: what is advised is what is checked, and no more: both read [`needs`]. The commands of scripts are read
//! from the scripts themselves. A check changes nothing that is not of the probe: each script is called so that it
//! finds nothing to do.

use std::collections::BTreeSet;

use redis::Cmd;

use super::RedisStore;
use super::faults::RIGHT;
use super::scripts::{Effect, call, commands_of};
use super::settings::{RedisSettings, TargetKind};
use super::survey::{Check, Primary};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;

/// What logs in to Redis, by what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A process of the role `ingest`: users, counts, stock.
    Ingest,
    /// A process of the role `generate`: claims, lists, fallbacks.
    Generate,
    /// Every command of the command line.
    Operate,
    /// A client that reads lists, and what is sold out.
    Serve,
}

/// What one use needs beside the login itself.
struct Needs {
    /// Scripts that are called; each needs its own commands, too.
    scripts: &'static [Effect],
    /// Commands that are sent outside of scripts.
    commands: &'static [&'static str],
    /// Patterns of the keys.
    keys: &'static [&'static str],
}

/// The keys of all namespaces and of the installation. A namespace is made by an operator and used by both roles.
const KEYS: [&str; 10] = [
    "nearshore:*",
    "*:{*}:state",
    "*:{*}:profile",
    "*:{*}:recall",
    "*:counts:{*}:*",
    "*:checkpoint:{*}",
    "*:fallback:*",
    "*:plan",
    "*:arms",
    "*:history",
];
const ALL_KEYS: [&str; 1] = ["*"];
const CLIENT_KEYS: [&str; 4] = [
    keys::ACTIVE,
    "nearshore:oos:{*}",
    "*:{*}:recall",
    "*:fallback:*",
];

/// What every process sends: scripts, the probe of `/readyz`, the lineage, the types of bad values.
const PROCESS: [&str; 5] = ["evalsha", "script|load", "info", "set", "type"];

fn needs(usage: Use) -> Needs {
    use Effect::*;
    match usage {
        Use::Ingest => Needs {
            scripts: &[Fold, Delta, Stock, Discard, Checkpoint, Active],
            commands: &[
                "get", "hget", "hgetall", "hincrby", "hmget", "scan", "smembers",
            ],
            keys: &KEYS,
        },
        Use::Generate => Needs {
            scripts: &[Claim, Publish, Checkpoint, Active],
            commands: &[
                "exists", "get", "hgetall", "hincrby", "hmget", "hset", "scan", "smembers",
            ],
            keys: &KEYS,
        },
        Use::Operate => Needs {
            scripts: &Effect::ALL,
            commands: &[
                "exists",
                "get",
                "hdel",
                "hget",
                "hgetall",
                "hincrby",
                "hmget",
                "hset",
                "memory|usage",
                "pttl",
                "scan",
                "smembers",
                "smismember",
                "unlink",
            ],
            // `forget` finds whatever is left of a user, under any name.
            keys: &ALL_KEYS,
        },
        Use::Serve => Needs {
            scripts: &[],
            commands: &["get", "hget", "sismember", "smismember"],
            keys: &CLIENT_KEYS,
        },
    }
}

/// The commands that these uses need with these settings, sorted.
fn commands(uses: &[Use], settings: &RedisSettings) -> Result<BTreeSet<String>, Error> {
    let target = settings.target()?;
    let mut found: BTreeSet<String> = BTreeSet::new();
    for &usage in uses {
        let needs = needs(usage);
        found.extend(needs.commands.iter().map(ToString::to_string));
        found.extend(needs.scripts.iter().flat_map(|&effect| commands_of(effect)));
        if usage == Use::Serve {
            continue;
        }
        found.extend(PROCESS.iter().map(ToString::to_string));
        if settings.min_replicas > 0 {
            found.insert("wait".into());
        }
        if matches!(target.kind, TargetKind::Cluster) {
            // The client reads the map of slots, tests its connections, and follows a slot that moves.
            found.extend(["cluster|slots", "ping", "asking"].map(String::from));
        } else if target
            .nodes
            .iter()
            .any(|node| node.redis_settings().db() != 0)
        {
            found.insert("select".into());
        }
    }
    Ok(found)
}

/// The rule that gives a user these uses and nothing else, as `ACL SETUSER` takes it.
pub fn acl(user: &str, uses: &[Use], settings: &RedisSettings) -> Result<String, Error> {
    let mut patterns: Vec<&str> = uses
        .iter()
        .flat_map(|&usage| needs(usage).keys)
        .copied()
        .collect();
    patterns.sort_unstable();
    patterns.dedup();
    if patterns.contains(&"*") {
        patterns = vec!["*"];
    }
    let serves = uses == [Use::Serve];
    let access = if serves { "%R~" } else { "~" };
    let keys: String = patterns
        .iter()
        .map(|pattern| format!(" {access}{pattern}"))
        .collect();
    // What clients of other languages send at their start differs.
    let connection = if serves {
        " +@connection -@dangerous"
    } else {
        ""
    };
    let commands = commands(uses, settings)?;
    let commands: String = commands
        .iter()
        .map(|command| format!(" +{command}"))
        .collect();
    Ok(format!(
        "ACL SETUSER {user} on resetkeys resetchannels -@all{keys}{connection}{commands}"
    ))
}

/// The rule for the user with which Sentinels are asked; `None` without Sentinels or without such a user.
pub fn sentinel_acl(settings: &RedisSettings) -> Result<Option<String>, Error> {
    let TargetKind::Sentinel(_) = settings.target()?.kind else {
        return Ok(None);
    };
    let rule = |user| {
        format!(
            "ACL SETUSER {user} on resetkeys resetchannels -@all +hello +auth +sentinel|get-master-addr-by-name"
        )
    };
    Ok(settings.sentinel_username.as_deref().map(rule))
}

impl RedisStore {
    /// Checks that the login has every right of these uses, on every primary, and names those that it lacks.
    pub async fn check_rights(&self, uses: &[Use]) -> Result<Vec<Check>, Error> {
        let commands = commands(uses, &self.inner.settings)?;
        let mut checks = Vec::new();
        // What the connection itself lacks would look as if every command were refused.
        self.link().connected().await?;
        for primary in self.primaries().await? {
            let name = match self.link().is_cluster() {
                true => format!("redis {} rights", primary.node),
                false => "redis rights".into(),
            };
            let lacks = self.lacks(&primary, &commands, uses).await?;
            let found = match lacks.is_empty() {
                true => Ok(format!("{} commands on their keys", commands.len())),
                false => Err(format!("{RIGHT}: {}", lacks.join(", "))),
            };
            checks.push((name, found));
        }
        Ok(checks)
    }

    async fn lacks(
        &self,
        primary: &Primary,
        commands: &BTreeSet<String>,
        uses: &[Use],
    ) -> Result<Vec<String>, Error> {
        let probe = Probe::new(primary);
        let mut lacks = Vec::new();
        // The text that the others are tried on: without it they would write.
        let set = ["set".to_owned()];
        for command in set
            .iter()
            .chain(commands.iter().filter(|command| *command != "set"))
        {
            let Some(harmless) = probe.command(command) else {
                continue;
            };
            if lacks.first().is_some_and(|first| first == "+set") {
                break;
            }
            if self.is_refused(primary, harmless).await? {
                lacks.push(format!("+{command}"));
            }
        }
        let patterns: BTreeSet<&str> = uses
            .iter()
            .flat_map(|&usage| needs(usage).keys)
            .copied()
            .collect();
        for pattern in patterns {
            let mut read = redis::cmd(if commands.contains("type") {
                "TYPE"
            } else {
                "GET"
            });
            read.arg(probe.key(pattern));
            if self.is_refused(primary, read).await? {
                lacks.push(format!("~{pattern}"));
            }
        }
        let scripts: Vec<Effect> = uses
            .iter()
            .flat_map(|&usage| needs(usage).scripts)
            .copied()
            .collect();
        for effect in Effect::ALL
            .into_iter()
            .filter(|effect| scripts.contains(effect))
        {
            // What a script lacks inside is a command or a key, which was tried by itself.
            if lacks.is_empty()
                && let Some(idle) = probe.script(effect)
                && self.is_refused(primary, idle).await?
            {
                lacks.push(format!("the script {effect:?}"));
            }
        }
        Ok(lacks)
    }

    /// Whether Redis refuses this command to the login; any other answer, an error of its own included, says no.
    async fn is_refused(&self, primary: &Primary, cmd: Cmd) -> Result<bool, Error> {
        match self.link().on(&primary.node, vec![cmd]).await {
            Ok(_) => Ok(false),
            Err(Error::Unavailable { reason, .. }) if reason.starts_with(RIGHT) => Ok(true),
            Err(error @ (Error::Unavailable { .. } | Error::Timeout { .. })) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// Keys that no user has, on one primary, and calls on them that change nothing else.
struct Probe {
    /// A hash tag on the primary.
    tag: String,
}

impl Probe {
    fn new(primary: &Primary) -> Self {
        Self {
            tag: primary.probe_tag.clone(),
        }
    }

    /// A key that a pattern matches. In a cluster it may lie elsewhere, but rights are tried before slots.
    fn key(&self, pattern: &str) -> String {
        let tag = format!("{{{}}}", self.tag);
        match pattern {
            "nearshore:*" => format!("nearshore:{tag}"),
            _ => pattern.replace("{*}", &tag).replace('*', "probe"),
        }
    }

    fn own(&self, what: &str) -> String {
        format!("nearshore:probe:{{{}}}:{what}", self.tag)
    }

    /// A call of this command that leaves nothing but a text of the probe, which expires; `None` for commands whose lack
    /// is told by the connection itself.
    fn command(&self, command: &str) -> Option<Cmd> {
        let (key, words): (&str, &[&str]) = match command {
            "asking" | "cluster|slots" | "ping" | "select" | "script|load" => return None,
            "evalsha" => return self.script(Effect::Active),
            "info" | "time" => ("", &[]),
            "scan" => ("", &["0", "COUNT", "1"]),
            "wait" => ("", &["0", "1"]),
            "del" | "unlink" => ("none", &[]),
            "memory|usage" => ("text", &[]),
            "set" => ("text", &["0", "PX", "10000"]),
            "pexpire" => ("text", &["10000"]),
            "get" | "exists" | "type" | "pttl" => ("text", &[]),
            // The key holds a text, so that these fail behind the check of the right, and write nothing.
            "hget" | "hexists" | "hdel" | "hmget" | "sadd" | "srem" | "sismember"
            | "smismember" | "zrem" | "rpush" => ("text", &["none"]),
            "hlen" | "hgetall" | "scard" | "smembers" | "zcard" | "llen" => ("text", &[]),
            "hset" | "hincrby" => ("text", &["none", "0"]),
            "zadd" => ("text", &["0", "none"]),
            "zrangebyscore" => ("text", &["-inf", "(-1"]),
            "ltrim" => ("text", &["0", "-1"]),
            _ => return None,
        };
        let mut cmd = match command.split_once('|') {
            Some((container, sub)) => {
                let mut cmd = redis::cmd(&container.to_uppercase());
                cmd.arg(sub.to_uppercase());
                cmd
            }
            None => redis::cmd(&command.to_uppercase()),
        };
        if !key.is_empty() {
            cmd.arg(self.own(key));
        }
        cmd.arg(words);
        Some(cmd)
    }

    /// A call of this script that finds nothing to do; `None` for one that always writes, whose commands and keys are
    /// those of others.
    fn script(&self, effect: Effect) -> Option<Cmd> {
        let tag = &self.tag;
        let user = |part: &str| format!("probe:{{{tag}}}:{part}");
        let (state, profile, recall) = (user("state"), user("profile"), user("recall"));
        let erased = format!("nearshore:erased:{{{tag}}}");
        let counts = |part: &str| format!("probe:counts:{{{tag}}}:{part}");
        let set = |part: &str| format!("nearshore:oos:{{{tag}}}{part}");
        let (keys, args): (Vec<String>, &[&str]) = match effect {
            // The user has no state, and the expected version is 1.
            Effect::Fold => (
                vec![state, profile, erased, recall],
                &["1", "0", "", "", "", "", "keep"],
            ),
            Effect::Claim => (vec![state, profile, erased], &["0", "1", "1", "0"]),
            Effect::Publish => (vec![state, erased, recall], &["0", "0", "0"]),
            // The expected fence is 1, and there is none.
            Effect::Delta => (vec![counts("fence"), counts("buckets")], &["probe", "1"]),
            // No record, no SKU, no partition.
            Effect::Stock => (
                vec![set(""), set(":fence"), set(":blocked"), set(":gone")],
                &["0"],
            ),
            Effect::Block => (vec![set(""), set(":blocked")], &["pu:probe"]),
            Effect::Unblock => (vec![set(""), set(":blocked")], &["pu:probe"]),
            Effect::Checkpoint => (vec![format!("probe:checkpoint:{{{tag}}}")], &[]),
            // To lift what is not there.
            Effect::Register => (vec![self.own("hash"), self.own("list")], &["probe", "", ""]),
            Effect::Active => (vec![self.own("text")], &["another text", ""]),
            Effect::Erase => (vec![erased], &["0"]),
            Effect::Discard => return None,
        };
        let mut idle = call(effect, &keys);
        idle.arg(args);
        Some(idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USES: [Use; 4] = [Use::Ingest, Use::Generate, Use::Operate, Use::Serve];

    fn settings(url: &str) -> RedisSettings {
        RedisSettings {
            url: url.into(),
            ..RedisSettings::default()
        }
    }

    fn probe() -> Probe {
        Probe { tag: "t".into() }
    }

    /// Every command that this crate sends, outside of scripts.
    fn sent() -> BTreeSet<String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = std::fs::read_dir(folder).expect("the crate's sources");
        let mut sent = BTreeSet::new();
        for file in files
            .filter_map(Result::ok)
            // What Sentinels are asked is their user's, not Redis'.
            .filter(|file| {
                !["rights.rs", "sentinel.rs"]
                    .map(Into::into)
                    .contains(&file.file_name())
            })
        {
            let Ok(text) = std::fs::read_to_string(file.path()) else {
                continue;
            };
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for rest in text.split("cmd(\"").skip(1) {
                let command = rest.split('"').next().unwrap_or_default().to_lowercase();
                let sub = match command.as_str() {
                    "memory" => "|usage",
                    "cluster" => "|slots",
                    "script" => "|load",
                    _ => "",
                };
                sent.insert(command + sub);
            }
        }
        sent
    }

    #[test]
    fn an_operator_has_every_command_that_is_sent() {
        let mut settings = settings("redis+cluster://h:1");
        settings.min_replicas = 1;
        let given = commands(&[Use::Operate], &settings).expect("valid settings");
        let missing: Vec<_> = sent()
            .into_iter()
            .filter(|sent| !given.contains(sent))
            .collect();
        assert_eq!(missing, Vec::<String>::new());
        assert!(sent().len() > 20, "{:?}", sent());
    }

    #[test]
    fn every_advised_command_is_tried_or_told_by_the_connection() {
        let by_connection = ["asking", "cluster|slots", "ping", "script|load", "select"];
        for usage in USES {
            let mut settings = settings("redis+cluster://h:1");
            settings.min_replicas = 1;
            for command in commands(&[usage], &settings).expect("valid settings") {
                let tried = probe().command(&command).is_some();
                assert_ne!(tried, by_connection.contains(&&*command), "{command}");
            }
        }
    }

    #[test]
    fn a_script_that_is_tried_has_only_keys_of_the_probe() {
        for effect in Effect::ALL {
            let Some(idle) = probe().script(effect) else {
                assert_eq!(effect, Effect::Discard);
                continue;
            };
            for key in super::super::faults::keys_of(&idle) {
                assert!(key.contains("{t}"), "{effect:?}: {key}");
            }
        }
    }

    #[test]
    fn the_key_of_a_pattern_matches_it() {
        let keys: Vec<String> = KEYS.iter().map(|pattern| probe().key(pattern)).collect();
        assert_eq!(keys[0], "nearshore:{t}");
        assert_eq!(keys[1], "probe:{t}:state");
        assert_eq!(keys[4], "probe:counts:{t}:probe");
        assert_eq!(keys[6], "probe:fallback:probe");
    }

    #[test]
    fn no_use_may_empty_the_database_or_change_the_server() {
        for usage in USES {
            let rule = acl("shop", &[usage], &settings("redis://h:1/3")).expect("valid settings");
            for never in [
                "@write", "@all ", "flush", "+config", "+acl", "+keys", "+debug", "+eval ",
            ] {
                assert!(!rule.replace("-@all", "").contains(never), "{rule}");
            }
            assert_eq!(rule.contains("+select"), usage != Use::Serve, "{rule}");
        }
    }

    #[test]
    fn the_rule_of_a_client_reads_only() {
        let rule = acl("app", &[Use::Serve], &settings("redis://h:1")).expect("valid settings");
        assert_eq!(
            rule,
            "ACL SETUSER app on resetkeys resetchannels -@all %R~*:fallback:* %R~*:{*}:recall \
             %R~nearshore:active %R~nearshore:oos:{*} +@connection -@dangerous +get +hget +sismember +smismember"
        );
    }
}
