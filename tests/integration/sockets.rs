//! Promise: clients that send half of a request keep out no probe, no scrape and no list, also where a process may open
//! few descriptors; these come back.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};

/// Half-sent requests that are open at a time.
const HALF_SENT: usize = 5_000;

/// Descriptors that the process may open.
const DESCRIPTORS: usize = 1_024;

/// The most descriptors that a limit in `/proc` allows: the soft one, the hard one.
fn limits(of: &str) -> (usize, usize) {
    let text = std::fs::read_to_string(format!("/proc/{of}/limits")).expect("Linux tells limits");
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let mut numbers = line.expect("it has that limit").split_whitespace().skip(3);
    let mut number = || numbers.next().and_then(|text| text.parse().ok());
    (
        number().unwrap_or(usize::MAX),
        number().unwrap_or(usize::MAX),
    )
}

/// Raises the limit of this process as far as it may, and returns how many half-sent requests it can keep open.
fn room() -> usize {
    let (_, hard) = limits("self");
    let (pid, to) = (std::process::id().to_string(), format!("--nofile={hard}:"));
    let raised = Command::new("prlimit").args(["--pid", &pid, &to]).status();
    let (soft, _) = limits("self");
    // Other tests of this process need descriptors, too.
    let room = HALF_SENT.min(soft.saturating_sub(500));
    eprintln!(
        "sockets: {room} half-sent requests of {HALF_SENT}; this process may open {soft} ({raised:?})"
    );
    room
}

/// Opens half-sent requests and sends another one for each that the server closed, until it is aborted. Tells how many
/// were sent.
async fn send_halves(url: String, room: usize, sent: Arc<watch::Sender<usize>>) {
    let address = url.trim_start_matches("http://").to_owned();
    let mut open: Vec<TcpStream> = Vec::new();
    for nth in 0.. {
        let Ok(mut stream) = TcpStream::connect(&address).await else {
            continue;
        };
        // The server may have closed it already.
        let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: loc").await;
        match open.len() < room {
            true => open.push(stream),
            false => open[nth % room] = stream,
        }
        sent.send_modify(|sent| *sent += 1);
        if open.len() == room {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_half_sent_requests_keep_out_no_probe_and_no_list() {
    let room = room();
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut process = Process::start_limited(&site, "all", DESCRIPTORS);
    process.becomes_ready().await;
    let limit = limits(&process.pid().to_string());
    assert_eq!(limit, (DESCRIPTORS, DESCRIPTORS));
    let before = process.descriptors();

    let sent = Arc::new(watch::Sender::new(0));
    let halves = tokio::spawn(send_halves(process.url(""), room, sent.clone()));
    let mut seen = sent.subscribe();
    let all = tokio::time::timeout(LIMIT, seen.wait_for(|sent| *sent >= room)).await;
    all.expect("they are accepted").expect("they are sent");
    let mut slowest = Duration::ZERO;
    for nth in 0..20 {
        let user = format!("user-{nth}");
        site.send(vec![site.bought(&user, nth)]).await;
        let start = Instant::now();
        let (status, page) = process.get("/readyz").await.expect("a probe is answered");
        assert_eq!(status, 200, "{page}");
        assert_eq!(
            process.metric("nearshore_partitions_stopped", "").await,
            0.0
        );
        slowest = slowest.max(start.elapsed());
        eventually(LIMIT, || async {
            let list = site.peek(&user).await.list;
            let list = list.filter(|list| list.claim > 0);
            list.map(drop).ok_or("no list by the model".to_owned())
        })
        .await;
    }
    let during = process.descriptors();
    let log = process.log();
    halves.abort();
    assert!(halves.await.is_err_and(|ended| ended.is_cancelled()));
    eprintln!(
        "sockets: {} sent; descriptors {before} before, {during} during; slowest probe and scrape {slowest:?}",
        *sent.borrow()
    );
    assert!(during < DESCRIPTORS / 2, "{during} descriptors");
    assert!(!log.contains("Too many open files"), "{log}");
    // Links to brokers and Redis may be more by now, connections of clients are closed.
    eventually(LIMIT, || async {
        match process.descriptors() {
            after if after <= before + 20 => Ok(()),
            after => Err(format!("{after} descriptors, {before} before")),
        }
    })
    .await;
}
