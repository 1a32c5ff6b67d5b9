//! Tests the answers over a real socket, as a probe or browser gets them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Answer {
    status: u16,
    head: String,
    body: String,
}

async fn ask(app: &App, request: &str) -> Answer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, app.clone(), stop.clone()));
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = request.replace(" HTTP", " HTTP/1.1\r\nConnection: close");
    let request = if request.contains("Host:") {
        request
    } else {
        format!("{request}\r\nHost: localhost:1")
    };
    stream
        .write_all(format!("{request}\r\n\r\n").as_bytes())
        .await
        .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
    stop.cancel();
    served
        .await
        .expect("no panic")
        .expect("it stops after the cancellation");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Answer {
        status: status.expect("a status"),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn healthz_names_the_loop_that_hangs() {
    let app = App::default();
    assert_eq!(ask(&app, "GET /healthz HTTP").await.status, 200);
    app.health.heartbeat("engine-step", Duration::ZERO).beat();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let mut answer = ask(&app, "GET /healthz HTTP").await;
    while answer.status == 200 && std::time::Instant::now() < deadline {
        answer = ask(&app, "GET /healthz HTTP").await;
    }
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("engine-step"), "{}", answer.body);
}

/// With half of a request each, more clients than there are places: the connections of the first ones are closed.
#[tokio::test]
async fn a_probe_is_answered_beside_a_thousand_half_sent_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, App::default(), stop.clone()));
    let mut silent = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // The server may have closed the connection already.
        let _ = stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: loc")
            .await;
        silent.push(stream);
    }
    let mut probe = TcpStream::connect(address).await.expect("it listens");
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    probe.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    probe.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut closed = 0;
    for stream in &mut silent[..800] {
        // The end of the stream, or a reset.
        closed += usize::from(stream.read(&mut [0; 9]).await.unwrap_or(0) == 0);
    }
    assert_eq!(closed, 800);
    stop.cancel();
    served.await.expect("no panic").expect("it stops");
}

/// A head that never ends is given up, also while there is room.
#[tokio::test]
async fn a_request_whose_head_does_not_come_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stop = CancellationToken::new();
    let _served = tokio::spawn(serve(listener, App::default(), stop.clone()));
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET /healthz").await.expect("sent");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("it is closed");
    stop.cancel();
}

#[tokio::test]
async fn readyz_names_the_dependency_that_is_missing() {
    let app = App::default();
    let (redis, model) = (app.ready.gate("redis"), app.ready.gate("model"));
    redis.open("redis://localhost writable");
    model.shut("loading");
    let answer = ask(&app, "GET /readyz HTTP").await;
    assert_eq!(answer.status, 503);
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(body["dependencies"]["model"]["detail"], "loading");
    assert_eq!(body["dependencies"]["redis"]["ready"], true);
    model.open("warm");
    assert_eq!(ask(&app, "GET /readyz HTTP").await.status, 200);
}

#[tokio::test]
async fn metrics_are_plain_text_and_hold_every_series() {
    let recorder = crate::metrics::recorder().expect("the buckets are not empty");
    let app = App {
        metrics: Some(recorder.handle()),
        ..App::default()
    };
    let known = crate::metrics::Known::default();
    metrics::with_local_recorder(&recorder, || crate::metrics::register(&known));
    let answer = ask(&app, "GET /metrics HTTP").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    assert!(
        answer.body.contains("nearshore_erases_total 0"),
        "{}",
        answer.body
    );
}

fn inspecting() -> App {
    App::default().inspect_by(|user| async move {
        match user.as_str() {
            "é/1 &" => Ok(Some(View {
                user,
                ..View::default()
            })),
            "broken" => Err("redis: no answer".to_owned()),
            _ => Ok(None),
        }
    })
}

#[tokio::test]
async fn the_inspect_page_looks_up_the_decoded_user_id() {
    let answer = ask(&inspecting(), "GET /inspect?user=%C3%A9%2F1+%26 HTTP").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("é&#x2f;1 &amp;"), "{}", answer.body);
    assert!(
        answer.head.contains("default-src 'none'"),
        "{}",
        answer.head
    );
    assert!(
        answer.head.contains("cache-control: no-store"),
        "{}",
        answer.head
    );
}

#[tokio::test]
async fn an_unknown_user_a_failed_look_up_and_no_user_have_their_own_pages() {
    for (path, status, words) in [
        ("/inspect", 200, "Type the id"),
        ("/inspect?user=", 200, "Type the id"),
        ("/inspect?user=nobody", 404, "Nothing is stored"),
        ("/inspect?user=broken", 502, "redis: no answer"),
    ] {
        let answer = ask(&inspecting(), &format!("GET {path} HTTP")).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body.contains(words), "{path}: {}", answer.body);
    }
    assert_eq!(
        ask(&App::default(), "GET /inspect?user=u HTTP")
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn other_methods_than_get_are_refused() {
    for method in ["POST", "PUT", "DELETE"] {
        for path in ["/inspect?user=u", "/healthz", "/readyz", "/metrics", "/"] {
            let answer = ask(&inspecting(), &format!("{method} {path} HTTP")).await;
            assert_eq!(answer.status, 405, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn on_loopback_a_request_to_a_foreign_name_is_refused() {
    for (host, status) in [
        ("127.0.0.1:9464", 200),
        ("localhost", 200),
        ("LOCALHOST:9464", 200),
        ("localhost.", 200),
        ("[::1]:9464", 200),
        ("evil.example:9464", 403),
        ("localhost.evil.example", 403),
    ] {
        let answer = ask(&inspecting(), &format!("GET /inspect HTTP\r\nHost: {host}")).await;
        assert_eq!(answer.status, status, "{host}");
    }
}
