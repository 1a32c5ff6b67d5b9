//! A double of a server: it answers each request by the next act of a script, and keeps what it was asked.
//!
//! It is not an OpenAI-compatible server: it only writes bytes. It ends with its test.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nearshore_core::list::prompt::Endpoint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the double does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers with this status, these further headers and this body.
    Answer(u16, &'static str, String),
    /// Answers with the text after a time.
    Slow(Duration, &'static str),
    /// Sends the first half of a completion and closes.
    Half,
    /// Closes without an answer.
    Close,
    /// Never answers.
    Hang,
}

impl Act {
    pub(crate) fn says(text: &str) -> Self {
        Self::Answer(200, "", completion(text))
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, "", r#"{"error":{"message":"no"}}"#.into())
    }
}

/// A completion that says `text`.
pub(crate) fn completion(text: &str) -> String {
    let text = serde_json::to_string(text).expect("a text");
    format!(
        r#"{{"choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":{text}}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":2}}}}"#
    )
}

/// A running double.
pub(crate) struct Fake {
    pub(crate) endpoint: Endpoint,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Starts a double; after the script it repeats the last act.
    pub(crate) async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let script: Arc<Mutex<VecDeque<Act>>> = Arc::new(Mutex::new(script.into_iter().collect()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&kept)));
            }
        });
        let endpoint = Endpoint {
            retries: 0,
            ..Endpoint::at(&format!("http://{address}/v1"))
        };
        Self { endpoint, seen }
    }

    /// The requests so far, headers and body.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// Serves one connection.
pub(crate) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    while let Some(request) = read(&mut stream).await {
        seen.lock().expect("not poisoned").push(request);
        let act = {
            let mut script = script.lock().expect("not poisoned");
            match script.len() {
                0 => Act::Close,
                1 => script[0].clone(),
                _ => script.pop_front().expect("it has more than one"),
            }
        };
        let (status, headers, body) = match act {
            Act::Answer(status, headers, body) => (status, headers, body),
            Act::Slow(time, text) => {
                tokio::time::sleep(time).await;
                (200, "", completion(text))
            }
            Act::Half => {
                let body = completion("Milk");
                let length = body.len();
                let half = &body[..length / 2];
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{half}");
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Act::Close => return,
            Act::Hang => std::future::pending().await,
        };
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads one request; `None` at the end of the connection.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend(&buffer[..read]),
        }
    }
}
