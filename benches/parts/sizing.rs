//! Memory of users, lists and counts in Redis, how processes share a topic, and how a cluster spreads keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nearshore_core::ports::store::Durability;
use nearshore_redis::{RedisSettings, RedisStore};

use crate::fold::{fill, rate_of, samples, site};
use crate::harness::{eventually, variable};
use crate::load::Load;
use crate::process::{LIMIT, Process, Site};
use crate::{Options, machine};

/// Prints the figures of `docs/measurements/sizing.md`.
pub async fn run(options: &Options) {
    let load = Load {
        events: options.number("events", 1_000_000),
        users: options.number("users", 10_000),
        visit: 20,
    };
    let site = site(16).await;
    fill(&site.producer, load.records(&site.topics.user_events)).await;
    println!("sizing: {load:?}; {}", machine());
    memory(&site, load).await;
    for processes in [1, 2, 4, 8] {
        shared(&site, load, processes).await;
    }
    cluster(&site, load).await;
}

/// Bytes in Redis by purpose.
async fn memory(site: &Site, load: Load) {
    let empty = site.redis.info("memory", "used_memory").await;
    let url = site.redis.url();
    let mut ingest = start(site, "sizing", &url);
    samples(site, &ingest, load.events).await;
    ingest.terminate().await;
    let folded = site.redis.info("memory", "used_memory").await - empty;
    let users = load.users as f64;
    let by = by_kind(site).await;
    println!(
        "  folded: {:.0} bytes a user in all ({} MiB)",
        folded / users,
        folded as u64 >> 20
    );
    for (what, (keys, bytes)) in &by {
        println!(
            "    {what:<10} {keys:>8} keys {bytes:>12} bytes, {:>6.0} a key, {:>6.0} a user",
            *bytes as f64 / *keys as f64,
            *bytes as f64 / users
        );
    }
    let mut generate = Process::with(site, "generate", &[("NEARSHORE__NAMESPACE", "sizing")]).await;
    let (ready, before) = (
        Instant::now(),
        generate.metric("nearshore_lists_published_total", "").await,
    );
    eventually(LIMIT * 2, || async {
        match generate.metric("nearshore_lists_published_total", "").await {
            made if made >= users => Ok(()),
            made => Err(format!("{made} lists")),
        }
    })
    .await;
    let rate = (users - before) / ready.elapsed().as_secs_f64();
    println!("  {rate:.0} lists/s by a generate process whose model is a table");
    // A user may have had two lists by now: without the model, and with it.
    eventually(LIMIT, || async {
        let (lists, _) = by_kind(site).await.remove("recall").unwrap_or_default();
        match lists as f64 >= users {
            true => Ok(()),
            false => Err(format!("lists of {lists} users")),
        }
    })
    .await;
    generate.terminate().await;
    let listed = site.redis.info("memory", "used_memory").await - empty;
    println!("  with lists: {:.0} bytes a user in all", listed / users);
    for (what, (keys, bytes)) in by_kind(site).await {
        println!(
            "    {what:<10} {keys:>8} keys {bytes:>12} bytes, {:>6.0} a key",
            bytes as f64 / keys as f64
        );
    }
    let events = site.count(&site.topics.user_events).await;
    println!(
        "  {events} events on the topic, {} requests",
        site.count(&site.topics.regen_urgent).await + site.count(&site.topics.regen_live).await
    );
}

/// Keys and bytes by kind of key, as Redis counts them.
async fn by_kind(site: &Site) -> BTreeMap<String, (u64, u64)> {
    let script = "local cursor, all = '0', {} repeat local page = redis.call('SCAN', cursor, 'COUNT', 1000) cursor = page[1] \
        for _, key in ipairs(page[2]) do local kind = string.match(key, '}:([a-z]+)') or 'other' \
        if string.find(key, ':counts:') then kind = 'counts' end \
        local known = all[kind] or {0, 0} known[1] = known[1] + 1 \
        known[2] = known[2] + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '0') all[kind] = known end until cursor == '0' \
        local out = {} for kind, known in pairs(all) do out[#out + 1] = kind .. ' ' .. known[1] .. ' ' .. known[2] end \
        return table.concat(out, ',')";
    let text = site.redis.ask(&["EVAL", script, "0"]).await;
    let row = |row: &str| {
        let words: Vec<&str> = row.split(' ').collect();
        let number = |nth: usize| words[nth].parse::<f64>().expect("a number") as u64;
        (words[0].to_owned(), (number(1), number(2)))
    };
    text.split(',').map(row).collect()
}

fn start(site: &Site, ns: &str, url: &str) -> Process {
    let environment = [("NEARSHORE__NAMESPACE", ns), ("NEARSHORE__REDIS__URL", url)];
    Process::start_with(site, "ingest", &environment)
}

/// The share of each of so many members, and their rate together.
async fn shared(site: &Site, load: Load, processes: usize) {
    site.redis.ask(&["FLUSHALL"]).await;
    let ns = format!("shared-{processes}");
    let url = site.redis.url();
    let members: Vec<Process> = (0..processes).map(|_| start(site, &ns, &url)).collect();
    let topic = format!("topic=\"{}\"", site.topics.user_events);
    let mut samples = Vec::new();
    let split = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut split = Vec::new();
        for member in &members {
            let up = matches!(member.get("/metrics").await, Ok((200, _)));
            split.push(match up {
                true => member.metric("nearshore_records_total", &topic).await as usize,
                false => 0,
            });
        }
        let all: usize = split.iter().sum();
        samples.push((Instant::now(), all));
        if all >= load.events {
            break split;
        }
    };
    println!(
        "  {processes} processes: {:.0} events/s together, split {split:?}; {}",
        rate_of(&samples, load.events),
        machine()
    );
}

/// Keys and bytes of each of three nodes.
async fn cluster(site: &Site, load: Load) {
    let nodes = variable("NEARSHORE_TEST_REDIS_CLUSTER");
    let url = format!("redis+cluster://{nodes}");
    let store = RedisStore::new(RedisSettings {
        url: url.clone(),
        ..RedisSettings::default()
    });
    let store = store.expect("a valid url");
    store.lineage().await.expect("the cluster answers");
    let mut ingest = start(site, "spread", &url);
    let sampled = samples(site, &ingest, load.events).await;
    ingest.terminate().await;
    println!(
        "  cluster of three: {:.0} events/s",
        rate_of(&sampled, load.events)
    );
    for node in nodes.split(',') {
        let client = redis::Client::open(format!("redis://{node}")).expect("a valid url");
        let mut conn = client
            .get_multiplexed_async_connection()
            .await
            .expect("Redis answers");
        let keys: u64 = redis::cmd("DBSIZE")
            .query_async(&mut conn)
            .await
            .expect("Redis answers");
        let info: String = redis::cmd("INFO")
            .arg("memory")
            .query_async(&mut conn)
            .await
            .expect("Redis answers");
        let bytes = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"))
            .unwrap_or("?")
            .to_owned();
        println!("    {node}: {keys} keys, {bytes} bytes");
    }
}
