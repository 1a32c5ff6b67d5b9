//! Promise: a namespace can be filled from the log at any time, beside the active one: the same bytes give the same
//! fold wherever a backfill is killed; folding again changes nothing; an erased user stays erased.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Namespaces, Users};
use nearshore_core::queue::replay::{Plan, Stage};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::{Value, json};

use crate::harness::{eventually, fresh};
use crate::process::{LIMIT, Process, Site, Special, now};

const DAY: i64 = 86_400_000;

/// The user that is erased in the middle of the log, and the one at its end.
const ERASED: [usize; 2] = [3, 4];

fn user(nth: usize) -> String {
    format!("u{nth:04}")
}

fn at(time: i64, mut record: Outgoing) -> Outgoing {
    record.time = Some(Timestamp(time));
    record
}

/// Sends a year of purchases of so many users, profiles that change, one erase half-way and one at the end.
async fn year(site: &Site, (users, events): (usize, usize)) {
    let start = now().0 - 365 * DAY;
    let time = |nth: usize| start + nth as i64 * (364 * DAY / events as i64);
    let segments = ["family", "single"];
    let mut records = Vec::new();
    for nth in 0..users {
        let profile = json!({"household": segments[nth % 2], "n": nth});
        records.push(at(start, site.profile(&user(nth), &profile)));
        if nth % 5 == 0 {
            let later = json!({"household": "single", "n": nth + 1});
            records.push(at(time(events / 2), site.profile(&user(nth), &later)));
        }
    }
    site.send(records).await;
    for chunk in (0..events).collect::<Vec<_>>().chunks(2_000) {
        let bought = chunk.iter().map(|nth| {
            let buyer = (nth * 7919) % users;
            at(time(*nth), site.bought(&user(buyer), nth % 29))
        });
        site.send(bought.collect()).await;
    }
    let tombstone = |nth: usize, time: i64| Outgoing {
        value: None,
        ..at(time, site.profile(&user(nth), &Value::Null))
    };
    let half = tombstone(ERASED[0], time(events / 2));
    let end = tombstone(ERASED[1], time(events) + DAY / 2);
    site.send(vec![half, end]).await;
}

