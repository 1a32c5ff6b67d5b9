//! Promise: a namespace whose arm is worse on held-out users is not promoted, and the stored lists of two namespaces are
//! compared by what users bought while these lists stood.

use std::collections::BTreeMap;

use nearshore::ops::namespace::is_covered;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::{Value, json};

use crate::backfill::Follower;
use crate::harness::{LIMIT, eventually, fresh};
use crate::process::{PRODUCTS, Process, Site, now, sku_id};

const DAY: i64 = 86_400_000;
const USERS: usize = 40;

fn user(nth: usize) -> String {
    format!("u{nth:02}")
}

/// The nth purchase of a user: five products are bought most.
fn bought(site: &Site, buyer: usize, nth: usize) -> Outgoing {
    let product = match nth % 7 {
        6 => 5 + (buyer + nth) % (PRODUCTS.len() - 5),
        _ => (buyer + nth) % 5,
    };
    site.bought(&user(buyer), 2 * product)
}

/// Purchases of 45 days.
async fn history(site: &Site) {
    let start = now().0 - 46 * DAY;
    let mut records = Vec::new();
    for day in 0..15 {
        records.extend((0..USERS).map(|buyer| Outgoing {
            time: Some(Timestamp(start + 3 * DAY * day as i64 + buyer as i64)),
            ..bought(site, buyer, day)
        }));
    }
    site.send(records).await;
}

/// A purchase of one of the best-sellers by each user, now.
async fn buy(site: &Site, nth: usize) {
    let records = (0..USERS).map(|buyer| site.bought(&user(buyer), 2 * ((buyer + nth) % 5)));
    site.send(records.collect()).await;
}

/// Waits until each user's list in each namespace has seen all that it can.
async fn all_covered(site: &Site, namespaces: [&str; 2], events: usize) {
    let users: Vec<UserId> = (0..USERS).map(|nth| UserId(user(nth).into())).collect();
    for ns in namespaces {
        eventually(LIMIT, || async {
            let loaded = site.store.load(ns, &users).await;
            let loaded = loaded.map_err(|error| error.to_string())?;
            let peeks = site.store.peek(ns, &users).await;
            let peeks = peeks.map_err(|error| error.to_string())?;
            let covered = loaded
                .iter()
                .zip(&peeks)
                .filter(|(user, peek)| user.state.window.len() == events && is_covered(peek));
            match covered.count() {
                USERS => Ok(()),
                found => Err(format!("{ns}: {found} users")),
            }
        })
        .await;
    }
}

/// The checks of a promotion by name, and whether it was done.
async fn promotion(site: &Site, words: &[&str]) -> (BTreeMap<String, (bool, String)>, bool) {
    let words = [&["namespace", "promote", "--json"], words].concat();
    let output = site.cli(&words).await;
    let found: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |check: &Value, key: &str| check[key].as_str().expect("a text").to_owned();
    let checks = found["checks"].as_array().expect("checks").iter();
    let checks = checks.map(|check| {
        let ok = check["ok"].as_bool().expect("a truth value");
        (text(check, "check"), (ok, text(check, "found")))
    });
    let done = output.status.success();
    assert_eq!(found["promoted"], done);
    (checks.collect(), done)
}

