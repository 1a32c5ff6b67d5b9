//! Promise: a Redis that restarts, fails over, is slow or lacks replicas costs time, never a wrong value; the store
//! connects again by itself.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nearshore_core::ports::store::{Durability, Error, Folded, Remedy, Users};
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

use crate::harness::{ANSWER_MAX, LIMIT, eventually, fresh, variable};
use crate::store::{STORED, fold, load, settings, user, write};

/// A Redis of one test; it ends when dropped.
pub struct Server {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
    extra: Vec<String>,
}

impl Server {
    /// Starts one on a free port and waits until it answers.
    pub async fn start(extra: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        Self::at(port, extra).await
    }

    async fn at(port: u16, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let extra: Vec<String> = extra.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(port, &dir, &extra);
        let server = Self {
            port,
            child,
            dir,
            extra,
        };
        server.answers().await;
        server
    }

    async fn answers(&self) {
        eventually(LIMIT, || async {
            self.try_ask(&["PING"]).await.map_err(|e| e.to_string())
        })
        .await;
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts a killed one again on the same port and files, with more settings.
    pub async fn restart_with(&mut self, extra: &[&str]) {
        self.extra
            .extend(extra.iter().map(|word| (*word).to_owned()));
        self.restart().await;
    }

    /// Kills it and starts it again on the same port and files.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.dir, &self.extra);
        self.answers().await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn try_ask(&self, words: &[&str]) -> redis::RedisResult<String> {
        let client = redis::Client::open(self.url())?;
        let mut conn = client.get_multiplexed_async_connection().await?;
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]).query_async(&mut conn).await
    }

    /// Runs a command; its answer as text.
    pub async fn ask(&self, words: &[&str]) -> String {
        let answer = self.try_ask(words).await;
        answer.expect("Redis answers")
    }

    /// Number of connections of stores: those whose last command was one of theirs.
    async fn clients(&self) -> usize {
        let list = self.ask(&["CLIENT", "LIST", "TYPE", "normal"]).await;
        let of_stores = |line: &&str| line.contains("cmd=get ") || line.contains("cmd=evalsha ");
        list.lines().filter(of_stores).count()
    }

    async fn clients_fall_below(&self, clients: usize) {
        eventually(LIMIT, || async {
            let now = self.clients().await;
            if now < clients {
                Ok(())
            } else {
                Err(format!("{now} connections"))
            }
        })
        .await;
    }

    fn store(&self, response_max: Duration) -> RedisStore {
        let mut settings = settings(self.url());
        settings.response_max = response_max;
        RedisStore::new(settings).expect("valid settings")
    }
}

