//! What the client does when a server is down, slow, busy, or answers half.

use std::time::{Duration, Instant};

use nearshore_core::list::prompt::Endpoint;
use nearshore_remote::{Client, Error, Failure, Status};

use crate::fake::{Act, Fake};

const SHORT: Duration = Duration::from_millis(150);

fn client(endpoint: &Endpoint) -> Client {
    Client::new(endpoint, "m").expect("a client")
}

#[tokio::test]
async fn a_question_has_model_prompt_and_limits_and_its_answer_is_read() {
    let fake = Fake::start([Act::says("Milk\nEggs")]).await;
    let endpoint = Endpoint {
        max_tokens: 77,
        temperature: 0.5,
        seed: 9,
        ..fake.endpoint.clone()
    };
    let client = client(&endpoint);
    assert_eq!(client.status(), Status::Unknown);
    let answer = client.complete("What \"next\"?").await.expect("an answer");
    assert_eq!((answer.text.as_str(), answer.is_cut), ("Milk\nEggs", false));
    assert_eq!((answer.prompt_tokens, answer.completion_tokens), (3, 2));
    assert_eq!(client.status(), Status::Answers);
    let request = fake.seen().remove(0);
    assert!(
        request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{request}"
    );
    let body = request.split_once("\r\n\r\n").expect("a body").1;
    let body: serde_json::Value = serde_json::from_str(body).expect("json");
    let wanted = serde_json::json!({"model": "m", "max_tokens": 77, "temperature": 0.5, "seed": 9, "stream": false,
        "messages": [{"role": "user", "content": "What \"next\"?"}]});
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn the_key_is_read_again_for_each_request_and_is_in_no_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    let fake = Fake::start([Act::says("a"), Act::says("b"), Act::status(401)]).await;
    let endpoint = Endpoint {
        api_key_file: Some(file.display().to_string()),
        ..fake.endpoint.clone()
    };
    let client = client(&endpoint);
    let error = client.complete("x").await.expect_err("there is no file");
    assert_eq!(error.failure(), Failure::Setting);
    assert!(
        error.to_string().starts_with("endpoint.api_key_file: "),
        "{error}"
    );
    for key in ["first", "second"] {
        std::fs::write(&file, format!("{key}\n")).expect("written");
        client.complete("x").await.expect("an answer");
        let request = fake.seen().pop().expect("asked");
        assert!(
            request.contains(&format!("authorization: Bearer {key}\r\n")),
            "{request}"
        );
    }
    std::fs::write(&file, "wrong-key").expect("written");
    let error = client.complete("x").await.expect_err("the key is refused");
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("endpoint.api_key_file") && !text.contains("wrong-key"),
        "{text}"
    );
    std::fs::write(&file, "two\nlines").expect("written");
    let error = client.complete("x").await.expect_err("two lines");
    assert!(!format!("{error:?}").contains("lines\""), "{error:?}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_the_rest_is_not() {
    for (first, tries) in [
        (Act::status(500), 2),
        (Act::status(429), 2),
        (Act::Half, 2),
        (Act::Close, 2),
        (Act::Answer(200, "", "<html>".into()), 2),
        (Act::status(400), 1),
        (Act::status(401), 1),
        (Act::status(404), 1),
    ] {
        let fake = Fake::start([first.clone(), Act::says("Milk")]).await;
        let endpoint = Endpoint {
            retries: 2,
            ..fake.endpoint.clone()
        };
        let answer = client(&endpoint).complete("x").await;
        assert_eq!(answer.is_ok(), tries == 2, "{first:?}: {answer:?}");
        assert_eq!(fake.seen().len(), tries, "{first:?}");
    }
}

