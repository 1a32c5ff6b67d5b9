//! Vectors of texts that no artefact has, made in a thread of their own: [`NewTexts`].
//!
//! Decides what is kept: names of the served catalogue, and at most [`VALUES_MAX`] texts of users; when there are
//! more, all of these are dropped and made anew if they are asked for. Invariant: who asks never waits. A request that
//! does not fit into the queue is dropped, for the next list of the user asks again. It does not know what vectors mean.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use arc_swap::ArcSwap;
use nearshore_core::text::vectors::Vectors;
use nearshore_engine::encoder::Encoder;

/// The most texts of users that are kept: 20,000 vectors of 384 numbers are 10 MB.
const VALUES_MAX: usize = 20_000;

/// Requests that wait: a user's texts each, and all names once.
const WAITING_MAX: usize = 1_024;

/// Texts that are encoded at once: few, so that they take the cores for a few milliseconds.
const BATCH: usize = 16;

/// Names whose vectors are handed over at once: then the table of all names is made anew.
const NAMES_AT_ONCE: usize = 512;

/// Makes vectors of texts, in their order.
type Encode = dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, nearshore_engine::Error> + Send;

/// Texts whose vectors are wanted.
enum Wanted {
    /// Some names of a catalogue, and all of its names, beside which no others are kept.
    Names {
        wanted: BTreeSet<String>,
        served: BTreeSet<String>,
    },
    /// Some texts of a user.
    Values(Vec<String>),
}

/// The vectors that were made.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) names: Arc<Vectors>,
    pub(super) values: Arc<Vectors>,
}

/// The way to the thread. The thread ends when the last of these is dropped.
#[derive(Clone)]
pub struct NewTexts {
    encoder: Arc<str>,
    wanted: SyncSender<Wanted>,
    made: Arc<ArcSwap<Made>>,
}

impl NewTexts {
    /// Starts the thread of an encoder.
    pub fn start(encoder: Encoder) -> Self {
        let empty = Vectors::new(encoder.hash(), encoder.width());
        Self::with(empty, Box::new(move |texts| encoder.encode(texts)))
    }

    fn with(empty: Vectors, encode: Box<Encode>) -> Self {
        let empty = Arc::new(empty);
        let made = Arc::new(ArcSwap::from_pointee(Made {
            names: Arc::clone(&empty),
            values: Arc::clone(&empty),
        }));
        let (wanted, waiting) = sync_channel(WAITING_MAX);
        let thread = Thread {
            encode,
            empty: Vectors::clone(&empty),
            names: Vectors::clone(&empty),
            values: Vectors::clone(&empty),
            made: Arc::clone(&made),
        };
        let started = std::thread::Builder::new()
            .name("encoder".into())
            .spawn(move || thread.work(&waiting));
        if let Err(error) = started {
            tracing::error!(%error, "the encoder's thread did not start; new texts have no vectors");
        }
        Self {
            encoder: empty.encoder().into(),
            wanted,
            made,
        }
    }

    /// Hash of the encoder.
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// Whether vectors that were written can be compared with those of this encoder; none can.
    pub fn fits(&self, written: Option<&Vectors>) -> bool {
        written.is_none_or(|vectors| vectors.encoder() == &*self.encoder)
    }

    /// What was made up to now.
    pub(super) fn made(&self) -> Arc<Made> {
        self.made.load_full()
    }

    /// Asks for the vectors of some names of a catalogue that has the names `served`. Others are dropped.
    pub(super) fn names(&self, wanted: BTreeSet<String>, served: BTreeSet<String>) {
        // A full queue is emptied within seconds, and names are asked for again when vectors were made.
        let _ = self.wanted.try_send(Wanted::Names { wanted, served });
    }

    /// Asks for the vectors of a user's texts.
    pub(super) fn values(&self, texts: &[String]) {
        if !texts.is_empty() {
            let _ = self.wanted.try_send(Wanted::Values(texts.to_vec()));
        }
    }
}

struct Thread {
    encode: Box<Encode>,
    empty: Vectors,
    names: Vectors,
    values: Vectors,
    made: Arc<ArcSwap<Made>>,
}

impl Thread {
    fn work(mut self, waiting: &Receiver<Wanted>) {
        while let Ok(first) = waiting.recv() {
            // Vectors are handed over once for all requests that wait by now.
            let more = waiting.try_iter().take(WAITING_MAX);
            let mut values = BTreeSet::new();
            for wanted in [first].into_iter().chain(more) {
                match wanted {
                    Wanted::Names { wanted, served } => self.make_names(&wanted, &served),
                    Wanted::Values(texts) => values.extend(texts),
                }
            }
            if !values.is_empty() {
                self.make_values(&values);
            }
        }
    }

