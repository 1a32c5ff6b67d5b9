//! Promise: an event goes the whole way, from Kafka to a served list, through real processes and a real
//! model; and a process that is killed anywhere, or asked to stop, costs time and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Cell, Counts, Peek, Users};
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::user::event::{Accepted, Change, Item, Kind, Limits, UserId, decode_user};
use nearshore_core::user::fold::fold;
use nearshore_core::user::record::Fences;
use nearshore_core::user::state::{UserState, canonical};
use serde_json::json;

use crate::harness::eventually;
use crate::process::{DRAIN, LIMIT, Process, SHELF, Site, sku_id};

/// Events kept of a user: the default of the configuration.
const WINDOW: usize = 50;

/// What is on the user topics, decoded, by user.
pub async fn accepted(site: &Site) -> BTreeMap<UserId, Vec<Accepted>> {
    let mut users = BTreeMap::<UserId, Vec<Accepted>>::new();
    for topic in [&site.topics.user_events, &site.topics.profile_changes] {
        for record in site.read(topic).await {
            let decoded = decode_user(&record, site.topics.source(topic), &Limits::default());
            if let Ok(accepted) = decoded {
                users
                    .entry(accepted.user.clone())
                    .or_default()
                    .push(accepted);
            }
        }
    }
    users
}

/// A list of the model that has seen all of these records of a user, or why there is none.
pub fn covering(peek: &Peek, records: &[Accepted]) -> Result<Document, String> {
    let list = peek.list.as_ref().ok_or("no list")?;
    let document = Document::parse(&list.doc).map_err(|error| error.to_string())?;
    let all: Fences = records.iter().map(|it| it.position.clone()).collect();
    match document.source {
        Source::Model if list.seen.contains_all(&all) => Ok(document),
        Source::Model => Err(format!("covers {}, not {all}", list.seen)),
        Source::Fallback => Err(format!("a fallback: {:?}", document.reason)),
    }
}

/// Waits for the list of the model that has seen everything of a user.
async fn listed(site: &Site, user: &str) -> Document {
    let all = accepted(site).await;
    let records = &all[&UserId(user.into())];
    let document = eventually(LIMIT, || async {
        covering(&site.peek(user).await, records)
    })
    .await;
    let known: BTreeSet<&str> = SHELF.iter().map(|(pu, _)| *pu).collect();
    assert!(!document.is_empty() && document.distinct());
    for shown in &document.pus {
        assert!(known.contains(shown.name.as_str()), "{}", shown.name);
    }
    document
}

fn skus(document: &Document) -> BTreeSet<String> {
    let all = document.pus.iter().flat_map(|pu| pu.skus.iter().cloned());
    all.collect()
}

/// What `nearshore get USER --json` prints.
async fn got(site: &Site, user: &str) -> Document {
    let text = site.said(&["get", user, "--json"]).await;
    Document::parse(&text).expect("a recall document")
}

/// Waits until `get` shows a SKU, or does not; how long that took.
async fn shows(site: &Site, (user, sku): (&str, &str), wanted: bool) -> Duration {
    let start = Instant::now();
    eventually(Duration::from_secs(10), || async {
        let shown = skus(&got(site, user).await);
        if shown.contains(sku) == wanted {
            Ok(())
        } else {
            Err(format!("{sku} in {shown:?}"))
        }
    })
    .await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_user_gets_a_list_of_the_model_that_has_seen_all_their_events() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let users = ["ann", "bob", "cem", "dee", "e{v}e"];
    let profile = json!({"household": "2 adults, 1 child", "income": "35-49K"});
    let profiles = users.map(|user| site.profile(user, &profile));
    site.send(profiles.into()).await;
    let events = (0..40).map(|nth| site.bought(users[nth % 5], nth * 7));
    site.send(events.collect()).await;
    let process = Process::ready(&site, "all").await;
    for user in users {
        let document = listed(&site, user).await;
        assert_eq!(document.pus.len(), 3);
        assert_eq!(got(&site, user).await.list_id, document.list_id);
    }
    a_product_that_is_sold_out_or_blocked_is_not_shown(&site, "ann").await;
    a_profile_takes_what_it_forbids_off_the_list(&site, "bob").await;
    an_erased_user_is_gone_and_may_come_back(&site, "cem").await;
    assert_eq!(site.count(&site.topics.dlq).await, 0);
    assert_eq!(process.metric("nearshore_erases_total", "").await, 1.0);
}

