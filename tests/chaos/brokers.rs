//! Apache Kafka run by `scripts/kafka`: started, killed, and started again on the same data.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

/// The brokers of a run.
pub struct Brokers {
    dir: PathBuf,
    many: usize,
    pub addresses: String,
}

/// Runs `scripts/kafka`; its output.
async fn script(words: &[&str]) -> anyhow::Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
    let output = tokio::process::Command::new(script)
        .args(words)
        .env("KAFKA_HEAP", "384m")
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .context("scripts/kafka")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "scripts/kafka {words:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Brokers {
    /// Starts the brokers; they end with this process, however it ends.
    pub async fn start(many: usize, dir: &Path) -> anyhow::Result<Self> {
        let mut brokers = Self {
            dir: dir.join("kafka"),
            many,
            addresses: String::new(),
        };
        brokers.addresses = brokers.launch().await?;
        Ok(brokers)
    }

    /// Starts the brokers that do not run; the addresses of all.
    async fn launch(&self) -> anyhow::Result<String> {
        let (dir, many) = (self.dir.display().to_string(), self.many.to_string());
        let owner = std::process::id().to_string();
        let words = [
            "start",
            "--dir",
            &dir,
            "--brokers",
            &many,
            "--owner",
            &owner,
        ];
        script(&words).await
    }

    /// Kills a broker and starts it again after `down`; what happened, in words.
    pub async fn kill(&self, nth: usize, down: Duration) -> anyhow::Result<String> {
        let (dir, nth) = (self.dir.display().to_string(), nth.to_string());
        script(&["stop", "--dir", &dir, "--broker", &nth, "--kill"]).await?;
        let start = std::time::Instant::now();
        tokio::time::sleep(down).await;
        self.launch().await?;
        Ok(format!("down for {:.1?}", start.elapsed()))
    }

    /// Kills all brokers.
    pub async fn end(&self) -> anyhow::Result<()> {
        let dir = self.dir.display().to_string();
        script(&["stop", "--dir", &dir, "--kill"]).await.map(drop)
    }
}
