//! `run` and `check`.

use std::process::ExitCode;
use std::sync::Arc;

use super::{Common, Role, block_on, with_config};
use crate::config::{self, Config};
use crate::run::{Roles, start};

/// Logs go to stderr: stdout is for results.
pub fn tracing_to_stderr(config: &Config) {
    config::init_tracing(&config.log);
}

/// Runs until SIGTERM or Ctrl-C, then drains.
pub fn run(config: Config, role: Role) -> anyhow::Result<ExitCode> {
    tracing_to_stderr(&config);
    crate::metrics::install()?;
    let roles = Roles { ingest: role != Role::Generate, generate: role != Role::Ingest };
    block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let listen = config.http.listen.clone();
        let running = start(Arc::new(config), roles).await?;
        tracing::info!(?roles, metrics = format!("http://{listen}/metrics"), "running");
        running
            .until(async {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
                tracing::info!("asked to stop; draining");
            })
            .await?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// One mark per thing that must be right before `run`.
pub fn check(common: &Common, offline: bool) -> anyhow::Result<ExitCode> {
    with_config(common, |config| block_on(config::check::check(&config, offline, common.json)))
}
