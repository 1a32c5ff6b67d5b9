//! `run`: runs both roles or one until SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;

use super::{Role, block_on, chain};
use crate::config::{Config, Format, error_line, init_tracing, log_panics};
use crate::metrics::Known;
use crate::run::{Roles, start};

/// Runs until SIGTERM or Ctrl-C, then drains.
///
/// Where log lines are JSON, so is the reason of a failure, which is the last of them.
pub(super) fn run(config: Config, role: Role) -> anyhow::Result<ExitCode> {
    init_tracing(&config.log);
    log_panics(&config.log);
    let is_json = config.log.format == Format::Json;
    match serve(config, role) {
        Err(error) if is_json => {
            note!("{}", error_line(&chain(&error)));
            Ok(ExitCode::from(1))
        }
        done => done,
    }
}

fn serve(config: Config, role: Role) -> anyhow::Result<ExitCode> {
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
