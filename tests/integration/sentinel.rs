//! Promise: behind Sentinels a process finds the primary by their name for it, follows a failover by itself without
//! losing a record, and says what each Sentinel answers where none names a primary.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nearshore_redis::{RedisSettings, RedisStore};

use crate::harness::{LIMIT, eventually, variable};
use crate::process::Site;
use crate::proxy::{Fate, Proxy};
use crate::redis_trouble::in_step;
use crate::store_faults::{Server, store_at};
use crate::tls::{Access, free_port, goes_the_whole_way, shown};
use crate::way::{accepted, is_exact, list_with_all};

const NAME: &str = "shop-main";
const PASSWORD: &str = "watch";

/// A Sentinel with a password; it ends when dropped.
struct Sentinel {
    port: u16,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    async fn of(primary: &Server) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().expect("a folder"));
        let text = format!(
            "port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\n\
             sentinel monitor {NAME} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 3000\n",
            primary.port
        );
        std::fs::write(dir.path().join("sentinel.conf"), text).expect("written");
        let child = Command::new(variable("NEARSHORE_TEST_REDIS_SERVER"))
            .args(["sentinel.conf", "--sentinel"])
            .current_dir(&dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let sentinel = Self {
            port,
            child,
            _dir: dir,
        };
        // It promotes only replicas that it knows.
        eventually(LIMIT, || async {
            let replicas = sentinel.ask(&["SENTINEL", "REPLICAS", NAME]).await?;
            match replicas {
                redis::Value::Array(all) if !all.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        sentinel
    }

    async fn ask(&self, words: &[&str]) -> Result<redis::Value, String> {
        let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port);
        let ask = async {
            let client = redis::Client::open(url)?;
            let mut conn = client.get_multiplexed_async_connection().await?;
            let mut cmd = redis::cmd(words[0]);
            cmd.arg(&words[1..]).query_async(&mut conn).await
        };
        let answer: redis::RedisResult<redis::Value> = ask.await;
        answer.map_err(|error| error.to_string())
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `check` says of a configuration.
async fn told(site: &Site, access: &Access) -> String {
    let checked = access.cli(site, &["check"]).await;
    String::from_utf8_lossy(&checked.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_sentinels_is_followed_and_loses_nothing() {
    let mut site = Site::open(&[]).await;
    let primary = Server::start(&[]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]).await;
    in_step(&primary, &replica).await;
    let sentinel = Sentinel::of(&primary).await;
    site.redis = primary;
    site.store = store_at(site.redis.url());
    site.catalogue().await;
    let file = site.write("sentinel-password", PASSWORD);
    // Nobody listens at the first address.
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", free_port(), sentinel.port);
    let access = |hosts: &str, name: &str, file: Option<&std::path::Path>| {
        let url = format!("redis+sentinel://{hosts}/{name}");
        let mut variables = vec![
            ("NEARSHORE__REDIS__URL", url),
            ("NEARSHORE__REDIS__MIN_REPLICAS", "0".to_owned()),
        ];
        let file = file.map(shown);
        variables.extend(file.map(|file| ("NEARSHORE__REDIS__SENTINEL_PASSWORD_FILE", file)));
        Access(variables)
    };
    let good = access(&hosts, NAME, Some(&file));
    goes_the_whole_way(&site, &good, "ann").await;
    let report = told(&site, &good).await;
    let named = format!("127.0.0.1:{}, the primary by Sentinels", site.redis.port);
    assert!(report.contains(&named), "{report}");

    let redis_port = format!("127.0.0.1:{}", site.redis.port);
    let wrong = [
        (
            access(&hosts, NAME, None),
            "redis.sentinel_username and redis.sentinel_password_file",
        ),
        (
            access(&hosts, "other", Some(&file)),
            "it watches no primary named \"other\"",
        ),
        (
            access(&redis_port, NAME, None),
            "it is a Redis and no Sentinel",
        ),
    ];
    for (access, says) in &wrong {
        let report = told(&site, access).await;
        assert!(report.contains(says), "{says}: {report}");
    }

    follows(&mut site, &good, &replica).await;
    let report = told(&site, &good).await;
    let named = format!("127.0.0.1:{}, the primary by Sentinels", replica.port);
    assert!(report.contains(&named), "{report}");
}

/// A process folds and makes lists, the primary is killed, and the process goes on with the replica.
async fn follows(site: &mut Site, access: &Access, replica: &Server) {
    let mut process = access.start(site, "all");
    process.becomes_ready().await;
    let users = ["bob", "cem", "dee"];
    let events = (0..60).map(|nth| site.bought(users[nth % 3], nth));
    site.send(events.collect()).await;
    site.committed().await;
    in_step(&site.redis, replica).await;
    site.redis.kill();
    let events = (60..120).map(|nth| site.bought(users[nth % 3], nth));
    site.send(events.collect()).await;
    site.store = store_at(replica.url());
    eventually(LIMIT, || async {
        let info = replica.ask(&["INFO", "replication"]).await;
        info.contains("role:master").then_some(()).ok_or(info)
    })
    .await;
    site.committed().await;
    is_exact(site).await;
    for (user, records) in accepted(site).await {
        eventually(LIMIT, || async {
            list_with_all(&site.peek(&user.0).await, &records)
        })
        .await;
    }
    let (status, _) = process.get("/healthz").await.expect("it still runs");
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_name_a_primary_which_is_away_are_asked_again() {
    let primary = Server::start(&[]).await;
    let port = primary.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    in_step(&primary, &replica).await;
    let sentinel = Sentinel::of(&primary).await;
    let settings = RedisSettings {
        url: format!("redis+sentinel://127.0.0.1:{}/{NAME}", sentinel.port),
        sentinel_password_file: Some(sentinel._dir.path().join("password")),
        response_max: Duration::from_millis(500),
        connect_max: Duration::from_millis(500),
        ..RedisSettings::default()
    };
    std::fs::write(sentinel._dir.path().join("password"), PASSWORD).expect("written");
    // The primary is away before the first connection, and Sentinel does not know it yet.
    drop(primary);
    let store = RedisStore::new(settings).expect("valid settings");
    let first = store.ready().await.expect_err("the primary is away");
    assert!(first.to_string().contains("refused"), "{first}");
    eventually(LIMIT, || async {
        store.ready().await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hides_its_role_is_used_and_check_says_what_is_lost() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let front = Proxy::to(site.redis.port).await;
    front.set(Fate::HideFields(&[
        "role",
        "master_replid",
        "redis_version",
        "maxmemory_policy",
    ]));
    let access = Access(vec![("NEARSHORE__REDIS__URL", front.url())]);
    goes_the_whole_way(&site, &access, "ann").await;
    let report = told(&site, &access).await;
    assert!(
        report.contains("[warn] redis failovers") && report.contains("is not noticed"),
        "{report}"
    );
    let mut process = access.start(&site, "ingest");
    process.becomes_ready().await;
    let log = process.log();
    assert_eq!(log.matches("a failover that loses").count(), 1, "{log}");
}
