//! Primaries, scans, replicas, and the checks of `nearshore check` and `/readyz`.
//!
//! Invariant: a scan returns every key that exists from its first page to its last, as long as the primaries stay the
//! same; keys may repeat.

use redis::cluster_routing::Slot;
use redis::{Cmd, Value, cmd};

use super::RedisStore;
use super::link::{HIDDEN_MEANS, Node, is_hidden};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;
use nearshore_core::user::event::UserId;

/// One check: its name, and what was found or what is wrong.
pub type Check = (String, Result<String, String>);

/// COUNT of a SCAN: about so many keys are scanned while Redis serves no other client.
const PAGE: u32 = 500;
/// Time to live of a probe's key.
const PROBE_MS: u64 = 10_000;
/// What hash tags of probes begin with.
const PROBE: &str = "nearshore-probe-";
/// The oldest supported Redis: since 7.0 the errors READONLY and OOM of a script keep their code.
const OLDEST: (u32, u32) = (7, 0);

pub(super) struct Primary {
    pub(super) node: Node,
    /// A hash tag whose keys lie on this primary.
    pub(super) tag: String,
    /// A hash tag, on this primary too, that no user and no SKU has.
    pub(super) probe_tag: String,
}

impl RedisStore {
    /// Checks that every primary accepts writes now.
    pub async fn ready(&self) -> Result<(), Error> {
        for primary in self.primaries().await? {
            self.link().on(&primary.node, vec![probe(&primary)]).await?;
        }
        Ok(())
    }

    /// The lines of `nearshore check` about Redis.
    pub async fn check(&self) -> Vec<Check> {
        let link = self.link();
        let primaries = match self.primaries().await {
            Ok(primaries) => primaries,
            Err(error) => return vec![("redis answers".into(), Err(error.to_string()))],
        };
        let mode = match link.named_primary() {
            _ if link.is_cluster() => {
                format!("{}, cluster of {} primaries", link.addr(), primaries.len())
            }
            Some(primary) => format!("{primary}, the primary by Sentinels {}", link.addr()),
            None => format!("{}, single primary", link.addr()),
        };
        let layout = self.layout().await.map_err(|error| error.to_string());
        let layout = layout.map(|found| match found {
            Some(number) => number.to_string(),
            None => "none yet: this Redis is empty".into(),
        });
        let mut checks: Vec<Check> = vec![
            ("redis answers".into(), Ok(mode)),
            ("redis layout".into(), layout),
        ];
        match link.lineage().await {
            Ok(lineage) if is_hidden(&lineage) => {
                checks.push(("redis failovers".into(), Ok(HIDDEN_MEANS.into())));
            }
            Ok(_) => {}
            Err(error) => checks.push(("redis failovers".into(), Err(error.to_string()))),
        }
        for primary in &primaries {
            let name = |what: &str| match &primary.node {
                Node::Only => format!("redis {what}"),
                node => format!("redis {node} {what}"),
            };
            let written = link.on(&primary.node, vec![probe(primary)]).await;
            let written = written.map(|_| "yes".into()).map_err(|e| e.to_string());
            checks.push((name("takes writes"), written));
            match self.info(&primary.node).await {
                Ok(info) => {
                    checks.push((name("version"), version(&info)));
                    checks.push((name("maxmemory-policy"), policy(&info)));
                    checks.push((name("mode"), mode_agrees(&info, link.is_cluster())));
                    let wanted = self.inner.settings.min_replicas;
                    checks.push((name("replicas"), replicas(&info, wanted)));
                }
                Err(error) => checks.push((name("INFO"), Err(error.to_string()))),
            }
        }
        checks
    }

