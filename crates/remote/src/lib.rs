//! Asks a language model behind an OpenAI-compatible server: text in, text out.
//!
//! Decides how long a server may take, how often it is asked again, and when it is left alone. Invariant: a question is
//! answered or refused within its limit, whatever the server does, and no error or log line has the key, the prompt or
//! the answer. It does not know users, names or lists.

mod answer;
mod breaker;
mod client;
mod error;
mod tls;

pub use answer::Completion;
pub use client::{Client, Status};
pub use error::{Error, Failure};
