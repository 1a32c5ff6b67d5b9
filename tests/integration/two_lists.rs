//! Promise: a list without the model is there at once, however slow the model is; the model's list of the same claim
//! replaces it, also if the process is killed between the two; an erase between them leaves neither.

use nearshore_core::list::document::{Document, Source, Stage};
use nearshore_core::ports::store::{Stored, Users};
use nearshore_core::user::event::UserId;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, TABLE};

/// A site whose arm gives both the counts and a model of this speed a part.
async fn site(model: &str) -> Site {
    let site = Site::open(&[]).await;
    site.edit(&[
        (TABLE, model),
        (
            "weights = { model = 1.0 }",
            "weights = { demand = 1.0, model = 1.0 }",
        ),
    ]);
    site.catalogue().await;
    site
}

/// Waits until the user's list is of this stage, and of this claim or a later one.
async fn list_of(site: &Site, user: &str, (stage, claim): (Stage, u64)) -> Stored {
    eventually(LIMIT, || async {
        let list = site.peek(user).await.list.ok_or("no list")?;
        match list.stage == stage && list.claim >= claim {
            true => Ok(list),
            false => Err(format!("{:?} of claim {}", list.stage, list.claim)),
        }
    })
    .await
}

fn source(list: &Stored) -> Source {
    Document::parse(&list.doc).expect("a document").source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_model_delays_no_list() {
    let site = site("table:10m").await;
    let process = Process::ready(&site, "all").await;
    let users: Vec<String> = (0..30).map(|nth| format!("u{nth}")).collect();
    site.send(users.iter().map(|user| site.bought(user, 4)).collect())
        .await;
    for user in &users {
        let list = list_of(&site, user, (Stage::Mixture, 1)).await;
        assert_eq!(source(&list), Source::Mixture);
    }
    let waiting = async || process.metric("nearshore_model_waiting_users", "").await;
    eventually(LIMIT, || async {
        match waiting().await {
            // The model is asked about the others, at most four.
            waiting if waiting >= 26.0 => Ok(()),
            other => Err(format!("{other} wait for the model")),
        }
    })
    .await;
    // New events make new lists while the model still has its first question.
    for user in &users {
        let first = list_of(&site, user, (Stage::Mixture, 1)).await;
        site.send(vec![site.bought(user, 6)]).await;
        let next = list_of(&site, user, (Stage::Mixture, first.claim + 1)).await;
        assert!(next.seen != first.seen, "it has seen the new event");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_between_the_two_lists_of_a_claim_loses_neither() {
    let site = site("table:10m").await;
    let mut process = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 4)]).await;
    let first = list_of(&site, "ann", (Stage::Mixture, 1)).await;
    process.kill();
    // What clients read meanwhile is the list without the model.
    assert_eq!(site.peek("ann").await.list, Some(first.clone()));
    site.edit(&[("table:10m", TABLE)]);
    let _process = Process::ready(&site, "all").await;
    let second = list_of(&site, "ann", (Stage::Model, 1)).await;
    assert_eq!(source(&second), Source::Model);
    assert_eq!((second.claim, &second.seen), (first.claim, &first.seen));
    let users = [UserId("ann".into())];
    let loaded = site.store.load(&site.ns, &users).await;
    let activity = &loaded.expect("Redis answers")[0].activity;
    assert_eq!(activity.claim_rate.claims, 1, "both lists count once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_between_the_two_lists_leaves_neither() {
    let site = site("table:4s").await;
    let process = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 4)]).await;
    // On a slow machine the model may have answered by now; what follows holds then, too.
    eventually(LIMIT, || async {
        let list = site.peek("ann").await.list;
        list.map(drop).ok_or_else(|| "no list".to_owned())
    })
    .await;
    site.output(&["forget", "ann"]).await;
    eventually(LIMIT, || async {
        match site.peek("ann").await.list {
            None => Ok(()),
            Some(list) => Err(format!("a list of claim {}", list.claim)),
        }
    })
    .await;
    // The model's answer, or its cancellation, comes after the erase and changes nothing.
    eventually(LIMIT, || async {
        let waiting = process.metric("nearshore_model_waiting_users", "").await;
        let running = process.metric("nearshore_requests_running", "").await;
        match waiting + running {
            0.0 => Ok(()),
            other => Err(format!("{other} users with the model")),
        }
    })
    .await;
    assert_eq!(site.peek("ann").await.list, None);
    eventually(LIMIT, || async {
        let updates = site.read(&site.topics.recall_updates).await;
        match updates.last() {
            Some(last) if last.value.is_none() => Ok(()),
            _ => Err("the last update is a list".to_owned()),
        }
    })
    .await;
    // The next user's list by the model is made.
    site.send(vec![site.bought("bob", 4)]).await;
    list_of(&site, "bob", (Stage::Model, 1)).await;
}
