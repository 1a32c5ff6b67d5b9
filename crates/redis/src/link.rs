//! The connection to Redis: sends batches of commands, returns answers in their order, reconnects.
//!
//! Invariant: a connection that answered READONLY, MASTERDOWN or LOADING, broke, or timed out is never used again.
//! redis-rs alone would keep it for ever, and a slow peer looks the same as a network that drops packets. Only a call
//! of an unknown script is retried here; callers retry the rest, since every write is fenced. The client of a Redis
//! Cluster retries by itself, so the answer to a write may be that of its second execution: "older" or "stale" for a
//! write that is in place. This module does not know what the commands mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures::{StreamExt, TryStreamExt};
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::Mutex;

use super::connect::{self, Conn, PIPELINE_MAX, pipeline, query};
use super::faults::{
    LOGIN, LOGIN_ADVICE, RIGHT, RIGHT_ADVICE, is_denied, is_login, is_lost, is_no_script,
    is_of_a_value, is_right, is_temporary, keys_of,
};
use super::scripts::{self, Guard};
use super::settings::{RedisSettings, TargetKind};
use super::tls;
use crate::corrupt;
use crate::metrics as measures;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Error, Lineage};

/// Least time between two attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
/// Least time between two logins, once Redis refused one: it may lock out a client that tries again at once.
const LOGIN_EVERY: Duration = Duration::from_secs(1);
/// Pipelines sent at once in a cluster, one per slot; redis-rs' own queue holds about as many.
const SLOTS_AT_ONCE: usize = 128;

/// A connection that is made on demand.
pub(super) struct Link {
    settings: RedisSettings,
    addr: String,
    is_cluster: bool,
    behind_sentinels: bool,
    response_max: Duration,
    age_max: Duration,
    live: ArcSwapOption<Live>,
    /// Whether it was told that a primary hides its replication id.
    told_hidden: AtomicBool,
    /// Whether there was a connection once.
    was_live: AtomicBool,
    /// Locked only while connecting, so that one task connects and the others find the result.
    connecting: Mutex<Option<Attempt>>,
}

struct Attempt {
    ended: Instant,
    failure: Option<String>,
}

struct Live {
    conn: Conn,
    /// As Sentinels named it.
    primary: Option<String>,
    since: Instant,
}

