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
    let stream = TcpStream::connect(address).await.expect("it listens");
    let request = request.replace(" HTTP", " HTTP/1.1\r\nConnection: close");
    let request = if request.contains("Host:") {
        request
    } else {
        format!("{request}\r\nHost: localhost:1")
    };
    let answer = answered(stream, &format!("{request}\r\n\r\n")).await;
    stop.cancel();
    served
        .await
        .expect("no panic")
        .expect("it stops after the cancellation");
    answer
}

/// The answer to a request on an open connection.
async fn answered(mut stream: TcpStream, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
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
    App::default().inspect_by(|question| async move {
        let Question { user, why_not } = question;
        match user.as_str() {
            "é/1 &" => Ok(Some(Inspected {
                view: View {
                    user,
                    ..View::default()
                },
                why_not: why_not.map(|product| format!("no: {product} is <forbidden>")),
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
    for part in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(answer.head.contains(part), "{part}: {}", answer.head);
    }
}

#[tokio::test]
async fn an_unknown_user_a_failed_look_up_and_no_user_have_their_own_pages() {
    for (path, status, words) in [
        ("/inspect", 200, "Type the id"),
        ("/inspect?user=", 200, "Type the id"),
        (
            "/inspect?user=%C3%A9%2F1+%26&why_not=wine",
            200,
            "no: wine is &lt;forbidden&gt;",
        ),
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

/// What is answered at an address that others may reach, with these head lines.
async fn ask_in_public(app: &App, path: &str, head: &str) -> Answer {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, app.clone(), stop.clone()));
    let request =
        format!("GET {path} HTTP/1.1\r\nConnection: close\r\nHost: nearshore\r\n{head}\r\n");
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let answer = answered(stream.expect("it listens"), &request).await;
    stop.cancel();
    served.await.expect("no panic").expect("it stops");
    answer
}

#[tokio::test]
async fn off_loopback_the_inspect_page_is_shown_to_those_who_know_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("written");
    let open = ask_in_public(&inspecting(), "/inspect", "").await;
    assert_eq!(open.status, 403, "{}", open.body);
    assert!(
        open.body.contains("http.inspect_token_file"),
        "{}",
        open.body
    );
    let app = inspecting().token_file(Some(file.clone()));
    // user:s3cret and user:wrong, as browsers send them.
    for (head, status) in [
        ("", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("Authorization: bearer s3cret\r\n", 200),
        ("Authorization: Basic dXNlcjpzM2NyZXQ=\r\n", 200),
        ("Authorization: Bearer s3cre\r\n", 401),
        ("Authorization: Bearer \r\n", 401),
        ("Authorization: Basic dXNlcjp3cm9uZw==\r\n", 401),
        ("Authorization: Basic s3cret\r\n", 401),
        ("Authorization: s3cret\r\n", 401),
    ] {
        let answer = ask_in_public(&app, "/inspect?user=nobody2", head).await;
        // With the token the user is looked up, and is not there.
        let expected = if status == 200 { 404 } else { status };
        assert_eq!(answer.status, expected, "{head}");
        assert_eq!(
            answer.head.contains("www-authenticate: basic"),
            status == 401,
            "{head}"
        );
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask_in_public(&app, path, "").await.status, 200, "{path}");
    }
    // A changed token needs no restart, and one that cannot be read lets nobody in.
    std::fs::write(&file, "other").expect("written");
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    assert_eq!(
        ask_in_public(&app, "/inspect", &bearer("s3cret"))
            .await
            .status,
        401
    );
    assert_eq!(
        ask_in_public(&app, "/inspect", &bearer("other"))
            .await
            .status,
        200
    );
    std::fs::write(&file, "\n").expect("written");
    assert_eq!(
        ask_in_public(&app, "/inspect", &bearer("")).await.status,
        503
    );
    // A token that is configured is asked for on loopback, too.
    std::fs::write(&file, "other").expect("written");
    assert_eq!(ask(&app, "GET /inspect HTTP").await.status, 401);
}

#[tokio::test]
async fn the_port_for_probes_serves_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve_probes(listener, inspecting(), stop.clone()));
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 404),
        ("/inspect", 404),
        ("/", 404),
    ] {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\nHost: any\r\n\r\n");
        assert_eq!(answered(stream, &request).await.status, status, "{path}");
    }
    stop.cancel();
    served.await.expect("it stops");
}