    /// Waits for replicas, on a connection of its own. The probe is written after every write that was acknowledged,
    /// so a replica that has the probe has all of them.
    pub(super) async fn wait_for_replicas(&self) -> Result<(), Error> {
        let settings = &self.inner.settings;
        let wanted = settings.min_replicas;
        if wanted == 0 {
            return Ok(());
        }
        let mut least = u32::MAX;
        for primary in self.primaries().await? {
            let mut wait = cmd("WAIT");
            wait.arg(wanted)
                .arg(settings.replicas_max.as_millis() as u64);
            let cmds = vec![probe(&primary), wait];
            let mut answers = self.inner.waiter.on(&primary.node, cmds).await?;
            let found: u32 = self.read(answers.pop().unwrap_or(Value::Nil))?;
            least = least.min(found);
        }
        if least < wanted {
            return Err(Error::NotReplicated {
                found: least,
                wanted,
            });
        }
        Ok(())
    }

    pub(super) async fn scan_users(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<UserId>, Option<String>), Error> {
        keys::namespace(ns)?;
        let (found, next) = self.scan_keys(&keys::states(ns), cursor).await?;
        let users = found
            .iter()
            .filter_map(|key| keys::user_of_state(ns, key))
            .collect();
        Ok((users, next))
    }

    pub(super) async fn delete_page(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(u64, Option<String>), Error> {
        keys::namespace(ns)?;
        let (found, next) = self.scan_keys(&format!("{ns}:*"), cursor).await?;
        let unlink = |key: String| {
            let mut unlink = cmd("UNLINK");
            unlink.arg(key);
            unlink
        };
        let cmds = found.into_iter().map(unlink).collect();
        let answers = self.link().run(cmds, 1).await?;
        let mut deleted = 0;
        for answer in answers {
            deleted += self.read::<u64>(answer)?;
        }
        Ok((deleted, next))
    }

    /// Runs one SCAN. The cursor is the text `node cursor`; nodes are scanned in sorted order.
    pub(super) async fn scan_keys(
        &self,
        pattern: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), Error> {
        let mut nodes: Vec<Node> = self
            .primaries()
            .await?
            .into_iter()
            .map(|p| p.node)
            .collect();
        nodes.sort();
        let (nth, at) = match &cursor {
            None => (0, "0"),
            Some(text) => {
                let (name, at) = text.split_once(' ').unwrap_or((text.as_str(), "0"));
                let nth = nodes.iter().position(|node| node.to_string() == name);
                let removed = || Error::Unavailable {
                    addr: name.into(),
                    reason: "no primary any more; start the scan again".into(),
                };
                (nth.ok_or_else(removed)?, at)
            }
        };
        let mut scan = cmd("SCAN");
        scan.arg(at)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(PAGE);
        let mut answers = self.link().on(&nodes[nth], vec![scan]).await?;
        let (after, found): (String, Vec<String>) =
            self.read(answers.pop().unwrap_or(Value::Nil))?;
        let next = if after == "0" {
            nodes.get(nth + 1).map(|node| format!("{node} 0"))
        } else {
            Some(format!("{} {after}", nodes[nth]))
        };
        Ok((found, next))
    }

    pub(super) async fn primaries(&self) -> Result<Vec<Primary>, Error> {
        if !self.link().is_cluster() {
            return Ok(vec![Primary {
                node: Node::Only,
                tag: "0".into(),
                probe_tag: PROBE.into(),
            }]);
        }
        let mut slots = cmd("CLUSTER");
        slots.arg("SLOTS");
        let rows: Vec<Vec<Value>> = self.read(self.link().one(slots).await?)?;
        let mut found: Vec<Primary> = Vec::new();
        for row in rows {
            let mut row = row.into_iter();
            let mut next = || row.next().unwrap_or(Value::Nil);
            let (first, last): (u16, u16) = (self.read(next())?, self.read(next())?);
            let mut place = self.read::<Vec<Value>>(next())?.into_iter();
            let host: String = self.read(place.next().unwrap_or(Value::Nil))?;
            let port: u16 = self.read(place.next().unwrap_or(Value::Nil))?;
            let node = Node::At(host, port);
            if !found.iter().any(|primary| primary.node == node) {
                let tag = |start| {
                    tag_between(first, last, start)
                        .ok_or_else(|| self.link().unexpected("no hash tag for a range of slots"))
                };
                found.push(Primary {
                    node,
                    tag: tag("")?,
                    probe_tag: tag(PROBE)?,
                });
            }
        }
        if found.is_empty() {
            return Err(Error::Unavailable {
                addr: self.link().addr().into(),
                reason: "the cluster has no slots assigned; see CLUSTER SLOTS".into(),
            });
        }
        Ok(found)
    }

    async fn info(&self, node: &Node) -> Result<String, Error> {
        let mut info = cmd("INFO");
        info.arg("everything");
        let mut answers = self.link().on(node, vec![info]).await?;
        self.read(answers.pop().unwrap_or(Value::Nil))
    }
}

/// A hash tag that begins so and whose slot lies in the range; a hundred thousand tries find one for any range.
fn tag_between(first: u16, last: u16, start: &str) -> Option<String> {
    let inside: Vec<Slot> = (first..=last).filter_map(Slot::new).collect();
    (0..100_000)
        .map(|n| format!("{start}{n}"))
        .find(|tag| inside.contains(&Slot::for_key(tag)))
}

fn probe(primary: &Primary) -> Cmd {
    let mut set = cmd("SET");
    set.arg(format!("nearshore:probe:{{{}}}", primary.tag))
        .arg("")
        .arg("PX")
        .arg(PROBE_MS);
    set
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// A service may leave fields of INFO out.
const UNTOLD: &str = "not told by this Redis";

fn version(info: &str) -> Result<String, String> {
    let Some(text) = field(info, "redis_version") else {
        return Ok(format!("{UNTOLD}; Redis 7.0 or later is needed"));
    };
    let mut numbers = text.split('.').map_while(|part| part.parse().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= OLDEST {
        Ok(text.into())
    } else {
        Err(format!("{text}; Redis 7.0 or later is needed"))
    }
}

fn policy(info: &str) -> Result<String, String> {
    match field(info, "maxmemory_policy") {
        Some("noeviction") => Ok("noeviction".into()),
        None => Ok(format!("{UNTOLD}; it must be noeviction")),
        Some(found) => Err(format!(
            "{found}; must be noeviction: after an eviction of a fence old records would be folded again"
        )),
    }
}

fn mode_agrees(info: &str, cluster: bool) -> Result<String, String> {
    match (field(info, "cluster_enabled"), cluster) {
        (Some("1"), true) => Ok("cluster".into()),
        (Some("1"), false) => Err("a cluster; write redis.url as redis+cluster://".into()),
        (_, false) => Ok("single".into()),
        (_, true) => Err("no cluster; write redis.url as redis://".into()),
    }
}

fn replicas(info: &str, wanted: u32) -> Result<String, String> {
    let found: u32 = field(info, "connected_slaves")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if found >= wanted {
        Ok(format!("{found} of {wanted} wanted"))
    } else {
        Err(format!("{found}; redis.min_replicas is {wanted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\n\
                        connected_slaves:1\r\ncluster_enabled:0\r\n";

    #[test]
    fn info_is_judged_by_version_policy_mode_and_replicas() {
        assert_eq!(version(INFO), Ok("7.0.15".into()));
        assert!(version("redis_version:6.2.7\r\n").is_err());
        assert_eq!(policy(INFO), Ok("noeviction".into()));
        let lru = policy("maxmemory_policy:allkeys-lru\r\n").expect_err("evicts");
        assert!(lru.starts_with("allkeys-lru; must be noeviction"), "{lru}");
        for untold in [version(""), policy("")] {
            assert!(untold.expect("a service").starts_with(UNTOLD));
        }
        assert!(mode_agrees(INFO, false).is_ok());
        assert!(mode_agrees(INFO, true).is_err());
        assert!(replicas(INFO, 1).is_ok());
        assert!(replicas(INFO, 2).is_err());
    }

    #[test]
    fn every_range_of_slots_has_a_hash_tag() {
        for (first, last) in [(0, 5460), (5461, 10922), (10923, 16383), (7, 7)] {
            assert!(tag_between(first, last, "").is_some(), "{first}-{last}");
            let tag = tag_between(first, last, PROBE).expect("a tag");
            assert!(tag.starts_with(PROBE), "{tag}");
        }
    }
}
