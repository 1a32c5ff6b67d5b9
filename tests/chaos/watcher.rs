//! A client that reads lists all the time, as serving does: between two erases of a user neither the claim nor the seen
//! offsets of the list may fall, except while stores fail over. It also samples the memory of the members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Commands;
use tokio_util::sync::CancellationToken;

use crate::checker::fences;
use crate::world::World;

/// Users whose lists are read.
const WATCHED: usize = 60;
struct Last {
    erased_at: i64,
    claim: u64,
    seen: BTreeMap<(String, i32), i64>,
}

type Lasts = BTreeMap<usize, Last>;

/// Watches until it is cancelled.
pub async fn watch(world: Arc<World>, cancel: CancellationToken) {
    let mut lasts: Lasts = BTreeMap::new();
    let mut failed: Option<Instant> = None;
    while !cancel.is_cancelled() {
        if world.failing.load(Ordering::SeqCst) > 0 {
            failed = Some(Instant::now());
        }
        let declared = failed.is_some_and(|at| at.elapsed() < world.size.aftermath);
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

/// Reads the lists once. An error is no violation: a store that is down is one of the faults.
fn look(world: &World, lasts: &mut Lasts, declared: bool) -> redis::RedisResult<()> {
    for port in world.servers.read_ports() {
        let client = redis::Client::open(("127.0.0.1", port))?;
        let mut conn = client.get_connection_with_timeout(Duration::from_millis(500))?;
        conn.set_read_timeout(Some(Duration::from_secs(1)))?;
        for nth in 0..WATCHED.min(world.size.users) {
            let key =
                |what: &str| format!("{}:{{{}}}:{what}", world.site.ns, crate::load::user(nth));
            let mut pipe = redis::pipe();
            pipe.atomic();
            pipe.hget(key("state"), "erased_at");
            pipe.hget(key("recall"), "claim");
            pipe.hget(key("recall"), "seen");
            type Row = (Option<i64>, Option<u64>, Option<String>);
            // In a cluster a user is on one node; the others refuse.
            let Ok((Some(erased_at), Some(claim), seen)) = pipe.query::<Row>(&mut conn) else {
                continue;
            };
            let now = Last {
                erased_at,
                claim,
                seen: fences(&seen.unwrap_or_default()),
            };
            let wrong = lasts.get(&nth).and_then(|last| regression(nth, last, &now));
            world.journal.read(wrong, declared);
            lasts.insert(nth, now);
        }
        let _: Option<String> = conn.get("nearshore:active")?;
    }
    Ok(())
}

/// What fell since the last read, if anything.
fn regression(nth: usize, last: &Last, now: &Last) -> Option<String> {
    if now.erased_at != last.erased_at {
        return None;
    }
    let lower = last
        .seen
        .iter()
        .any(|(at, fence)| now.seen.get(at).is_none_or(|it| it < fence));
    let fell = now.claim < last.claim || (lower && now.claim > 0);
    fell.then(|| {
        format!(
            "user {nth}: list {} was read after {}, erased_at {}",
            now.claim, last.claim, now.erased_at
        )
    })
}
