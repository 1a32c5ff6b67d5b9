//! A Redis of one measurement's own; the harness looks for it under this name.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{eventually, variable};

/// See the module; it ends with its owner.
pub struct Server {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    pub async fn start(extra: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let dir = tempfile::tempdir().expect("a folder");
        let child = Command::new(variable("NEARSHORE_TEST_REDIS_SERVER"))
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .args(extra)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let server = Self { port, child, dir };
        eventually(Duration::from_secs(10), || async {
            server.tell(&["PING"]).await.map_err(|e| e.to_string())
        })
        .await;
        server
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

    /// A number of `INFO`.
    pub async fn info(&self, section: &str, field: &str) -> f64 {
        let text = self.told(&["INFO", section]).await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|text| text.trim().parse().ok())
            .unwrap_or(f64::NAN)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
