//! The model's own thread and the only way to it, [`Handle`].
//!
//! Decides that one batch runs at a time and one may wait, and that names are made ready on a second
//! thread, while batches go on over the old ones, and swapped in between two batches. Invariant: every
//! call gets an answer or [`Error::Stopped`], also when the model panics; what is asked after
//! [`Handle::set_names`] returned is answered over those names or newer ones; a batch that nobody waits for any
//! more is called off. It does not know what a batch is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Error, Info, Model};
use crate::search::index::{Indexed, Indexer};
use nearshore_core::names::scoring::{Cancel, Names, ScoreRequest, ScoreResponse};

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
    Swap(Indexed, oneshot::Sender<()>),
    Generate(
        Vec<ScoreRequest>,
        oneshot::Sender<Result<Vec<ScoreResponse>, Error>>,
    ),
}

/// The names that are wanted, and how often names were wanted so far.
#[derive(Clone, Debug, Default)]
struct Wanted {
    names: Arc<Names>,
    turn: u64,
}

/// Up to which turn names were dealt with, and what became of the last.
#[derive(Clone, Debug, Default)]
struct Dealt {
    turn: u64,
    wrong: Option<Arc<Error>>,
}

/// The only way to the model, whose thread owns weights and KV. Its threads end with the last handle.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    wanted: watch::Sender<Wanted>,
    dealt: watch::Receiver<Dealt>,
    pulse: Arc<Pulse>,
    info: Info,
}

/// Moves `model` to a thread of its own.
pub fn spawn(model: Box<dyn Model>) -> Handle {
    spawn_with(model, Arc::default())
}

/// As [`spawn`], with a pulse that the model beats too.
pub fn spawn_with(model: Box<dyn Model>, pulse: Arc<Pulse>) -> Handle {
    // Capacity 1: one batch runs, the next is ready.
    let (jobs, waiting) = mpsc::channel(1);
    let (wanted, seen) = watch::channel(Wanted::default());
    let (dealing, dealt) = watch::channel(Dealt::default());
    let (info, indexer) = (model.info(), model.indexer());
    let beat = Arc::clone(&pulse);
    start("engine", move || work(model, waiting, &beat));
    // The way to the jobs must not keep the engine's thread alive.
    let weak = jobs.downgrade();
    start("engine-names", move || {
        index(&indexer, seen, &weak, &dealing)
    });
    Handle {
        jobs,
        wanted,
        dealt,
        pulse,
        info,
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.into());
    // Without a thread the other end of its channel is dropped, and every call answers `Stopped`.
    if let Err(error) = thread.spawn(work) {
        tracing::error!(%error, name, "no thread for the engine");
    }
}

fn work(mut model: Box<dyn Model>, mut waiting: mpsc::Receiver<Job>, beat: &Pulse) {
    while let Some(job) = waiting.blocking_recv() {
        // Whoever asked may have gone: a cancelled caller needs no answer.
        match job {
            Job::Swap(indexed, reply) => {
                model.swap(indexed);
                let _ = reply.send(());
            }
            Job::Generate(_, reply) if reply.is_closed() => {}
            Job::Generate(requests, reply) => {
                let _ = reply.send(beat.around(|| model.score(&requests)));
            }
        }
    }
}

/// Makes the names that are wanted ready, the latest only, and has them swapped in.
fn index(
    indexer: &Indexer,
    mut seen: watch::Receiver<Wanted>,
    jobs: &mpsc::WeakSender<Job>,
    dealing: &watch::Sender<Dealt>,
) {
    while futures::executor::block_on(seen.changed()).is_ok() {
        let Wanted { names, turn } = seen.borrow_and_update().clone();
        let wrong = match indexer(names) {
            Ok(indexed) => {
                let (reply, swapped) = oneshot::channel();
                let Some(jobs) = jobs.upgrade() else { return };
                if jobs.blocking_send(Job::Swap(indexed, reply)).is_err() {
                    return;
                }
                drop(jobs);
                if swapped.blocking_recv().is_err() {
                    return;
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "the engine keeps the old names");
                Some(Arc::new(error))
            }
        };
        dealing.send_replace(Dealt { turn, wrong });
    }
}

/// Calls a batch off when whoever waits for it goes.
struct Waits {
    cancels: Vec<Cancel>,
    answered: bool,
}

impl Drop for Waits {
    fn drop(&mut self) {
        if !self.answered {
            self.cancels.iter().for_each(Cancel::cancel);
        }
    }
}

