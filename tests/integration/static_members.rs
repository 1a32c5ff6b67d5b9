//! Promise: with `kafka.instance_id` a rolling update of ingest moves no partition. Counted on the broker: after each
//! step it is asked who has each partition. Without the key the same update moves some, so the count can see it.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::harness::{LIMIT, eventually};
use crate::process::{Process, Site};

/// Replicas of ingest.
const REPLICAS: usize = 3;

/// Longer than a restart on a slow machine: the session must not end while a process is away.
const SESSION: &str = "120s";

/// Which member has each partition, by the broker. A static member is called by its instance id, which the broker puts
/// before the id that it makes anew for each process; other members are called by that id.
type Owners = BTreeMap<(String, i32), String>;

/// Reads a member's assignment: a version, then topics with their partitions, all numbers big-endian.
fn partitions(mut bytes: &[u8]) -> Vec<(String, i32)> {
    fn take<'a>(bytes: &mut &'a [u8], size: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(size);
        *bytes = tail;
        head
    }
    let number =
        |bytes: &mut &[u8]| i32::from_be_bytes(take(bytes, 4).try_into().expect("four bytes"));
    if bytes.len() < 6 {
        return Vec::new();
    }
    take(&mut bytes, 2);
    let mut found = Vec::new();
    for _ in 0..number(&mut bytes) {
        let size = i16::from_be_bytes(take(&mut bytes, 2).try_into().expect("two bytes"));
        let topic = String::from_utf8_lossy(take(&mut bytes, size as usize)).into_owned();
        for _ in 0..number(&mut bytes) {
            found.push((topic.clone(), number(&mut bytes)));
        }
    }
    found
}

/// What the broker says of the ingest group: who has what, of a group that is not in a rebalance.
async fn owners(site: &Site) -> Result<Owners, String> {
    let (brokers, group) = (site.settings.brokers.clone(), site.ingest_group());
    let ask = move || -> Result<Owners, String> {
        let client: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()
            .expect("valid settings");
        let found = client.fetch_group_list(Some(&group), Duration::from_secs(30));
        let found = found.map_err(|error| error.to_string())?;
        let group = found.groups().first().ok_or("no group")?;
        if group.state() != "Stable" {
            return Err(format!("the group is {}", group.state()));
        }
        let mut owners = Owners::new();
        for member in group.members() {
            // The ids that the broker makes are UUIDs.
            let name = &member.id()[..member.id().len().saturating_sub(37)];
            let name = match name.starts_with("ingest-") {
                true => name,
                false => member.id(),
            };
            for partition in partitions(member.assignment().unwrap_or_default()) {
                owners.insert(partition, name.to_owned());
            }
        }
        Ok(owners)
    };
    let answer = tokio::task::spawn_blocking(ask).await;
    answer.expect("no panic")
}

/// Waits until each partition has an owner, and each of `members` some; who has what.
async fn shared_out(site: &Site, members: usize) -> Owners {
    eventually(LIMIT, || async {
        let owners = owners(site).await?;
        let names: std::collections::BTreeSet<_> = owners.values().collect();
        match (owners.len(), names.len()) == (8, members) {
            true => Ok(owners.clone()),
            false => Err(format!("{owners:?}")),
        }
    })
    .await
}

fn start(site: &Site, nth: usize, static_member: bool) -> Process {
    let id = format!("ingest-{nth}");
    let mut environment = vec![("NEARSHORE__KAFKA__SESSION_TIMEOUT", SESSION)];
    if static_member {
        environment.push(("NEARSHORE__KAFKA__INSTANCE_ID", &id));
    }
    Process::start_with(site, "ingest", &environment)
}

fn moved(before: &Owners, after: &Owners) -> usize {
    let stays = |(of, owner): &(&_, &_)| after.get(*of) == Some(*owner);
    before.len() - before.iter().filter(stays).count()
}

/// Restarts one process after the other, as a StatefulSet does. How many partitions changed their owner, added over
/// what the broker said while a process was away and after it was back. Rebalances that members count are not compared:
/// the last one of the first joining may be counted after the broker calls the group stable.
async fn rolling_update(static_member: bool) -> usize {
    let site = Site::open(&[("user_events", 6, &[])]).await;
    site.catalogue().await;
    let mut processes = Vec::new();
    for nth in 0..REPLICAS {
        processes.push(start(&site, nth, static_member));
    }
    for process in &mut processes {
        process.becomes_ready().await;
    }
    site.send(
        (0..20)
            .map(|nth| site.bought(&format!("u{nth}"), nth))
            .collect(),
    )
    .await;
    site.committed().await;
    let mut before = shared_out(&site, REPLICAS).await;
    let mut changes = 0;
    for (nth, process) in processes.iter_mut().enumerate() {
        let (status, _) = process.terminate().await;
        assert!(status.success(), "{}", process.log());
        let members = if static_member {
            REPLICAS
        } else {
            REPLICAS - 1
        };
        let away = shared_out(&site, members).await;
        changes += moved(&before, &away);
        *process = start(&site, nth, static_member);
        process.becomes_ready().await;
        let back = shared_out(&site, REPLICAS).await;
        changes += moved(&away, &back);
        before = back;
    }
    // Each of them still reads what is its own.
    site.send(
        (0..60)
            .map(|nth| site.bought(&format!("v{nth}"), nth))
            .collect(),
    )
    .await;
    site.committed().await;
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_of_static_members_moves_no_partition() {
    assert_eq!(rolling_update(true).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_without_instance_ids_moves_partitions() {
    assert!(rolling_update(false).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_one_instance_id_the_older_ends_and_names_the_key() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut older = start(&site, 0, true);
    older.becomes_ready().await;
    let mut newer = start(&site, 0, true);
    newer.becomes_ready().await;
    let log = eventually(LIMIT, || async {
        let log = older.log();
        match log.contains("kafka.instance_id = \"ingest-0\"") {
            true => Ok(log),
            false => Err(log),
        }
    })
    .await;
    assert!(log.contains("the consumer failed for good"), "{log}");
    let (status, _) = older.terminate().await;
    assert!(!status.success(), "{log}");
    newer.becomes_ready().await;
}
