//! Promise: an event goes the whole way, from Kafka to a served list, through real processes, with a table of scores
//! and with real weights; a process that is killed at any point, or asked to stop, costs time and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nearshore_core::list::document::{Document, Source, Stage};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Cell, Counts, Peek, Users};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::user::event::{Accepted, Change, Item, Kind, Limits, UserId, decode_user};
use nearshore_core::user::fold::fold;
use nearshore_core::user::record::Fences;
use nearshore_core::user::state::{UserState, canonical};
use serde_json::json;

use crate::harness::eventually;
use crate::process::{DRAIN_MAX, LIMIT, PRODUCTS, Process, Site, TABLE, WEIGHTS_LIMIT, sku_id};

/// Events kept of a user: the default of the configuration.
const WINDOW: usize = 50;

/// The records of the user topics that can be decoded, by user.
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

/// The list by the model that has seen all of these records of a user, or why there is none.
pub fn list_with_all(peek: &Peek, records: &[Accepted]) -> Result<Document, String> {
    let list = peek.list.as_ref().ok_or("no list")?;
    let document = Document::parse(&list.doc).map_err(|error| error.to_string())?;
    let all: Fences = records.iter().map(|it| it.position.clone()).collect();
    match document.source {
        Source::Model | Source::Mixture if list.seen.contains_all(&all) => Ok(document),
        Source::Model | Source::Mixture => {
            Err(format!("the list has seen {}, not {all}", list.seen))
        }
        Source::Fallback => Err(format!("the list is a fallback: {:?}", document.reason)),
    }
}

/// Waits for the list by the model that has seen every record of a user.
async fn listed(site: &Site, user: &str) -> Document {
    listed_within(LIMIT, site, user).await
}

async fn listed_within(limit: Duration, site: &Site, user: &str) -> Document {
    let all = accepted(site).await;
    let records = &all[&UserId(user.into())];
    let document = eventually(limit, || async {
        list_with_all(&site.peek(user).await, records)
    })
    .await;
    let known: BTreeSet<&str> = PRODUCTS.iter().map(|(pu, _)| *pu).collect();
    assert!(!document.is_empty() && document.distinct());
    for pu in &document.pus {
        assert!(known.contains(pu.name.as_str()), "{}", pu.name);
    }
    document
}

fn skus(document: &Document) -> BTreeSet<String> {
    let all = document.pus.iter().flat_map(|pu| pu.skus.iter().cloned());
    all.collect()
}

/// What `nearshore get USER --json` prints.
async fn got(site: &Site, user: &str) -> Document {
    let text = site.output(&["get", user, "--json"]).await;
    Document::parse(&text).expect("a recall document")
}

