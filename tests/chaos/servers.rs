//! The Redis servers: a primary with two replicas and three Sentinels, or a cluster of three.
//!
//! Invariant: a killed server is started again on its port: with Sentinel empty and as a replica of the new primary, in
//! the cluster with its append-only file. Sentinel is asked for the primary; it is never assumed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use redis::{ConnectionLike, Value};
use tokio::sync::watch;

use crate::plan::Stores;
use crate::signal;

/// Longest start of a server and longest failover; only a hang exceeds it.
const LIMIT: Duration = Duration::from_secs(300);
/// Name of the primary for the Sentinels.
const WATCHED: &str = "chaos";

/// A free port below 20000, so that the port 10000 above it exists.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(10_000..20_000_u16);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port between 10000 and 20000")
}

/// One redis-server.
struct Server {
    dir: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Server {
    fn start(&mut self, more: &[String]) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let child = Command::new("redis-server")
            .args(&self.args)
            .args(more)
            .current_dir(&self.dir)
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .context("redis-server")?;
        self.child = Some(child);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The servers of a run.
pub struct Servers {
    pub kind: Stores,
    data: Mutex<Vec<Server>>,
    sentinels: Mutex<Vec<Server>>,
    ports: Vec<u16>,
    sentinel_ports: Vec<u16>,
    /// Ports that the nodes of a cluster announce: those of their proxies.
    pub announced: Vec<u16>,
    primary: watch::Sender<SocketAddr>,
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Sends a command to one server.
pub fn ask(port: u16, words: &[&str]) -> redis::RedisResult<Value> {
    let client = redis::Client::open(("127.0.0.1", port))?;
    let mut conn = client.get_connection_with_timeout(Duration::from_secs(1))?;
    conn.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    conn.req_command(&cmd)
}

/// [`ask`] on a thread for blocking calls.
async fn asked(port: u16, words: &[&str]) -> anyhow::Result<Value> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let answer = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        ask(port, &words)
    });
    Ok(answer.await??)
}