impl Handle {
    /// Scorer a batch, in its order. Dropped before it is done, the batch is called off.
    pub async fn score(&self, requests: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, Error> {
        let mut waits = Waits {
            cancels: requests
                .iter()
                .map(|request| request.cancel.clone())
                .collect(),
            answered: false,
        };
        let (reply, response) = oneshot::channel();
        let sent = self.jobs.send(Job::Generate(requests, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        let responses = response.await.map_err(|_| Error::Stopped)?;
        waits.answered = true;
        responses
    }

    /// Makes `names` the catalogue of all later batches: batches go on while they are made ready, and
    /// this returns when they are swapped in. Names that were wanted earlier and are not ready are skipped.
    pub async fn set_names(&self, names: Arc<Names>) -> Result<(), Error> {
        let turn = self.want(names);
        let mut dealt = self.dealt.clone();
        let dealt = dealt.wait_for(|dealt| dealt.turn >= turn).await;
        let wrong = dealt.map_err(|_| Error::Stopped)?.wrong.clone();
        wrong.map_or(Ok(()), |wrong| {
            Err(Error::Compute {
                what: "names".into(),
                source: Box::new(wrong),
            })
        })
    }

    /// As [`set_names`](Self::set_names), but returns at once, unless there are no names yet: then there is
    /// nothing to go on with.
    pub async fn offer_names(&self, names: Arc<Names>) -> Result<(), Error> {
        let is_first = self.dealt.borrow().turn == 0;
        if is_first {
            return self.set_names(names).await;
        }
        self.want(names);
        let gone = self.dealt.has_changed().is_err();
        if gone { Err(Error::Stopped) } else { Ok(()) }
    }

    fn want(&self, names: Arc<Names>) -> u64 {
        let mut turn = 0;
        self.wanted.send_modify(|wanted| {
            // Arms that share a model all say the same: once is enough.
            if wanted.turn == 0 || !Arc::ptr_eq(&wanted.names, &names) {
                *wanted = Wanted {
                    names,
                    turn: wanted.turn + 1,
                };
            }
            turn = wanted.turn;
        });
        turn
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
    use crate::search::index::bare;

    fn ask(n: usize) -> ScoreRequest {
        ScoreRequest {
            prompt: "p".into(),
            n,
            ..ScoreRequest::default()
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
        let responses = handle.score(vec![ask(2), ask(9)]).await.expect("answered");
        assert_eq!([responses[0].named.len(), responses[1].named.len()], [2, 3]);
        assert_eq!(handle.pulse().steps(), 2);
        assert!(!handle.pulse().is_working());
    }

    /// A model that answers as it is told to.
    struct Told<I, G>(I, G);

    impl<I, G> Model for Told<I, G>
    where
        I: Fn() -> Indexer + Send,
        G: FnMut(&[ScoreRequest]) -> Vec<ScoreResponse> + Send,
    {
        fn indexer(&self) -> Indexer {
            self.0()
        }
        fn swap(&mut self, _: Indexed) {}
        fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<ScoreResponse>, Error> {
            Ok(self.1(requests))
        }
        fn info(&self) -> Info {
            Info::default()
        }
    }

    #[tokio::test]
    async fn a_model_that_panics_stops_the_engine_and_nobody_waits() {
        let handle = spawn(Box::new(Told(bare, |_: &[ScoreRequest]| {
            panic!("as a bug would")
        })));
        for _ in 0..2 {
            let response = handle.score(vec![ask(1)]).await;
            assert!(matches!(response, Err(Error::Stopped)));
        }
        assert!(matches!(
            handle.set_names(names()).await,
            Err(Error::Stopped)
        ));
    }

    #[tokio::test]
    async fn batches_are_answered_while_names_are_made_ready() {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let indexer = move || -> Indexer {
            let gate = Arc::clone(&gate);
            Arc::new(move |names: Arc<Names>| {
                gate.lock().expect("one thread").recv().expect("a go");
                bare()(names)
            })
        };
        let handle = spawn(Box::new(Told(indexer, |_: &[ScoreRequest]| {
            vec![ScoreResponse::default()]
        })));
        go.send(()).expect("waited for");
        handle
            .offer_names(names())
            .await
            .expect("the first are waited for");
        handle
            .offer_names(names())
            .await
            .expect("later ones are not");
        let waits = handle.clone();
        let swapped = tokio::spawn(async move { waits.set_names(names()).await });
        for _ in 0..3 {
            handle.score(vec![ask(1)]).await.expect("answered");
        }
        assert!(!swapped.is_finished());
        // The offer, and what was wanted after it.
        go.send(()).expect("waited for");
        go.send(()).expect("waited for");
        swapped.await.expect("no panic").expect("swapped");
    }

    #[tokio::test]
    async fn names_that_cannot_be_made_ready_leave_the_old_ones() {
        let indexer = || -> Indexer {
            Arc::new(|names: Arc<Names>| match names.version {
                1 => bare()(names),
                _ => Err(Error::Stopped),
            })
        };
        let handle = spawn(Box::new(Told(indexer, |_: &[ScoreRequest]| {
            vec![ScoreResponse::default()]
        })));
        handle.set_names(names()).await.expect("set");
        let error = handle.set_names(Arc::default()).await;
        assert!(matches!(error, Err(Error::Compute { .. })), "{error:?}");
        handle.set_names(names()).await.expect("set again");
    }

    #[tokio::test]
    async fn a_batch_that_nobody_waits_for_is_called_off() {
        let (begun, begins) = oneshot::channel();
        let (over, ends) = oneshot::channel();
        let mut signals = Some((begun, over));
        let wait = move |requests: &[ScoreRequest]| {
            let (begun, over) = signals.take().expect("one batch");
            begun.send(()).expect("someone waits");
            while !requests[0].cancel.is_cancelled() {
                std::thread::yield_now();
            }
            over.send(()).expect("someone waits");
            Vec::new()
        };
        let handle = spawn(Box::new(Told(bare, wait)));
        tokio::select! {
            _ = handle.score(vec![ask(1)]) => panic!("nobody cancelled"),
            begun = begins => begun.expect("begun"),
        }
        ends.await.expect("called off");
    }
}
