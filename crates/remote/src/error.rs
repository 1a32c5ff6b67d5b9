//! What can go wrong with a server, told by our keys.
//!
//! Invariant: no text of the server is in [`std::fmt::Display`], because servers repeat prompts in their errors;
//! [`Error::said`] has it for a person who asked. It knows keys only by their name behind `arms.endpoint.`.

use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting, or a file that it names, cannot be used.
    #[error("endpoint.{key}: {what}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
    /// It failed before, and is left alone.
    #[error(
        "the server at endpoint.url failed {failures} times in a row and is not asked for {wait:.0?}: {last}"
    )]
    Open {
        /// Time until it is asked again.
        wait: Duration,
        /// Failures in a row that were allowed.
        failures: u32,
        /// The last failure.
        last: String,
    },
    /// No connection.
    #[error(
        "endpoint.url: no connection to {url}: {why}; is the server up, and is the address right?"
    )]
    Connect {
        /// The address.
        url: String,
        /// The cause.
        why: String,
    },
    /// The server's certificate is not accepted, or it speaks no TLS.
    #[error("{key}: {why}")]
    Tls {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        why: String,
    },
    /// No whole answer in time.
    #[error(
        "endpoint.{key}: no whole answer within {limit:?}; raise it, lower max_tokens, or give the server fewer requests at once"
    )]
    Timeout {
        /// The key of the limit.
        key: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The server has too many requests.
    #[error(
        "the server at endpoint.url is busy (429); lower endpoint.concurrency, or raise the server's limits"
    )]
    Busy {
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The server failed.
    #[error("the server at endpoint.url failed with status {status}; its own log says why")]
    Server {
        /// Status.
        status: u16,
        /// What it said.
        said: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The key is not accepted.
    #[error(
        "endpoint.api_key_file: the server refuses the key, or wants one (status {status}); the file is read again for each request"
    )]
    Login {
        /// Status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// There is nothing at the address, or no such model.
    #[error(
        "endpoint.url or model: the server has no such path or model (status 404); url ends with the API's path, as /v1, and GET URL/models lists the models"
    )]
    Missing {
        /// What it said.
        said: String,
    },
    /// The server refuses this one request.
    #[error(
        "the server at endpoint.url refuses the request (status {status}); is prompt_tokens plus max_tokens within the model's context?"
    )]
    Refused {
        /// Status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// Half an answer, or something else than a completion.
    #[error("endpoint.url: {what}; is it an OpenAI-compatible server?")]
    Answer {
        /// What is wrong with it.
        what: String,
    },
}

/// The kind of a failure, as metrics have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A setting or a file.
    Setting,
    /// The server is left alone.
    Open,
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// Too many requests.
    Busy,
    /// The server failed.
    Server,
    /// Key, path or model are not accepted.
    Unknown,
    /// It refuses this request.
    Refused,
    /// Half an answer, or none that can be read.
    Answer,
}

impl Error {
    /// The kind of failure.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Setting { .. } => Failure::Setting,
            Self::Open { .. } => Failure::Open,
            Self::Connect { .. } | Self::Tls { .. } => Failure::Connect,
            Self::Timeout { .. } => Failure::Timeout,
            Self::Busy { .. } => Failure::Busy,
            Self::Server { .. } => Failure::Server,
            Self::Login { .. } | Self::Missing { .. } => Failure::Unknown,
            Self::Refused { .. } => Failure::Refused,
            Self::Answer { .. } => Failure::Answer,
        }
    }

    /// What the server said, for a person who asked; it may repeat the prompt.
    pub fn said(&self) -> Option<&str> {
        match self {
            Self::Server { said, .. }
            | Self::Login { said, .. }
            | Self::Missing { said }
            | Self::Refused { said, .. } => Some(said)
                .filter(|said| !said.is_empty())
                .map(String::as_str),
            Self::Setting { .. }
            | Self::Open { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Busy { .. }
            | Self::Answer { .. } => None,
        }
    }

    /// Whether another try may go better. After a timeout it is not tried: the server still works on the first.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Busy { .. }
            | Self::Server { .. }
            | Self::Answer { .. } => true,
            Self::Setting { .. }
            | Self::Open { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Login { .. }
            | Self::Missing { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// Whether it says something of the server, rather than of one request.
    pub(crate) fn is_fault(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Busy { .. }
            | Self::Server { .. }
            | Self::Login { .. }
            | Self::Missing { .. }
            | Self::Answer { .. } => true,
            Self::Setting { .. } | Self::Open { .. } | Self::Refused { .. } => false,
        }
    }

    /// How long the server wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
