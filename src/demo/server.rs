//! A redis-server of the demo's own, on a free port, gone when the demo is.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A Redis to use: started here, or somebody else's.
pub struct Server {
    /// Its URL.
    pub url: String,
    child: Option<Child>,
}

impl Server {
    /// Somebody else's; it is left as it is.
    pub fn elsewhere(url: &str) -> Self {
        Self {
            url: url.into(),
            child: None,
        }
    }

    /// Starts one that keeps nothing on disk, and waits until it answers.
    pub async fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
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
                bail!("redis-server ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("redis-server does not answer on port {port}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It keeps nothing: killing it loses nothing. Waiting leaves no zombie.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
