//! Serves health, readiness, metrics and the inspect page over HTTP; only GET.
//!
//! Invariant: `/healthz` reports the progress of this process alone, never Kafka or Redis, so that their failure does
//! not restart processes; no request changes anything. It does not know what is watched: roles pass in heartbeats,
//! gates and a function that looks up a user. Off loopback `/inspect` is shown to those who know its token alone.

mod access;
mod connections;
mod health;
mod ready;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use access::Access;
pub use health::{Health, Heartbeat, Stale};
pub use ready::{Gate, Ready};

use crate::metrics::Usage;
use crate::ops::inspect::{Page, View, html};

/// What is asked for on `/inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// A user.
    pub user: String,
    /// A product of which it is asked why it is not on the user's list.
    pub why_not: Option<String>,
}

/// What is known of the user, and why the product is not on their list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// The user.
    pub view: View,
    /// Why the product is not on the list, for people; none if no product was asked for.
    pub why_not: Option<String>,
}

/// Looks up a user: an answer, nothing if nothing is stored, or why the look-up failed.
pub type Provider =
    Arc<dyn Fn(Question) -> BoxFuture<'static, Result<Option<Inspected>, String>> + Send + Sync>;

/// What is served.
#[derive(Clone, Default)]
pub struct App {
    /// For `/healthz`.
    pub health: Health,
    /// For `/readyz`.
    pub ready: Ready,
    /// For `/metrics`; without it the answer is 404.
    pub metrics: Option<PrometheusHandle>,
    /// For `/inspect`; without it the answer is 404.
    pub inspect: Option<Provider>,
    /// Who may see `/inspect`.
    pub(crate) access: Access,
}

impl App {
    /// Serves `/inspect` with this look-up.
    pub fn inspect_by<F, Found>(mut self, look_up: F) -> Self
    where
        F: Fn(Question) -> Found + Send + Sync + 'static,
        Found: Future<Output = Result<Option<Inspected>, String>> + Send + 'static,
    {
        self.inspect = Some(Arc::new(move |question| Box::pin(look_up(question))));
        self
    }

    /// Shows `/inspect` to those who know the token in this file.
    pub fn token_file(mut self, file: Option<PathBuf>) -> Self {
        self.access.token_file = file;
        self
    }
}

/// The longest that open requests may take after the stop: looking up a user may wait for Redis.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// Serves until `stop`; open requests are answered if that takes at most [`SHUTDOWN_MAX`].
pub async fn serve(
    listener: TcpListener,
    mut app: App,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    app.access.is_public = !loopback;
    let mut routes = routes(app);
    if loopback {
        routes = routes.layer(middleware::from_fn(only_local_names));
    }
    answer(listener, routes, stop).await;
    Ok(())
}

/// Serves `/healthz` and `/readyz` alone until `stop`, for probes: what happens on another port does not reach it.
pub async fn serve_probes(listener: TcpListener, app: App, stop: CancellationToken) {
    let routes = probes().with_state(app);
    answer(listener, routes, stop).await;
}

async fn answer(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_MAX).await;
    };
    tokio::select! {
        () = connections::answer(listener, routes, stop.clone()) => {}
        () = deadline => {}
    }
}

fn probes() -> Router<App> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
}

fn routes(app: App) -> Router {
    probes()
        .route("/", get(index))
        .route("/metrics", get(exposition))
        .route("/inspect", get(inspect))
        .layer(middleware::from_fn(add_security_headers))
        .with_state(app)
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><html lang=\"en\"><title>Nearshore</title><h1>Nearshore</h1><ul>\
         <li><a href=\"/inspect\">inspect a user</a><li><a href=\"/readyz\">readiness</a>\
         <li><a href=\"/healthz\">health</a><li><a href=\"/metrics\">metrics</a></ul>",
    )
}

async fn healthz(State(app): State<App>) -> Response {
    let stale = app.health.stale();
    let status = status(stale.is_empty());
    let body = serde_json::json!({ "healthy": stale.is_empty(), "stale": stale });
    (status, Json(body)).into_response()
}

async fn readyz(State(app): State<App>) -> Response {
    let (ready, dependencies) = app.ready.read();
    let body = serde_json::json!({ "ready": ready, "dependencies": dependencies });
    (status(ready), Json(body)).into_response()
}

fn status(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn exposition(State(app): State<App>) -> Response {
    match app.metrics {
        Some(handle) => {
            crate::metrics::usage(&Usage::read());
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], handle.render()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(serde::Deserialize)]
struct InspectQuery {
    user: Option<String>,
    why_not: Option<String>,
}

async fn inspect(
    State(app): State<App>,
    Query(query): Query<InspectQuery>,
    headers: HeaderMap,
) -> Response {
    let Some(provider) = app.inspect else {
        return (
            StatusCode::NOT_FOUND,
            "the inspect page is off: http.inspect = false\n",
        )
            .into_response();
    };
    if let Err(refused) = app.access.permit(&headers).await {
        return *refused;
    }
    let product = query.why_not.filter(|product| !product.is_empty());
    let (status, page) = match query.user.filter(|user| !user.is_empty()) {
        None => (StatusCode::OK, Page::Ask),
        Some(user) => match provider(Question {
            user: user.clone(),
            why_not: product.clone(),
        })
        .await
        {
            Ok(Some(Inspected { view, why_not })) => {
                let page = Page::Found {
                    view: Box::new(view),
                    product: product.unwrap_or_default(),
                    why_not: why_not.unwrap_or_default(),
                };
                (StatusCode::OK, page)
            }
            Ok(None) => (StatusCode::NOT_FOUND, Page::Absent { user }),
            Err(why) => (StatusCode::BAD_GATEWAY, Page::Failed { user, why }),
        },
    };
    match html(&page) {
        Ok(page) => (status, Html(page)).into_response(),
        Err(error) => {
            tracing::error!(%error, "rendering the inspect page failed; answered 500");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Forbids browsers to cache, frame, sniff or load anything from elsewhere: the page shows personal data.
async fn add_security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; \
                  frame-ancestors 'none'; base-uri 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        let value = header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// On loopback, answers only requests to local names. Otherwise a foreign page whose name resolves to 127.0.0.1 (DNS
/// rebinding) could read what users did.
async fn only_local_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<std::net::IpAddr>();
    // RFC 9110, 4.2.3: a host has no case, and RFC 3986, 3.2.2: it may end with a dot.
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    {
        next.run(request).await
    } else {
        (
            StatusCode::FORBIDDEN,
            "only local names are answered here\n",
        )
            .into_response()
    }
}
