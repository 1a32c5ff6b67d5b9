//! Promise: no list has a product that a rule forbids under the latest profile, or one that a required rule forbids
//! because the profile lacks its field; also after state and list have expired, because the profile has not.

use std::collections::BTreeSet;

use nearshore_core::list::document::Document;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use serde_json::json;

use crate::harness::eventually;
use crate::process::{LIMIT, PRODUCTS, Process, Site};

const ADULTS: &str = "[[rules]]\nid = \"adults\"\nwhen = { field = \"age\", below = 18 }\n\
    forbid = { categories = [\"WINE\"] }\nrequired = true\n";

fn wines() -> BTreeSet<&'static str> {
    let wine = PRODUCTS.iter().filter(|(_, category)| *category == "WINE");
    wine.map(|(name, _)| *name).collect()
}

/// Waits for the list by the model that has seen all records of the user; how many wines it names.
async fn wines_on_the_list(site: &Site, user: &str) -> usize {
    eventually(LIMIT, || async {
        let peek = site.peek(user).await;
        let list = peek.list.ok_or("no list")?;
        let doc = Document::parse(&list.doc).map_err(|e| e.to_string())?;
        if !doc.source.is_exposure() || !list.seen.contains_all(&peek.fences) {
            return Err(format!("by {:?}, it has seen {}", doc.source, list.seen));
        }
        let names: BTreeSet<&str> = doc.pus.iter().map(|pu| pu.name.as_str()).collect();
        let wines = wines();
        Ok(wines.iter().filter(|wine| names.contains(**wine)).count())
    })
    .await
}

/// Lets state and list expire, as they would after months. The ingest member still has the state in its cache.
async fn expire(site: &Site, user: &str) {
    let keys = keys::user(&site.ns, &UserId(user.into())).expect("keys");
    for key in [&keys.state, &keys.recall] {
        site.redis.ask(&["PEXPIRE", key, "1"]).await;
    }
    eventually(LIMIT, || async {
        match &*site.redis.ask(&["EXISTS", &keys.state, &keys.recall]).await {
            "0" => Ok(()),
            left => Err(format!("{left} keys of {user} have not expired")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_products_are_on_no_list_even_when_all_but_the_profile_has_expired() {
    let site = Site::open(&[]).await;
    // A list of all products: what is missing on it was forbidden.
    site.edit(&[("\nnames = 3\n", "\nnames = 15\n")]);
    site.append(ADULTS);
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let all = wines().len();
    // An adult, a minor, a profile without an age, and no profile.
    let users = [("adult", all), ("teen", 0), ("ageless", 0), ("unknown", 0)];
    site.send(vec![
        site.profile("adult", &json!({"age": 40})),
        site.profile("teen", &json!({"age": 15})),
        site.profile("ageless", &json!({"hobby": "falconry"})),
    ])
    .await;
    for round in 0..2 {
        for (user, _) in users {
            // They bought wine.
            site.send(vec![site.bought(user, 12 + round)]).await;
        }
        for (user, wines) in users {
            assert_eq!(
                wines_on_the_list(&site, user).await,
                wines,
                "{user}, round {round}"
            );
        }
        for (user, _) in users {
            expire(&site, user).await;
        }
    }
    // A profile that has no age any more removes them from the stored list in the same step.
    site.send(vec![site.bought("adult", 13)]).await;
    assert_eq!(wines_on_the_list(&site, "adult").await, all);
    site.send(vec![site.profile("adult", &json!({"hobby": "falconry"}))])
        .await;
    site.committed().await;
    let user = [UserId("adult".into())];
    let peeks = site.store.peek(&site.ns, &user).await;
    let list = peeks.expect("Redis answers").remove(0).list;
    let doc = Document::parse(&list.expect("it has not expired").doc).expect("a list");
    assert!(
        doc.pus.iter().all(|pu| !wines().contains(pu.name.as_str())),
        "{doc:?}"
    );
    drop(process);
}