/// Waits until `get` shows a SKU, or shows it no longer.
async fn shows(site: &Site, (user, sku): (&str, &str), wanted: bool) {
    eventually(LIMIT, || async {
        let shown = skus(&got(site, user).await);
        if shown.contains(sku) == wanted {
            Ok(())
        } else {
            Err(format!("{sku}: wanted {wanted}, shown {shown:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_user_gets_a_list_by_the_model_that_has_seen_all_their_events() {
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
    a_product_that_a_new_profile_forbids_leaves_the_list(&site, "bob").await;
    an_erased_user_has_no_state_and_starts_anew(&site, "cem").await;
    assert_eq!(site.count(&site.topics.dlq).await, 0);
    assert_eq!(process.metric("nearshore_erases_total", "").await, 1.0);
}

/// The same way with the model's real weights: few users, for a slow core takes minutes for a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_weights_make_lists_that_have_seen_all_events() {
    let site = Site::open(&[]).await;
    site.use_weights();
    site.catalogue().await;
    let users = ["ann", "bob"];
    let events = (0..4).map(|nth| site.bought(users[nth % 2], nth * 7));
    site.send(events.collect()).await;
    let process = Process::ready(&site, "all").await;
    for user in users {
        let document = listed_within(WEIGHTS_LIMIT, &site, user).await;
        assert_eq!(document.pus.len(), 3);
        assert_eq!(got(&site, user).await.list_id, document.list_id);
    }
    let tokens = process.metric("nearshore_prompt_tokens_total", "").await;
    assert!(tokens > 0.0);
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

async fn a_product_that_is_sold_out_or_blocked_is_not_shown(site: &Site, user: &str) {
    let all: Vec<String> = skus(&got(site, user).await).into_iter().collect();
    let (sold_out, blocked) = (all[0].as_str(), all[1].as_str());
    let nth = (0..30).find(|nth| sku_id(*nth) == sold_out);
    let nth = nth.expect("a SKU of the catalogue");
    site.send(vec![site.sku(nth, 0)]).await;
    shows(site, (user, sold_out), false).await;
    site.send(vec![site.sku(nth, 3)]).await;
    shows(site, (user, sold_out), true).await;

    let output = site
        .output(&["block", blocked, "--reason", "recall of batch 7"])
        .await;
    assert!(output.contains(blocked), "{output}");
    shows(site, (user, blocked), false).await;
    site.output(&["unblock", blocked]).await;
    shows(site, (user, blocked), true).await;
    let again = site.cli(&["unblock", blocked]).await;
    assert_eq!(again.status.code(), Some(1), "there is no block to lift");
}

async fn a_product_that_a_new_profile_forbids_leaves_the_list(site: &Site, user: &str) {
    let first = listed(site, user).await.pus[0].name.clone();
    let category = |name: &str| PRODUCTS.iter().find(|(pu, _)| *pu == name).map(|it| it.1);
    let forbidden = category(&first).expect("a product of the catalogue");
    let profile = site.profile(user, &json!({"avoids": [forbidden]}));
    site.send(vec![profile]).await;
    let has_forbidden = |document: &Document| {
        let mut names = document.pus.iter().map(|pu| pu.name.as_str());
        names.any(|name| category(name) == Some(forbidden))
    };
    // First the stored list is stripped, then the model makes the next one without it.
    eventually(LIMIT, || async {
        let list = site.peek(user).await.list.expect("a list");
        let document = Document::parse(&list.doc).map_err(|error| error.to_string())?;
        if has_forbidden(&document) {
            Err(format!("{:?}", document.pus))
        } else {
            Ok(())
        }
    })
    .await;
    let next = listed(site, user).await;
    assert!(!has_forbidden(&next), "{:?}", next.pus);
    let audit = site.peek(user).await.list.expect("a list").audit;
    let rule = format!("no-{}", forbidden.to_lowercase());
    assert!(audit.json().contains(&rule), "{}", audit.json());
}

async fn an_erased_user_has_no_state_and_starts_anew(site: &Site, user: &str) {
    let id = [UserId(user.into())];
    let mut null = site.profile(user, &json!({}));
    null.value = None;
    site.send(vec![null]).await;
    eventually(LIMIT, || async {
        let loaded = site.store.load(&site.ns, &id).await;
        let loaded = loaded.map_err(|error| error.to_string())?.remove(0);
        let erased = loaded.state.is_vacant() && loaded.state.erased_at.0 > 0;
        match (erased, site.peek(user).await.list) {
            (true, None) => Ok(()),
            (erased, list) => Err(format!("erased {erased}, list {list:?}")),
        }
    })
    .await;
    let keys = keys::user(&site.ns, &id[0]).expect("keys");
    assert_eq!(site.redis.ask(&["EXISTS", &keys.erased]).await, "1");
    assert_eq!(site.redis.ask(&["EXISTS", &keys.profile]).await, "0");
    let key = format!("{}/{user}", site.ns);
    eventually(LIMIT, || async {
        let updates = site.read(&site.topics.recall_updates).await;
        let last = updates
            .iter()
            .rfind(|it| it.key.as_deref() == Some(key.as_bytes()));
        match last.map(|it| it.value.is_none()) {
            Some(true) => Ok(()),
            other => Err(format!(
                "of {} updates the last is a tombstone: {other:?}",
                updates.len()
            )),
        }
    })
    .await;

    site.send(vec![site.bought(user, 5)]).await;
    listed(site, user).await;
    let loaded = site.store.load(&site.ns, &id).await;
    let loaded = loaded.expect("Redis answers");
    assert_eq!(
        loaded[0].state.window.len(),
        1,
        "no event from before the erase"
    );
}

/// Compares every state and all counts with a single-threaded fold of the topics.
///
/// What an erased user bought before the erase is counted as a buyer only if it was folded before the erase was known:
/// after a loss of Redis the tombstone may come first (decision 37).
pub async fn is_exact(site: &Site) {
    let (mut counts, mut states) = (BTreeMap::<Cell, u64>::new(), BTreeMap::new());
    let mut of_erased = BTreeMap::<Cell, u64>::new();
    for (user, records) in accepted(site).await {
        let mut state = UserState::default();
        let mut buyers = BTreeMap::new();
        for record in &records {
            fold(&mut state, record, WINDOW);
            if let Some((cell, n)) = counted(record) {
                if cell.kind == CountKind::Event(Kind::Purchase) {
                    let kind = CountKind::Buyer;
                    let newest = buyers.entry(Cell {
                        kind,
                        ..cell.clone()
                    });
                    let newest = newest.or_insert(record.time);
                    *newest = record.time.max(*newest);
                }
                *counts.entry(cell).or_default() += n;
            }
        }
        for (cell, newest) in buyers {
            let before_erase = newest <= state.erased_at;
            *of_erased.entry(cell.clone()).or_default() += u64::from(before_erase);
            *counts.entry(cell).or_default() += 1;
        }
        states.insert(user, state);
    }
    let users: Vec<UserId> = states.keys().cloned().collect();
    let loaded = site.store.load(&site.ns, &users).await;
    for ((user, state), loaded) in states.iter().zip(loaded.expect("Redis answers")) {
        assert_eq!(canonical(&loaded.state), canonical(state), "user {user}");
    }
    let mut stored = BTreeMap::new();
    for shard in 0..=255 {
        let cells = site.store.counts(&site.ns, shard, 0).await;
        stored.extend(cells.expect("Redis answers"));
    }
    for (cell, most) in counts {
        let found = stored.remove(&cell).unwrap_or_default();
        let least = most - of_erased.get(&cell).copied().unwrap_or_default();
        assert!(
            (least..=most).contains(&found),
            "{cell:?}: {found}, not {least} to {most}"
        );
    }
    assert!(stored.is_empty(), "{stored:?}");
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
        kind: CountKind::Event(event.kind),
        segment: "default".into(),
        bucket: record.time.0.div_euclid(BUCKET_MS),
    };
    let bought = event.kind == Kind::Purchase;
    Some((cell, if bought { event.qty.into() } else { 1 }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_members_lose_nothing_and_double_nothing() {
    let site = Site::open(&[("user_events", 4, &[]), ("profile_changes", 2, &[])]).await;
    // A killed member keeps its partitions for so long.
    site.edit(&[("session_timeout = \"6s\"", "session_timeout = \"3s\"")]);
    site.catalogue().await;
    let user = |nth: usize| format!("user-{}", nth % 200);
    let mut members = [
        Process::ready(&site, "ingest").await,
        Process::ready(&site, "ingest").await,
    ];
    for round in 0..4 {
        let before = site.store.count_versions(&site.ns).await;
        let before = before.expect("Redis answers");
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

/// Waits until a metric is above zero.
async fn begins(process: &Process, (metric, labels): (&str, &str)) {
    eventually(LIMIT, || async {
        match process.metric(metric, labels).await {
            0.0 => Err(format!("{metric} is 0")),
            _ => Ok(()),
        }
    })
    .await;
}

/// Sends SIGTERM; it must end with exit code 0, not hang.
async fn drains(process: &mut Process) {
    let (status, took) = process.terminate().await;
    eprintln!("way: drained in {took:?}");
    assert!(status.success(), "{status}\n{}", process.log());
    assert!(took < DRAIN_MAX, "{took:?}\n{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_drains_and_the_next_member_continues() {
    let site = Site::open(&[("user_events", 4, &[])]).await;
    site.catalogue().await;
    let mut member = Process::ready(&site, "ingest").await;
    let events = (0..20_000).map(|nth| site.bought(&format!("user-{}", nth % 3_000), nth));
    site.send(events.collect()).await;
    begins(&member, ("nearshore_records_total", "folded")).await;
    drains(&mut member).await;
    let _next = Process::ready(&site, "ingest").await;
    site.committed().await;
    is_exact(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_while_the_model_loads_ends_the_process() {
    let site = Site::open(&[]).await;
    site.use_weights();
    site.catalogue().await;
    let mut loading = Process::start(&site, "generate");
    eventually(LIMIT, || async {
        let answer = loading.get("/healthz").await;
        answer.map_err(|error| error.to_string())
    })
    .await;
    drains(&mut loading).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_does_not_wait_for_the_model() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    site.edit(&[(TABLE, "table:15s")]);
    let users = ["ann", "bob", "cem", "dee", "eve", "fay", "gus", "hal"];
    let events = (0..80).map(|nth| site.bought(users[nth % 8], nth));
    site.send(events.collect()).await;
    let mut working = Process::ready(&site, "all").await;
    begins(&working, ("nearshore_requests_running", "")).await;
    drains(&mut working).await;
    // A process that had waited for its first batch would have published the lists of the model.
    for user in users {
        let list = site.peek(user).await.list;
        assert!(
            list.is_none_or(|list| list.stage == Stage::Mixture),
            "{user}"
        );
    }

    // Nothing was committed too early: the next process makes every list.
    site.edit(&[("table:15s", TABLE)]);
    let _next = Process::ready(&site, "all").await;
    for user in users {
        listed(&site, user).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_come_before_the_catalogue_get_their_lists_when_it_is_there() {
    let site = Site::open(&[]).await;
    let process = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 1), site.bought("bob", 2)])
        .await;
    let asked = "nearshore_requests_waiting";
    let wait_for = async |count: f64| {
        eventually(LIMIT, || async {
            match process.metric(asked, "").await {
                found if found == count => Ok(()),
                found => Err(format!("{found} requests wait, not {count}")),
            }
        })
        .await;
    };
    site.committed().await;
    wait_for(2.0).await;
    // Nothing is stored, so that a client uses a fallback key; and there is none of an empty shop either.
    for user in ["ann", "bob"] {
        assert!(site.peek(user).await.list.is_none());
    }
    let key = keys::fallback(&site.ns, "default").expect("valid");
    assert_eq!(site.redis.ask(&["EXISTS", &key]).await, "0");
    // A catalogue that is sold out is as good as none.
    site.send((0..30).map(|nth| site.sku(nth, 0)).collect())
        .await;
    site.send(vec![site.bought("cem", 3)]).await;
    site.committed().await;
    wait_for(3.0).await;
    assert!(site.peek("cem").await.list.is_none());
    site.catalogue().await;
    for user in ["ann", "bob", "cem"] {
        listed(&site, user).await;
    }
}

/// Events of the past year, as a new deployment reads them: each user asks once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_year_of_history_asks_once_for_each_user_and_makes_the_list_at_its_end() {
    let site = Site::open(&[("user_events", 2, &[("retention.ms", "-1")])]).await;
    site.catalogue().await;
    let now = crate::process::now();
    let week = Duration::from_secs(7 * 86_400);
    let users = ["ann", "bob", "cem", "dee"];
    let past = (0..200).map(|nth: usize| {
        let mut record = site.bought(users[nth % 4], nth);
        record.time = Some(now.before(week * (51 - u32::try_from(nth / 4).expect("small"))));
        record
    });
    // The last event of each is a week old, too.
    let past = past.filter(|record| record.time < Some(now.before(week / 2)));
    site.send(past.collect()).await;
    let process = Process::ready(&site, "all").await;
    for user in users {
        listed(&site, user).await;
    }
    assert_eq!(process.metric("nearshore_requests_total", "").await, 4.0);
    for source in ["fallback", "model"] {
        let labels = format!("lane=\"backfill\",source=\"{source}\"");
        let lists = process.metric("nearshore_lists_published_total", &labels);
        assert_eq!(lists.await, 4.0, "{source}");
    }
}
