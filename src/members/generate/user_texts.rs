//! How the searches and free texts of users are read for lists: [`TextParts`], [`BoundTexts`], [`UserTexts`].
//!
//! Decides when the names of a newer catalogue are read by: the reader of the first names is waited for, and a later
//! one is made in a thread of its own, while lists go on with the one before, which is safe because a product keeps its
//! index. Invariant: within a turn all texts are read by one reader, and what is kept of a text changes no list. It
//! does not know what a text means.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::metrics;
use nearshore_core::list::meant::{ReadText, TextContext};
use nearshore_core::names::matcher::{Memory, Model};
use nearshore_core::names::meaning::{
    NeedProducts, NeedTable, Reader, SharedReadings, TextSettings,
};
use nearshore_core::shop::catalogue::Catalogue;

/// The least share of the names that a matcher was fitted for which the catalogue must have.
pub(crate) const KNOWN_MIN: f64 = 0.5;

/// What `[text]` names.
#[derive(Clone, Debug)]
pub struct TextParts {
    /// The section.
    pub settings: TextSettings,
    /// The matcher's model.
    pub model: Arc<Model>,
    /// The need terms.
    pub needs: NeedTable,
    /// Hash of both files.
    pub version: String,
}

/// What is kept of texts.
struct Kept {
    readings: SharedReadings,
    memory: Memory,
}

/// Texts are read by this, for lists of one catalogue.
pub(crate) struct BoundTexts {
    parts: Arc<TextParts>,
    products: NeedProducts,
    read: Box<ReadText<'static>>,
    kept: Arc<Mutex<Kept>>,
}

impl BoundTexts {
    /// Reads by the names of a catalogue.
    pub(crate) fn of(parts: &Arc<TextParts>, catalogue: &Catalogue) -> Self {
        let reader = reader(parts, &catalogue.names());
        Self::with(parts, Arc::new(reader), catalogue)
    }

    fn with(parts: &Arc<TextParts>, reader: Arc<Reader>, catalogue: &Catalogue) -> Self {
        let settings = &parts.settings;
        let kept = Arc::new(Mutex::new(Kept {
            readings: SharedReadings::new(secret(), settings.users_min, settings.cache_texts),
            memory: Memory::default(),
        }));
        let mut bound = Self {
            parts: Arc::clone(parts),
            products: parts.needs.bind(catalogue),
            read: Box::new(|_, _| Arc::default()),
            kept,
        };
        bound.read_by(reader);
        bound
    }

    /// Reads by another reader from now on; what is kept was read by the one before.
    fn read_by(&mut self, reader: Arc<Reader>) {
        let kept = Arc::clone(&self.kept);
        kept.lock().readings.clear();
        self.read = Box::new(move |user, text| {
            let mut kept = kept.lock();
            let Kept { readings, memory } = &mut *kept;
            readings.get((user, text), || reader.read(text, memory))
        });
    }

    /// How texts are read.
    pub(crate) fn context(&self) -> TextContext<'_> {
        TextContext {
            settings: &self.parts.settings,
            needs: &self.parts.needs,
            products: &self.products,
            version: &self.parts.version,
            read: &*self.read,
        }
    }
}

/// A reader that is being made, with the version of its names.
type Making = (u64, JoinHandle<Reader>);

/// How a member reads texts.
pub(super) struct UserTexts {
    parts: Option<Arc<TextParts>>,
    bound: Option<BoundTexts>,
    /// Versions of the names and of the rules that `bound` is of.
    names: Option<u64>,
    rules: Option<u64>,
    making: Option<Making>,
    /// Version of the names of which the matcher is not.
    refused: Option<u64>,
}

impl UserTexts {
    /// Reads nothing yet; without parts it never does.
    pub(super) fn new(parts: Option<Arc<TextParts>>) -> Self {
        Self {
            parts,
            bound: None,
            names: None,
            rules: None,
            making: None,
            refused: None,
        }
    }

    /// How texts are read; `None` if they are not.
    pub(super) fn context(&self) -> Option<TextContext<'_>> {
        let bound = self.bound.as_ref().filter(|_| self.refused.is_none());
        bound.map(BoundTexts::context)
    }

    /// Takes the names of a catalogue.
    pub(super) async fn sync(&mut self, catalogue: &Catalogue) {
        let Some(parts) = self.parts.clone().filter(|_| !catalogue.pus().is_empty()) else {
            return;
        };
        if self.names != Some(catalogue.names_version()) {
            self.rename(&parts, catalogue).await;
        }
        let rules = catalogue.rules_version();
        if let Some(bound) = self.bound.as_mut().filter(|_| self.rules != Some(rules)) {
            bound.products = parts.needs.bind(catalogue);
            self.rules = Some(rules);
        }
        if let Some(bound) = &self.bound {
            metrics::text_readings(bound.kept.lock().readings.len());
        }
    }

    /// Makes a reader of the catalogue's names, or takes the one that is made.
    async fn rename(&mut self, parts: &Arc<TextParts>, catalogue: &Catalogue) {
        let version = catalogue.names_version();
        if self.making.is_none() {
            if self.refused == Some(version) || !self.fits(parts, catalogue) {
                return;
            }
            let (parts, names) = (Arc::clone(parts), catalogue.names());
            let making = spawn_blocking(move || reader(&parts, &names));
            self.making = Some((version, making));
        }
        let is_done = |making: &Making| making.1.is_finished();
        if self.bound.is_some() && !self.making.as_ref().is_some_and(is_done) {
            return;
        }
        let Some((version, making)) = self.making.take() else {
            return;
        };
        // It panics only by a fault of ours; then the reader before stays, and the next turn tries again.
        let Ok(reader) = making.await else { return };
        self.names = Some(version);
        match &mut self.bound {
            Some(bound) => bound.read_by(Arc::new(reader)),
            None => self.bound = Some(BoundTexts::with(parts, Arc::new(reader), catalogue)),
        }
    }

    /// Whether the matcher is of this catalogue; if not, no text is read.
    fn fits(&mut self, parts: &TextParts, catalogue: &Catalogue) -> bool {
        let known = parts
            .model
            .known(catalogue.pus().iter().map(|pu| &*pu.name));
        let fits = known.is_none_or(|known| known >= KNOWN_MIN);
        metrics::text_matcher_bound(fits);
        if fits {
            self.refused = None;
            return true;
        }
        let is_first = self.refused.replace(catalogue.names_version()).is_none();
        if is_first {
            tracing::error!(
                matcher = parts.settings.matcher,
                known = known.unwrap_or_default(),
                "text.matcher was fitted for another catalogue; no text is read; fit it again with `nearshore match`"
            );
        }
        false
    }
}

fn reader(parts: &TextParts, names: &[String]) -> Reader {
    Reader::new(names, Arc::clone(&parts.model), &parts.needs)
}

/// A number that this process alone knows.
fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for eight in secret.chunks_exact_mut(8) {
        let random = RandomState::new().build_hasher().finish();
        eight.copy_from_slice(&random.to_le_bytes());
    }
    secret
}
