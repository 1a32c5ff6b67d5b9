//! Model files: GGUF, Hugging Face folders, tokenizers and chat templates.
//!
//! From below: what files hold ([`tensor`], `geometry`, `weights`, `text`), what a format tells of it (`source`), the
//! formats ([`gguf`], [`folder`]), what is added to a model (`adapter`), what is no model at all (`misfit`), and opening
//! a path (`open`).

pub(crate) mod adapter;
pub(crate) mod families;
pub mod folder;
pub(crate) mod geometry;
pub mod gguf;
pub(crate) mod loading;
pub(crate) mod map;
mod misfit;
mod numbers;
pub(crate) mod open;
pub(crate) mod rope;
mod source;
pub mod tensor;
pub(crate) mod text;
pub(crate) mod weights;
