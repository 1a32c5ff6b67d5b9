//! The client: one question to the server, within its limit, with retries behind a circuit breaker.
//!
//! Invariant: at most `concurrency` requests are on the way, each try that passed the breaker is told to it whatever
//! ends it, and the key is read from its file for each try and is nowhere else. It does not know what is asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nearshore_core::list::prompt::Endpoint;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::breaker::{Breaker, Pass};
use crate::{Completion, Error, answer, tls};

/// Most bytes of an answer; a list of names has a few thousand.
const BODY_MAX: usize = 4 << 20;

/// Delays before further tries: the first, and the longest.
const DELAYS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

/// A client of one server and model. Clones share connections, places and the breaker.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    model: String,
    /// `endpoint.url` without a slash at its end.
    base: String,
    http: legacy::Client<Connector, Full<Bytes>>,
    places: Semaphore,
    health: Mutex<Health>,
    start: Instant,
}

/// What is known of the server.
struct Health {
    breaker: Breaker,
    /// The last failure, if no answer came after it.
    failing: Option<String>,
    answered: bool,
}

/// Whether the server answers, as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was not asked yet.
    Unknown,
    /// Its last answer came.
    Answers,
    /// Its last answer did not come.
    Fails {
        /// Whether it is left alone for a while.
        is_open: bool,
        /// The last failure.
        why: String,
    },
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    messages: [Message<'a>; 1],
    max_tokens: u32,
    temperature: f64,
    seed: u32,
    stream: bool,
}

/// A try that passed the breaker. Dropped, it is told as given up.
struct Passed<'a> {
    inner: &'a Inner,
    pass: Option<Pass>,
}

impl Client {
    /// A client of the server at `endpoint`, whose paths must be absolute or of this folder. It asks nothing yet.
    pub fn new(endpoint: &Endpoint, model: &str) -> Result<Self, Error> {
        if let Some((key, what)) = endpoint.problems().into_iter().next() {
            return Err(Error::Setting { key, what });
        }
        let base = endpoint.url.trim_end_matches('/').to_owned();
        let parsed = base.parse::<Uri>().ok();
        // "http:" alone is a valid address, too: of the host "http".
        let parsed = parsed.filter(|uri| uri.scheme().is_some() && uri.query().is_none());
        parsed.ok_or_else(|| Error::Setting {
            key: "url",
            what: format!("{base:?} is not an address, as in http://models.example:8000/v1"),
        })?;
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(endpoint.connect_timeout));
        http.set_nodelay(true);
        http.enforce_http(false);
        let connector = tls::connector(endpoint, http)?;
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Ok(Self(Arc::new(Inner {
            model: model.to_owned(),
            base,
            http,
            places: Semaphore::new(endpoint.concurrency),
            health: Mutex::new(Health {
                breaker: Breaker::new(endpoint.failures_max, endpoint.pause),
                failing: None,
                answered: false,
            }),
            start: Instant::now(),
            endpoint: endpoint.clone(),
        })))
    }

    /// Asks the model to write an answer to a user's message.
    pub async fn complete(&self, prompt: &str) -> Result<Completion, Error> {
        let endpoint = &self.0.endpoint;
        let question = Question {
            model: &self.0.model,
            messages: [Message {
                role: "user",
                content: prompt,
            }],
            max_tokens: endpoint.max_tokens,
            temperature: endpoint.temperature,
            seed: endpoint.seed,
            stream: false,
        };
        let question = serde_json::to_vec(&question).expect("texts and finite numbers are JSON");
        let body = Some(Bytes::from(question));
        let read = |bytes: &[u8]| answer::completion(bytes);
        self.0.ask(("/chat/completions", body), read).await
    }

    /// Names of the server's models.
    pub async fn models(&self) -> Result<Vec<String>, Error> {
        let read = |bytes: &[u8]| answer::models(bytes);
        self.0.ask(("/models", None), read).await
    }

    /// Whether the server answers.
    pub fn status(&self) -> Status {
        let health = self.0.health();
        match &health.failing {
            Some(why) => Status::Fails {
                is_open: !health.breaker.is_closed(),
                why: why.clone(),
            },
            None if health.answered => Status::Answers,
            None => Status::Unknown,
        }
    }
}

