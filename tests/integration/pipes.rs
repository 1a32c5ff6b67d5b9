//! Promise: a command whose output nobody reads any more ends quietly; its exit code says what it did.

/// Runs a command whose standard output and error nobody reads.
fn unread(arguments: &[&str]) -> std::process::ExitStatus {
    let unread = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(arguments)
        .stdout(unread())
        .stderr(unread())
        .status()
        .expect("the binary starts")
}

#[test]
fn a_reader_that_is_gone_ends_a_command_quietly() {
    for arguments in [
        &["config"][..],
        &["config", "--json"],
        &["check", "--offline"],
        &["--help"],
    ] {
        assert_eq!(unread(arguments).code(), Some(0), "{arguments:?}");
    }
    // What is said on standard error alone is lost; the exit code is not.
    assert_eq!(unread(&["config", "--config", "/nowhere"]).code(), Some(2));
    assert_eq!(unread(&["no-such-command"]).code(), Some(2));
}
