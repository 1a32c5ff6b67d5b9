//! Promise: one stored value that cannot be used costs one user, who is served again when it is mended; an erase is
//! carried out whatever is stored; what all users share stops what needs it, says so, and goes on by itself.

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Stock, Users};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Record;
use nearshore_kafka::dlq::DeadLetter;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, sku_id};

/// Number of events in a user's state.
async fn events(site: &Site, user: &str) -> Result<usize, String> {
    let user = UserId(user.into());
    let loaded = site.store.load(&site.ns, std::slice::from_ref(&user)).await;
    let loaded = loaded.map_err(|error| error.to_string())?;
    Ok(loaded[0].state.window.len())
}

async fn has_events(site: &Site, user: &str, wanted: usize) {
    eventually(LIMIT, || async {
        match events(site, user).await? {
            found if found == wanted => Ok(()),
            found => Err(format!("{user} has {found} events, not {wanted}")),
        }
    })
    .await;
}

fn user_keys(site: &Site, user: &str) -> keys::User {
    keys::user(&site.ns, &UserId(user.into())).expect("keys")
}

async fn replace(site: &Site, key: &str, words: &[&str]) {
    site.redis.ask(&["DEL", key]).await;
    let words: Vec<&str> = [words[0], key]
        .into_iter()
        .chain(words[1..].iter().copied())
        .collect();
    site.redis.ask(&words).await;
}

/// Waits until a gate of `/readyz` says this, and returns the status.
async fn ready_says(member: &Process, gate: &str, text: &str) -> u16 {
    eventually(LIMIT, || async {
        let (status, body) = member
            .get("/readyz")
            .await
            .map_err(|error| error.to_string())?;
        let found: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let detail = found["dependencies"][gate]["detail"]
            .as_str()
            .unwrap_or_default();
        match detail.contains(text) {
            true => Ok(status),
            false => Err(body),
        }
    })
    .await
}