/// A primary. A single Redis has no address here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Only,
    At(String, u16),
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Only => f.write_str("single"),
            Self::At(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl Link {
    /// Creates a link; `extra` is added to the response timeout, for WAIT.
    pub(super) fn new(settings: &RedisSettings, extra: Duration) -> Result<Self, Error> {
        let found = settings.target()?;
        let link = Self {
            addr: found.addr,
            is_cluster: matches!(found.kind, TargetKind::Cluster),
            behind_sentinels: matches!(found.kind, TargetKind::Sentinel(_)),
            response_max: settings.response_max + extra,
            age_max: settings.connection_age,
            settings: settings.clone(),
            live: ArcSwapOption::empty(),
            told_hidden: AtomicBool::new(false),
            was_live: AtomicBool::new(false),
            connecting: Mutex::new(None),
        };
        link.client()?;
        Ok(link)
    }

    /// A client by the passwords, CAs and certificate that their files have now: they may have been changed since the last
    /// connection.
    fn client(&self) -> Result<connect::Client, Error> {
        let limits = (self.settings.connect_max, self.response_max);
        connect::Client::new(&self.settings, limits)?.map_err(|error| self.unexpected(error))
    }

    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Where the primary is that Sentinels named; `None` without Sentinels or without a connection.
    pub(super) fn named_primary(&self) -> Option<String> {
        self.live.load().as_ref()?.primary.clone()
    }

    /// Connects if there is no connection.
    pub(super) async fn connected(&self) -> Result<(), Error> {
        self.live().await.map(drop)
    }

    /// Runs `cmds` and returns the answers in their order. Each `per` consecutive commands share a slot and are
    /// executed in their order; in a cluster, other commands may overtake them.
    pub(super) async fn run(&self, cmds: Vec<Cmd>, per: usize) -> Result<Vec<Value>, Error> {
        self.run_by(None, cmds, per).await
    }

    /// Runs commands as [`Link::run`] does; scripts have effect in the guard's lineage only.
    pub(super) async fn run_by(
        &self,
        guard: Option<&Guard>,
        cmds: Vec<Cmd>,
        per: usize,
    ) -> Result<Vec<Value>, Error> {
        if cmds.is_empty() {
            return Ok(Vec::new());
        }
        let live = self.live().await?;
        let cmds = match guard {
            Some(guard) => guard.apply(cmds),
            None => cmds,
        };
        let mut answers = self.send(&live, &cmds, per).await?;
        let unknown: Vec<usize> = (0..answers.len())
            .filter(|&nth| matches!(&answers[nth], Err(error) if is_no_script(error)))
            .collect();
        if !unknown.is_empty() {
            // After a restart, a failover or SCRIPT FLUSH. None of these calls was executed.
            self.load_scripts(&live, guard).await?;
            let again: Vec<Cmd> = unknown.iter().map(|&nth| cmds[nth].clone()).collect();
            let second = self.send(&live, &again, 1).await?;
            for (nth, answer) in unknown.into_iter().zip(second) {
                answers[nth] = answer;
            }
        }
        for (answer, cmd) in answers.iter().zip(&cmds) {
            if let Err(error) = answer
                && is_of_a_value(error)
            {
                return Err(self.bad_value(&live, cmd, error).await);
            }
        }
        answers
            .into_iter()
            .map(|answer| self.check(&live, answer))
            .collect()
    }

    /// The error of a command that found a value which it cannot use. Redis does not say under which key a script found
    /// it, so the types of all its keys are compared with what they should be.
    async fn bad_value(&self, live: &Arc<Live>, cmd: &Cmd, error: &RedisError) -> Error {
        let keys = keys_of(cmd);
        let types = keys.iter().map(|key| {
            let mut kind = redis::cmd("TYPE");
            kind.arg(key);
            kind
        });
        let types: Vec<Cmd> = types.collect();
        let found = match self.send(live, &types, types.len()).await {
            Ok(found) => found,
            Err(error) => return error,
        };
        for (key, found) in keys.iter().zip(found) {
            let found: String = found
                .and_then(|found| Ok(redis::from_redis_value(found)?))
                .unwrap_or_default();
            let wanted = keys::redis_type(key).unwrap_or_default();
            if !wanted.is_empty() && !["none", "", wanted].contains(&found.as_str()) {
                return corrupt(key, format!("it is a {found}, not a {wanted}"));
            }
        }
        let Some(first) = keys.first() else {
            return self.classify(error);
        };
        // All keys of a script about a user are that user's.
        let named: Vec<String> = keys.iter().map(|key| keys::masked(key)).collect();
        match corrupt(first, error) {
            Error::Corrupt { user, reason, .. } => Error::Corrupt {
                key: named.join(" or "),
                user,
                reason,
            },
            other => other,
        }
    }

    /// Runs one command on the primary of its key.
    pub(super) async fn one(&self, cmd: Cmd) -> Result<Value, Error> {
        let mut answers = self.run(vec![cmd], 1).await?;
        answers.pop().ok_or_else(|| self.unexpected("no answer"))
    }

    /// Runs commands on one primary, whatever their keys.
    pub(super) async fn on(&self, node: &Node, cmds: Vec<Cmd>) -> Result<Vec<Value>, Error> {
        let Node::At(host, port) = node else {
            let per = cmds.len();
            return self.run(cmds, per).await;
        };
        let live = self.live().await?;
        let Conn::Cluster(mut conn) = live.conn.clone() else {
            return Err(self.unexpected("a node was named, but this is no cluster"));
        };
        let route = SingleNodeRoutingInfo::ByAddress {
            host: host.clone(),
            port: *port,
        };
        let pipe = pipeline(&cmds);
        measures::round_trips(1);
        let answers = conn.route_pipeline(pipe, 0, cmds.len(), route).await;
        let answers = self.check(&live, answers)?;
        answers
            .into_iter()
            .map(|answer| self.check(&live, answer.extract_error()))
            .collect()
    }

    /// Loads scripts; those of a guard only on primaries of its lineage.
    async fn load_scripts(&self, live: &Arc<Live>, guard: Option<&Guard>) -> Result<(), Error> {
        let loads: Vec<Cmd> = match guard {
            None => scripts::loads().collect(),
            Some(guard) => {
                if self.lineage_of(live).await? != guard.lineage {
                    return Err(Error::Regressed {
                        addr: self.addr.clone(),
                    });
                }
                guard.loads().collect()
            }
        };
        self.check(live, connect::load(live.conn.clone(), loads).await)
    }

    /// The lineage of the primaries, from their replication ids.
    pub(super) async fn lineage(&self) -> Result<Lineage, Error> {
        let live = self.live().await?;
        self.lineage_of(&live).await
    }

    async fn lineage_of(&self, live: &Arc<Live>) -> Result<Lineage, Error> {
        let mut info = redis::cmd("INFO");
        info.arg("replication");
        measures::round_trips(1);
        let answer = match live.conn.clone() {
            Conn::Single(mut conn) => info.query_async::<Value>(&mut conn).await,
            Conn::Cluster(mut conn) => {
                let everywhere =
                    RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                conn.route_command(info, everywhere).await
            }
        };
        let mut texts = Vec::new();
        texts_of(&self.check(live, answer)?, &mut texts);
        match lineage_in(&texts) {
            Some(lineage) => {
                if is_hidden(&lineage) && !self.told_hidden.swap(true, Ordering::Relaxed) {
                    tracing::warn!(addr = self.addr, "{HIDDEN_MEANS}");
                }
                Ok(lineage)
            }
            None => {
                self.drop(live);
                Err(self.unavailable("READONLY: this is no primary; connecting again"))
            }
        }
    }

    /// An error for an answer that Redis must not give.
    pub(super) fn unexpected(&self, reason: impl ToString) -> Error {
        Error::Refused {
            addr: self.addr.clone(),
            reason: reason.to_string(),
        }
    }

    async fn send(
        &self,
        live: &Arc<Live>,
        cmds: &[Cmd],
        per: usize,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let sent = match &live.conn {
            Conn::Single(conn) => {
                let mut answers = Vec::with_capacity(cmds.len());
                for part in cmds.chunks(PIPELINE_MAX) {
                    match query(conn.clone(), pipeline(part)).await {
                        Ok(more) => answers.extend(more),
                        Err(error) => return self.check(live, Err(error)),
                    }
                }
                Ok(answers)
            }
            Conn::Cluster(conn) => {
                let slots: Vec<Pipeline> = cmds.chunks(per.max(1)).map(pipeline).collect();
                let conn = conn.clone();
                let sent = futures::stream::iter(slots).map(move |pipe| query(conn.clone(), pipe));
                let answers: RedisResult<Vec<_>> = sent.buffered(SLOTS_AT_ONCE).try_collect().await;
                answers.map(|answers| answers.into_iter().flatten().collect())
            }
        };
        self.check(live, sent)
    }

    /// The connection; connects if there is none or if it is older than `age_max`.
    async fn live(&self) -> Result<Arc<Live>, Error> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let asked = Instant::now();
        let mut attempt = self.connecting.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        if let Some(Attempt { ended, failure }) = attempt.as_ref() {
            // Another caller tried while this one waited: with Redis away, a hundred callers fail together instead of
            // one after the other.
            if let Some(reason) = failure.as_ref().filter(|_| *ended >= asked) {
                return Err(self.unavailable(reason));
            }
            let pause = match failure.as_ref().is_some_and(|reason| is_login(reason)) {
                true => LOGIN_EVERY,
                false => RECONNECT_EVERY,
            };
            tokio::time::sleep((*ended + pause).saturating_duration_since(asked)).await;
        }
        let connected = self.connect().await;
        let failure = connected.as_ref().err().map(Error::to_string);
        *attempt = Some(Attempt {
            ended: Instant::now(),
            failure,
        });
        let (conn, primary) = connected?;
        let live = Arc::new(Live {
            conn,
            primary,
            since: Instant::now(),
        });
        self.live.store(Some(live.clone()));
        self.was_live.store(true, Ordering::Relaxed);
        Ok(live)
    }

    fn usable(&self) -> Option<Arc<Live>> {
        let live = self.live.load_full()?;
        (live.since.elapsed() < self.age_max).then_some(live)
    }

    /// Whether it was connected before.
    fn is_known(&self) -> bool {
        self.was_live.load(Ordering::Relaxed)
    }

    async fn connect(&self) -> Result<(Conn, Option<String>), Error> {
        let limit = (self.settings.connect_max + self.response_max) * 2;
        // A file that is being replaced may be missing for a moment: the next attempt reads it.
        let client = self.client().map_err(|error| match self.is_known() {
            true => self.unavailable(&error.to_string()),
            false => error,
        })?;
        let primary = match client.primary().await {
            Ok(primary) => primary,
            Err(reason) => return Err(self.looked(self.unavailable(&reason)).await),
        };
        let connect = async {
            let conn = client.open(primary.as_ref()).await?;
            connect::load(conn.clone(), scripts::loads().collect()).await?;
            Ok(conn)
        };
        let named = primary
            .as_ref()
            .map(|(host, port)| format!("{host}:{port}"));
        let (is_silent, error) = match tokio::time::timeout(limit, connect).await {
            Ok(Ok(conn)) => return Ok((conn, named)),
            Ok(Err(error)) => (tls::is_silent(&error), self.classify(&error)),
            Err(_) => {
                let addr = self.addr.clone();
                (true, Error::Timeout { addr, limit })
            }
        };
        match is_silent && !self.behind_sentinels {
            true => Err(self.looked(error).await),
            false => Err(error),
        }
    }

    /// The error, or that the port speaks another protocol than the configuration says.
    async fn looked(&self, error: Error) -> Error {
        tls::look(&self.settings, self.settings.connect_max)
            .await
            .map_or(error, |found| self.unavailable(&found))
    }

    /// Classifies an error, and drops the connection if it cannot be trusted any more.
    fn check<T>(&self, live: &Arc<Live>, answer: RedisResult<T>) -> Result<T, Error> {
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error.is_timeout() || is_lost(&error) || self.is_outdated(&error) {
            self.drop(live);
        }
        Err(self.classify(&error))
    }

    /// Drops this connection only: another task may have connected again already.
    fn drop(&self, lost: &Arc<Live>) {
        self.live.rcu(|now| match now {
            Some(now) if Arc::ptr_eq(now, lost) => None,
            _ => now.clone(),
        });
    }

    fn classify(&self, error: &RedisError) -> Error {
        if error.is_timeout() {
            return Error::Timeout {
                addr: self.addr.clone(),
                limit: self.response_max,
            };
        }
        if is_denied(error) {
            // The password may be changed in Redis before its file, or after it.
            let reason = error.to_string();
            let reason = reason.trim_end_matches('.');
            return self.unavailable(&format!("{LOGIN}: {reason}; {LOGIN_ADVICE}"));
        }
        if is_right(error) {
            // Somebody may grant it, and nothing is lost by waiting.
            return self.unavailable(&format!("{RIGHT}: {error}; {RIGHT_ADVICE}"));
        }
        if let Some(explained) = tls::explain(&self.settings, error) {
            return self.unavailable(&explained);
        }
        if is_lost(error) || is_temporary(error) || self.is_outdated(error) {
            return self.unavailable(&error.to_string());
        }
        let hint = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved) => {
                " (a Redis Cluster: write redis.url as redis+cluster://)"
            }
            _ => "",
        };
        self.unexpected(format!("{error}{hint}"))
    }

    /// Whether the client's map of slots is outdated and it stopped following redirects: a node was away while others
    /// answered for it. A new connection reads a new map.
    fn is_outdated(&self, error: &RedisError) -> bool {
        self.is_cluster() && error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
    }

    fn unavailable(&self, reason: &str) -> Error {
        Error::Unavailable {
            addr: self.addr.clone(),
            reason: reason.into(),
        }
    }
}

