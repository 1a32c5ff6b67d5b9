//! Promise: a Redis that restarts, fails over, is slow or lacks replicas costs time, never a wrong value;
//! the store finds its way back by itself.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nearshore_core::ports::store::{Durability, Error, Folded, Remedy, Users};
use nearshore_redis::RedisStore;

use crate::harness::{eventually, fresh, variable};
use crate::store::{STORED, fold, load, settings, user, write};

const LIMIT: Duration = Duration::from_secs(10);

/// A Redis of one test's own; ends with it.
pub struct Server {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
    extra: Vec<String>,
}

impl Server {
    pub async fn start(extra: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        Self::at(port, extra).await
    }

    async fn at(port: u16, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
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
            self.tell(&["PING"]).await.map_err(|e| e.to_string())
        })
        .await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGKILL, and a new process in the same place, on the same files.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.dir, &self.extra);
        self.answers().await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn tell(&self, words: &[&str]) -> redis::RedisResult<String> {
        let client = redis::Client::open(self.url())?;
        let mut conn = client.get_multiplexed_async_connection().await?;
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]).query_async(&mut conn).await
    }

    pub async fn told(&self, words: &[&str]) -> String {
        self.tell(words).await.expect("redis answers")
    }

    /// How many connections of stores it has: those whose last command was one of theirs.
    async fn clients(&self) -> usize {
        let list = self.told(&["CLIENT", "LIST", "TYPE", "normal"]).await;
        let theirs = |line: &&str| line.contains("cmd=get ") || line.contains("cmd=evalsha ");
        list.lines().filter(theirs).count()
    }

    async fn falls_below(&self, clients: usize) {
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
        RedisStore::new(settings).expect("settings are right")
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
    RedisStore::new(settings(url)).expect("settings are right")
}

/// Writes as callers do: again while the store says so.
async fn fold_at_last(
    store: &RedisStore,
    ns: &str,
    user: &nearshore_core::user::event::UserId,
) -> Folded {
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

#[tokio::test]
async fn a_store_finds_a_restarted_redis_by_itself() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(LIMIT), fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let port = server.port;
    drop(server);
    let away = store.fold(&ns, &[write(&user, 1, 2)]).await;
    let away = away.expect_err("nobody is there");
    assert!(matches!(away, Error::Unavailable { .. }), "{away}");
    assert_eq!(away.remedy(), Remedy::Retry);
    let _server = Server::at(port, &[]).await;
    // Empty now, and without the scripts.
    assert_eq!(fold_at_last(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn many_callers_of_a_redis_that_is_away_fail_together() {
    let server = Server::start(&[]).await;
    let store = server.store(LIMIT);
    drop(server);
    let (ns, users) = (fresh("ns"), [user("u")]);
    let start = std::time::Instant::now();
    let all = futures::future::join_all((0..200).map(|_| store.load(&ns, &users))).await;
    assert!(all.iter().all(Result::is_err));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_demoted_primary_is_left_and_found_again() {
    let server = Server::start(&[]).await;
    let (store, ns, user) = (server.store(LIMIT), fresh("ns"), user("u"));
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    let before = server.clients().await;
    server.told(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let refused = store.fold(&ns, &[write(&user, 0, 1)]).await;
    let refused = refused.expect_err("a replica");
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("READONLY") || refused.to_string().contains("ReadOnly"));
    // The connection is given up at once: after a failover it would lead to a replica for ever.
    server.falls_below(before).await;
    server.told(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(fold_at_last(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn a_write_that_timed_out_and_lands_later_is_fenced() {
    let server = Server::start(&[]).await;
    let store = server.store(Duration::from_millis(300));
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    server.told(&["CLIENT", "PAUSE", "450"]).await;
    let late = store.fold(&ns, &[write(&user, 0, 1)]).await;
    let late = late.expect_err("paused");
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    // Sent again while the first is still under way: that one lands before, or ends with its connection.
    let again = fold_at_last(&store, &ns, &user).await;
    assert!(again == Folded::Stale || again == STORED(1), "{again:?}");
    assert_eq!(load(&store, &ns, &user).await.ver, 1);
}

#[tokio::test]
async fn a_connection_that_is_late_is_given_up() {
    let server = Server::start(&[]).await;
    let store = server.store(Duration::from_millis(50));
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    let before = server.clients().await;
    server.told(&["CLIENT", "PAUSE", "2000", "WRITE"]).await;
    let late = store.fold(&ns, &[write(&user, 0, 1)]).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    server.falls_below(before).await;
    server.told(&["CLIENT", "UNPAUSE"]).await;
    assert_eq!(fold_at_last(&store, &ns, &user).await, STORED(1));
}

#[tokio::test]
async fn a_flush_waits_for_the_replicas_it_was_told_of() {
    let primary = Server::start(&[]).await;
    let mut wanted = settings(primary.url());
    wanted.min_replicas = 1;
    wanted.replicas_max = Duration::from_millis(200);
    let store = RedisStore::new(wanted).expect("settings are right");
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let missing = store.flush().await.expect_err("there is none");
    let told = matches!(
        missing,
        Error::NotReplicated {
            found: 0,
            wanted: 1
        }
    );
    assert!(told, "{missing}");
    assert_eq!(missing.remedy(), Remedy::Retry);
    let said = store.check().await;
    let replicas = said.iter().find(|(name, _)| name == "redis replicas");
    assert!(
        replicas.is_some_and(|(_, verdict)| verdict.is_err()),
        "{said:?}"
    );

    let port = primary.port.to_string();
    let _replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    eventually(LIMIT, || async {
        store.flush().await.map_err(|e| e.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_evicts_or_is_full_is_told_of() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let store = server.store(LIMIT);
    let said = store.check().await;
    let policy = said
        .iter()
        .find(|(name, _)| name == "redis maxmemory-policy");
    let (_, verdict) = policy.expect("the policy is checked");
    assert!(
        verdict
            .as_ref()
            .is_err_and(|why| why.contains("allkeys-lru")),
        "{said:?}"
    );

    server
        .told(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    server.told(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = store.fold(&fresh("ns"), &[write(&user("u"), 0, 1)]).await;
    let full = full.expect_err("full");
    assert!(matches!(full, Error::Unavailable { .. }), "{full}");
    assert!(store.ready().await.is_err());
}

#[tokio::test]
async fn a_wrong_password_is_refused_for_good() {
    let server = Server::start(&[]).await;
    server
        .told(&["CONFIG", "SET", "requirepass", "right"])
        .await;
    let dir = tempfile::tempdir().expect("a folder");
    for (password, right) in [("wrong", false), ("right", true)] {
        let path = dir.path().join(password);
        std::fs::write(&path, password).expect("written");
        let mut settings = settings(server.url());
        settings.password_file = Some(path);
        let store = RedisStore::new(settings).expect("settings are right");
        match store.load(&fresh("ns"), &[user("u")]).await {
            Ok(_) => assert!(right),
            Err(error) => {
                assert!(!right, "{error}");
                assert_eq!(error.remedy(), Remedy::Stop, "{error}");
            }
        }
    }
}
