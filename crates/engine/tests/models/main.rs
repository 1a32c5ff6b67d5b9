//! Model files: every family compared with logits of `transformers`, and files that are damaged in every way.
//!
//! Needs no service and no download. Fixtures by `scripts/make-families`.

mod damage;
mod families;
mod files;
mod gguf;
mod largest;
mod refused;