/// Collects all texts of an answer, whatever the shape around them.
fn texts_of(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } => texts.push(text.clone()),
        Value::Array(all) => all.iter().for_each(|one| texts_of(one, texts)),
        Value::Map(all) => all.iter().for_each(|(_, one)| texts_of(one, texts)),
        _ => {}
    }
}

/// The replication ids of all primaries, sorted; `None` if one of them is no primary.
///
/// A Redis offered as a service may hide role or id: it is taken for a primary, and its id is [`HIDDEN`].
fn lineage_in(texts: &[String]) -> Option<Lineage> {
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    let mut ids = Vec::new();
    for text in texts {
        if field(text, "role:").is_some_and(|role| role != "master") {
            return None;
        }
        ids.push(field(text, "master_replid:").unwrap_or_else(|| HIDDEN.to_owned()));
    }
    ids.sort();
    (!ids.is_empty()).then(|| Lineage(ids.join(",").into()))
}

/// The id of a primary that does not tell its own; it stays the same when writes are lost.
const HIDDEN: &str = "hidden";

/// What is lost with it.
pub(super) const HIDDEN_MEANS: &str = "Redis does not tell its role or replication id (INFO replication), as services may: a failover that loses \
     acknowledged writes is not noticed, so they are not read again from the log";

/// Whether a primary does not tell its replication id.
pub(super) fn is_hidden(lineage: &Lineage) -> bool {
    lineage.0.split(',').any(|id| id == HIDDEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::ports::store::Remedy;

    fn remedy_of_moved(url: &str) -> Remedy {
        let settings = RedisSettings {
            url: url.into(),
            ..RedisSettings::default()
        };
        let link = Link::new(&settings, Duration::ZERO).expect("valid");
        let moved = ErrorKind::Server(ServerErrorKind::Moved);
        link.classify(&RedisError::from((moved, "MOVED"))).remedy()
    }

    #[test]
    fn a_service_that_hides_its_role_is_no_replica() {
        let lineage = |text: &str| lineage_in(&[text.to_owned()]);
        let told =
            lineage("# Replication\r\nrole:master\r\nmaster_replid:ab\r\n").expect("a primary");
        assert!(!is_hidden(&told));
        assert_eq!(lineage("role:slave\r\nmaster_replid:ab\r\n"), None);
        for text in ["", "# Replication\r\n", "role:master\r\n"] {
            assert!(is_hidden(&lineage(text).expect("a primary")), "{text}");
        }
        assert_eq!(lineage_in(&[]), None);
    }

    #[test]
    fn a_moved_slot_is_retried_in_a_cluster_and_stops_a_single_connection() {
        assert_eq!(remedy_of_moved("redis+cluster://h:1"), Remedy::Retry);
        assert_eq!(remedy_of_moved("redis://h:1"), Remedy::Stop);
    }
}
