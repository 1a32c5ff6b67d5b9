//! Lists beside a model that writes, elsewhere or here: what it writes becomes lists, and whatever goes wrong with it, the lists
//! without it are published and no request waits for ever.

use nearshore_core::list::prompt::Endpoint;
use nearshore_core::names::matcher::{Example, FitOptions, Matcher, Model, fit};
use nearshore_core::names::writing::Decoding;
use nearshore_engine::table::Table;
use nearshore_engine::thread::spawn;
use nearshore_remote::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::members::generate::{ArmScorer, FreeScorer, Writer};

const KINDS: [&str; 12] = [
    "potato", "garlic", "lemon", "vanilla", "chicken", "tomato", "onion", "pepper", "almond",
    "coconut", "mustard", "honey",
];
const FORMS: [&str; 6] = ["chips", "sauce", "soup", "yogurt", "crackers", "salad"];

fn names() -> Vec<String> {
    let of = |kind: &&str| FORMS.map(|form| format!("{kind} {form}"));
    KINDS.iter().flat_map(of).collect()
}

/// A matcher that was fitted while every fourth product was not sold.
fn model() -> Arc<Model> {
    let names = names();
    let sold = |at: usize| !at.is_multiple_of(4);
    let known = names.iter().enumerate().filter(|(at, _)| sold(*at));
    let matcher = Matcher::new(known.map(|(at, name)| (at as u32, name.as_str())));
    let mut examples = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let (kind, form) = name.split_once(' ').expect("two words");
        let wrong = format!("{}{} {form}", &kind[..2], &kind[3..]);
        for text in [wrong, format!("{form} {kind}"), name.to_uppercase()] {
            examples.push(Example {
                text,
                vector: None,
                product: sold(at).then_some(at as u32),
                kind: String::new(),
            });
        }
    }
    let fitted = fit(&matcher, &examples, &FitOptions::default());
    Arc::new(fitted.expect("fits").model)
}

/// What the server does with each request.
#[derive(Clone, Copy, Debug)]
enum Act {
    Says(&'static str),
    Busy,
    Half,
    Hangs,
}

/// Starts a double of a server; its address.
async fn server(act: Act) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A request and its body come in one piece on this machine, and are not looked at.
                let mut request = vec![0; 64 << 10];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = match act {
                        Act::Says(text) => {
                            let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "data": []});
                            let body = body.to_string();
                            format!(
                                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                                body.len()
                            )
                        }
                        Act::Busy => {
                            "HTTP/1.1 429 Busy\r\nretry-after: 9999\r\ncontent-length: 0\r\n\r\n"
                                .to_owned()
                        }
                        Act::Half => {
                            "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{\"choices\": ["
                                .to_owned()
                        }
                        Act::Hangs => std::future::pending().await,
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err()
                        || matches!(act, Act::Half)
                    {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}/v1")
}

fn scorer(url: &str) -> ArmScorer {
    let endpoint = Endpoint {
        retries: 1,
        read_timeout: Duration::from_millis(300),
        timeout: Duration::from_secs(2),
        failures_max: 3,
        ..Endpoint::at(url)
    };
    let client = Client::new(&endpoint, "m").expect("a client");
    ArmScorer::Writes(FreeScorer::new("table", Writer::Elsewhere(client), model()))
}

fn shop() -> Snapshot {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    snapshot_of(&names)
}

const TERMS: [(&str, f64); 2] = [("assortment", 1.0), ("model", 1.0)];

/// The updates so far.
fn updates(requested: &Requested) -> Vec<serde_json::Value> {
    let records = requested.cluster.records(&requested.topics.recall_updates);
    let values = records.into_iter().filter_map(|record| record.value);
    let parsed = values.map(|value| serde_json::from_slice(&value).expect("JSON"));
    parsed.collect()
}

