//! Model files: every family compared with logits of `transformers`, and files that are damaged in every way.
//!
//! Needs no service and no download. Fixtures by `scripts/make-families`.

#![allow(unreachable_pub)] // Nothing can import a test binary.

mod beside;
mod damage;
mod encoder;
mod families;
mod files;
mod gguf;
mod largest;
mod misfits;
mod refused;
mod templates;
mod tune;
mod windows;
mod written;
