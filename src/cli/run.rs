//! `run`: runs both roles or one until SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;

use super::{Role, block_on};
use crate::config::{Config, init_tracing};
use crate::metrics::Known;
use crate::run::{Roles, start};

/// Runs until SIGTERM or Ctrl-C, then drains.
pub(super) fn run(config: Config, role: Role) -> anyhow::Result<ExitCode> {
    init_tracing(&config.log);
    let metrics = crate::metrics::install(&Known::of(&config))?;
    let roles = Roles {
        ingest: role != Role::Generate,
        generate: role != Role::Ingest,
    };
    block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let listen = config.http.listen;
        let running = start(Arc::new(config), roles, metrics).await?;
        tracing::info!(
            ?roles,
            metrics = format!("http://{listen}/metrics"),
            "started; runs until SIGTERM or Ctrl-C"
        );
        running
            .until(async {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
                tracing::info!("asked to stop; committing what is done and leaving the groups");
            })
            .await?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}