const TOPICS: &[Special<'_>] = &[("user_events", 3, &[]), ("profile_changes", 2, &[])];

/// Adds a segment and the catalogue.
async fn prepared(site: Site) -> Site {
    site.append(
        "[[segments]]\nid = \"family\"\nwhen = [{ field = \"household\", equals = \"family\" }]\n",
    );
    site.catalogue().await;
    site
}

fn start(site: &Site, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(words)
        .arg("--config")
        .arg(site.folder().join("nearshore.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// Runs a backfill to its end; its report.
async fn filled(site: &Site, ns: &str, more: &[&str]) -> Value {
    let words = [&["backfill", "--namespace", ns, "--json"], more].concat();
    let output = site.output(&words).await;
    serde_json::from_str(output.trim()).expect("one line of JSON")
}

async fn digest(site: &Site, ns: &str) -> String {
    site.output(&["namespace", "dump", ns, "--digest"]).await
}

/// Starts a backfill and kills it as soon as its plan is at `stage` and, in the stage of events, the states have more
/// events than `folded`. How many they have then.
async fn killed_at(site: &Site, ns: &str, (stage, folded): (Stage, usize)) -> usize {
    let users: Vec<UserId> = (0..400).map(|nth| UserId(user(nth).into())).collect();
    let mut child = start(site, &["backfill", "--namespace", ns, "--from", "earliest"]);
    let deadline = Instant::now() + LIMIT;
    loop {
        let plan = site.store.plan(ns).await.expect("Redis answers");
        let plan = plan.map(|text| Plan::parse(&text).expect("a plan"));
        let stage_now = plan.as_ref().map(|plan| plan.stage);
        let loaded = site.store.load(ns, &users).await;
        let loaded = loaded.expect("Redis answers");
        let now: usize = loaded.iter().map(|it| it.state.window.len()).sum();
        if stage_now == Some(stage) && (stage != Stage::Events || now > folded) {
            child.kill().expect("it is killed");
            child.wait().expect("it ends");
            return now;
        }
        let ended = child.try_wait().expect("the status is known");
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "it was not at {stage} with more than {folded} events: {stage_now:?}, {now}, {ended:?}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Number of requests of each user on the backfill lane, by namespace.
async fn requests(site: &Site) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut all = BTreeMap::<String, BTreeMap<String, usize>>::new();
    for record in site.read(&site.topics.regen_backfill.clone()).await {
        let request: Value =
            serde_json::from_slice(&record.value.expect("a request")).expect("JSON");
        let text = |key: &str| request[key].as_str().expect("text").to_owned();
        *all.entry(text("ns"))
            .or_default()
            .entry(text("user"))
            .or_default() += 1;
    }
    all
}

#[tokio::test]
async fn two_backfills_of_the_same_bytes_are_equal_wherever_they_are_killed() {
    let (users, events) = (400, 12_000);
    let site = prepared(Site::open(TOPICS).await).await;
    year(&site, (users, events)).await;
    let (whole, broken) = (fresh("whole"), fresh("broken"));

    let report = filled(&site, &whole, &["--from", "earliest"]).await;
    assert_eq!(report["finished"], true, "{report}");
    assert_eq!(report["folded"], events + users + users / 5 + 2, "{report}");
    assert_eq!(
        (&report["skipped"], &report["dead"]),
        (&json!(0), &json!(0)),
        "{report}"
    );

    let mut folded = 0;
    for stage in [
        Stage::Placing,
        Stage::Profiles,
        Stage::Events,
        Stage::Events,
        Stage::Sweep,
    ] {
        folded = killed_at(&site, &broken, (stage, folded)).await;
    }
    assert!(
        folded > 0,
        "no backfill was killed after it had folded events"
    );
    let report = filled(&site, &broken, &[]).await;
    assert_eq!(report["finished"], true, "{report}");
    let digests = (digest(&site, &whole).await, digest(&site, &broken).await);
    assert_eq!(digests.0, digests.1);

    let requests = requests(&site).await;
    let expected: Vec<String> = (0..users)
        .filter(|nth| *nth != ERASED[1])
        .map(user)
        .collect();
    let once: BTreeMap<String, usize> = expected.iter().map(|user| (user.clone(), 1)).collect();
    assert_eq!(requests[&whole], once);
    let known: Vec<&String> = requests[&broken].keys().collect();
    assert_eq!(
        known,
        expected.iter().collect::<Vec<_>>(),
        "every user that is not erased, and no other"
    );
}

#[tokio::test]
async fn a_backfill_over_folded_records_changes_nothing_and_reports_how_many_it_skipped() {
    let (users, events) = (50, 1_500);
    let site = prepared(Site::open(TOPICS).await).await;
    year(&site, (users, events)).await;
    let ns = fresh("again");
    filled(&site, &ns, &["--from", "earliest"]).await;
    let before = digest(&site, &ns).await;

    let done = filled(&site, &ns, &[]).await;
    assert_eq!(
        (&done["was_done"], &done["skipped"]),
        (&json!(true), &json!(0)),
        "{done}"
    );

    let again = filled(&site, &ns, &["--from", "earliest"]).await;
    let all = events + users + users / 5 + 2;
    assert_eq!(
        (&again["folded"], &again["skipped"]),
        (&json!(0), &json!(all)),
        "{again}"
    );
    assert_eq!(digest(&site, &ns).await, before);

    // The last tenth, by time.
    let since = nearshore_core::queue::replay::Moment(Timestamp(now().0 - 36 * DAY)).to_string();
    let part = filled(&site, &ns, &["--from", &since]).await;
    let skipped = part["skipped"].as_u64().expect("a number") as usize;
    assert!(
        (events / 20..events / 5 + users * 2).contains(&skipped),
        "{part}"
    );
    assert_eq!(digest(&site, &ns).await, before);
}

#[tokio::test]
async fn an_erased_user_stays_erased_in_a_filled_namespace() {
    let site = prepared(Site::open(TOPICS).await).await;
    year(&site, (20, 600)).await;
    let ns = fresh("erased");
    filled(&site, &ns, &["--from", "earliest"]).await;
    let erased = [UserId(user(ERASED[1]).into())];
    let loaded = site.store.load(&ns, &erased).await;
    let state = loaded.expect("Redis answers").remove(0).state;
    assert!(
        state.is_vacant() && state.erased_at > Timestamp(0),
        "{state:?}"
    );
    let half = [UserId(user(ERASED[0]).into())];
    let loaded = site.store.load(&ns, &half).await;
    let state = loaded.expect("Redis answers").remove(0).state;
    assert!(!state.window.is_empty(), "events after the erase are kept");
    let mut window = state.window.iter();
    assert!(window.all(|event| event.time > state.erased_at));
    let peeks = site.store.peek(&ns, &erased).await;
    assert_eq!(peeks.expect("Redis answers")[0].list, None);
}

#[tokio::test]
async fn a_start_that_is_no_longer_retained_is_refused_with_the_oldest_record() {
    let site = Site::open(&[(
        "user_events",
        1,
        &[("retention.ms", "-1"), ("segment.ms", "1000")],
    )])
    .await;
    site.catalogue().await;
    let start = now().0 - 30 * DAY;
    let bought = (0..20).map(|nth| at(start + nth * DAY, site.bought("u", nth as usize)));
    site.send(bought.collect()).await;
    let kafka = crate::harness::variable("NEARSHORE_TEST_KAFKA_HOME");
    let topic = site.topics.user_events.to_string();
    let offsets = site.write(
        "delete.json",
        &json!({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 10}]})
            .to_string(),
    );
    let deleted = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "exec {kafka}/kafka tool org.apache.kafka.tools.DeleteRecordsCommand --bootstrap-server {} --offset-json-file {}",
            site.settings.brokers,
            offsets.display()
        ))
        .output()
        .expect("a shell");
    assert!(
        deleted.status.success(),
        "{}",
        String::from_utf8_lossy(&deleted.stderr)
    );

    let since = nearshore_core::queue::replay::Moment(Timestamp(start + 5 * DAY)).to_string();
    let ns = fresh("cut");
    let refused = site
        .cli(&["backfill", "--namespace", &ns, "--from", &since])
        .await;
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    let oldest = nearshore_core::queue::replay::Moment(Timestamp(start + 10 * DAY)).to_string();
    assert!(
        error.contains(&format!("{topic}/0")) && error.contains(&oldest),
        "{error}"
    );

    // A backfill from the oldest record notes in the state since when it is complete.
    filled(&site, &ns, &["--from", "earliest"]).await;
    let user = [UserId("u".into())];
    let loaded = site.store.load(&ns, &user).await;
    let state = loaded.expect("Redis answers").remove(0).state;
    assert_eq!(state.window.len(), 10);
    assert_eq!(state.complete_since, Timestamp(start + 10 * DAY));
}

#[tokio::test]
async fn a_namespace_is_filled_promoted_compared_followed_and_retired() {
    let site = prepared(Site::open(TOPICS).await).await;
    year(&site, (30, 900)).await;
    let served = Process::ready(&site, "all").await;
    site.committed().await;
    // The lists of history are made at its end; a promotion compares with them.
    eventually(LIMIT, || async {
        let lists = "nearshore_lists_published_total";
        match served.metric(lists, "").await {
            found if found >= 29.0 => Ok(()),
            found => Err(format!("{found} lists")),
        }
    })
    .await;
    let next = fresh("next");
    filled(&site, &next, &["--from", "earliest"]).await;

    let early = site.cli(&["namespace", "promote", &next]).await;
    let output = String::from_utf8_lossy(&early.stdout).into_owned();
    assert_eq!(early.status.code(), Some(1), "{output}");
    assert!(output.contains("FAIL fed"), "{output}");

    let follower = Follower::start(&site, &next).await;
    eventually(LIMIT, || async {
        let tried = site.cli(&["namespace", "promote", &next]).await;
        let output = String::from_utf8_lossy(&tried.stdout).into_owned();
        tried.status.success().then_some(()).ok_or(output)
    })
    .await;
    assert_eq!(
        site.store.active().await.expect("Redis answers").as_deref(),
        Some(&*next)
    );

    compared(&site, &next).await;

    // Both namespaces are followed, so the promotion can be reverted at once.
    site.send(vec![site.bought("late", 1)]).await;
    for ns in [&site.ns, &next] {
        eventually(LIMIT, || async {
            let late = [UserId("late".into())];
            let peeks = site.store.peek(ns, &late).await;
            let peek = peeks.map_err(|error| error.to_string())?.remove(0);
            // A user without a list fails the checks of a promotion.
            let served = !peek.fences.is_empty() && nearshore::ops::namespace::is_covered(&peek);
            served.then_some(()).ok_or(format!("{ns}: {peek:?}"))
        })
        .await;
    }
    let refused = site.cli(&["namespace", "retire", &next]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is served"));
    site.output(&["namespace", "promote", &site.ns.clone()])
        .await;
    let fed = site.cli(&["namespace", "retire", &next]).await;
    assert!(
        String::from_utf8_lossy(&fed.stderr).contains("members"),
        "{fed:?}"
    );
    drop(follower);
    site.append("[backfill]\nactive_ttl = \"1s\"\n");
    site.output(&["namespace", "retire", &next]).await;
    assert_eq!(users(&site, &next).await, 0);
    let left = site.store.namespaces().await;
    let left = left.expect("Redis answers");
    assert!(!left.contains_key(&next), "{left:?}");
    assert_eq!(users(&site, &site.ns).await, 31);
    drop(served);
}

/// Compares two namespaces with `namespace diff`, as JSON and as a page.
async fn compared(site: &Site, next: &str) {
    let diff = site
        .output(&["namespace", "diff", &site.ns, next, "--all", "--json"])
        .await;
    let diff: Value = serde_json::from_str(&diff).expect("JSON");
    assert_eq!(diff["all"]["users"], 30, "{diff}");
    assert_eq!(diff["all"]["b"]["coverage"], 29.0 / 30.0, "{diff}");
    let page = site.folder().join("diff.html");
    let page_name = page.display().to_string();
    site.output(&["namespace", "diff", &site.ns, next, "--html", &page_name])
        .await;
    let html = std::fs::read_to_string(page).expect("the page is written");
    assert!(html.contains("everyone") && html.contains(next), "{html}");
}

/// Number of users of a namespace.
async fn users(site: &Site, ns: &str) -> u64 {
    let output = site
        .output(&["namespace", "dump", ns, "--digest", "--json"])
        .await;
    let dump: Value = serde_json::from_str(&output).expect("JSON");
    dump["users"].as_u64().expect("a number")
}

/// `nearshore run --namespace N --role ingest`.
pub(crate) struct Follower(Child);

impl Follower {
    pub(crate) async fn start(site: &Site, ns: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(["run", "--role", "ingest", "--namespace", ns, "--config"])
            .arg(site.folder().join("nearshore.toml"))
            .env("NEARSHORE__HTTP__LISTEN", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        Self(child)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.0.wait();
    }
}
