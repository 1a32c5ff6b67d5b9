//! Watches where the arms' artefacts are, and hands a renewed one to the running member ([decision 45]).
//!
//! Invariant: what is handed over has been read whole, and the process has what it needs: the model, the encoder, the
//! template of its reference prompts. Otherwise the artefact before stays, the reason is told once, and it is tried
//! again.
//!
//! [decision 45]: ../../docs/decisions/0045-a-pointer-to-the-artefact.md

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nearshore_core::list::prompt::Arm;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::artefact::{manifest_of, read};
use super::load::{head_fits, ranking, weights};
use crate::config::Config;
use crate::members::generate::{LoadedArm, NewTexts, Ranking, Renewed};
use crate::metrics;

/// How often it is looked whether an artefact was renewed. A change that is missed between two looks was replaced.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Watches the artefacts of the arms that have one.
pub(super) fn watch_artefacts<A>(
    watchers: &mut JoinSet<anyhow::Result<()>>,
    (config, arms): (&Arc<Config>, &[LoadedArm<A>]),
    cancel: &CancellationToken,
) {
    for watched in arms.iter().filter_map(|loaded| Watched::of(config, loaded)) {
        watchers.spawn(watched.watch(cancel.clone()));
    }
}

/// An arm that has an artefact.
struct Watched {
    config: Arc<Config>,
    arm: Arm,
    /// Hash of its template.
    template: String,
    tokenizer: String,
    /// Revision of its model.
    model: String,
    /// Whether its model was loaded.
    has_model: bool,
    new_texts: Option<NewTexts>,
    renewed: Renewed,
    /// Hash of the artefact that was handed over last.
    hash: String,
    /// Text of its manifest, once read here.
    manifest: Option<String>,
    /// Why the artefact that is there now was refused.
    fault: Option<String>,
}

impl Watched {
    /// The arm as it starts; `None` if it has no artefact.
    fn of<A>(config: &Arc<Config>, loaded: &LoadedArm<A>) -> Option<Self> {
        let artefact = loaded.ranking.artefact.as_ref()?;
        Some(Self {
            config: Arc::clone(config),
            arm: loaded.arm.clone(),
            template: loaded.template.hash.clone(),
            tokenizer: loaded.tokenizer.clone(),
            model: loaded.info.revision.clone(),
            has_model: loaded.ranking.weights.ask_model(),
            new_texts: loaded.new_texts.clone(),
            renewed: Arc::clone(&loaded.renewed),
            hash: artefact.hash.clone(),
            manifest: None,
            fault: None,
        })
    }

    /// Looks until it is cancelled.
    async fn watch(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            // An artefact has megabytes, and its volume may be far away.
            let look = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            self = look.await.context("reading an artefact panicked")?;
        }
    }

    /// Looks once.
    fn look(&mut self) {
        match self.newer() {
            Ok(Some(ranking)) => {
                self.fault = None;
                self.renewed.store(Some(Arc::new(ranking)));
            }
            Ok(None) => {
                if self.fault.take().is_some() {
                    metrics::artefact_is_refused(&self.arm.id, false);
                }
            }
            Err(error) => {
                // Each time, because the member says the same of the artefact that it has.
                metrics::artefact_is_refused(&self.arm.id, true);
                let fault = format!("{error:#}");
                if self.fault.as_ref() == Some(&fault) {
                    return;
                }
                metrics::artefact_refused(&self.arm.id);
                tracing::error!(
                    arm = self.arm.id,
                    error = fault,
                    "renewed artefact refused; the one before stays"
                );
                self.fault = Some(fault);
            }
        }
    }

    /// What the arm is to rank by from now on, if that is not what it has.
    fn newer(&mut self) -> anyhow::Result<Option<Ranking>> {
        let Some(path) = &self.arm.artefact else {
            return Ok(None);
        };
        let path = self.config.resolve(path);
        let found = || format!("artefact {}", path.display());
        let (text, folder) = manifest_of(&path).with_context(found)?;
        if self.manifest.as_ref() == Some(&text) {
            return Ok(None);
        }
        let artefact = read(&text, &folder).with_context(found)?;
        let hash = artefact.hash.clone();
        if hash == self.hash {
            self.manifest = Some(text);
            return Ok(None);
        }
        let weights = weights(&self.arm, Some(&artefact))?;
        anyhow::ensure!(
            self.has_model || !weights.ask_model(),
            "artefact {hash} gives the model a weight, and this process did not load the arm's model; restart it"
        );
        let of = (self.template.as_str(), Some(self.model.as_str()));
        head_fits(Some(&artefact), &weights, of)?;
        let fits =
            (self.new_texts.as_ref()).is_none_or(|new| new.fits(artefact.vectors.as_deref()));
        anyhow::ensure!(
            fits,
            "the vectors of artefact {hash} are of another encoder than engine.encoder; restart the process with that \
             encoder, or run `nearshore align` with this one"
        );
        let known = (self.template.as_str(), self.tokenizer.as_str());
        let ranking = ranking(
            (&self.config, &self.arm),
            (Some(Arc::new(artefact)), weights),
            known,
        )?;
        (self.hash, self.manifest) = (hash, Some(text));
        Ok(Some(ranking))
    }
}
