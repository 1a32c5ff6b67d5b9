//! What an error of Redis means for the connection and for the caller.
//!
//! Invariant: it looks at one error alone, and knows neither the connection nor what was asked.

use redis::{ErrorKind, RedisError, ServerErrorKind};

pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the connection is broken, or leads to a server that must not be written to.
pub(super) fn is_lost(error: &RedisError) -> bool {
    let demoted = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    );
    demoted || error.is_io_error() || error.is_unrecoverable_error() || is_denied(error)
}

/// Whether Redis refuses the login: with a password that was changed there, or none.
pub(super) fn is_denied(error: &RedisError) -> bool {
    let codes = ["NOAUTH", "WRONGPASS"];
    error.kind() == ErrorKind::AuthenticationFailed
        || error.code().is_some_and(|code| codes.contains(&code))
}

/// What the reason of a refused login begins with.
pub(super) const LOGIN: &str = "the login is refused";
pub(super) const LOGIN_ADVICE: &str =
    "redis.password_file is read again at each attempt; check it and redis.username";

pub(super) fn is_login(reason: &str) -> bool {
    reason.contains(LOGIN)
}

/// Whether Redis refuses for now only.
pub(super) fn is_temporary(error: &RedisError) -> bool {
    let known = matches!(
        error.kind(),
        ErrorKind::ClusterConnectionNotFound
            | ErrorKind::Server(
                ServerErrorKind::TryAgain
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::Ask
                    | ServerErrorKind::ExecAbort
            )
    );
    let busy = ["OOM", "BUSY", "MISCONF", "NOREPLICAS"];
    known || error.code().is_some_and(|code| busy.contains(&code))
}