/// Repeats `good` until it is `Ok`, at most [`LIMIT`].
pub async fn until<T, F: Future<Output = anyhow::Result<T>>>(
    what: &str,
    mut good: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match good().await {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > LIMIT => {
                return Err(error.context(format!("{what}: not within {LIMIT:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Servers {
    /// Starts all servers and waits until they serve.
    pub async fn start(kind: Stores, dir: &Path) -> anyhow::Result<Arc<Self>> {
        let mut ports = Vec::new();
        let mut announced = Vec::new();
        let mut sentinel_ports = Vec::new();
        for _ in 0..3 {
            ports.push(free_port()?);
            announced.push(free_port()?);
            sentinel_ports.push(free_port()?);
        }
        let (primary, _) = watch::channel(local(ports[0]));
        let server = |port: u16, args: Vec<String>| Server {
            dir: dir.join(format!("redis-{port}")),
            args,
            child: None,
        };
        let data = ports.iter().zip(&announced).map(|(port, announced)| {
            let args = match kind {
                Stores::Sentinel => format!(
                    "--port {port} --bind 127.0.0.1 --save  --appendonly no --repl-diskless-sync-delay 0 \
                     --repl-backlog-size 64mb --repl-timeout 5"
                ),
                Stores::Cluster => format!(
                    "--port {port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always \
                     --cluster-enabled yes --cluster-node-timeout 2000 --cluster-announce-ip 127.0.0.1 \
                     --cluster-announce-port {announced} --cluster-announce-bus-port {}",
                    port + 10_000
                ),
            };
            server(*port, args.split(' ').map(str::to_owned).collect())
        });
        let servers = Self {
            kind,
            data: Mutex::new(data.collect()),
            sentinels: Mutex::new(Vec::new()),
            ports,
            sentinel_ports,
            announced,
            primary,
        };
        let servers = Arc::new(servers);
        servers.launch(&server).await?;
        Ok(servers)
    }

    async fn launch(&self, server: &impl Fn(u16, Vec<String>) -> Server) -> anyhow::Result<()> {
        for nth in 0..3 {
            let follow = match self.kind {
                Stores::Sentinel if nth > 0 => vec![
                    "--replicaof".to_owned(),
                    "127.0.0.1".to_owned(),
                    self.ports[0].to_string(),
                ],
                Stores::Sentinel | Stores::Cluster => Vec::new(),
            };
            self.with(nth, |server| server.start(&follow))?;
        }
        for port in &self.ports {
            until("redis answers", || asked(*port, &["PING"])).await?;
        }
        match self.kind {
            Stores::Sentinel => self.sentinels(server).await,
            Stores::Cluster => Ok(()),
        }
    }

    fn with<T>(&self, nth: usize, act: impl FnOnce(&mut Server) -> T) -> T {
        let mut data = self.data.lock().expect("no thread panics with the lock");
        act(&mut data[nth])
    }

    async fn sentinels(&self, server: &impl Fn(u16, Vec<String>) -> Server) -> anyhow::Result<()> {
        for port in &self.sentinel_ports {
            let mut sentinel = server(*port, vec!["sentinel.conf".into(), "--sentinel".into()]);
            std::fs::create_dir_all(&sentinel.dir)?;
            let text = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor {WATCHED} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {WATCHED} 1500\nsentinel failover-timeout {WATCHED} 6000\n\
                 sentinel parallel-syncs {WATCHED} 2\n",
                self.ports[0]
            );
            std::fs::write(sentinel.dir.join("sentinel.conf"), text)?;
            sentinel.start(&[])?;
            let mut sentinels = self
                .sentinels
                .lock()
                .expect("no thread panics with the lock");
            sentinels.push(sentinel);
        }
        let port = self.sentinel_ports[0];
        until("two other Sentinels and two replicas are known", || async {
            let answer = asked(port, &["SENTINEL", "MASTER", WATCHED]).await?;
            let state: BTreeMap<String, String> = redis::from_redis_value(answer)?;
            let known = ["num-other-sentinels", "num-slaves"].map(|key| state.get(key).cloned());
            ensure!(known == ["2", "2"].map(|n| Some(n.to_owned())), "{known:?}");
            Ok(())
        })
        .await
    }

    /// Joins the nodes to a cluster; their proxies must listen by now.
    pub async fn join(&self) -> anyhow::Result<()> {
        let mut create = tokio::process::Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(self.ports.iter().map(|port| format!("127.0.0.1:{port}")));
        create.args(["--cluster-replicas", "0", "--cluster-yes"]);
        let output = create.output().await.context("redis-cli")?;
        ensure!(
            output.status.success(),
            "redis-cli --cluster create: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        for port in &self.ports {
            until("the cluster is complete", || self.complete(*port)).await?;
        }
        Ok(())
    }

    async fn complete(&self, port: u16) -> anyhow::Result<()> {
        let info = text(&asked(port, &["CLUSTER", "INFO"]).await?);
        ensure!(info.contains("cluster_state:ok"), "{info}");
        Ok(())
    }

    /// Ports of the servers themselves.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The address at which members ask the Sentinels.
    pub fn by_sentinels(&self) -> String {
        let hosts = self.sentinel_ports.iter();
        let hosts = hosts.map(|port| format!("127.0.0.1:{port}"));
        let hosts: Vec<String> = hosts.collect();
        format!("redis+sentinel://{}/{WATCHED}", hosts.join(","))
    }

    /// The current primary, and its changes.
    pub fn primary(&self) -> watch::Receiver<SocketAddr> {
        self.primary.subscribe()
    }

    /// Ports with all data: that of the primary, or those of all nodes.
    pub fn read_ports(&self) -> Vec<u16> {
        match self.kind {
            Stores::Sentinel => vec![self.primary.borrow().port()],
            Stores::Cluster => self.ports.clone(),
        }
    }

    /// Asks the Sentinels for the primary; never returns.
    pub async fn follow(self: Arc<Self>) {
        loop {
            for port in &self.sentinel_ports {
                if let Ok(found) = self.sentinel_says(*port).await {
                    let changed = |now: &mut SocketAddr| std::mem::replace(now, found) != found;
                    self.primary.send_if_modified(changed);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn sentinel_says(&self, sentinel: u16) -> anyhow::Result<SocketAddr> {
        let answer = asked(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", WATCHED]).await?;
        let (host, port): (String, String) = redis::from_redis_value(answer)?;
        Ok(format!("{host}:{port}").parse()?)
    }

    fn index_of_primary(&self) -> usize {
        let port = self.primary.borrow().port();
        self.ports.iter().position(|it| *it == port).unwrap_or(0)
    }

    /// Waits until another server is primary.
    async fn moved_from(&self, old: SocketAddr) -> anyhow::Result<()> {
        until("another server is primary", || async {
            ensure!(*self.primary.borrow() != old, "{old} is still primary");
            Ok(())
        })
        .await
    }

    /// Kills a server and starts it again after `down`, with Sentinel not before there is another primary; what
    /// happened, in words.
    pub async fn kill(&self, nth: usize, down: Duration) -> anyhow::Result<String> {
        match self.kind {
            Stores::Cluster => {
                self.with(nth, Server::kill);
                tokio::time::sleep(down).await;
                self.with(nth, |server| server.start(&[]))?;
                let port = self.ports[nth];
                until("the cluster is complete again", || self.complete(port)).await?;
                Ok(format!("node {port} was down"))
            }
            Stores::Sentinel => {
                let (old, place, start) = (
                    *self.primary.borrow(),
                    self.index_of_primary(),
                    Instant::now(),
                );
                self.with(place, Server::kill);
                self.moved_from(old).await?;
                let took = start.elapsed();
                tokio::time::sleep(down.saturating_sub(took)).await;
                let new = *self.primary.borrow();
                let follow =
                    ["--replicaof", "127.0.0.1", &new.port().to_string()].map(String::from);
                self.with(place, |server| server.start(&follow))?;
                self.replicated().await?;
                Ok(format!("{old} -> {new} after {took:.1?}"))
            }
        }
    }

    /// Stops the primary by SIGSTOP and wakes it after `long`, when another server is primary.
    pub async fn freeze(&self, long: Duration) -> anyhow::Result<String> {
        let (old, place) = (*self.primary.borrow(), self.index_of_primary());
        let pid = self.with(place, |server| server.child.as_ref().map(Child::id));
        let pid = pid.context("the primary runs")?;
        signal(pid, "STOP")?;
        let start = Instant::now();
        let moved = self.moved_from(old).await;
        let took = start.elapsed();
        tokio::time::sleep(long.saturating_sub(took)).await;
        signal(pid, "CONT")?;
        moved?;
        self.replicated().await?;
        Ok(format!(
            "{old} -> {} after {took:.1?}",
            *self.primary.borrow()
        ))
    }

    /// Waits until the primary has both replicas again.
    async fn replicated(&self) -> anyhow::Result<()> {
        until("two replicas follow", || async {
            let port = self.primary.borrow().port();
            let info = text(&asked(port, &["INFO", "replication"]).await?);
            let online = info.matches("state=online").count();
            ensure!(online == 2, "{online} replicas of {port}");
            Ok(())
        })
        .await
    }

    /// Sends SCRIPT FLUSH to every primary.
    pub async fn flush_scripts(&self) -> anyhow::Result<String> {
        for port in self.read_ports() {
            asked(port, &["SCRIPT", "FLUSH"]).await?;
        }
        Ok(String::new())
    }
}

fn text(value: &Value) -> String {
    redis::from_redis_value_ref(value).unwrap_or_default()
}