/// A site whose own namespace ranks by demand, and another namespace that ranks by the contrary.
async fn site(next: &str) -> Site {
    let keep: &[(&str, &str)] = &[("retention.ms", "-1")];
    let site = Site::open(&[("user_events", 2, keep)]).await;
    let other = format!(
        "[demand]\nevery = \"1s\"\n[[arms]]\nid = \"contrary\"\nepoch = 2\ntemplate = \"basket.j2\"\nmodel = \"\"\nnames = 3\n\
         weights = {{ demand = -1.0 }}\nnamespaces = [\"{next}\"]\n[topics]\n"
    );
    site.edit(&[
        ("weights = { model = 1.0 }", "weights = { demand = 1.0 }"),
        ("[topics]\n", &other),
    ]);
    // The rules ask for a field that no profile has.
    let config = site.config();
    let (without_rules, _) = config.split_once("[[rules]]").expect("it has rules");
    site.write("nearshore.toml", without_rules);
    site.catalogue().await;
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worse_namespace_is_refused_and_its_lists_are_compared() {
    let next = fresh("next");
    let site = site(&next).await;
    history(&site).await;
    let _served = Process::ready(&site, "all").await;
    let _follower = Follower::start(&site, &next).await;
    let namespaces = [&*site.ns.clone(), &*next];
    all_covered(&site, namespaces, 15).await;
    // The first lists may be of a time when no count was read.
    buy(&site, 0).await;
    all_covered(&site, namespaces, 16).await;
    let (checks, done) = promotion(&site, &[&site.ns]).await;
    assert!(done && !checks.contains_key("evaluation"), "{checks:?}");

    // Shares of users whose lists trail vary from moment to moment.
    eventually(LIMIT, || async {
        let (found, done) = promotion(&site, &[&next]).await;
        let failed: Vec<&String> = found.keys().filter(|name| !found[*name].0).collect();
        let only = failed[..] == ["evaluation"] && !done;
        let told = only && found["evaluation"].1.contains("held-out users at");
        told.then_some(()).ok_or(format!("{found:?}"))
    })
    .await;

    let from = now();
    buy(&site, 1).await;
    all_covered(&site, namespaces, 17).await;
    let since = told(from);
    let words = ["evaluate", "--json", "--diff", namespaces[0], namespaces[1]];
    let found = site
        .output(&[&words[..], &["--since", &since]].concat())
        .await;
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(
        (&found["users"], &found["without_list"]),
        (&json!(USERS), &json!(0))
    );
    let recall = |which: &str| found[which]["mean"].as_f64().expect("a number");
    assert!(recall("recall_a") > 0.4, "{found}");
    assert_eq!(recall("recall_b"), 0.0, "{found}");
    assert!(found["b_less_a"]["high"].as_f64() < Some(0.0), "{found}");

    by_files(&site, namespaces).await;
    let other = site.config().replace("id = \"test\"", "id = \"other\"");
    let other = site.write("other.toml", &other);
    let other = other.to_str().expect("a path");
    let (checks, done) = promotion(&site, &[&next, "--served-config", other]).await;
    assert!(
        !done && checks["evaluation"].1.contains("give the one that"),
        "{checks:?}"
    );
    let (checks, done) = promotion(&site, &[&next, "--force"]).await;
    assert!(done && !checks.contains_key("evaluation"), "{checks:?}");
    // Back to the better one: its lists are better than those of the served one.
    let (checks, done) = promotion(&site, &[&site.ns]).await;
    assert!(done && checks["evaluation"].0, "{checks:?}");
}

/// The lists in Redis, by a file of purchases that are younger; and purchases that are older, by which none is judged.
async fn by_files(site: &Site, namespaces: [&str; 2]) {
    let row = |nth: usize, time: i64| {
        let value = json!({"type": "purchase", "sku": sku_id(2 * (nth % 5))});
        format!(
            "{}\n",
            json!({"key": user(nth), "timestamp": time, "value": value})
        )
    };
    let later = now().0 + DAY;
    let rows: String = (0..USERS).map(|nth| row(nth, later)).collect();
    let events = site.write("later.jsonl", &rows);
    let skus = (0..2 * PRODUCTS.len()).map(|nth| {
        let value = json!({"pu": PRODUCTS[nth / 2].0, "stock": 5});
        format!(
            "{}\n",
            json!({"key": sku_id(nth), "timestamp": later, "value": value})
        )
    });
    let catalog = site.write("skus.jsonl", &skus.collect::<String>());
    let (events, catalog) = (
        events.to_str().expect("a path"),
        catalog.to_str().expect("a path"),
    );
    let words = [
        "evaluate",
        "--diff",
        namespaces[0],
        namespaces[1],
        "--catalog",
        catalog,
        "--events",
    ];
    let text = site.output(&[&words[..], &[events]].concat()).await;
    assert!(
        text.contains(&format!("{USERS} purchases by {USERS} users")),
        "{text}"
    );
    let rows: String = (0..USERS).map(|nth| row(nth, later - 3 * DAY)).collect();
    let earlier = site.write("earlier.jsonl", &rows);
    let earlier = earlier.to_str().expect("a path");
    let output = site.cli(&[&words[..], &[earlier]].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("({USERS} were left out)")), "{said}");
    let unknown = site
        .cli(&["evaluate", "--diff", namespaces[0], "nowhere"])
        .await;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("no list of namespace nowhere"), "{said}");
}

/// A time as the command line takes it.
fn told(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.0)
        .expect("a time of this century")
        .to_string()
}
