//! The members: processes of the real binary, killed, terminated, stopped, and started again, as by Kubernetes.
//!
//! Invariant: a member that ended, for whatever reason, is started again; one that ended without being told is noted
//! with its last log line. It does not know the plan of faults.

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

/// Longest start; only a hang exceeds it.
const READY: Duration = Duration::from_secs(600);
/// Longest time from SIGTERM to the end; then it is killed.
const DRAIN: Duration = Duration::from_secs(120);

/// How a member is started.
#[derive(Clone)]
pub struct MemberSpec {
    pub nth: usize,
    pub role: &'static str,
    pub config: PathBuf,
    pub redis: String,
    pub broken: Option<Break>,
}

struct Live {
    child: Option<Child>,
    /// Whether its end is expected: by a fault, or at the end of the run.
    may_end: bool,
}

/// One member; a fault locks it while it lasts.
pub struct Member {
    pub spec: MemberSpec,
    port: u16,
    log: PathBuf,
    live: Mutex<Live>,
    journal: Arc<Journal>,
}

impl Member {
    /// Makes a member that does not run yet.
    pub fn new(spec: MemberSpec, journal: Arc<Journal>) -> anyhow::Result<Arc<Self>> {
        let folder = spec.config.parent().context("a file in a folder")?;
        let log = folder.join(format!("{}-{}.log", spec.role, spec.nth));
        Ok(Arc::new(Self {
            spec,
            port: free_port()?,
            log,
            live: Mutex::new(Live {
                child: None,
                may_end: true,
            }),
            journal,
        }))
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(&self.log)?;
        let MemberSpec {
            role,
            config,
            redis,
            broken,
            ..
        } = &self.spec;
        let mut command = match broken {
            // The product's parts with a broken loop; see `broken.rs`.
            Some(broken) => {
                let mut harness = Command::new(std::env::current_exe()?);
                harness.args(["--member", broken.name(), "--config"]);
                harness
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

    /// Starts it; from now on [`Member::keep`] starts it again whenever it ends.
    pub async fn start(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut live = self.live.lock().await;
        live.child = Some(self.spawn()?);
        live.may_end = false;
        Ok(())
    }

    /// Starts it again whenever it ends; never returns.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut live = self.live.lock().await;
            if live.may_end {
                continue;
            }
            let ended = match &mut live.child {
                Some(child) => child.try_wait().ok().flatten(),
                None => None,
            };
            if let Some(status) = ended {
                let words = format!("{} ended by itself: {status}: {}", self.name(), self.last());
                self.journal.ended(words);
                // Shorter than the first back-off of Kubernetes; a crash loop is noted all the same.
                tokio::time::sleep(Duration::from_secs(1)).await;
                live.child = self.spawn().ok();
            }
        }
    }

    pub fn name(&self) -> String {
        format!("{} {}", self.spec.role, self.spec.nth)
    }

    /// Its last log line.
    fn last(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let line = log.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("no log line").chars().take(300).collect()
    }

    /// Sends SIGKILL and starts it again.
    pub async fn kill(&self) -> anyhow::Result<String> {
        let mut live = self.live.lock().await;
        end(&mut live);
        live.child = Some(self.spawn()?);
        Ok(String::new())
    }

    /// Sends SIGTERM, waits for the end, and starts it again; how it ended, in words.
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

    /// Stops it for so long, by SIGSTOP and SIGCONT.
    pub async fn stop(&self, long: Duration) -> anyhow::Result<String> {
        let live = self.live.lock().await;
        let pid = live.child.as_ref().context("it runs")?.id();
        signal(pid, "STOP")?;
        tokio::time::sleep(long).await;
        signal(pid, "CONT")?;
        Ok(String::new())
    }

    /// Sends SIGKILL; it is not started again before [`Member::start`].
    pub async fn away(&self) {
        let mut live = self.live.lock().await;
        live.may_end = true;
        end(&mut live);
    }

    /// Sends SIGTERM for good; an error if its exit code is not 0.
    pub async fn finish(&self) -> anyhow::Result<()> {
        let mut live = self.live.lock().await;
        live.may_end = true;
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

    /// Resident memory in bytes; `None` while it does not run.
    pub async fn memory(&self) -> Option<u64> {
        let pid = self.live.try_lock().ok()?.child.as_ref()?.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024)
    }
}

/// Kills the process if it still runs.
fn end(live: &mut Live) {
    if let Some(mut child) = live.child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the end of a process, at most [`DRAIN`].
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
