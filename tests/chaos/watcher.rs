//! A client that reads lists all the time, as serving does: for each user the ticket must not fall within one life,
//! nor what the list has seen, except while stores fail over. It also looks at the members' memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Commands;
use tokio_util::sync::CancellationToken;

use crate::checker::fences;
use crate::world::World;

/// Users that are looked at.
const LOOKED_AT: usize = 60;
/// What was lost by a failover shows a while longer, until it is made again.
const AFTERMATH: Duration = Duration::from_secs(20);

struct Last {
    life: i64,
    ticket: u64,
    covers: BTreeMap<(String, i32), i64>,
}

type Lasts = BTreeMap<usize, Last>;

/// Watches until cancelled.
pub async fn watch(world: Arc<World>, cancel: CancellationToken) {
    let mut lasts: Lasts = BTreeMap::new();
    let mut failed: Option<Instant> = None;
    while !cancel.is_cancelled() {
        if world.failing.load(Ordering::SeqCst) > 0 {
            failed = Some(Instant::now());
        }
        let declared = failed.is_some_and(|at| at.elapsed() < AFTERMATH);
        let looking = world.clone();
        let look = tokio::task::spawn_blocking(move || {
            let looked = look(&looking, &mut lasts, declared);
            (lasts, looked)
        });
        let Ok((back, _)) = look.await else { return };
        lasts = back;
        for member in &world.members {
            if let Some(bytes) = member.memory().await {
                world.journal.memory(member.name(), bytes);
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Not an error: a store that is away is a fault at work.
fn look(world: &World, lasts: &mut Lasts, declared: bool) -> redis::RedisResult<()> {
    for port in world.servers.read_ports() {
        let client = redis::Client::open(("127.0.0.1", port))?;
        let mut conn = client.get_connection_with_timeout(Duration::from_millis(500))?;
        conn.set_read_timeout(Some(Duration::from_secs(1)))?;
        for nth in 0..LOOKED_AT.min(world.size.users) {
            let key =
                |what: &str| format!("{}:{{{}}}:{what}", world.site.ns, crate::load::user(nth));
            let mut pipe = redis::pipe();
            pipe.atomic();
            pipe.hget(key("state"), "life");
            pipe.hget(key("recall"), "ticket");
            pipe.hget(key("recall"), "covers");
            type Row = (Option<i64>, Option<u64>, Option<String>);
            // In a cluster a user is on one node, the others refuse.
            let Ok((Some(life), Some(ticket), covers)) = pipe.query::<Row>(&mut conn) else {
                continue;
            };
            let now = Last {
                life,
                ticket,
                covers: fences(&covers.unwrap_or_default()),
            };
            let wrong = lasts.get(&nth).and_then(|last| fallen(nth, last, &now));
            world.journal.looked(wrong, declared);
            lasts.insert(nth, now);
        }
        let _: Option<String> = conn.get("nearshore:active")?;
    }
    Ok(())
}

fn fallen(nth: usize, last: &Last, now: &Last) -> Option<String> {
    if now.life != last.life {
        return None;
    }
    let lower = last
        .covers
        .iter()
        .any(|(at, fence)| now.covers.get(at).is_none_or(|it| it < fence));
    let fell = now.ticket < last.ticket || (lower && now.ticket > 0);
    fell.then(|| {
        format!(
            "user {nth}: list {} was read after {}, life {}",
            now.ticket, last.ticket, now.life
        )
    })
}
