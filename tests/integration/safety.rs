//! Promise: no list has a product that a rule forbids under the latest profile, nor one that is forbidden for want of a
//! field that the rule requires: also after state and list have expired, for the profile has not.

use std::collections::BTreeSet;

use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use serde_json::json;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, SHELF, Site};

const ADULTS: &str = "[[rules]]\nid = \"adults\"\nwhen = { field = \"age\", below = 18 }\n\
    forbid = { categories = [\"WINE\"] }\nrequired = true\n";

fn wines() -> BTreeSet<&'static str> {
    let wine = SHELF.iter().filter(|(_, category)| *category == "WINE");
    wine.map(|(name, _)| *name).collect()
}

/// The user's next list by the model: of a claim, or one that names so many wines.
async fn wines_on_the_list(site: &Site, user: &str) -> usize {
    eventually(LIMIT, || async {
        let peek = site.peek(user).await;
        let list = peek.list.ok_or("no list")?;
        let doc = Document::parse(&list.doc).map_err(|e| e.to_string())?;
        if doc.source != Source::Model || !list.seen.contains_all(&peek.fences) {
            return Err(format!("{:?}, covers {}", doc.source, list.seen));
        }
        let names: BTreeSet<&str> = doc.pus.iter().map(|pu| pu.name.as_str()).collect();
        let wines = wines();
        Ok(wines.iter().filter(|wine| names.contains(**wine)).count())
    })
    .await
}

/// Lets state and list expire, as they would after months; the ingest role still has the state in its cache.
async fn expire(site: &Site, user: &str) {
    let keys = keys::user(&site.ns, &UserId(user.into())).expect("keys");
    for key in [&keys.state, &keys.recall] {
        site.redis.told(&["PEXPIRE", key, "1"]).await;
    }
    eventually(LIMIT, || async {
        match &*site
            .redis
            .told(&["EXISTS", &keys.state, &keys.recall])
            .await
        {
            "0" => Ok(()),
            left => Err(format!("{left} keys of {user} are there")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rule_forbids_stays_off_the_list_also_after_everything_but_the_profile_has_expired()
{
    let site = Site::open(&[]).await;
    let file = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&file).expect("written");
    // Names enough for the whole shelf: what is not on the list was kept off it.
    let text = text.replace("\nnames = 3\n", "\nnames = 15\n") + ADULTS;
    site.write("nearshore.toml", &text);
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let all = wines().len();
    // Who says their age, who is too young, who says something else, who says nothing.
    let users = [("adult", all), ("teen", 0), ("silent", 0), ("stranger", 0)];
    site.send(vec![
        site.profile("adult", &json!({"age": 40})),
        site.profile("teen", &json!({"age": 15})),
        site.profile("silent", &json!({"hobby": "falconry"})),
    ])
    .await;
    for round in 0..2 {
        for (user, _) in users {
            // Wine is what they bought: the model would name it.
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
    // A profile that tells no age any more takes them off the stored list in the same step.
    site.send(vec![site.bought("adult", 13)]).await;
    assert_eq!(wines_on_the_list(&site, "adult").await, all);
    site.send(vec![site.profile("adult", &json!({"hobby": "falconry"}))])
        .await;
    site.committed().await;
    let user = [UserId("adult".into())];
    let peek = site
        .store
        .peek(&site.ns, &user)
        .await
        .expect("answered")
        .remove(0);
    let doc = Document::parse(&peek.list.expect("still fresh").doc).expect("a list");
    assert!(
        doc.pus.iter().all(|pu| !wines().contains(pu.name.as_str())),
        "{doc:?}"
    );
    drop(process);
}
