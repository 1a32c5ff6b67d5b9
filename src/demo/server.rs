//! Starts a redis-server for the demo on a free port, and ends it with the demo.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The Redis of the demo: started here, or already running.
pub(super) struct Server {
    /// Its URL.
    pub url: String,
    child: Option<Child>,
}

impl Server {
    /// A running Redis, which the demo does not end.
    pub(super) fn running(url: &str) -> Self {
        Self {
            url: url.into(),
            child: None,
        }
    }

    /// Starts a Redis that keeps nothing on disk, and waits until it answers.
    pub(super) async fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxmemory-policy",
                "noeviction",
            ])
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| {
                format!(
                    "{} cannot be started: apt-get install redis-server, or give --redis URL",
                    program.display()
                )
            })?;
        let mut server = Self {
            url: format!("redis://127.0.0.1:{port}"),
            child: Some(child),
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            if let Some(status) = server
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
            {
                bail!("{} ended at its start: {status}", program.display());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not answer on port {port} within 10 s",
                    program.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It keeps nothing, so it can be killed. Waiting for it leaves no zombie process.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