fn spawn(port: u16, dir: &tempfile::TempDir, extra: &[String]) -> Child {
    Command::new(variable("NEARSHORE_TEST_REDIS_SERVER"))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--repl-diskless-sync-delay", "0"])
        .args(extra)
        .current_dir(dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store at this address.
pub fn store_at(url: String) -> RedisStore {
    RedisStore::new(settings(url)).expect("valid settings")
}

/// Folds as callers do: again while the error says so.
async fn fold_with_retries(store: &RedisStore, ns: &str, user: &UserId) -> Folded {
    eventually(LIMIT, || async {
        match store.fold(ns, &[write(user, 0, 1)]).await {
            Ok(mut answers) => Ok(answers.pop().expect("one answer")),
            Err(error) => {
                assert_eq!(error.remedy(), Remedy::Retry, "{error}");
                Err(error.to_string())
            }
        }
    })
    .await
}

/// Longest answer of a store that is to give up: short, but what is not held back arrives in time on a slow machine.
const LATE: Duration = Duration::from_secs(1);

/// Makes the store's connection; on a slow machine at the second try.
async fn connect(store: &RedisStore, ns: &str, user: &UserId) {
    let users = [user.clone()];
    eventually(LIMIT, || async {
        let loaded = store.load(ns, &users).await;
        loaded.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_store_connects_to_a_restarted_redis_by_itself() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(ANSWER_MAX), fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let port = server.port;
    drop(server);
    let refused = store.fold(&ns, &[write(&user, 1, 2)]).await;
    let refused = refused.expect_err("Redis is down");
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert_eq!(refused.remedy(), Remedy::Retry);
    let _server = Server::at(port, &[]).await;
    // The new one is empty and has no scripts.
    assert_eq!(fold_with_retries(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn many_callers_of_a_redis_that_is_down_share_few_attempts_to_connect() {
    // It accepts connections, counts them, and closes them without an answer.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let attempts = Arc::new(AtomicUsize::new(0));
    let count = attempts.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
            drop(client);
        }
    });
    let store = store_at(format!("redis://127.0.0.1:{port}"));
    let (ns, users) = (fresh("ns"), [user("u")]);
    let all = futures::future::join_all((0..200).map(|_| store.load(&ns, &users))).await;
    assert!(all.iter().all(Result::is_err));
    let attempts = attempts.load(Ordering::Relaxed);
    // One for each caller would be 200; how many there are depends on how long the callers take.
    assert!((1..100).contains(&attempts), "{attempts} attempts");
}

#[tokio::test]
async fn a_connection_to_a_demoted_primary_is_closed_and_made_again() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(ANSWER_MAX), fresh("ns"), user("u"));
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    let before = server.clients().await;
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let refused = store.fold(&ns, &[write(&user, 0, 1)]).await;
    let refused = refused.expect_err("a replica refuses writes");
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("READONLY") || refused.to_string().contains("ReadOnly"));
    // The connection is closed at once: after a failover it would lead to a replica for ever.
    server.clients_fall_below(before).await;
    server.ask(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(fold_with_retries(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn a_write_that_timed_out_and_arrives_later_is_fenced() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(LATE), fresh("ns"), user("u"));
    connect(&store, &ns, &user).await;
    server.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    let late = store.fold(&ns, &[write(&user, 0, 1)]).await;
    let late = late.expect_err("writes are paused");
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    // The write is sent again while the first is still queued: the first is executed before it, or ends with its
    // connection.
    let (again, _) = tokio::join!(
        fold_with_retries(&store, &ns, &user),
        server.ask(&["CLIENT", "UNPAUSE"])
    );
    assert!(again == Folded::Stale || again == STORED(1), "{again:?}");
    let stored = store_at(server.url());
    assert_eq!(load(&stored, &ns, &user).await.ver, 1);
}

#[tokio::test]
async fn a_connection_with_a_late_answer_is_closed() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(LATE), fresh("ns"), user("u"));
    connect(&store, &ns, &user).await;
    let before = server.clients().await;
    server.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    let late = store.fold(&ns, &[write(&user, 0, 1)]).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    server.clients_fall_below(before).await;
    server.ask(&["CLIENT", "UNPAUSE"]).await;
    assert_eq!(fold_with_retries(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn a_flush_waits_for_the_configured_replicas() {
    let primary = Server::start(&[]).await;
    let mut wanted = settings(primary.url());
    wanted.min_replicas = 1;
    wanted.replicas_max = Duration::from_millis(200);
    let store = RedisStore::new(wanted).expect("valid settings");
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let missing = store.flush().await.expect_err("there is no replica");
    let expected = matches!(
        missing,
        Error::NotReplicated {
            found: 0,
            wanted: 1
        }
    );
    assert!(expected, "{missing}");
    assert_eq!(missing.remedy(), Remedy::Retry);
    let checks = store.check().await;
    let replicas = checks.iter().find(|(name, _)| name == "redis replicas");
    assert!(
        replicas.is_some_and(|(_, verdict)| verdict.is_err()),
        "{checks:?}"
    );

    let port = primary.port.to_string();
    let _replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    eventually(LIMIT, || async {
        store.flush().await.map_err(|e| e.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_evicts_or_is_full_is_reported() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let store = server.store(ANSWER_MAX);
    let checks = store.check().await;
    let policy = checks
        .iter()
        .find(|(name, _)| name == "redis maxmemory-policy");
    let (_, verdict) = policy.expect("the policy is checked");
    assert!(
        verdict
            .as_ref()
            .is_err_and(|why| why.contains("allkeys-lru")),
        "{checks:?}"
    );

    server
        .ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = store.fold(&fresh("ns"), &[write(&user("u"), 0, 1)]).await;
    let full = full.expect_err("memory is full");
    assert!(matches!(full, Error::Unavailable { .. }), "{full}");
    assert!(store.ready().await.is_err());
}

#[tokio::test]
async fn a_wrong_password_is_tried_again_by_what_its_file_has_then() {
    let server = Server::start(&[]).await;
    server.ask(&["CONFIG", "SET", "requirepass", "right"]).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("password");
    std::fs::write(&path, "wrong").expect("written");
    let mut settings = settings(server.url());
    settings.password_file = Some(path.clone());
    let store = RedisStore::new(settings).expect("valid settings");
    let load = async || store.load(&fresh("ns"), &[user("u")]).await;
    let refused = load().await.expect_err("the password is wrong");
    assert_eq!(refused.remedy(), Remedy::Retry, "{refused}");
    assert!(
        refused.to_string().contains("redis.password_file"),
        "{refused}"
    );
    std::fs::write(&path, "right\n").expect("written");
    load().await.expect("the password is right");
}