#[tokio::test]
async fn what_a_model_elsewhere_writes_becomes_the_list_and_the_mixture_fills_it_up() {
    let text =
        "Here you are:\n1. Lemon Yogurt\n2. a unicorn\n3. LEMON YOGURT\n4. honey salad: fresh";
    let url = server(Act::Says(text)).await;
    let requested = Requested::of(shop()).await;
    requested.serve_by((scorer(&url), &TERMS), &Arc::default());
    until(|| updates(&requested).len() == 2 * FIRST).await;
    requested.cancel.cancel();
    let updates = updates(&requested);
    let source = |update: &&serde_json::Value, of: &str| update["doc"]["source"] == of;
    assert_eq!(
        updates.iter().filter(|it| source(it, "mixture")).count(),
        FIRST
    );
    let by_model: Vec<_> = updates.iter().filter(|it| source(it, "model")).collect();
    assert_eq!(by_model.len(), FIRST);
    for update in by_model {
        let shown = update["doc"]["names"].as_array().expect("names");
        let shown: Vec<&str> = shown.iter().filter_map(|name| name.as_str()).collect();
        assert_eq!(shown[..2], ["lemon yogurt", "honey salad"], "{update}");
        assert_eq!(shown.len(), 3, "filled up");
        let written = &update["audit"]["written"];
        assert_eq!(
            written["reasons"],
            json!({"theta": 1, "repeat": 1}),
            "{written}"
        );
        assert_eq!(
            (&written["chatter"], &written["is_cut"]),
            (&json!(1), &json!(false))
        );
        assert_eq!(written["rejected"][0]["text"], "a unicorn");
    }
}

#[tokio::test]
async fn what_a_model_that_runs_here_writes_becomes_the_list() {
    let names = names();
    let handle = spawn(Box::new(Table::default()));
    let known = Names {
        version: 1,
        names: names.clone(),
    };
    handle.set_names(Arc::new(known)).await.expect("set");
    let decoding = Decoding {
        max_tokens: 2,
        ..Decoding::default()
    };
    let writer = Writer::Here(handle, decoding);
    let scorer = ArmScorer::Writes(FreeScorer::new("table", writer, model()));
    let requested = Requested::of(shop()).await;
    requested.serve_by((scorer, &TERMS), &Arc::default());
    until(|| updates(&requested).len() == 2 * FIRST).await;
    requested.cancel.cancel();
    let updates = updates(&requested);
    let by_model = updates.iter().filter(|it| it["doc"]["source"] == "model");
    let by_model: Vec<_> = by_model.collect();
    assert_eq!(by_model.len(), FIRST);
    for update in by_model {
        let shown = update["doc"]["names"].as_array().expect("names");
        assert_eq!(shown.len(), 3, "filled up: {update}");
        let written = &update["audit"]["written"];
        // The table writes a line a token; the second one may be cut off, and is left out.
        let entries = written["names"].as_array().expect("names");
        assert_eq!((entries.len(), &written["is_cut"]), (1, &json!(true)));
        assert_eq!(entries[0]["text"], shown[0]);
    }
}

#[tokio::test]
async fn lists_go_on_without_a_model_that_is_down_busy_slow_or_answers_half_or_nonsense() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let down = format!("http://{}/v1", gone.local_addr().expect("bound"));
    drop(gone);
    let mut cases = vec![("down", down)];
    for (name, act) in [
        ("busy", Act::Busy),
        ("half", Act::Half),
        ("hangs", Act::Hangs),
        ("nonsense", Act::Says("I cannot help with that.")),
    ] {
        cases.push((name, server(act).await));
    }
    for (name, url) in cases {
        let requested = Requested::of(shop()).await;
        requested.serve_by((scorer(&url), &TERMS), &Arc::default());
        // All requests are done: their offsets are committed, behind the last one.
        let committed = || {
            let committed = requested.cluster.committed("r");
            let done = committed
                .iter()
                .find(|(partition, _)| partition.topic == requested.lane);
            done.is_some_and(|(_, resume)| resume.0 >= FIRST as i64)
        };
        until(|| committed() && updates(&requested).len() >= FIRST).await;
        requested.cancel.cancel();
        for update in updates(&requested) {
            assert_eq!(update["doc"]["source"], "mixture", "{name}: {update}");
        }
    }
}
