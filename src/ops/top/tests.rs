//! Tests of what is made of pages, and of processes that die between two rounds.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// The page of a process with so many records, lists and dead letters; `slow` of its lists took 30 s, the others 1 s.
fn page(records: u32, lists: u32, slow: u32, dlq: u32) -> String {
    let quick = lists - slow;
    format!(
        "# TYPE nearshore_records_total counter\n\
         nearshore_records_total{{topic=\"user-events\",outcome=\"folded\"}} {records}\n\
         nearshore_records_total{{topic=\"user-events\",outcome=\"lost\"}} 0\n\
         nearshore_lists_published_total{{arm=\"a\",lane=\"live\",source=\"mixture\"}} {lists}\n\
         nearshore_event_to_list_seconds_bucket{{lane=\"live\",start=\"warm\",le=\"1\"}} {quick}\n\
         nearshore_event_to_list_seconds_bucket{{lane=\"live\",start=\"warm\",le=\"30\"}} {lists}\n\
         nearshore_event_to_list_seconds_bucket{{lane=\"live\",start=\"warm\",le=\"+Inf\"}} {lists}\n\
         nearshore_requests_waiting{{lane=\"live\"}} 7\n\
         nearshore_requests_oldest_age_seconds{{lane=\"live\"}} {slow}\n\
         nearshore_consumer_lag{{group=\"g\",topic=\"t\",partition=\"0\"}} 5\n\
         nearshore_consumer_lag{{group=\"g\",topic=\"t\",partition=\"1\"}} 6\n\
         nearshore_dlq_records_total{{stage=\"event\",error=\"no_key\"}} {dlq}\n\
         nearshore_build_info{{version=\"0.1.0\"}} 1\n"
    )
}

fn read(rounds: &mut Rounds, pages: &[(&str, Result<String, String>)], at: i64) -> Reading {
    let pages = pages.iter().map(|(address, page)| {
        let page = page.as_ref().map(|text| Exposition::read(text));
        ((*address).to_owned(), page.map_err(Clone::clone))
    });
    rounds.summed(pages.collect(), Timestamp(at))
}

#[test]
fn rates_are_those_between_two_rounds_and_ages_the_largest() {
    let mut rounds = Rounds::default();
    let first = [("a", Ok(page(100, 10, 0, 1))), ("b", Ok(page(0, 0, 0, 0)))];
    let reading = read(&mut rounds, &first, 0);
    assert_eq!(reading.total.records_per_second, None);
    assert_eq!(reading.replicas[0].version.as_deref(), Some("0.1.0"));
    assert!(reading.replicas[0].faults.is_empty(), "{reading:?}");
    let second = [
        ("a", Ok(page(300, 14, 3, 3))),
        ("b", Ok(page(100, 100, 1, 0))),
    ];
    let reading = read(&mut rounds, &second, 2_000);
    let [a, b] = &reading.replicas[..] else {
        panic!("{reading:?}")
    };
    assert_eq!(a.figures.records_per_second, Some(100.0));
    assert_eq!(reading.total.records_per_second, Some(150.0));
    // Of four lists of this round three took longer than a second.
    assert_eq!(a.figures.fresh_p50_seconds, Some(30.0));
    assert_eq!(b.figures.fresh_p50_seconds, Some(1.0));
    assert_eq!(reading.total.fresh_p95_seconds, Some(1.0));
    assert_eq!(reading.total.lag_records, Some(22.0));
    let live = &reading.total.lanes["live"];
    assert_eq!((live.waiting, live.oldest_age_seconds), (14.0, 3.0));
    assert_eq!(a.faults, ["2 new dead letters"]);
}

#[test]
fn a_restarted_process_counts_from_zero() {
    let mut rounds = Rounds::default();
    read(&mut rounds, &[("a", Ok(page(1_000, 10, 0, 0)))], 0);
    let reading = read(&mut rounds, &[("a", Ok(page(50, 0, 0, 0)))], 1_000);
    assert_eq!(reading.total.records_per_second, Some(50.0));
}

#[test]
fn text_names_who_does_not_answer_and_shows_the_others() {
    let mut rounds = Rounds::default();
    let pages = [
        ("a:1", Ok(page(1, 1, 0, 0))),
        ("b:1", Err("connection refused".into())),
    ];
    let text = read(&mut rounds, &pages, 0).text();
    assert!(text.starts_with("1 of 2 processes answer"), "{text}");
    assert!(
        text.contains("DOES NOT ANSWER: connection refused"),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|line| line.starts_with("a:1") && line.contains("11")),
        "{text}"
    );
}

/// A server that answers every request with this text.
async fn server(body: String) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let serving = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _written = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_replica_that_dies_is_a_row_and_the_others_go_on() {
    let limit = Duration::from_secs(2);
    let (dying, serving) = server(page(10, 1, 0, 0)).await;
    let (other, _serving) = server(page(20, 1, 0, 0)).await;
    let (wrong, _serving_too) = server("<html>".into()).await;
    // It accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hung = silent.local_addr().expect("an address").to_string();
    let targets = [dying, format!("http://{other}/metrics"), wrong, hung];
    let mut rounds = Rounds::default();
    let errors = |reading: &Reading| -> Vec<bool> {
        reading
            .replicas
            .iter()
            .map(|it| it.error.is_some())
            .collect()
    };
    let reading = rounds.read(&targets, limit).await;
    assert_eq!(errors(&reading), [false, false, true, true], "{reading:?}");
    assert_eq!(reading.answered, 2);
    serving.abort();
    assert!(serving.await.expect_err("aborted").is_cancelled());
    let reading = rounds.read(&targets, limit).await;
    assert_eq!(errors(&reading), [true, false, true, true], "{reading:?}");
    assert_eq!(reading.total.lag_records, Some(11.0));
    let found: Vec<_> = reading
        .replicas
        .iter()
        .filter_map(|it| it.error.as_deref())
        .collect();
    assert!(
        found[1].contains("no metrics") && found[2].contains("no answer within"),
        "{found:?}"
    );
}
