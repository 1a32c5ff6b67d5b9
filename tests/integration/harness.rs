//! What integration tests share: addresses from the environment, deadlines, fresh names.

use std::future::Future;
use std::time::{Duration, Instant};

/// The value of a `NEARSHORE_TEST_*` variable; `scripts/test` sets them all.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

/// Asks again until there is an answer or `limit` has passed; panics with what it last saw.
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
