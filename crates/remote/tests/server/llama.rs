//! A real server: llama.cpp on SmolLM2, see scripts/llama-server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nearshore_core::list::prompt::Endpoint;
use nearshore_remote::{Client, Error, Status};

/// A running llama.cpp; it is killed when it is dropped.
struct Llama {
    child: Child,
    url: String,
}

impl Drop for Llama {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

fn start() -> Llama {
    let mut child = Command::new(variable("NEARSHORE_TEST_LLAMA_SERVER"))
        .arg(variable("NEARSHORE_TEST_MODEL"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("scripts/llama-server starts");
    let mut url = String::new();
    let out = child.stdout.take().expect("piped");
    let read = BufReader::new(out).read_line(&mut url);
    read.expect("the first line is the address");
    let url = url.trim().to_owned();
    assert!(url.starts_with("http://127.0.0.1:"), "{url:?}");
    Llama { child, url }
}

fn endpoint(llama: &Llama) -> Endpoint {
    Endpoint {
        retries: 0,
        max_tokens: 48,
        timeout: Duration::from_secs(300),
        read_timeout: Duration::from_secs(300),
        ..Endpoint::at(&llama.url)
    }
}

const PROMPT: &str = "Continue this list of groceries with one name a line:\nmilk\nbread\neggs\n";

#[tokio::test]
async fn a_real_server_writes_the_same_text_twice_and_says_when_it_is_cut() {
    let llama = start();
    let client = Client::new(&endpoint(&llama), "SmolLM2").expect("a client");
    let models = client.models().await.expect("its models");
    assert!(models[0].contains("SmolLM2"), "{models:?}");
    let first = client.complete(PROMPT).await.expect("an answer");
    assert!(
        !first.text.trim().is_empty() && first.prompt_tokens > 10,
        "{first:?}"
    );
    let second = client.complete(PROMPT).await.expect("an answer");
    assert_eq!(first.text, second.text, "temperature 0");
    let short = Endpoint {
        max_tokens: 3,
        ..endpoint(&llama)
    };
    let client = Client::new(&short, "SmolLM2").expect("a client");
    let cut = client.complete(PROMPT).await.expect("an answer");
    assert!(cut.is_cut && cut.completion_tokens <= 3, "{cut:?}");
    // A prompt over its context is this request's fault, not the server's.
    let error = client.complete(&"milk and ".repeat(9_000)).await;
    let error = error.expect_err("too long");
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(client.status(), Status::Answers);
}

#[tokio::test]
async fn a_real_server_that_is_killed_in_the_middle_of_an_answer_is_an_error_at_once() {
    let mut llama = start();
    let long = Endpoint {
        max_tokens: 4000,
        failures_max: 1,
        ..endpoint(&llama)
    };
    let client = Client::new(&long, "SmolLM2").expect("a client");
    // It is warm, and answers.
    client.models().await.expect("its models");
    let asked = client.complete("Write a very long story about a shop, with all details.");
    let killed = async {
        // Long enough for the server to have begun; the answer takes minutes.
        tokio::time::sleep(Duration::from_secs(2)).await;
        llama.child.kill().expect("killed");
    };
    let start = std::time::Instant::now();
    let (answer, ()) = tokio::join!(asked, killed);
    let error = answer.expect_err("it was killed");
    assert!(matches!(error, Error::Answer { .. }), "{error:?}");
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "not only after the timeout"
    );
    assert!(matches!(
        client.status(),
        Status::Fails { is_open: true, .. }
    ));
    let error = client.complete(PROMPT).await.expect_err("left alone");
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
}
