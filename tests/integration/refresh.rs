//! Promise: `refresh` requests lists of the chosen users and of no others: by user, arm, segment, age and product, by
//! all given filters together, in any namespace, without folding anything again.

use std::collections::BTreeSet;

use nearshore::config::Config;
use nearshore_core::list::document::Stage;
use nearshore_core::ports::store::{Claim, ClaimOutcome, Publish, Published, Stored, Users};
use nearshore_core::shop::arms::arm_of;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::{Value, json};

use crate::harness::fresh;
use crate::process::{Site, now};

const USERS: usize = 40;
const DAY: i64 = 86_400_000;

fn user(nth: usize) -> String {
    format!("u{nth:02}")
}

fn users(wanted: impl Fn(usize) -> bool) -> BTreeSet<String> {
    (0..USERS).filter(|nth| wanted(*nth)).map(user).collect()
}

/// Two arms and two segments; half of the users are families.
async fn site() -> (Site, Config) {
    let site = Site::open(&[]).await;
    let other = "[[arms]]\nid = \"other\"\nepoch = 2\ntemplate = \"basket.j2\"\nmodel = \"table:1ms\"\nweights = { model = 1.0 }\n\
                 [[segments]]\nid = \"family\"\nwhen = [{ field = \"household\", equals = \"family\" }]\n[topics]\n";
    site.edit(&[("[topics]\n", other)]);
    let file = site.folder().join("nearshore.toml");
    let config = Config::load(Some(&file), []).expect("valid");
    site.catalogue().await;
    let known = (0..USERS).map(|nth| {
        let household = ["family", "single"][nth % 2];
        site.profile(&user(nth), &json!({"household": household}))
    });
    site.send(known.collect()).await;
    let bought = (0..USERS).map(|nth| site.bought(&user(nth), nth));
    site.send(bought.collect()).await;
    (site, config)
}

/// Stores lists as workers would: every third is ten days old, every fourth user has none, every fifth shows milk.
async fn listed(site: &Site, ns: &str) {
    for nth in (0..USERS).filter(|nth| nth % 4 != 0) {
        let user = UserId(user(nth).into());
        let users = std::slice::from_ref(&user);
        let peek = site.store.peek(ns, users).await.expect("Redis answers");
        let claim = Claim {
            user: user.clone(),
            due: now(),
            expected: peek[0].ver,
        };
        let claimed = site.store.claim(ns, &[claim]).await.expect("Redis answers");
        let [ClaimOutcome::Claimed(claimed)] = &claimed[..] else {
            panic!("not claimed: {claimed:?}");
        };
        let age = if nth % 3 == 0 { 10 } else { 1 };
        let at = Timestamp(now().0 - age * DAY);
        let name = if nth % 5 == 0 { "FLUID MILK" } else { "BAGELS" };
        let doc = json!({
            "schema": 1, "list_id": nth.to_string(), "user": user.0, "arm": "test", "source": "model", "at": at.0,
            "segment": "default", "names": [name], "scores": [-1.0], "skus": [["sku-00"]],
        });
        let list = Publish {
            list: Stored {
                doc: doc.to_string(),
                claim: claimed.claim,
                stage: Stage::Model,
                seen: claimed.state.fences.clone(),
                epoch: 1,
                at,
                audit: "{}".into(),
            },
            user,
            erased_at: claimed.state.erased_at,
            force: false,
            only_if_absent: false,
        };
        let stored = site
            .store
            .publish(ns, &[list])
            .await
            .expect("Redis answers");
        assert_eq!(stored, [Published::Stored]);
    }
}

/// Runs the command; the users whose lists it requested, with the namespace.
async fn requested(site: &Site, words: &[&str]) -> BTreeSet<(String, String)> {
    let topic = site.topics.regen_backfill.clone();
    let before = site.count(&topic).await as usize;
    let output = site.output(&[&["refresh", "--json"], words].concat()).await;
    let report: Value = serde_json::from_str(output.trim()).expect("JSON");
    let mut records = site.read(&topic).await;
    assert_eq!(
        records.len() - before,
        report["requested"].as_u64().expect("a number") as usize,
        "{words:?} {report}"
    );
    // The requests of this command are the newest records.
    records.sort_by_key(|record| record.time);
    let fresh = records.split_off(before);
    let users = fresh.into_iter().map(|record| {
        let request: Value =
            serde_json::from_slice(&record.value.expect("a request")).expect("JSON");
        assert_eq!(request["reason"], "refresh", "{request}");
        let text = |key: &str| request[key].as_str().expect("text").to_owned();
        (text("ns"), text("user"))
    });
    users.collect()
}

#[tokio::test]
async fn a_refresh_requests_lists_of_the_chosen_users_only() {
    let (site, config) = site().await;
    let ns = fresh("next");
    let words = ["backfill", "--namespace", &ns, "--from", "earliest"];
    site.output(&words).await;
    listed(&site, &ns).await;
    let of_arm = |nth: usize| {
        let arm = arm_of(&user(nth), &config.arm_seed, &config.arms);
        arm.expect("every user has an arm").id == "other"
    };
    let (family, old) = (
        |nth: usize| nth.is_multiple_of(2),
        |nth: usize| nth.is_multiple_of(3) || nth.is_multiple_of(4),
    );
    let milk = |nth: usize| nth.is_multiple_of(5) && !nth.is_multiple_of(4);
    let cases: [(&[&str], BTreeSet<String>); 9] = [
        (&["--all"], users(|_| true)),
        (
            &["--user", "u07", "--user", "u08"],
            users(|nth| nth == 7 || nth == 8),
        ),
        (&["--arm", "other"], users(of_arm)),
        (&["--segment", "family"], users(family)),
        (&["--segment", "default"], users(|nth| !family(nth))),
        (&["--older-than", "7days"], users(old)),
        (&["--pu", "FLUID MILK"], users(milk)),
        (
            &[
                "--arm",
                "other",
                "--segment",
                "family",
                "--older-than",
                "7days",
            ],
            users(|nth| of_arm(nth) && family(nth) && old(nth)),
        ),
        (&["--pu", "RED WINE"], BTreeSet::new()),
    ];
    for (words, wanted) in cases {
        let found = requested(&site, &[words, &["--namespace", &ns]].concat()).await;
        let wanted: BTreeSet<_> = wanted.into_iter().map(|user| (ns.clone(), user)).collect();
        assert_eq!(found, wanted, "{words:?}");
    }
    assert!(
        (1..USERS).contains(&users(of_arm).len()),
        "one arm has no users"
    );
    // The active namespace has no user yet.
    assert_eq!(requested(&site, &["--all"]).await, BTreeSet::new());
}

#[tokio::test]
async fn a_refresh_by_an_unknown_arm_segment_or_age_is_refused_with_the_known_ones() {
    let (site, _) = site().await;
    for (words, what) in [
        (["--arm", "unknown"], "test, other"),
        (["--segment", "unknown"], "family, default"),
        (["--older-than", "soon"], "soon"),
    ] {
        let refused = site.cli(&[&["refresh"][..], &words].concat()).await;
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains(what), "{error}");
    }
    let without = site.cli(&["refresh"]).await;
    assert_eq!(without.status.code(), Some(2), "no users are chosen");
}
