//! Heads: the term that a request gets from the hidden state after its prompt.
//!
//! Decides which names a model reads for a head: those that the head has not read, when a request asks for it, a few
//! for each batch, so that no batch waits for a catalogue. Invariant: a request without a head is left as it is, and
//! names that were read once are not read again. It does not know how a model computes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Error, Model};
use nearshore_core::names::head::{BoundHead, Head};
use nearshore_core::names::scoring::{Prompt, ScoreRequest, Term, Values};

/// Name of the term in audits.
const HEAD: &str = nearshore_core::list::terms::HEAD;

/// The most names that are read for one batch.
const NAMES_MAX: usize = 64;

/// The most heads whose read names are kept: one per arm of a model, and some for arms that change.
const HEADS_MAX: usize = 8;

/// By name, what a head makes of it.
type NamesRead = BTreeMap<String, Vec<f32>>;

/// Names that were read since heads were trained.
#[derive(Default)]
pub(crate) struct Heads {
    /// Most recently used first.
    read: Vec<(Arc<Head>, NamesRead)>,
}

impl Heads {
    /// Turns the heads of requests into terms, by one pass of the model over each prompt.
    pub(crate) fn resolve(
        &mut self,
        model: &mut dyn Model,
        mut requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreRequest>, Error> {
        let asks =
            |request: &ScoreRequest| request.head.is_some() && !request.cancel.is_cancelled();
        let asking = requests.iter_mut().filter(|request| asks(request));
        let asking: Vec<&mut ScoreRequest> = asking.collect();
        if !asking.is_empty() {
            self.add_terms(model, asking)?;
        }
        Ok(requests)
    }

    fn add_terms(
        &mut self,
        model: &mut dyn Model,
        asking: Vec<&mut ScoreRequest>,
    ) -> Result<(), Error> {
        let prompts: Vec<Prompt> = asking
            .iter()
            .map(|request| request.prompt.clone())
            .collect();
        let hidden = model.hidden(&prompts)?;
        for (request, hidden) in asking.into_iter().zip(hidden) {
            let Some(ask) = request.head.take() else {
                continue;
            };
            let read = self.names(model, &ask.head)?;
            let values = ask
                .head
                .values(&hidden, read)
                .ok_or_else(|| Error::Compute {
                    what: "head".into(),
                    source: "it was trained on hidden states of another model".into(),
                })?;
            request.terms.push(Term {
                name: HEAD,
                weight: ask.weight,
                values: Values::Dense(values),
            });
        }
        Ok(())
    }

    /// Keys of names that were read since the head was trained, after some more of those that it lacks are read.
    fn names(
        &mut self,
        model: &mut dyn Model,
        bound: &BoundHead,
    ) -> Result<&BTreeMap<String, Vec<f32>>, Error> {
        let same = |(head, _): &(Arc<Head>, _)| Arc::ptr_eq(head, bound.head());
        match self.read.iter().position(same) {
            Some(at) => self.read[..=at].rotate_right(1),
            None => {
                self.read
                    .insert(0, (Arc::clone(bound.head()), BTreeMap::new()));
                self.read.truncate(HEADS_MAX);
            }
        }
        let (head, read) = &mut self.read[0];
        let lacking = bound.lacking().iter().map(|(_, name)| name);
        let lacking = lacking.filter(|name| !read.contains_key(*name));
        let lacking: Vec<String> = lacking.take(NAMES_MAX).cloned().collect();
        if !lacking.is_empty() {
            let prompts: Vec<Prompt> = lacking.iter().map(|name| Prompt::of_text(name)).collect();
            for (name, hidden) in lacking.into_iter().zip(model.hidden(&prompts)?) {
                if let Some(key) = head.key(&hidden) {
                    read.insert(name, key);
                }
            }
        }
        Ok(&self.read[0].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use nearshore_core::learn::head::{HeadCase, HeadOptions, fit};
    use nearshore_core::names::head::Origin;
    use nearshore_core::names::scoring::{HeadAsk, Names};

    const NAMES: [&str; 4] = ["tea", "milk", "bread", "soap"];

    /// A head on the hidden states of a table, which has read all names but the last one.
    fn head(model: &mut Table) -> Arc<Head> {
        let names = NAMES.map(Prompt::of_text);
        let names = model.hidden(&names).expect("hidden states");
        let case = |nth: usize| {
            let prompt = Prompt::from(format!("user {nth}").as_str());
            let hidden = model.hidden(&[prompt]).expect("hidden states").remove(0);
            HeadCase {
                targets: vec![u32::from(hidden[0] > 0.0)],
                hidden,
                products: vec![0, 1, 2, 3],
                offset: vec![0.0; 4],
                is_tune: nth.is_multiple_of(4),
            }
        };
        let cases: Vec<HeadCase> = (0..200).map(case).collect();
        let fitted = fit(&names, &cases, &HeadOptions::default()).expect("trained");
        let read = NAMES[..3].iter().map(|name| (*name).to_owned()).zip(names);
        Arc::new(fitted.head(Origin::default(), read))
    }

    fn request(head: &Arc<Head>, user: &str, weight: f32) -> ScoreRequest {
        let bound = BoundHead::new(head, NAMES.iter().map(|name| (*name).to_owned()));
        ScoreRequest {
            prompt: user.into(),
            n: 4,
            weight: 0.0,
            head: Some(HeadAsk {
                weight,
                head: Arc::new(bound),
            }),
            ..ScoreRequest::default()
        }
    }

    #[test]
    fn a_head_ranks_names_by_one_pass_and_reads_new_names_once() {
        let mut model = Table::default();
        let head = head(&mut model);
        let names = NAMES.map(String::from).to_vec();
        model
            .set_names(Arc::new(Names { version: 1, names }))
            .expect("names");
        let mut heads = Heads::default();
        let asked = vec![request(&head, "user 1", 2.0), request(&head, "user 2", 2.0)];
        let plain = ScoreRequest::default();
        let resolved = heads
            .resolve(&mut model, [asked.clone(), vec![plain]].concat())
            .expect("resolved");
        assert!(resolved.iter().all(|request| request.head.is_none()));
        assert_eq!(
            resolved.iter().map(|it| it.terms.len()).collect::<Vec<_>>(),
            [1, 1, 0]
        );
        assert_eq!(heads.read.len(), 1);
        assert_eq!(heads.read[0].1.keys().collect::<Vec<_>>(), ["soap"]);
        let responses = model.score(&resolved[..2]).expect("scored");
        for response in &responses {
            let named = &response.named;
            assert_eq!(named.len(), 4);
            for one in named {
                assert_eq!((one.terms.len(), one.model), (1, 0.0));
                assert!((one.score - 2.0 * one.terms[0]).abs() < 1e-6, "{one:?}");
            }
            assert!(named.iter().any(|one| one.terms[0] != 0.0), "{named:?}");
        }
        // Alone as in a batch.
        let alone = heads
            .resolve(&mut model, asked[1..].to_vec())
            .expect("resolved");
        assert_eq!(model.score(&alone).expect("scored")[0], responses[1]);
    }

    #[test]
    fn a_head_of_another_model_is_an_error() {
        let mut model = Table::default();
        let head = head(&mut model);
        let mut other = Narrow(model);
        let error = Heads::default().resolve(&mut other, vec![request(&head, "user", 1.0)]);
        let error = error.expect_err("refused");
        let source = std::error::Error::source(&error).expect("a cause");
        assert!(
            source.to_string().contains("of another model"),
            "{error}: {source}"
        );
    }

    /// A table with narrower hidden states.
    struct Narrow(Table);

    impl Model for Narrow {
        fn indexer(&self) -> crate::search::index::Indexer {
            self.0.indexer()
        }
        fn swap(&mut self, indexed: crate::search::index::Indexed) {
            self.0.swap(indexed);
        }
        fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<crate::ScoreResponse>, Error> {
            self.0.score(requests)
        }
        fn write(
            &mut self,
            requests: &[nearshore_core::names::writing::WriteRequest],
        ) -> Result<Vec<nearshore_core::names::writing::WriteResponse>, Error> {
            self.0.write(requests)
        }
        fn hidden(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error> {
            Ok(prompts.iter().map(|_| vec![1.0; 3]).collect())
        }
        fn info(&self) -> crate::Info {
            self.0.info()
        }
    }
}
