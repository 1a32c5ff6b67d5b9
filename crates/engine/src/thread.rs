//! The model's own thread and the only way to it, [`Handle`].
//!
//! Decides that one batch runs at a time and one may wait. Names are indexed on a second thread while batches run over
//! the old names, and are swapped in between two batches. Invariant: every call returns a result or [`Error::Stopped`],
//! also if the model panics; a batch that is sent after [`Handle::set_names`] returned is scored over those names or
//! newer ones; a batch whose caller no longer waits is cancelled. It does not know what a batch is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Error, Info, Model};
use crate::heads::Heads;
use crate::search::index::{Indexed, Indexer};
use nearshore_core::names::scoring::{Cancel, Names, Prompt, ScoreRequest, ScoreResponse};
use nearshore_core::names::writing::{WriteRequest, WriteResponse};

/// Progress of an engine, for health checks and metrics.
#[derive(Debug, Default)]
pub struct Pulse {
    steps: AtomicU64,
    busy: AtomicU64,
    working: AtomicBool,
}

impl Pulse {
    /// Counts one step: a forward pass, or the start or end of a call.
    pub fn beat(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps so far. The number rises while [`is_working`](Self::is_working).
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Total time of the calls that have ended.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    /// Whether a call is running.
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

/// Number of threads of a model: as configured, or for 0 one per core that the process may use.
///
/// A core left to the rest of the process would mostly be idle: beside a model's seconds the rest takes milliseconds
/// per batch, which the system gives it in between.
pub fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

enum Job {
    Swap(Indexed, oneshot::Sender<()>),
    Score(
        Vec<ScoreRequest>,
        oneshot::Sender<Result<Vec<ScoreResponse>, Error>>,
    ),
    Write(
        Vec<WriteRequest>,
        oneshot::Sender<Result<Vec<WriteResponse>, Error>>,
    ),
    Hidden(Vec<Prompt>, oneshot::Sender<Result<Vec<Vec<f32>>, Error>>),
}

/// The names that were set last, and how often names were set so far.
#[derive(Clone, Debug, Default)]
struct Wanted {
    names: Arc<Names>,
    version: u64,
}

/// The version of [`Wanted`] that was indexed last, and the error if that failed.
#[derive(Clone, Debug, Default)]
struct Done {
    version: u64,
    error: Option<Arc<Error>>,
}

/// The only way to the model; the model's thread owns weights, keys and values. The threads end with the last handle.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    wanted: watch::Sender<Wanted>,
    done: watch::Receiver<Done>,
    pulse: Arc<Pulse>,
    info: Info,
}

/// Moves `model` to a new thread.
pub fn spawn(model: Box<dyn Model>) -> Handle {
    spawn_with(model, Arc::default())
}

/// Like [`spawn`], with a pulse that the model beats too.
pub fn spawn_with(model: Box<dyn Model>, pulse: Arc<Pulse>) -> Handle {
    // Capacity 1: one batch runs, the next one waits.
    let (jobs, waiting) = mpsc::channel(1);
    let (wanted, changes) = watch::channel(Wanted::default());
    let (finished, done) = watch::channel(Done::default());
    let (info, indexer) = (model.info(), model.indexer());
    let beat = Arc::clone(&pulse);
    start("engine", move || work(model, waiting, &beat));
    // A strong sender would keep the model's thread alive after the last handle.
    let weak = jobs.downgrade();
    start("engine-names", move || {
        index(&indexer, changes, &weak, &finished)
    });
    Handle {
        jobs,
        wanted,
        done,
        pulse,
        info,
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.into());
    // Without the thread its end of the channel is dropped, so every call returns `Stopped`.
    if let Err(error) = thread.spawn(work) {
        tracing::error!(%error, name, "starting a thread of the engine failed; the engine is stopped");
    }
}

fn work(mut model: Box<dyn Model>, mut waiting: mpsc::Receiver<Job>, beat: &Pulse) {
    let mut heads = Heads::default();
    while let Some(job) = waiting.blocking_recv() {
        // Sending a reply fails if the caller was cancelled: then nothing needs it.
        match job {
            Job::Swap(indexed, reply) => {
                model.swap(indexed);
                let _ = reply.send(());
            }
            Job::Score(_, reply) if reply.is_closed() => {}
            Job::Score(requests, reply) => {
                let score = || {
                    let requests = heads.resolve(&mut *model, requests)?;
                    model.score(&requests)
                };
                let _ = reply.send(beat.around(score));
            }
            Job::Write(_, reply) if reply.is_closed() => {}
            Job::Write(requests, reply) => {
                let _ = reply.send(beat.around(|| model.write(&requests)));
            }
            Job::Hidden(prompts, reply) => {
                let _ = reply.send(beat.around(|| model.hidden(&prompts)));
            }
        }
    }
}

/// Indexes the names that were set last and sends them to the model's thread; skips names that were set before them.
fn index(
    indexer: &Indexer,
    mut changes: watch::Receiver<Wanted>,
    jobs: &mpsc::WeakSender<Job>,
    finished: &watch::Sender<Done>,
) {
    while futures::executor::block_on(changes.changed()).is_ok() {
        let Wanted { names, version } = changes.borrow_and_update().clone();
        let error = match indexer(names) {
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
                tracing::error!(%error, "indexing names failed; still scoring the previous names");
                Some(Arc::new(error))
            }
        };
        finished.send_replace(Done { version, error });
    }
}

