//! What an error of Redis means for the connection and for the caller, and which keys it may be about.
//!
//! Invariant: it looks at one error or one command alone, and does not know the connection.

use redis::{Arg, Cmd, ErrorKind, RedisError, ServerErrorKind};

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

/// Whether the user of the ACL lacks a right. Inside of a script Redis says so without its code: to 7.2 in the first
/// words, later in the second.
pub(super) fn is_right(error: &RedisError) -> bool {
    let in_script = [
        "The user executing the script can't",
        "ACL failure in script",
    ];
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.code() == Some("ERR")
            && in_script
                .iter()
                .any(|words| error.detail().is_some_and(|said| said.starts_with(words)))
}

/// What the reason of a missing right begins with.
pub(super) const RIGHT: &str = "redis.username: its user lacks a right";
pub(super) const RIGHT_ADVICE: &str =
    "`nearshore check` says which, and `nearshore check --acl` prints the rule that gives them";

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

/// The keys of a command: those of a script, else its first argument.
pub(super) fn keys_of(cmd: &Cmd) -> Vec<String> {
    let mut words = cmd.args_iter().filter_map(|word| match word {
        Arg::Simple(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    });
    let name = words.next().unwrap_or_default();
    if name != "EVALSHA" {
        return words.next().into_iter().collect();
    }
    let n = words.nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    words.take(n).collect()
}

/// Whether the error is that of a stored value: of another type, or one with which a script cannot calculate.
pub(super) fn is_of_a_value(error: &RedisError) -> bool {
    match error.code() {
        Some("WRONGTYPE") => true,
        Some("ERR") => error.to_string().contains("user_script") && !is_right(error),
        _ => false,
    }
}
