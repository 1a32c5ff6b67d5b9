//! The index of names for a search: tokens, then the trie.
//!
//! Decides how the work is divided: names are tokenised in pieces, in parallel, and the trie is built on one thread,
//! not on the model's. Invariant: the index depends on names and tokenizer alone. It does not know when it is used.

use std::sync::Arc;

use rayon::prelude::*;

use crate::Error;
use crate::formats::text::Text;
use nearshore_core::names::scoring::Names;
use nearshore_core::names::trie::{Sequences, Trie};

/// Number of names that one thread tokenises at a time.
const PIECE: usize = 1024;

/// A function that indexes names for one model; it may be called on any thread.
pub type Indexer = Arc<dyn Fn(Arc<Names>) -> Result<Indexed, Error> + Send + Sync>;

/// Indexed names, for [`Model::swap`](crate::Model::swap).
#[derive(Clone, Debug, Default)]
pub struct Indexed {
    /// The names.
    pub names: Arc<Names>,
    /// Their trie; empty for a model that needs none.
    pub trie: Arc<Trie>,
}

/// Returns an indexer for a model that has no tokens: it builds no trie.
pub fn bare() -> Indexer {
    Arc::new(|names| {
        Ok(Indexed {
            names,
            trie: Arc::default(),
        })
    })
}

/// Returns an indexer for a model with the tokenizer of `text`.
pub(crate) fn tokenised(text: Arc<Text>) -> Indexer {
    Arc::new(move |names| {
        let start = std::time::Instant::now();
        let sequences = sequences(&text, &names.names)?;
        let tokens = start.elapsed();
        let trie = Arc::new(Trie::build(&sequences));
        tracing::info!(
            names = names.names.len(),
            version = names.version,
            tokens = ?tokens,
            trie = ?(start.elapsed() - tokens),
            bytes = trie.bytes(),
            "names indexed; the next batch is scored over them"
        );
        Ok(Indexed { names, trie })
    })
}

/// Returns the token sequences of names, in their order.
pub fn sequences(text: &Text, names: &[String]) -> Result<Sequences, Error> {
    let pieces: Result<Vec<Vec<Vec<u32>>>, Error> = names
        .par_chunks(PIECE)
        .map(|piece| piece.iter().map(|name| text.name(name)).collect())
        .collect();
    let mut sequences = Sequences::new(text.end());
    for tokens in pieces?.iter().flatten() {
        sequences.push(tokens);
    }
    Ok(sequences)
}
