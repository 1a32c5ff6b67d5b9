//! The members: processes of the real binary, killed, asked to end, stopped, and started again, as by Kubernetes.
//!
//! Invariant: a member that ended, by whatever cause, is started again; one that ended without being told is written
//! down with its last words. It knows no plan.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::plan::Break;
use crate::servers::free_port;
use crate::{Journal, signal};

/// A start with many partitions on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// SIGTERM to the end; then it is killed.
const DRAIN: Duration = Duration::from_secs(30);

/// How to start one.
#[derive(Clone)]
pub struct ListBuilder {
    pub nth: usize,
    pub role: &'static str,
    pub config: PathBuf,
    pub redis: String,
    pub broken: Option<Break>,
}

struct Live {
    child: Option<Child>,
    /// Ends are expected: a fault is at work, or the run ends.
    told: bool,
}

/// One member; a fault holds it for as long as it lasts.
pub struct Member {
    pub recipe: ListBuilder,
    port: u16,
    log: PathBuf,
    live: Mutex<Live>,
    journal: Arc<Journal>,
}

impl Member {
    /// A member that does not run yet.
    pub fn new(recipe: ListBuilder, journal: Arc<Journal>) -> anyhow::Result<Arc<Self>> {
        let folder = recipe.config.parent().context("a file in a folder")?;
        let log = folder.join(format!("{}-{}.log", recipe.role, recipe.nth));
        Ok(Arc::new(Self {
            recipe,
            port: free_port()?,
            log,
            live: Mutex::new(Live {
                child: None,
                told: true,
            }),
            journal,
        }))
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(&self.log)?;
        let ListBuilder {
            role,
            config,
            redis,
            broken,
            ..
        } = &self.recipe;
        let mut command = match broken {
            // The same parts with a broken log around them; see `broken.rs`.
            Some(broken) => {
                let mut own = Command::new(std::env::current_exe()?);
                own.args(["--member", broken.name(), "--config"]);
                own
            }
            None => {
                let mut real = Command::new(env!("CARGO_BIN_EXE_nearshore"));
                real.args(["run", "--role", role, "--config"]);
                real
            }
        };
        command
            .arg(config)
            .env(
                "NEARSHORE__HTTP__LISTEN",
                format!("127.0.0.1:{}", self.port),
            )
            .env("NEARSHORE__REDIS__URL", redis)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.spawn().context("the member starts")
    }

    /// Starts it, and from now on again whenever it ends.
    pub async fn start(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut live = self.live.lock().await;
        live.child = Some(self.spawn()?);
        live.told = false;
        Ok(())
    }

    /// Looks after it, for ever.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut live = self.live.lock().await;
            if live.told {
                continue;
            }
            let ended = match &mut live.child {
                Some(child) => child.try_wait().ok().flatten(),
                None => None,
            };
            if let Some(status) = ended {
                let words = format!("{} ended by itself: {status}: {}", self.name(), self.last());
                self.journal.ended(words);
                // Kubernetes' first back-off is longer; a crash loop shows all the same.
                tokio::time::sleep(Duration::from_secs(1)).await;
                live.child = self.spawn().ok();
            }
        }
    }

    pub fn name(&self) -> String {
        format!("{} {}", self.recipe.role, self.recipe.nth)
    }

    fn last(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let line = log.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("silent").chars().take(300).collect()
    }

    /// SIGKILL, and started again.
    pub async fn kill(&self) -> anyhow::Result<String> {
        let mut live = self.live.lock().await;
        end(&mut live);
        live.child = Some(self.spawn()?);
        Ok(String::new())
    }

    /// SIGTERM, waits for the end, and started again. How it ended.
    pub async fn terminate(&self) -> anyhow::Result<String> {
        let mut live = self.live.lock().await;
        let child = live.child.as_mut().context("it runs")?;
        signal(child.id(), "TERM")?;
        let (status, took) = ending(child).await;
        let clean = status.is_some_and(|status| status.success());
        self.journal.drained(clean, took);
        let how = match status {
            Some(status) => format!("{status} after {took:.1?}"),
            None => format!("not within {took:.0?}; killed"),
        };
        let why = if clean {
            String::new()
        } else {
            format!(" ({})", self.last())
        };
        end(&mut live);
        live.child = Some(self.spawn()?);
        Ok(format!("{how}{why}"))
    }

    /// SIGSTOP for so long.
    pub async fn stop(&self, long: Duration) -> anyhow::Result<String> {
        let live = self.live.lock().await;
        let pid = live.child.as_ref().context("it runs")?.id();
        signal(pid, "STOP")?;
        tokio::time::sleep(long).await;
        signal(pid, "CONT")?;
        Ok(String::new())
    }

    /// SIGKILL, and not started again before [`Member::start`].
    pub async fn away(&self) {
        let mut live = self.live.lock().await;
        live.told = true;
        end(&mut live);
    }

    /// SIGTERM for good; how it ended.
    pub async fn finish(&self) -> anyhow::Result<()> {
        let mut live = self.live.lock().await;
        live.told = true;
        let Some(child) = live.child.as_mut() else {
            return Ok(());
        };
        signal(child.id(), "TERM")?;
        let (status, took) = ending(child).await;
        let clean = status.is_some_and(|status| status.success());
        self.journal.drained(clean, took);
        end(&mut live);
        ensure!(
            clean,
            "{} at the end: {status:?}: {}",
            self.name(),
            self.last()
        );
        Ok(())
    }

    /// Waits for `/readyz`.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let last = match self.get("/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => body,
                Err(error) => error.to_string(),
            };
            let late = start.elapsed() > READY;
            ensure!(
                !late,
                "{} is not ready: {last}; {}",
                self.name(),
                self.last()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            let ask = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(3), ask).await??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    }

    /// Resident memory, bytes; nothing while it does not run.
    pub async fn memory(&self) -> Option<u64> {
        let pid = self.live.try_lock().ok()?.child.as_ref()?.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024)
    }
}

/// Kills what still runs, and takes its end.
fn end(live: &mut Live) {
    if let Some(mut child) = live.child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

async fn ending(child: &mut Child) -> (Option<ExitStatus>, Duration) {
    let start = Instant::now();
    while start.elapsed() < DRAIN {
        if let Ok(Some(status)) = child.try_wait() {
            return (Some(status), start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (None, start.elapsed())
}

impl Drop for Member {
    fn drop(&mut self) {
        end(self.live.get_mut());
    }
}
