//! The vectors of texts of one arm: its artefact's, and those that its encoder made since: [`ArmTexts`].
//!
//! Invariant: vectors are bound to the names that the engines have, and all are of one encoder. It does not know users.

use std::collections::BTreeSet;
use std::sync::Arc;

use nearshore_core::list::terms::Texts;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::text::vectors::Vectors;

use super::LoadedArm;
use super::new_texts::Made;
use crate::metrics;

/// The vectors of texts of one arm.
#[derive(Default)]
pub(super) struct ArmTexts {
    texts: Option<Texts>,
    /// What the encoder had made when `texts` were bound.
    made: Option<Arc<Made>>,
}

impl ArmTexts {
    /// The vectors, bound to the catalogue; none without an artefact that has some and without an encoder.
    pub(super) fn texts(&self) -> Option<&Texts> {
        self.texts.as_ref()
    }

    /// Binds the vectors of an artefact, and those made since, to a catalogue, and asks for those of names that have
    /// none.
    pub(super) fn bind<A>(
        &mut self,
        loaded: &LoadedArm<A>,
        (written, catalogue): (Option<&Arc<Vectors>>, &Catalogue),
    ) {
        self.made = loaded.new_texts.as_ref().map(|new| new.made());
        let made = self.made.iter();
        let made = made.flat_map(|made| [Arc::clone(&made.names), Arc::clone(&made.values)]);
        self.texts = Texts::bind(
            written.into_iter().cloned().chain(made).collect(),
            catalogue,
        );
        let Some(texts) = &self.texts else { return };
        metrics::names_without_vector(&loaded.arm.id, texts.lacking());
        if let Some(new) = loaded.new_texts.as_ref().filter(|_| texts.lacking() > 0) {
            let served = catalogue.pus().iter().map(|pu| pu.name.clone());
            new.names(
                unwritten(written.map(|vectors| &**vectors), catalogue),
                served.collect(),
            );
        }
    }

    /// Takes in what the encoder made since. The table of names is made anew only for names.
    pub(super) fn renew<A>(
        &mut self,
        loaded: &LoadedArm<A>,
        (written, catalogue): (Option<&Arc<Vectors>>, &Catalogue),
    ) {
        let (Some(before), Some(new)) = (&self.made, &loaded.new_texts) else {
            return;
        };
        let made = new.made();
        if Arc::ptr_eq(before, &made) {
            return;
        }
        if !Arc::ptr_eq(&before.names, &made.names) {
            self.bind(loaded, (written, catalogue));
            return;
        }
        if let Some(texts) = &mut self.texts {
            texts.renew_last(Arc::clone(&made.values));
        }
        self.made = Some(made);
    }
}

/// The names of a catalogue that an artefact does not have.
fn unwritten(written: Option<&Vectors>, catalogue: &Catalogue) -> BTreeSet<String> {
    let names = catalogue.pus().iter().map(|pu| &pu.name);
    let is_new = |name: &&String| written.is_none_or(|vectors| vectors.get(name).is_none());
    names.filter(is_new).cloned().collect()
}

#[cfg(test)]
mod tests {
    use nearshore_core::list::prompt::Template;
    use nearshore_core::list::terms::OwnText;
    use nearshore_core::user::event::Sku;
    use serde_json::json;

    use super::super::new_texts::tests::{eventually, started};
    use super::*;
    use crate::members::generate::NewTexts;

    fn arm(new_texts: Option<NewTexts>) -> LoadedArm<()> {
        let arm = json!({"id": "a", "epoch": 1, "template": "t.j2", "model": "none"});
        LoadedArm {
            arm: serde_json::from_value(arm).expect("an arm"),
            ranking: Default::default(),
            renewed: Default::default(),
            new_texts,
            template: Template::load("Next:", "t.j2").expect("a template"),
            info: Default::default(),
            tokenizer: String::new(),
            count: Arc::new(str::len),
            engine: (),
        }
    }

    fn catalogue(names: &[&str]) -> Catalogue {
        let sku = |name: &&str| Sku {
            sku: name.to_lowercase(),
            pu: (*name).into(),
            pu_id: (*name).into(),
            category: None,
            title: String::new(),
            stock: 1,
            price: None,
            attributes: Default::default(),
        };
        Catalogue::load(names.iter().map(sku).collect())
    }

    #[test]
    fn new_names_and_values_have_vectors_once_the_encoder_made_them_and_nobody_waits() {
        let new = started();
        let (loaded, mut texts) = (arm(Some(new.clone())), ArmTexts::default());
        texts.bind(&loaded, (None, &catalogue(&["ALE", "CHEESE"])));
        // What is there at once has no vectors.
        assert!(texts.texts().is_some());
        eventually(&new, |made| made.names.len() == 2);
        texts.renew(&loaded, (None, &catalogue(&["ALE", "CHEESE"])));
        assert_eq!(texts.texts().map(Texts::lacking), Some(0));
        let own = [OwnText {
            text: "city Ulm".into(),
            pu: None,
            weight: 1.0,
        }];
        let similar = |texts: &ArmTexts| texts.texts().and_then(|texts| texts.similar(&own));
        assert!(similar(&texts).is_none());
        new.values(&["city Ulm".to_owned()]);
        eventually(&new, |made| made.values.len() == 1);
        texts.renew(&loaded, (None, &catalogue(&["ALE", "CHEESE"])));
        assert!(similar(&texts).is_some());
        // A name that is added later.
        let more = catalogue(&["ALE", "CHEESE", "TEA"]);
        texts.bind(&loaded, (None, &more));
        assert_eq!(texts.texts().map(Texts::lacking), Some(1));
        eventually(&new, |made| made.names.len() == 3);
        texts.renew(&loaded, (None, &more));
        assert_eq!(texts.texts().map(Texts::lacking), Some(0));
    }

    #[test]
    fn without_an_encoder_and_an_artefact_there_are_no_vectors() {
        let (loaded, mut texts) = (arm(None), ArmTexts::default());
        texts.bind(&loaded, (None, &catalogue(&["ALE"])));
        texts.renew(&loaded, (None, &catalogue(&["ALE"])));
        assert!(texts.texts().is_none());
    }
}
