//! A measurement, not a test: prints what the store's operations cost on this machine.
//! `scripts/test --test integration speed_of_one_redis -- --ignored --nocapture`

use std::time::Instant;

use nearshore_core::ports::store::{Claim, FoldWrite, Publish, Store};
use nearshore_core::user::event::UserId;

use crate::harness::fresh;
use crate::store::{cluster, list, memory, position, single, user, write};

const USERS: usize = 10_000;
const WINDOW: i64 = 50;

async fn measure<S: Store>(name: &str, store: S) {
    for batch in [1, 100, 500] {
        let n = if batch == 1 { 2_000 } else { USERS };
        let ns = fresh("speed");
        let users: Vec<UserId> = (0..n).map(|_| user("u")).collect();
        let report = |what: &str, start: Instant| {
            let seconds = start.elapsed().as_secs_f64();
            let calls = n / batch;
            println!(
                "{name} batch {batch:>3} {what:<8} {:>8.0} users/s {:>7.2} ms/batch",
                n as f64 / seconds,
                seconds * 1000.0 / calls as f64
            );
        };
        let writes: Vec<FoldWrite> = users.iter().map(|user| write(user, 0, WINDOW)).collect();
        let start = Instant::now();
        for part in writes.chunks(batch) {
            store.fold(&ns, part).await.expect("the store answers");
        }
        report("fold", start);
        let start = Instant::now();
        for part in users.chunks(batch) {
            store.load(&ns, part).await.expect("the store answers");
        }
        report("load", start);
        let claims = users.iter().map(|user| Claim {
            user: user.clone(),
            due: nearshore_core::user::record::Timestamp(1),
            expected: 1,
        });
        let claims: Vec<Claim> = claims.collect();
        let start = Instant::now();
        for part in claims.chunks(batch) {
            store.claim(&ns, part).await.expect("the store answers");
        }
        report("claim", start);
        let lists: Vec<Publish> = users
            .iter()
            .map(|user| {
                let mut list = list(user, 1);
                list.list.doc = format!(r#"{{"source":"model","pad":"{}"}}"#, "x".repeat(2000));
                list.list.seen = (1..9).map(position).collect();
                list
            })
            .collect();
        let start = Instant::now();
        for part in lists.chunks(batch) {
            store.publish(&ns, part).await.expect("the store answers");
        }
        report("publish", start);
        let start = Instant::now();
        for part in users.chunks(batch) {
            store.peek(&ns, part).await.expect("the store answers");
        }
        report("peek", start);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement: it prints and checks nothing"]
async fn speed_of_one_redis_and_of_a_cluster() {
    measure("memory ", memory()).await;
    measure("single ", single()).await;
    measure("cluster", cluster()).await;
}