    fn make_names(&mut self, wanted: &BTreeSet<String>, served: &BTreeSet<String>) {
        self.names.retain(|text| served.contains(text));
        let new: Vec<&str> = without(wanted, &self.names);
        for some in new.chunks(NAMES_AT_ONCE) {
            let mut made = std::mem::replace(&mut self.names, self.empty.clone());
            self.encode(&mut made, some);
            self.names = made;
            self.made.store(Arc::new(Made {
                names: Arc::new(self.names.clone()),
                values: Arc::clone(&self.made.load().values),
            }));
        }
    }

    fn make_values(&mut self, texts: &BTreeSet<String>) {
        let new: Vec<&str> = without(texts, &self.values);
        let mut made = std::mem::replace(&mut self.values, self.empty.clone());
        if made.len() + new.len() > VALUES_MAX {
            made = self.empty.clone();
        }
        self.encode(&mut made, &new[..new.len().min(VALUES_MAX)]);
        self.values = made;
        self.made.store(Arc::new(Made {
            names: Arc::clone(&self.made.load().names),
            values: Arc::new(self.values.clone()),
        }));
    }

    fn encode(&mut self, into: &mut Vectors, texts: &[&str]) {
        for batch in texts.chunks(BATCH) {
            match (self.encode)(batch) {
                Ok(made) => {
                    for (text, numbers) in batch.iter().zip(made) {
                        if let Err(error) = into.insert(text, &numbers) {
                            tracing::warn!(%error, "a vector cannot be kept; its text counts as nothing");
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, texts = batch.len(), "texts got no vectors; the next list asks again");
                }
            }
        }
    }
}

fn without<'a>(texts: &'a BTreeSet<String>, known: &Vectors) -> Vec<&'a str> {
    let texts = texts.iter().map(String::as_str);
    texts.filter(|text| known.get(text).is_none()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A thread whose vectors have the length of the text in both numbers.
    pub(in super::super) fn started() -> NewTexts {
        let lengths = |texts: &[&str]| {
            let vector = |text: &&str| vec![text.len() as f32, 1.0];
            Ok(texts.iter().map(vector).collect())
        };
        NewTexts::with(Vectors::new("lengths", 2), Box::new(lengths))
    }

    pub(in super::super) fn eventually(texts: &NewTexts, holds: impl Fn(&Made) -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !holds(&texts.made()) {
            assert!(Instant::now() < limit, "{} made", texts.made().values.len());
            std::thread::yield_now();
        }
    }

    #[test]
    fn vectors_are_made_of_what_is_asked_for_and_names_replace_those_before() {
        let texts = started();
        assert_eq!(texts.encoder(), "lengths");
        texts.values(&[]);
        texts.values(&["city Ulm".to_owned(), "city Bonn".to_owned()]);
        let names = |names: [&str; 2]| names.map(str::to_owned).into();
        texts.names(names(["TEA", "MILK"]), names(["TEA", "MILK"]));
        eventually(&texts, |made| {
            made.names.len() == 2 && made.values.len() == 2
        });
        texts.names(names(["ALE", "ALE"]), names(["TEA", "ALE"]));
        eventually(&texts, |made| made.names.get("ALE").is_some());
        let made = texts.made();
        assert!(made.names.get("TEA").is_some() && made.names.get("MILK").is_none());
        assert!(made.values.get("city Ulm").is_some());
    }

    #[test]
    fn vectors_of_another_encoder_do_not_fit() {
        let texts = started();
        assert!(texts.fits(None) && texts.fits(Some(&Vectors::new("lengths", 2))));
        assert!(!texts.fits(Some(&Vectors::new("another", 2))));
    }

    #[test]
    fn the_texts_of_users_that_are_kept_are_bounded() {
        let texts = started();
        let some = |from: usize| -> Vec<String> {
            (from..from + VALUES_MAX / 2)
                .map(|nth| format!("city {nth}"))
                .collect()
        };
        for from in [0, VALUES_MAX / 2] {
            texts.values(&some(from));
        }
        eventually(&texts, |made| made.values.len() == VALUES_MAX);
        texts.values(&["city Ulm".to_owned()]);
        eventually(&texts, |made| made.values.get("city Ulm").is_some());
        assert_eq!(texts.made().values.len(), 1);
    }
}