async fn a_product_that_is_sold_out_or_blocked_is_not_shown(site: &Site, user: &str) {
    let all: Vec<String> = skus(&got(site, user).await).into_iter().collect();
    let (sold_out, blocked) = (all[0].as_str(), all[1].as_str());
    let nth = (0..30).find(|nth| sku_id(*nth) == sold_out);
    let nth = nth.expect("one of ours");
    site.send(vec![site.sku(nth, 0)]).await;
    let took = shows(site, (user, sold_out), false).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    site.send(vec![site.sku(nth, 3)]).await;
    shows(site, (user, sold_out), true).await;

    let said = site
        .said(&["block", blocked, "--reason", "recall of batch 7"])
        .await;
    assert!(said.contains(blocked), "{said}");
    let took = shows(site, (user, blocked), false).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    site.said(&["unblock", blocked]).await;
    shows(site, (user, blocked), true).await;
    let again = site.cli(&["unblock", blocked]).await;
    assert_eq!(again.status.code(), Some(1), "there was no block any more");
}

async fn a_profile_takes_what_it_forbids_off_the_list(site: &Site, user: &str) {
    let first = listed(site, user).await.pus[0].name.clone();
    let category = |name: &str| SHELF.iter().find(|(pu, _)| *pu == name).map(|it| it.1);
    let forbidden = category(&first).expect("one of ours");
    let profile = site.profile(user, &json!({"avoids": [forbidden]}));
    site.send(vec![profile]).await;
    let offends = |document: &Document| {
        let mut names = document.pus.iter().map(|pu| pu.name.as_str());
        names.any(|name| category(name) == Some(forbidden))
    };
    // At once in the stored list, and in the one that the model makes next.
    eventually(LIMIT, || async {
        let list = site.peek(user).await.list.expect("a list");
        let document = Document::parse(&list.doc).map_err(|error| error.to_string())?;
        if offends(&document) {
            Err(format!("{:?}", document.pus))
        } else {
            Ok(())
        }
    })
    .await;
    let next = listed(site, user).await;
    assert!(!offends(&next), "{:?}", next.pus);
    let audit = site.peek(user).await.list.expect("a list").audit;
    let rule = format!("no-{}", forbidden.to_lowercase());
    assert!(audit.contains(&rule), "{audit}");
}

async fn an_erased_user_is_gone_and_may_come_back(site: &Site, user: &str) {
    let id = [UserId(user.into())];
    let mut null = site.profile(user, &json!({}));
    null.value = None;
    site.send(vec![null]).await;
    eventually(LIMIT, || async {
        let held = site.store.load(&site.ns, &id).await;
        let held = held.map_err(|error| error.to_string())?.remove(0);
        let gone = held.state.is_vacant() && held.state.erased_at.0 > 0;
        match (gone, site.peek(user).await.list) {
            (true, None) => Ok(()),
            (gone, list) => Err(format!("vacant {gone}, list {list:?}")),
        }
    })
    .await;
    let keys = keys::user(&site.ns, &id[0]).expect("keys");
    assert_eq!(site.redis.told(&["EXISTS", &keys.erased]).await, "1");
    assert_eq!(site.redis.told(&["EXISTS", &keys.profile]).await, "0");
    let key = format!("{}/{user}", site.ns);
    eventually(LIMIT, || async {
        let updates = site.read(&site.topics.recall_updates).await;
        let last = updates
            .iter()
            .rfind(|it| it.key.as_deref() == Some(key.as_bytes()));
        match last.map(|it| it.value.is_none()) {
            Some(true) => Ok(()),
            other => Err(format!(
                "last of {} updates is null: {other:?}",
                updates.len()
            )),
        }
    })
    .await;

    site.send(vec![site.bought(user, 5)]).await;
    listed(site, user).await;
    let held = site.store.load(&site.ns, &id).await.expect("answered");
    assert_eq!(held[0].state.window.len(), 1, "what was before stays gone");
}

