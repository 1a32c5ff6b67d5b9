//! What an arm ranks by, and how a running member takes a renewed artefact: [`Ranking`], [`BoundRanking`].
//!
//! Invariant: weights, tables, vectors and reference prompts are of one artefact and are replaced together. A renewed
//! artefact that is of another catalogue is refused, and the one before stays. It does not know where artefacts are.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use nearshore_core::list::prompt::Calibrations;
use nearshore_core::list::terms::artefact::Artefact;
use nearshore_core::list::terms::bound::{ForeignError, Learned};
use nearshore_core::list::terms::{Texts, Weights};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::record::Timestamp;

use super::LoadedArm;
use super::arm_texts::ArmTexts;
use crate::metrics;

/// What an arm ranks by.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    /// Weights of its score terms.
    pub weights: Weights,
    /// What `nearshore align` learned for it.
    pub artefact: Option<Arc<Artefact>>,
    /// Its calibration prompts, by visible history.
    pub calibrations: Calibrations,
}

/// Where a ranking that is to replace an arm's is put; the member takes it at its next turn.
pub type Renewed = Arc<ArcSwapOption<Ranking>>;

/// An arm's ranking, bound to the served catalogue.
#[derive(Default)]
pub(super) struct BoundRanking {
    ranking: Arc<Ranking>,
    learned: Option<Learned>,
    texts: ArmTexts,
    /// A renewed ranking that is of another catalogue.
    refused: Option<Arc<Ranking>>,
    /// Weights while the artefact is not bound.
    demand_alone: Weights,
}

impl BoundRanking {
    /// Not bound yet.
    pub(super) fn new(ranking: Arc<Ranking>) -> Self {
        Self {
            ranking,
            ..Self::default()
        }
    }

    /// Weights and artefact; demand alone if the artefact is not bound.
    pub(super) fn terms(&self) -> (&Weights, Option<&Learned>) {
        let learned = self.learned.as_ref();
        match self.ranking.artefact.is_some() && learned.is_none() {
            true => (&self.demand_alone, None),
            false => (&self.ranking.weights, learned),
        }
    }

    pub(super) fn texts(&self) -> Option<&Texts> {
        self.texts.texts()
    }

    pub(super) fn calibrations(&self) -> &Calibrations {
        &self.ranking.calibrations
    }

    /// Binds the ranking, or a renewed one, to a catalogue. An arm whose only artefact is of another catalogue ranks by
    /// demand.
    pub(super) fn bind<A>(&mut self, loaded: &LoadedArm<A>, catalogue: &Catalogue) {
        self.refused = None;
        if self.adopt(loaded, catalogue) {
            return;
        }
        self.bind_texts(loaded, catalogue);
        if catalogue.pus().is_empty() || self.ranking.artefact.is_none() {
            return;
        }
        let learned = learned(&self.ranking, catalogue);
        metrics::artefact_bound(&loaded.arm.id, learned.is_ok());
        let refused = learned.is_err() || self.refused.is_some();
        metrics::artefact_is_refused(&loaded.arm.id, refused);
        self.learned = learned
            .inspect_err(|error| {
                tracing::error!(arm = loaded.arm.id, %error, "artefact refused; this arm ranks by demand alone");
            })
            .unwrap_or_default();
        self.count(loaded);
    }

    /// Takes what was renewed since: another artefact, or vectors of texts.
    pub(super) fn renew<A>(&mut self, loaded: &LoadedArm<A>, catalogue: &Catalogue) {
        if !self.adopt(loaded, catalogue) {
            let written = vectors(&self.ranking);
            self.texts.renew(loaded, (written, catalogue));
        }
    }

    /// Whether a renewed ranking took the place of this one.
    fn adopt<A>(&mut self, loaded: &LoadedArm<A>, catalogue: &Catalogue) -> bool {
        let Some(new) = loaded.renewed.load_full() else {
            return false;
        };
        let known = [Some(&self.ranking), self.refused.as_ref()];
        if catalogue.pus().is_empty() || known.into_iter().flatten().any(|it| Arc::ptr_eq(it, &new))
        {
            return false;
        }
        match learned(&new, catalogue) {
            Ok(learned) => {
                let hash = |ranking: &Ranking| {
                    let artefact = ranking.artefact.as_ref();
                    artefact.map_or_else(String::new, |artefact| artefact.hash.clone())
                };
                tracing::info!(
                    arm = loaded.arm.id,
                    before = hash(&self.ranking),
                    now = hash(&new),
                    "a renewed artefact makes the lists from now on"
                );
                (self.ranking, self.learned) = (new, learned);
                metrics::artefact_bound(&loaded.arm.id, true);
                metrics::artefact_is_refused(&loaded.arm.id, false);
                self.count(loaded);
                self.bind_texts(loaded, catalogue);
                true
            }
            Err(error) => {
                metrics::artefact_refused(&loaded.arm.id);
                metrics::artefact_is_refused(&loaded.arm.id, true);
                tracing::error!(arm = loaded.arm.id, %error, "renewed artefact refused; the one before stays");
                self.refused = Some(new);
                false
            }
        }
    }

    fn bind_texts<A>(&mut self, loaded: &LoadedArm<A>, catalogue: &Catalogue) {
        let written = vectors(&self.ranking);
        self.texts.bind(loaded, (written, catalogue));
    }

    /// Shows which artefact it is, and what it lacks.
    fn count<A>(&self, loaded: &LoadedArm<A>) {
        let Some(learned) = &self.learned else {
            return;
        };
        metrics::artefact_until(&loaded.arm.id, Timestamp(learned.artefact().made.until));
        if let Some(table) = learned.table() {
            metrics::names_without_table(&loaded.arm.id, table.lacking());
        }
    }
}

fn learned(ranking: &Ranking, catalogue: &Catalogue) -> Result<Option<Learned>, ForeignError> {
    let artefact = ranking.artefact.as_ref();
    artefact
        .map(|artefact| Learned::bind(artefact, catalogue))
        .transpose()
}

fn vectors(ranking: &Ranking) -> Option<&Arc<nearshore_core::text::vectors::Vectors>> {
    ranking.artefact.as_ref()?.vectors.as_ref()
}
