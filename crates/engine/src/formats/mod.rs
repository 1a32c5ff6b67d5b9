//! Model files: GGUF, Hugging Face folders, tokenizers and chat templates.

pub mod folder;
pub mod gguf;
pub mod load;
pub mod text;