/// Cancels a batch if it is dropped before the batch is answered.
struct CancelOnDrop {
    cancels: Vec<Cancel>,
    is_answered: bool,
}

impl CancelOnDrop {
    fn new<'a>(cancels: impl Iterator<Item = &'a Cancel>) -> Self {
        Self {
            cancels: cancels.cloned().collect(),
            is_answered: false,
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.is_answered {
            self.cancels.iter().for_each(Cancel::cancel);
        }
    }
}

impl Handle {
    /// Scores a batch; responses are in the order of the requests. The batch is cancelled if the future is dropped.
    pub async fn score(&self, requests: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, Error> {
        let mut guard = CancelOnDrop::new(requests.iter().map(|request| &request.cancel));
        let (reply, response) = oneshot::channel();
        let sent = self.jobs.send(Job::Score(requests, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        let responses = response.await.map_err(|_| Error::Stopped)?;
        guard.is_answered = true;
        responses
    }

    /// Writes a text for each request; responses are in the order of the requests. The names of the catalogue are not
    /// needed. The batch is cancelled if the future is dropped.
    pub async fn write(&self, requests: Vec<WriteRequest>) -> Result<Vec<WriteResponse>, Error> {
        let mut guard = CancelOnDrop::new(requests.iter().map(|request| &request.cancel));
        let (reply, response) = oneshot::channel();
        let sent = self.jobs.send(Job::Write(requests, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        let responses = response.await.map_err(|_| Error::Stopped)?;
        guard.is_answered = true;
        responses
    }

    /// The hidden state after each prompt. The names of the catalogue are not needed.
    pub async fn hidden(&self, prompts: Vec<Prompt>) -> Result<Vec<Vec<f32>>, Error> {
        let (reply, states) = oneshot::channel();
        let sent = self.jobs.send(Job::Hidden(prompts, reply)).await;
        sent.map_err(|_| Error::Stopped)?;
        states.await.map_err(|_| Error::Stopped)?
    }

    /// Makes `names` the catalogue of all later batches; returns when they are swapped in. Batches continue while names
    /// are indexed. Names that were set earlier and are not indexed yet are skipped.
    pub async fn set_names(&self, names: Arc<Names>) -> Result<(), Error> {
        let version = self.want(names);
        let mut done = self.done.clone();
        let done = done.wait_for(|done| done.version >= version).await;
        let error = done.map_err(|_| Error::Stopped)?.error.clone();
        error.map_or(Ok(()), |error| {
            Err(Error::Compute {
                what: "names".into(),
                source: Box::new(error),
            })
        })
    }

    /// Like [`set_names`](Self::set_names), but returns at once, unless there are no names yet: then no batch could be
    /// scored meanwhile.
    pub async fn offer_names(&self, names: Arc<Names>) -> Result<(), Error> {
        let is_first = self.done.borrow().version == 0;
        if is_first {
            return self.set_names(names).await;
        }
        self.want(names);
        let is_stopped = self.done.has_changed().is_err();
        if is_stopped {
            Err(Error::Stopped)
        } else {
            Ok(())
        }
    }

    /// Requests that `names` are indexed; returns the version of the request.
    fn want(&self, names: Arc<Names>) -> u64 {
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            // Arms that share a model all set the same names: they are indexed once.
            if wanted.version == 0 || !Arc::ptr_eq(&wanted.names, &names) {
                *wanted = Wanted {
                    names,
                    version: wanted.version + 1,
                };
            }
            version = wanted.version;
        });
        version
    }

    /// The model's name and revision.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Progress of the model's thread.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;
    use crate::search::index::bare;

    fn request(n: usize) -> ScoreRequest {
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

    #[test]
    fn no_configured_threads_are_one_per_core() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!([threads(0), threads(1), threads(7)], [cores, 1, 7]);
    }

    #[tokio::test]
    async fn a_batch_is_scored_and_counted() {
        let handle = spawn(Box::new(Table::default()));
        handle.set_names(names()).await.expect("set");
        let responses = handle
            .score(vec![request(2), request(9)])
            .await
            .expect("scored");
        assert_eq!([responses[0].named.len(), responses[1].named.len()], [2, 3]);
        assert_eq!(handle.pulse().steps(), 2);
        assert!(!handle.pulse().is_working());
    }

    /// A model whose indexer and scores are given functions.
    struct Scripted<I, G>(I, G);

    impl<I, G> Model for Scripted<I, G>
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
        fn write(&mut self, requests: &[WriteRequest]) -> Result<Vec<WriteResponse>, Error> {
            Ok(vec![WriteResponse::default(); requests.len()])
        }
        fn hidden(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error> {
            Ok(vec![Vec::new(); prompts.len()])
        }
        fn info(&self) -> Info {
            Info::default()
        }
    }

    #[tokio::test]
    async fn after_a_panic_of_the_model_every_call_returns_stopped() {
        let handle = spawn(Box::new(Scripted(bare, |_: &[ScoreRequest]| {
            panic!("a bug")
        })));
        for _ in 0..2 {
            let response = handle.score(vec![request(1)]).await;
            assert!(matches!(response, Err(Error::Stopped)));
        }
        assert!(matches!(
            handle.set_names(names()).await,
            Err(Error::Stopped)
        ));
    }

    #[tokio::test]
    async fn batches_are_scored_while_names_are_indexed() {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let indexer = move || -> Indexer {
            let gate = Arc::clone(&gate);
            Arc::new(move |names: Arc<Names>| {
                gate.lock().expect("one thread").recv().expect("released");
                bare()(names)
            })
        };
        let handle = spawn(Box::new(Scripted(indexer, |_: &[ScoreRequest]| {
            vec![ScoreResponse::default()]
        })));
        release.send(()).expect("the indexer waits");
        handle
            .offer_names(names())
            .await
            .expect("the first names are waited for");
        handle
            .offer_names(names())
            .await
            .expect("later names are not waited for");
        let other = handle.clone();
        let swapped = tokio::spawn(async move { other.set_names(names()).await });
        for _ in 0..3 {
            handle.score(vec![request(1)]).await.expect("scored");
        }
        assert!(!swapped.is_finished());
        // Once for the offered names, once for those that were set after them.
        release.send(()).expect("the indexer waits");
        release.send(()).expect("the indexer waits");
        swapped.await.expect("no panic").expect("swapped");
    }

    #[tokio::test]
    async fn names_that_cannot_be_indexed_leave_the_old_names() {
        let indexer = || -> Indexer {
            Arc::new(|names: Arc<Names>| match names.version {
                1 => bare()(names),
                _ => Err(Error::Stopped),
            })
        };
        let handle = spawn(Box::new(Scripted(indexer, |_: &[ScoreRequest]| {
            vec![ScoreResponse::default()]
        })));
        handle.set_names(names()).await.expect("set");
        let error = handle.set_names(Arc::default()).await;
        assert!(matches!(error, Err(Error::Compute { .. })), "{error:?}");
        handle.set_names(names()).await.expect("set again");
    }

    #[tokio::test]
    async fn a_batch_whose_caller_is_dropped_is_cancelled() {
        let (begun, begins) = oneshot::channel();
        let (over, ends) = oneshot::channel();
        let mut signals = Some((begun, over));
        let wait = move |requests: &[ScoreRequest]| {
            let (begun, over) = signals.take().expect("one batch");
            begun.send(()).expect("the test waits");
            while !requests[0].cancel.is_cancelled() {
                std::thread::yield_now();
            }
            over.send(()).expect("the test waits");
            Vec::new()
        };
        let handle = spawn(Box::new(Scripted(bare, wait)));
        tokio::select! {
            _ = handle.score(vec![request(1)]) => panic!("the batch ended before it was cancelled"),
            begun = begins => begun.expect("begun"),
        }
        ends.await.expect("cancelled");
    }
}