impl Inner {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until there is an answer, no more tries are left, or the time is over.
    async fn ask<T>(
        &self,
        request: (&'static str, Option<Bytes>),
        read: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let limit = self.endpoint.timeout;
        let late = || Error::Timeout {
            key: "timeout",
            limit,
        };
        let deadline = tokio::time::Instant::now() + limit;
        let place = timeout_at(deadline, self.places.acquire()).await;
        let _place = place.map_err(|_| late())?;
        let (first, longest) = DELAYS;
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_max_times(self.endpoint.retries)
            .with_jitter()
            .build();
        loop {
            let error = match self.attempt(&request, deadline, &read).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(delay) = delays.next().filter(|_| error.may_pass()) else {
                return Err(error);
            };
            let delay = delay.max(error.retry_after().unwrap_or_default());
            let next = tokio::time::Instant::now().checked_add(delay);
            match next.filter(|next| *next < deadline) {
                Some(next) => tokio::time::sleep_until(next).await,
                None => return Err(error),
            }
        }
    }

    /// One try, if the breaker lets it pass.
    async fn attempt<T>(
        &self,
        (path, body): &(&'static str, Option<Bytes>),
        deadline: tokio::time::Instant,
        read: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let passed = self.pass()?;
        let limit = self.endpoint.read_timeout;
        let end = deadline.min(tokio::time::Instant::now() + limit);
        let outcome = match timeout_at(end, self.send(path, body.clone())).await {
            Ok(sent) => sent.and_then(|bytes| read(&bytes)),
            Err(_) if end < deadline => Err(Error::Timeout {
                key: "read_timeout",
                limit,
            }),
            Err(_) => Err(Error::Timeout {
                key: "timeout",
                limit: self.endpoint.timeout,
            }),
        };
        passed.told(outcome.as_ref().err());
        outcome
    }

    /// Asks the breaker.
    fn pass(&self) -> Result<Passed<'_>, Error> {
        let mut health = self.health();
        match health.breaker.ask(self.start.elapsed()) {
            Pass::No(wait) => Err(Error::Open {
                wait,
                failures: self.endpoint.failures_max,
                last: health.failing.clone().unwrap_or_default(),
            }),
            pass => Ok(Passed {
                inner: self,
                pass: Some(pass),
            }),
        }
    }

    /// Sends a request and reads the whole answer.
    async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Bytes, Error> {
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(USER_AGENT, "nearshore")
            .header(CONTENT_TYPE, "application/json");
        if let Some(file) = &self.endpoint.api_key_file {
            request = request.header(AUTHORIZATION, bearer(file).await?);
        }
        let request = request.body(Full::new(body.unwrap_or_default()));
        let request = request.map_err(|error| Error::Setting {
            key: "url",
            what: error.to_string(),
        })?;
        let response = self.http.request(request).await;
        let response = response.map_err(|error| tls::explain(&self.base, &error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| answer::retry_after(value.to_str().ok()?));
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|_| Error::Answer {
            what: "the answer ends in the middle, or is too long".into(),
        })?;
        let bytes = body.to_bytes();
        match status {
            200 => Ok(bytes),
            _ => Err(answer::error(status, retry_after, &bytes)),
        }
    }
}

impl Passed<'_> {
    /// Tells the breaker how the try ended.
    fn told(mut self, error: Option<&Error>) {
        let Some(pass) = self.pass.take() else { return };
        let mut health = self.inner.health();
        match error {
            None => {
                health.breaker.answered(pass);
                (health.failing, health.answered) = (None, true);
            }
            Some(error) if error.is_fault() => {
                health.breaker.failed(pass, self.inner.start.elapsed());
                health.failing = Some(error.to_string());
            }
            Some(Error::Refused { .. }) => {
                // It answers, although not this.
                health.breaker.answered(pass);
                (health.failing, health.answered) = (None, true);
            }
            Some(error) => {
                health.breaker.dropped(pass, self.inner.start.elapsed());
                health.failing = Some(error.to_string());
            }
        }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let now = self.inner.start.elapsed();
            self.inner.health().breaker.dropped(pass, now);
        }
    }
}

/// The header with the key of a file.
async fn bearer(file: &str) -> Result<HeaderValue, Error> {
    let wrong = |what: String| Error::Setting {
        key: "api_key_file",
        what: format!("{file} {what}"),
    };
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(wrong("is empty; write the key into it".into()));
    }
    let value = HeaderValue::from_str(&format!("Bearer {key}"));
    let mut value =
        value.map_err(|_| wrong("has more than a key; write the key alone into it".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
