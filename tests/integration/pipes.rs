//! Promise: a command whose output nobody reads any more ends quietly; its exit code says what it did.
//! A run that fails writes lines of JSON alone where lines are JSON, the last included.

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

#[test]
fn the_reason_of_the_end_is_json_like_every_other_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address").to_string();
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, "").expect("written");
    for level in ["info", "off"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(["run", "--role", "ingest", "--config"])
            .arg(&path)
            .env("NEARSHORE__LOG__FORMAT", "json")
            .env("NEARSHORE__LOG__LEVEL", level)
            .env("NEARSHORE__HTTP__LISTEN", &listen)
            .output()
            .expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{text}");
        let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
        let lines: Vec<_> = lines
            .collect::<Result<_, _>>()
            .unwrap_or_else(|error| panic!("{error}: {text}"));
        let last = lines.last().expect("a line says why it ended");
        assert_eq!(last["level"], "ERROR", "{text}");
        assert!(
            last["message"]
                .as_str()
                .is_some_and(|said| said.contains("in use")),
            "{text}"
        );
    }
}
