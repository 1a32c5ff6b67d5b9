//! Reads Redis for the checker: SCAN over every primary, and each key by its documented name and type.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redis::{Commands, Connection};

/// One user's keys.
#[derive(Default)]
pub struct Keys {
    pub state: BTreeMap<String, Vec<u8>>,
    pub recall: BTreeMap<String, Vec<u8>>,
    pub profile: Option<String>,
    pub erased: Option<i64>,
}

impl Keys {
    /// A field of the state as text.
    pub fn state_text(&self, field: &str) -> String {
        text(&self.state, field)
    }

    /// A field of the list as text.
    pub fn recall_text(&self, field: &str) -> String {
        text(&self.recall, field)
    }
}

fn text(hash: &BTreeMap<String, Vec<u8>>, field: &str) -> String {
    let bytes = hash.get(field).map(Vec::as_slice).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything that Redis has of the run.
#[derive(Default)]
pub struct Dump {
    pub users: BTreeMap<String, Keys>,
    /// Counts by SKU, type and bucket, summed over segments.
    pub counts: BTreeMap<(String, String, i64), i64>,
    /// SKUs in a shard or set that is not that of their hash.
    pub misplaced: Vec<String>,
    pub sold_out: BTreeSet<String>,
    pub keys: usize,
    /// Keys per node, for a cluster.
    pub spread: Vec<usize>,
}

/// FNV-1a, 32 bit, as the contract publishes it.
fn hash(text: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    text.bytes().fold(2_166_136_261, step)
}

/// Decodes `%XX`; `None` if that is not UTF-8.
fn decoded(encoded: &str) -> Option<String> {
    let bytes = encoded.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(encoded.get(at + 1..at + 3)?, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

impl Dump {
    /// Reads the servers at these ports.
    pub fn of(ns: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let mut dump = Self::default();
        for port in ports {
            let before = dump.keys;
            let client = redis::Client::open(("127.0.0.1", *port))?;
            let mut conn = client.get_connection()?;
            let keys: Vec<String> = conn.scan::<String>()?.collect::<Result<_, _>>()?;
            let keys: BTreeSet<String> = keys.into_iter().collect();
            for key in keys {
                let read = dump.read(&mut conn, ns, &key);
                read.with_context(|| format!("key {key}"))?;
                dump.keys += 1;
            }
            dump.spread.push(dump.keys - before);
        }
        Ok(dump)
    }

    fn read(&mut self, conn: &mut Connection, ns: &str, key: &str) -> anyhow::Result<()> {
        if let Some(rest) = key.strip_prefix("nearshore:erased:{") {
            let user = rest.strip_suffix('}').and_then(decoded).context("a user")?;
            self.users.entry(user).or_default().erased = Some(conn.get(key)?);
            return Ok(());
        }
        if let Some(set) = key.strip_prefix("nearshore:oos:{") {
            if let Some(set) = set.strip_suffix('}') {
                let skus: Vec<String> = conn.smembers(key)?;
                for sku in skus {
                    if set != (hash(&sku) % 16).to_string() {
                        self.misplaced.push(format!("{sku} in {key}"));
                    }
                    self.sold_out.insert(sku);
                }
            }
            return Ok(());
        }
        let Some(rest) = key.strip_prefix(ns).and_then(|rest| rest.strip_prefix(':')) else {
            return Ok(());
        };
        if let Some(rest) = rest.strip_prefix("counts:{s") {
            return self.read_counts(conn, key, rest);
        }
        let Some((user, what)) = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split_once("}:"))
        else {
            return Ok(());
        };
        let keys = self
            .users
            .entry(decoded(user).context("a user")?)
            .or_default();
        match what {
            "state" => keys.state = conn.hgetall(key)?,
            "recall" => keys.recall = conn.hgetall(key)?,
            "profile" => keys.profile = conn.get(key)?,
            other => anyhow::bail!("{other} is none of a user's keys"),
        }
        Ok(())
    }

    fn read_counts(&mut self, conn: &mut Connection, key: &str, rest: &str) -> anyhow::Result<()> {
        let (shard, what) = rest.split_once("}:").context("a shard")?;
        let Some(bucket) = what.strip_prefix('b').and_then(|b| b.parse::<i64>().ok()) else {
            return Ok(());
        };
        let cells: BTreeMap<String, i64> = conn.hgetall(key)?;
        for (cell, n) in cells {
            let mut parts = cell.splitn(3, ':');
            let mut next = || parts.next().context("type:segment:sku").map(str::to_owned);
            let (kind, _segment, sku) = (next()?, next()?, next()?);
            if shard != format!("{:02x}", hash(&sku) % 256) {
                self.misplaced.push(format!("{sku} in {key}"));
            }
            *self.counts.entry((sku, kind, bucket)).or_default() += n;
        }
        Ok(())
    }
}
