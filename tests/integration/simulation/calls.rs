//! How a hand-made scheduler waits for calls to a real store: a step waits for its answer, and delayed calls run as
//! tasks.
//!
//! On doubles in memory every call is ready at once, and nothing here waits.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

thread_local! {
    /// Delayed calls that are being executed on a real store.
    static EXECUTING: RefCell<Vec<tokio::task::JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
}

/// Whether delayed calls are still being executed.
pub fn delayed_are_executing() -> bool {
    EXECUTING.with_borrow_mut(|calls| {
        calls.retain(|call| !call.is_finished());
        !calls.is_empty()
    })
}

/// Distinguishes a yield, which wakes within its own poll, from a call that waits for a real store.
#[derive(Default)]
pub struct Called {
    woken: Mutex<bool>,
    changed: Condvar,
}

/// How long a step waits for an answer of a real store. An answer may never come while another member, which is not
/// polled, has the connection. Steps are counted and advance the clock, so without the wait a slow machine would use
/// them up.
const ANSWER_MAX: Duration = Duration::from_millis(10);

impl Called {
    /// Waits until the call is answered, at most [`ANSWER_MAX`].
    pub fn answer(&self) {
        let woken = self.woken.lock().expect("no thread panics with the lock");
        drop(
            self.changed
                .wait_timeout_while(woken, ANSWER_MAX, |woken| !*woken),
        );
    }
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().expect("no thread panics with the lock") = true;
        self.changed.notify_one();
    }
}

/// Executes a delayed call. On a real store it may wait for a connection that an unpolled member has, so there it runs
/// as a task of the runtime.
pub fn execute(mut call: Pin<Box<dyn Future<Output = ()> + Send>>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        EXECUTING.with_borrow_mut(|calls| calls.push(runtime.spawn(call)));
        return;
    }
    let mut context = Context::from_waker(Waker::noop());
    while call.as_mut().poll(&mut context).is_pending() {
        std::thread::yield_now();
    }
}