/// The users whose records are in `dlq`, sorted; each letter must be of an unreadable value and name its key.
async fn set_aside(site: &Site) -> Vec<String> {
    let dead: Vec<Record> = site.read(&site.topics.dlq).await;
    let whose = dead.iter().map(|record| {
        let letter = DeadLetter::read(record);
        assert_eq!(letter.code, "unreadable_value");
        assert!(letter.message.contains("{#"), "{}", letter.message);
        String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
    });
    let mut whose: Vec<String> = whose.collect();
    whose.sort();
    whose
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_of_one_user_sends_their_records_to_the_dlq_and_stops_nobody() {
    let site = Site::open(&[("user_events", 1, &[]), ("profile_changes", 1, &[])]).await;
    site.catalogue().await;
    let member = Process::ready(&site, "ingest").await;
    let bad = ["profile", "recall", "state", "tombstone", "truncated"];
    site.send(bad.iter().map(|user| site.bought(user, 0)).collect())
        .await;
    site.send(vec![site.profile("profile", &json!({"age": 3}))])
        .await;
    site.committed().await;
    replace(&site, &user_keys(&site, "recall").recall, &["SET", "x"]).await;
    replace(&site, &user_keys(&site, "state").state, &["SET", "x"]).await;
    replace(&site, &user_keys(&site, "profile").profile, &["RPUSH", "x"]).await;
    replace(
        &site,
        &user_keys(&site, "tombstone").erased,
        &["RPUSH", "x"],
    )
    .await;
    let truncated = user_keys(&site, "truncated").state;
    site.redis.ask(&["HSET", &truncated, "blob", "\u{2}"]).await;
    drop(member);

    // A member that has none of them in memory.
    let member = Process::ready(&site, "ingest").await;
    let good = (0..10).map(|nth| site.bought(&format!("good-{nth}"), nth));
    site.send(
        bad.iter()
            .map(|user| site.bought(user, 1))
            .chain(good)
            .collect(),
    )
    .await;
    site.committed().await;
    for nth in 0..10 {
        has_events(&site, &format!("good-{nth}"), 1).await;
    }
    assert_eq!(set_aside(&site).await, bad);
    assert_eq!(
        member
            .metric("nearshore_dlq_records_total", "unreadable_value")
            .await,
        5.0
    );
    assert_eq!(member.metric("nearshore_partitions_stopped", "").await, 0.0);
    assert_eq!(
        ready_says(&member, "partitions", "no partition is stopped").await,
        200
    );

    // What is deleted is used again at once, without a restart; what was set aside is sent again.
    let recall = user_keys(&site, "recall").recall;
    site.redis.ask(&["DEL", &recall]).await;
    site.send(vec![site.bought("recall", 2)]).await;
    has_events(&site, "recall", 2).await;
    let (profile, state) = (user_keys(&site, "profile"), user_keys(&site, "state"));
    let erased = user_keys(&site, "tombstone").erased;
    for key in [&profile.profile, &erased, &state.state, &truncated] {
        site.redis.ask(&["DEL", key]).await;
    }
    let words = ["dlq", "replay", "--code", "unreadable_value", "--json"];
    let report: Value = serde_json::from_str(&site.output(&words).await).expect("JSON");
    assert_eq!(report["sent"], 5);
    has_events(&site, "recall", 3).await;
    has_events(&site, "profile", 2).await;
    has_events(&site, "tombstone", 2).await;
    has_events(&site, "state", 1).await;
    has_events(&site, "truncated", 1).await;
    assert_eq!(site.count(&site.topics.dlq).await, 5, "none came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_is_carried_out_whatever_is_stored() {
    let site = Site::open(&[("profile_changes", 1, &[])]).await;
    site.catalogue().await;
    let member = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 0)]).await;
    site.committed().await;
    let keys = user_keys(&site, "ann");
    for key in [&keys.state, &keys.profile, &keys.recall, &keys.erased] {
        replace(&site, key, &["RPUSH", "x"]).await;
    }
    drop(member);
    let member = Process::ready(&site, "ingest").await;
    let mut erase = site.profile("ann", &json!({}));
    erase.value = None;
    site.send(vec![erase]).await;
    eventually(LIMIT, || async {
        match member.metric("nearshore_erases_total", "").await {
            1.0 => Ok(()),
            other => Err(format!("{other} erases")),
        }
    })
    .await;
    site.committed().await;
    assert_eq!(events(&site, "ann").await, Ok(0));
    assert_eq!(site.redis.ask(&["TYPE", &keys.erased]).await, "string");
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_a_user_whose_list_cannot_be_read_waits_and_others_are_served() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let ingest = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 0), site.bought("bob", 1)])
        .await;
    site.committed().await;
    drop(ingest);
    let recall = user_keys(&site, "ann").recall;
    replace(&site, &recall, &["SET", "x"]).await;
    let generate = Process::ready(&site, "generate").await;
    let by_the_model = async |user: &str| {
        let user = UserId(user.into());
        let peeks = site.store.peek(&site.ns, std::slice::from_ref(&user)).await;
        let peek = peeks.map_err(|error| error.to_string())?.remove(0);
        let list = peek.list.filter(|list| list.claim > 0);
        list.map(drop).ok_or("no list by the model".to_owned())
    };
    eventually(LIMIT, || by_the_model("bob")).await;
    eventually(LIMIT, || async {
        match generate
            .metric("nearshore_errors_total", "error=\"corrupt\"")
            .await
        {
            0.0 => Err("the value was not met yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    assert_eq!(generate.get("/readyz").await.expect("it answers").0, 200);
    site.redis.ask(&["DEL", &recall]).await;
    eventually(LIMIT, || by_the_model("ann")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_that_users_share_is_shown_and_the_member_goes_on_when_it_is_mended() {
    let site = Site::open(&[("user_events", 1, &[])]).await;
    site.catalogue().await;
    let fence = keys::count_fence(&site.ns, keys::shard(&sku_id(0)));
    site.redis.ask(&["SET", &fence, "x"]).await;
    let sold_out = keys::sold_out(keys::set(&sku_id(0)));
    let member = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 0), site.bought("ann", 1)])
        .await;
    assert_eq!(ready_says(&member, "partitions", &fence).await, 503);
    assert_eq!(member.metric("nearshore_partitions_stopped", "").await, 1.0);
    site.redis.ask(&["DEL", &fence]).await;
    site.committed().await;
    assert_eq!(
        ready_says(&member, "partitions", "no partition is stopped").await,
        200
    );
    assert_eq!(member.metric("nearshore_partitions_stopped", "").await, 0.0);
    has_events(&site, "ann", 2).await;

    replace(&site, &sold_out, &["SET", "x"]).await;
    site.send(vec![site.sku(0, 0)]).await;
    assert_eq!(ready_says(&member, "sold-out-sets", &sold_out).await, 503);
    site.redis.ask(&["DEL", &sold_out]).await;
    assert_eq!(
        ready_says(&member, "sold-out-sets", "can be written").await,
        200
    );
    let out = site
        .store
        .sold_out(&[sku_id(0)])
        .await
        .expect("Redis answers");
    assert_eq!(out, [true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_checkpoint_is_shown_and_the_member_commits_when_it_is_mended() {
    let site = Site::open(&[("user_events", 1, &[])]).await;
    site.catalogue().await;
    let [of_ingest, of_stock, of_generate] = [&*site.ns, "nearshore:stock", "nearshore:generate"]
        .map(|reader| keys::checkpoint(reader, "0"));
    // It is met when partitions are assigned.
    for key in [&of_ingest, &of_stock, &of_generate] {
        site.redis.ask(&["HSET", key, "no partition", "7"]).await;
    }
    let mut member = Process::start(&site, "all");
    for (gate, key) in [
        ("partitions", &of_ingest),
        ("sold-out-sets", &of_stock),
        ("values-generate", &of_generate),
    ] {
        assert_eq!(ready_says(&member, gate, key).await, 503);
        site.redis.ask(&["DEL", key]).await;
    }
    member.becomes_ready().await;
    // It is met when offsets are committed.
    replace(&site, &of_ingest, &["SET", "x"]).await;
    site.send(vec![site.bought("ann", 0)]).await;
    assert_eq!(ready_says(&member, "partitions", &of_ingest).await, 503);
    has_events(&site, "ann", 1).await;
    site.redis.ask(&["DEL", &of_ingest]).await;
    site.committed().await;
    member.becomes_ready().await;
}

#[tokio::test]
async fn a_sweep_and_a_check_leave_out_a_user_whose_values_cannot_be_read() {
    let site = Site::open(&[]).await;
    let [ann, bob] = ["ann", "bob"].map(|id| UserId(id.into()));
    for user in [&ann, &bob] {
        let mut write = crate::store::write(user, 0, 2);
        write.state.profile = Some(crate::store::profile(1, 1_000));
        write.state.profile.as_mut().expect("set").profile.0 =
            [("avoids".to_owned(), json!({"DAIRY": true}))].into();
        write.profile_changed = true;
        crate::store::fold(&site.store, &site.ns, write).await;
    }
    replace(&site, &user_keys(&site, "ann").recall, &["SET", "x"]).await;
    site.output(&["sweep"]).await;
    let requests = site.read(&site.topics.regen_backfill).await;
    let users: Vec<_> = requests.iter().map(|record| record.key.clone()).collect();
    assert_eq!(users, [Some("bob".into())]);

    replace(&site, &user_keys(&site, "ann").profile, &["RPUSH", "x"]).await;
    let report = site.cli(&["check"]).await;
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    let warning = "rule \"no-dairy\" cannot compare the value of avoids in 1 of 1 stored profiles";
    assert!(text.contains(warning), "{text}");
}
