//! Names made ready for a search: tokens, then the trie, away from the model's own thread.
//!
//! Decides how the work is spread: names are tokenised in pieces, in parallel, and the trie is built
//! on one thread. Invariant: what is built depends on the names alone. It does not know when it is
//! swapped in.

use std::sync::Arc;

use rayon::prelude::*;

use crate::Error;
use crate::formats::text::Text;
use nearshore_core::names::scoring::Names;
use nearshore_core::names::trie::{Sequences, Trie};

/// Names that one thread tokenises at a time.
const PIECE: usize = 1024;

/// Makes names ready for one model; may be called from any thread.
pub type Indexer = Arc<dyn Fn(Arc<Names>) -> Result<Indexed, Error> + Send + Sync>;

/// Names ready to be swapped in by [`Model::swap`](super::Model::swap).
#[derive(Clone, Debug, Default)]
pub struct Indexed {
    /// The names.
    pub names: Arc<Names>,
    /// Their trie; empty for a model that needs none.
    pub trie: Arc<Trie>,
}

/// Makes names ready for a model that has no tokens.
pub fn bare() -> Indexer {
    Arc::new(|names| {
        Ok(Indexed {
            names,
            trie: Arc::default(),
        })
    })
}

/// Makes names ready for a model that reads `text`'s tokens.
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
            "names are ready"
        );
        Ok(Indexed { names, trie })
    })
}

/// Token sequences of names, in their order.
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
