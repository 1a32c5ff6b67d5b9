//! A Redis of one measurement. The harness of the tests expects it under this module name.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::harness::{LIMIT, eventually, variable};

/// A running redis-server; it ends when dropped.
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
        let dir = tempfile::tempdir().expect("a temporary folder");
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
        eventually(LIMIT, || async {
            server.try_ask(&["PING"]).await.map_err(|e| e.to_string())
        })
        .await;
        server
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
        self.try_ask(words).await.expect("Redis answers")
    }

    /// A number from `INFO`.
    pub async fn info(&self, section: &str, field: &str) -> f64 {
        let text = self.ask(&["INFO", section]).await;
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
