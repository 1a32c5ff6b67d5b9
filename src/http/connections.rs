//! Accepts HTTP connections within limits, so that clients that send half of a request can't keep out a probe.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] connections are open, far fewer than the descriptors that Kafka and Redis need
//! too. When there is no room, a new connection takes the place of the oldest one that has asked nothing yet. It does
//! not know the routes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most open connections.
const CONNECTIONS_MAX: usize = 128;

/// The longest that a client may take for the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Pause after a failed accept, for example because no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far the client of a connection is.
#[derive(Debug, Default)]
struct Progress {
    /// Requests whose head was read.
    asked: AtomicUsize,
    /// Requests that are answered now.
    open: AtomicUsize,
}

struct Connection {
    id: u64,
    progress: Arc<Progress>,
    close: CancellationToken,
}

/// The open connections, oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

impl Connections {
    /// Closes a connection if there is no room for another: the oldest one that has asked nothing, else the oldest one
    /// that waits for its client. Returns whether there is room now.
    fn make_room(&mut self) -> bool {
        if self.0.len() < CONNECTIONS_MAX {
            return true;
        }
        let is_silent = |it: &Connection| it.progress.asked.load(Ordering::Relaxed) == 0;
        let is_idle = |it: &Connection| it.progress.open.load(Ordering::Relaxed) == 0;
        let silent = self.0.iter().position(is_silent);
        let Some(at) = silent.or_else(|| self.0.iter().position(is_idle)) else {
            return false;
        };
        if let Some(closed) = self.0.remove(at) {
            closed.close.cancel();
        }
        true
    }

    fn forget(&mut self, id: u64) {
        self.0.retain(|connection| connection.id != id);
    }
}

/// Answers until `stop`, then lets open requests end; the caller limits how long.
pub(super) async fn answer(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let mut connections = Connections::default();
    let mut tasks = JoinSet::new();
    for id in 0.. {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while let Some(ended) = tasks.try_join_next() {
            connections.forget(ended.unwrap_or(u64::MAX));
        }
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if !connections.make_room() {
            continue;
        }
        let connection = Connection {
            id,
            progress: Arc::default(),
            close: CancellationToken::new(),
        };
        let (progress, close) = (connection.progress.clone(), connection.close.clone());
        let (routes, stop) = (routes.clone(), stop.clone());
        connections.0.push_back(connection);
        tasks.spawn(async move {
            tokio::select! {
                () = close.cancelled() => {}
                () = serve_one(stream, routes, progress, stop) => {}
            }
            id
        });
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn serve_one(
    stream: TcpStream,
    routes: Router,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        progress.asked.fetch_add(1, Ordering::Relaxed);
        progress.open.fetch_add(1, Ordering::Relaxed);
        let (progress, routes) = (progress.clone(), routes.clone());
        async move {
            let answer = routes.call(request).await;
            progress.open.fetch_sub(1, Ordering::Relaxed);
            answer
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    // An error is the client's: a broken connection, no HTTP, a head that did not come.
    tokio::select! {
        _ended = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ended = connection.await;
        }
    }
}