#[tokio::test]
async fn retry_after_is_waited_for_within_the_limit_and_not_beyond() {
    let busy = |after| Act::Answer(429, after, String::new());
    let fake = Fake::start([busy("retry-after: 1\r\n"), Act::says("Milk")]).await;
    let endpoint = Endpoint {
        retries: 1,
        ..fake.endpoint.clone()
    };
    let start = Instant::now();
    client(&endpoint).complete("x").await.expect("an answer");
    assert!(start.elapsed() >= Duration::from_secs(1));
    let fake = Fake::start([busy("retry-after: 3600\r\n")]).await;
    let endpoint = Endpoint {
        retries: 1,
        ..fake.endpoint.clone()
    };
    let start = Instant::now();
    let error = client(&endpoint).complete("x").await.expect_err("busy");
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_after_each_limit() {
    let fake = Fake::start([Act::Hang]).await;
    for (key, endpoint) in [
        (
            "read_timeout",
            Endpoint {
                read_timeout: SHORT,
                ..fake.endpoint.clone()
            },
        ),
        (
            "timeout",
            Endpoint {
                timeout: SHORT,
                ..fake.endpoint.clone()
            },
        ),
    ] {
        let error = client(&endpoint).complete("x").await.expect_err("late");
        assert!(
            matches!(error, Error::Timeout { key: found, .. } if found == key),
            "{error}"
        );
    }
    // Who waits for a free place is in time, too.
    let endpoint = Endpoint {
        concurrency: 1,
        timeout: SHORT,
        ..fake.endpoint.clone()
    };
    let before = fake.seen().len();
    let client = client(&endpoint);
    let (one, other) = tokio::join!(client.complete("x"), client.complete("y"));
    for error in [one, other].map(|outcome| outcome.expect_err("late")) {
        assert_eq!(error.failure(), Failure::Timeout);
    }
    assert!(fake.seen().len() - before <= 2);
}

#[tokio::test]
async fn a_server_that_is_down_is_left_alone_and_asked_again_after_the_pause() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = gone.local_addr().expect("bound");
    drop(gone);
    let endpoint = Endpoint {
        retries: 0,
        failures_max: 2,
        pause: SHORT,
        ..Endpoint::at(&format!("http://{address}/v1"))
    };
    let client = client(&endpoint);
    for _ in 0..2 {
        let error = client.complete("x").await.expect_err("down");
        assert!(matches!(error, Error::Connect { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
    let error = client.complete("x").await.expect_err("left alone");
    assert!(matches!(error, Error::Open { .. }), "{error}");
    let Status::Fails { is_open, why } = client.status() else {
        panic!("{:?}", client.status());
    };
    assert!(
        is_open && why.starts_with("endpoint.url: no connection to"),
        "{why}"
    );
    // It comes back at the same address.
    let fake = Fake::start([Act::says("Milk")]).await;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .expect("the port is free again");
    let behind: std::net::SocketAddr = fake.endpoint.url[7..]
        .trim_end_matches("/v1")
        .parse()
        .expect("an address");
    tokio::spawn(async move {
        while let Ok((mut one, _)) = listener.accept().await {
            let mut other = tokio::net::TcpStream::connect(behind)
                .await
                .expect("it listens");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut one, &mut other).await });
        }
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.complete("x").await {
        assert!(matches!(error, Error::Open { .. }), "{error}");
        assert!(Instant::now() < deadline, "still left alone: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.status(), Status::Answers);
}

#[tokio::test]
async fn a_request_that_is_refused_does_not_open_the_breaker_and_one_that_is_given_up_neither() {
    let fake = Fake::start([Act::status(400)]).await;
    let endpoint = Endpoint {
        failures_max: 1,
        ..fake.endpoint.clone()
    };
    let refused = client(&endpoint);
    for _ in 0..3 {
        let error = refused.complete("x").await.expect_err("refused");
        assert_eq!(
            (error.failure(), error.said()),
            (Failure::Refused, Some("no"))
        );
    }
    let fake = Fake::start([Act::Hang]).await;
    let given_up = client(&Endpoint {
        failures_max: 1,
        ..fake.endpoint.clone()
    });
    for _ in 0..2 {
        let asked = tokio::time::timeout(SHORT, given_up.complete("x")).await;
        assert!(asked.is_err());
    }
    assert_eq!(given_up.status(), Status::Unknown);
}

#[tokio::test]
async fn no_more_requests_than_allowed_are_on_the_way() {
    let fake = Fake::start([Act::Slow(SHORT, "Milk")]).await;
    let endpoint = Endpoint {
        concurrency: 2,
        ..fake.endpoint.clone()
    };
    let client = client(&endpoint);
    let start = Instant::now();
    let (a, b, c, d) = tokio::join!(
        client.complete("1"),
        client.complete("2"),
        client.complete("3"),
        client.complete("4")
    );
    assert!([a, b, c, d].iter().all(Result::is_ok));
    assert!(start.elapsed() >= 2 * SHORT, "two after two");
}

#[test]
fn settings_that_cannot_work_are_told_by_their_key() {
    for (key, endpoint) in [
        ("url", Endpoint::at("models:8000")),
        ("url", Endpoint::at("http://")),
        (
            "ca_file",
            Endpoint {
                ca_file: Some("/nowhere/ca.pem".into()),
                ..Endpoint::at("https://m/v1")
            },
        ),
    ] {
        let error = Client::new(&endpoint, "m").err().expect("refused");
        assert!(
            error.to_string().starts_with(&format!("endpoint.{key}: ")),
            "{error}"
        );
    }
}
