//! What a file format tells of a model: [`Source`].
//!
//! Implemented by [`gguf`](super::gguf) and [`folder`](super::folder). Invariant: a source says what a file has and
//! what it calls it, not whether that is a complete model.

use std::path::Path;

use super::geometry::{Geometry, Part};
use super::tensor::Entry;
use super::text::Text;
use crate::Error;

/// An open model file or folder in one format: its sizes, tensors and tokenizer, and what it calls them.
pub(super) trait Source: Send {
    /// Name of the format.
    fn format(&self) -> &'static str;
    /// Sizes, or why the model cannot be run.
    fn geometry(&self) -> Result<Geometry, Error>;
    /// Name of a tensor in this format.
    fn name(&self, part: Part) -> String;
    /// Every tensor, with the file that holds it.
    fn tensors(&self) -> Vec<(&str, &Path, &Entry)>;
    /// One tensor, with the file that holds it.
    fn tensor(&self, name: &str) -> Option<(&Path, &Entry)>;
    /// Whether a tensor that is no [`Part`] may be in the file without changing what the model computes.
    fn is_ignored(&self, name: &str) -> bool;
    /// Bytes of a tensor.
    fn bytes(&self, name: &str) -> Option<&[u8]>;
    /// Whether the two values of a rotary pair are neighbours in q and k.
    fn has_adjacent_pairs(&self) -> bool;
    /// Whether the weights of norms are stored less 1.
    fn has_norms_less_one(&self) -> bool;
    /// Tokenizer and chat template.
    fn text(&self) -> Result<Text, Error>;
    /// Passes to `add` all bytes that identify the model, except those of tensors.
    fn identity(&self, add: &mut dyn FnMut(&[u8])) -> Result<(), Error>;
    /// Bytes of the weight files.
    fn size(&self) -> u64;
}
