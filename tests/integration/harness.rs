//! What integration tests share: addresses from the environment, deadlines, fresh names.
//!
//! No test depends on the speed of the machine: it waits for a condition, and its deadline is one that only a hang
//! exceeds. What Nearshore promises in seconds is measured by `scripts/bench` and `scripts/chaos`.

use std::future::Future;
use std::time::{Duration, Instant};

/// Deadline of every wait. Most conditions hold within seconds; on two slow cores beside other work, within a minute.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Longest answer that a test's own connection to Redis waits for.
pub const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The value of a `NEARSHORE_TEST_*` variable; `scripts/test` sets them all.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

/// Asks again until the answer is `Ok` or `limit` has passed; panics with the last `Err`.
pub async fn eventually<T, F>(limit: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if start.elapsed() > limit => panic!("not within {limit:?}: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A name that no other test uses, e.g. for topics and namespaces (`[a-z0-9-]{1,32}`).
pub fn fresh(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{prefix}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