/// Every state, and all counts, are what one thread makes of the topics.
pub async fn is_exact(site: &Site) {
    let (mut counts, mut states) = (BTreeMap::<Cell, u64>::new(), BTreeMap::new());
    for (user, records) in accepted(site).await {
        let mut state = UserState::default();
        for record in &records {
            fold(&mut state, record, WINDOW);
            if let Some((cell, n)) = counted(record) {
                *counts.entry(cell).or_default() += n;
            }
        }
        states.insert(user, state);
    }
    let users: Vec<UserId> = states.keys().cloned().collect();
    let held = site.store.load(&site.ns, &users).await.expect("answered");
    for ((user, state), held) in states.iter().zip(held) {
        assert_eq!(canonical(&held.state), canonical(state), "user {user}");
    }
    let mut stored = BTreeMap::new();
    for shard in 0..=255 {
        let cells = site.store.counts(&site.ns, shard, 0).await;
        stored.extend(cells.expect("answered"));
    }
    assert_eq!(stored, counts);
}

fn counted(record: &Accepted) -> Option<(Cell, u64)> {
    let Change::Event(event) = &record.change else {
        return None;
    };
    let Item::Sku(sku) = &event.item else {
        return None;
    };
    let cell = Cell {
        sku: sku.clone(),
        kind: event.kind,
        segment: "default".into(),
        bucket: record.time.0.div_euclid(BUCKET_MS),
    };
    let bought = event.kind == Kind::Purchase;
    Some((cell, if bought { event.qty.into() } else { 1 }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_members_lose_nothing_and_double_nothing() {
    let site = Site::open(&[("user_events", 4, &[]), ("profile_changes", 2, &[])]).await;
    site.catalogue().await;
    let user = |nth: usize| format!("user-{}", nth % 200);
    let mut members = [
        Process::ready(&site, "ingest").await,
        Process::ready(&site, "ingest").await,
    ];
    for round in 0..4 {
        let before = site.store.count_versions(&site.ns).await.expect("answered");
        let events = (0..1_250).map(|nth| site.bought(&user(nth * 7 + round), nth + round));
        site.send(events.collect()).await;
        let profiles = (0..50).map(|nth| {
            let user = user(nth * 4 + round);
            site.profile(&user, &json!({"round": round}))
        });
        site.send(profiles.collect()).await;
        if round == 3 {
            break;
        }
        // The first sign of work: now one of the two is in the middle of it.
        eventually(LIMIT, || async {
            let now = site.store.count_versions(&site.ns).await;
            match now.map_err(|error| error.to_string())? == before {
                true => Err("nothing is folded".to_owned()),
                false => Ok(()),
            }
        })
        .await;
        let victim = &mut members[round % 2];
        victim.kill();
        *victim = Process::start(&site, "ingest");
    }
    for member in &mut members {
        member.becomes_ready().await;
    }
    site.committed().await;
    is_exact(&site).await;
    assert_eq!(site.count(&site.topics.user_events).await, 5_000);
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_drains_and_the_next_member_goes_on() {
    let site = Site::open(&[("user_events", 4, &[])]).await;
    site.catalogue().await;
    let mut member = Process::ready(&site, "ingest").await;
    let events = (0..20_000).map(|nth| site.bought(&format!("user-{}", nth % 3_000), nth));
    site.send(events.collect()).await;
    eventually(LIMIT, || async {
        match member.metric("nearshore_records_total", "folded").await {
            0.0 => Err("nothing is folded".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let (status, took) = member.terminate().await;
    assert!(status.success(), "{status}\n{}", member.log());
    assert!(took < DRAIN, "{took:?}");
    let _next = Process::ready(&site, "ingest").await;
    site.committed().await;
    is_exact(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_does_not_wait_for_the_model() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let users = ["ann", "bob", "cem", "dee", "eve", "fay", "gus", "hal"];
    let events = (0..80).map(|nth| site.bought(users[nth % 8], nth));
    site.send(events.collect()).await;
    // Loading its model, a process can be stopped as well.
    let mut loading = Process::start(&site, "all");
    eventually(LIMIT, || async {
        let answer = loading.get("/healthz").await;
        answer.map_err(|error| error.to_string())
    })
    .await;
    let (status, took) = loading.terminate().await;
    assert!(status.success(), "{status}\n{}", loading.log());
    assert!(took < DRAIN, "{took:?}");

    let mut working = Process::ready(&site, "all").await;
    eventually(LIMIT, || async {
        match working.metric("nearshore_requests_running", "").await {
            0.0 => Err("nothing runs".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let (status, took) = working.terminate().await;
    assert!(status.success(), "{status}\n{}", working.log());
    assert!(took < DRAIN, "{took:?}");

    // Nothing was committed too early: the next one makes every list.
    let _next = Process::ready(&site, "all").await;
    for user in users {
        listed(&site, user).await;
    }
}
