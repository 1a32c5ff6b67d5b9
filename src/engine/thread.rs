//! The model's own thread and the only way to it, [`Handle`].
//!
//! Decides that one batch runs at a time and one may wait. Invariant: every call gets an answer or
//! [`Error::Stopped`], also when the model panics. It does not know what a batch is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Answer, Ask, Error, Info, Model, Names};

/// Signs of life of an engine, for health checks and metrics.
#[derive(Debug, Default)]
pub struct Pulse {
    steps: AtomicU64,
    busy: AtomicU64,
    working: AtomicBool,
}

impl Pulse {
    /// Counts one step: a forward pass, or a call begun or done.
    pub fn beat(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps so far. While [`is_working`](Self::is_working) this must move.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Time spent in calls that have ended.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    /// Whether a call runs.
    pub fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed)
    }

    fn around<T>(&self, call: impl FnOnce() -> T) -> T {
        self.beat();
        self.working.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let result = call();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.busy.fetch_add(nanos, Ordering::Relaxed);
        self.working.store(false, Ordering::Relaxed);
        self.beat();
        result
    }
}

/// Threads if none are configured: all cores but one, which is left to those who feed the engine.
pub fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(1).max(1)
}

enum Job {
    Names(Arc<Names>, oneshot::Sender<Result<(), Error>>),
    Generate(Vec<Ask>, oneshot::Sender<Result<Vec<Answer>, Error>>),
}

/// The only way to the model, whose thread owns weights and KV. The thread ends with the last handle.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    pulse: Arc<Pulse>,
    info: Info,
}

/// Moves `model` to a thread of its own.
pub fn spawn(model: Box<dyn Model>) -> Handle {
    spawn_with(model, Arc::default())
}

/// As [`spawn`], with a pulse that the model beats too.
pub fn spawn_with(mut model: Box<dyn Model>, pulse: Arc<Pulse>) -> Handle {
    // Capacity 1: one batch runs, the next is ready.
    let (jobs, mut waiting) = mpsc::channel(1);
    let info = model.info();
    let beat = Arc::clone(&pulse);
    let work = move || {
        while let Some(job) = waiting.blocking_recv() {
            // Whoever asked may have gone: a cancelled caller needs no answer.
            match job {
                Job::Names(names, reply) => {
                    let _ = reply.send(beat.around(|| model.set_names(names)));
                }
                Job::Generate(_, reply) if reply.is_closed() => {}
                Job::Generate(asks, reply) => {
                    let _ = reply.send(beat.around(|| model.generate(&asks)));
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("engine".into());
    // Without a thread the receiver is dropped, and every call answers `Stopped`.
    if let Err(error) = thread.spawn(work) {
        tracing::error!(%error, "no thread for the engine");
    }
    Handle { jobs, pulse, info }
}

impl Handle {
    /// Answers a batch, in its order.
    pub async fn generate(&self, asks: Vec<Ask>) -> Result<Vec<Answer>, Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(Job::Generate(asks, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Makes `names` the catalogue of all later batches.
    pub async fn set_names(&self, names: Arc<Names>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(Job::Names(names, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// How the model is called.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Signs of life.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;

    fn ask(n: usize) -> Ask {
        Ask {
            prompt: "p".into(),
            permitted: None,
            n,
            terms: Vec::new(),
            weight: 1.0,
        }
    }

    fn names() -> Arc<Names> {
        let names = ["tea", "milk", "bread"].map(String::from).to_vec();
        Arc::new(Names { version: 1, names })
    }

    #[tokio::test]
    async fn a_batch_is_answered_and_counted() {
        let handle = spawn(Box::new(Table::default()));
        handle.set_names(names()).await.expect("set");
        let answers = handle
            .generate(vec![ask(2), ask(9)])
            .await
            .expect("answered");
        assert_eq!([answers[0].named.len(), answers[1].named.len()], [2, 3]);
        assert_eq!(handle.pulse().steps(), 4);
        assert!(!handle.pulse().is_working());
    }

    #[tokio::test]
    async fn a_model_that_panics_stops_the_engine_and_nobody_waits() {
        struct Broken;
        impl Model for Broken {
            fn set_names(&mut self, _: Arc<Names>) -> Result<(), Error> {
                Ok(())
            }
            fn generate(&mut self, _: &[Ask]) -> Result<Vec<Answer>, Error> {
                panic!("as a bug would")
            }
            fn info(&self) -> Info {
                Info::default()
            }
        }
        let handle = spawn(Box::new(Broken));
        for _ in 0..2 {
            let answer = handle.generate(vec![ask(1)]).await;
            assert!(matches!(answer, Err(Error::Stopped)));
        }
    }
}
