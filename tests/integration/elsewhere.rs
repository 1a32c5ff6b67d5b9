//! Promise: an event leads to a list whose first names the server of an arm's model wrote; while that server is down,
//! the list without the model stays, the request is done, and health says what fails.

use std::sync::Arc;

use nearshore_core::list::document::{Document, Source, Stage};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, TABLE};
use crate::searches::model;

/// What the server writes: two products, one that nobody sells, and one a second time.
const TEXT: &str = "Of course:\n1. Cat Litter\n2. a unicorn\n3. CAT LITTER\n4. bagels";

/// A double of an OpenAI-compatible server; it is down once it is dropped.
struct Server {
    url: String,
    accepts: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its connections end with it.
        self.accepts.abort();
    }
}

async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let accepts = tokio::spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.spawn(answer(stream));
        }
    });
    Server { url, accepts }
}

/// Answers the requests of one connection with one answer, which has what each of them asks for.
async fn answer(mut stream: TcpStream) {
    let body = json!({
        "choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}],
        "data": [{"id": "stub"}],
    });
    let body: Arc<str> = body.to_string().into();
    let mut request = vec![0; 64 << 10];
    // A request and its body come in one piece on this machine, and are not looked at.
    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let sent = stream.write_all((head + &body).as_bytes()).await;
        if sent.is_err() {
            return;
        }
    }
}

/// A site whose arm has this server write names.
async fn site(url: &str) -> Site {
    let site = Site::open(&[]).await;
    site.write("match.json", &model().write());
    // A server's chat begins the answer itself.
    site.write("basket.j2", "Write products of a grocer, one per line.");
    site.edit(&[
        (TABLE, "stub"),
        (
            "weights = { model = 1.0 }",
            "weights = { demand = 1.0, model = 1.0 }\nmode = \"free\"\nmatcher = \"match.json\"",
        ),
    ]);
    site.append(&format!(
        "[arms.endpoint]\nurl = \"{url}\"\nretries = 0\nconnect_timeout = \"2s\"\n"
    ));
    site.catalogue().await;
    site
}

/// The user's list, once it is of this stage.
async fn list_of(site: &Site, user: &str, stage: Stage) -> Document {
    let stored = eventually(LIMIT, || async {
        let list = site.peek(user).await.list.ok_or("no list")?;
        match list.stage == stage {
            true => Ok(list),
            false => Err(format!("a list of the stage {:?}", list.stage)),
        }
    });
    Document::parse(&stored.await.doc).expect("a document")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_s_names_become_the_list_and_without_the_server_the_mixture_s_stays() {
    let server = server().await;
    let site = site(&server.url).await;
    let process = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 4)]).await;
    let written = list_of(&site, "ann", Stage::Model).await;
    assert_eq!(written.source, Source::Model);
    let pus: Vec<&str> = written.pus.iter().map(|shown| shown.pu.as_str()).collect();
    assert_eq!(
        pus[..2],
        ["CAT LITTER", "BAGELS"],
        "as the server wrote them"
    );
    assert_eq!(pus.len(), 3, "filled up");
    let rejected = process.metric("nearshore_written_rejected_total", "").await;
    assert!(rejected >= 2.0, "{rejected}");

    drop(server);
    site.send(vec![site.bought("bob", 6)]).await;
    let first = list_of(&site, "bob", Stage::Mixture).await;
    assert_eq!(first.source, Source::Mixture);
    let refused = "reason=\"failed\"";
    eventually(LIMIT, || async {
        let count = process
            .metric("nearshore_model_refused_total", refused)
            .await;
        match count {
            count if count >= 1.0 => Ok(()),
            count => Err(format!("{count} requests refused")),
        }
    })
    .await;
    assert_eq!(
        list_of(&site, "bob", Stage::Mixture).await,
        first,
        "it stays"
    );
    assert_eq!(list_of(&site, "ann", Stage::Model).await, written);
    eventually(LIMIT, || async {
        let failing = process.metric("nearshore_endpoint_failing", "").await;
        let (code, ready) = process.get("/readyz").await.map_err(|e| e.to_string())?;
        match failing >= 1.0 && code == 200 && ready.contains("fails") {
            true => Ok(()),
            false => Err(format!("{failing} failing, {code}: {ready}")),
        }
    })
    .await;
}
