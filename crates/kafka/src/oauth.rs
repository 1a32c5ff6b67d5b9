//! Tokens for the login by OAUTHBEARER (KIP-255, KIP-768): where they come from, and how they stay valid.
//!
//! librdkafka would fetch them by libcurl, which this build has not, and its callback for tokens is not polled by every
//! client. So a thread of ours keeps one token for each source, and [`super::login`] gives it to each client. Properties
//! have librdkafka's names. Invariant: no token and no client secret is told. It does not verify signatures: the broker
//! does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;

use super::KafkaSettings;
use nearshore_core::text::decode_secret;

/// `oidc`: tokens are fetched by client credentials.
pub(super) const METHOD: &str = "sasl.oauthbearer.method";
pub(super) const ENDPOINT: &str = "sasl.oauthbearer.token.endpoint.url";
pub(super) const CLIENT: &str = "sasl.oauthbearer.client.id";
pub(super) const SECRET: &str = "sasl.oauthbearer.client.secret";
pub(super) const SCOPE: &str = "sasl.oauthbearer.scope";
pub(super) const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
/// A file with a token, which somebody else renews: of ours, in `kafka.secret_files`.
pub(super) const TOKEN: &str = "sasl.oauthbearer.token";
/// CAs of the token endpoint.
pub(super) const CA: &str = "https.ca.location";

/// All of them; none is librdkafka's business in this build.
pub(super) const ALL: [&str; 8] = [
    METHOD, ENDPOINT, CLIENT, SECRET, SCOPE, EXTENSIONS, TOKEN, CA,
];

/// How long the token endpoint may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most bytes of its answer.
const BODY_MAX: u64 = 1 << 20;
/// How often a file with a token is read.
const READ_EVERY: Duration = Duration::from_secs(2);
/// The first pause after a failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where tokens come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A file that is renewed, such as a service account's token in Kubernetes.
    File(PathBuf),
    /// An endpoint that gives them for client credentials (RFC 6749, section 4.4).
    Endpoint {
        url: String,
        client: String,
        secret: PathBuf,
        scope: Option<String>,
        ca: Option<PathBuf>,
    },
}

/// A token and until when it is valid.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) value: String,
    /// In milliseconds since 1970.
    pub(super) until: i64,
    pub(super) principal: String,
}

/// What a JSON web token says of itself.
#[derive(Default, Deserialize)]
struct Claims {
    exp: Option<f64>,
    sub: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<f64>,
    error: Option<String>,
    error_description: Option<String>,
}

impl Source {
    /// The source that these settings name, if clients log in by OAUTHBEARER; an error is a key and what is wrong.
    pub(super) fn of(settings: &KafkaSettings) -> Result<Option<Self>, (&'static str, String)> {
        let mechanism = settings.property(settings.mechanism_name());
        if mechanism != Some("OAUTHBEARER") {
            return Ok(None);
        }
        if let Some(file) = settings.secret_files.get(TOKEN) {
            return Ok(Some(Self::File(file.clone())));
        }
        let needed = |name: &'static str, what: &str| {
            let found = settings.property(name).map(str::to_owned);
            found.ok_or_else(|| (name, format!("is missing; {what}")))
        };
        let url = needed(
            ENDPOINT,
            "write the address of the token endpoint here, or name a file with a token as \
             kafka.secret_files.\"sasl.oauthbearer.token\"",
        )?;
        if !["https://", "http://"].iter().any(|it| url.starts_with(it)) {
            return Err((ENDPOINT, format!("{url:?} is not an address with https://")));
        }
        let method = settings.property(METHOD).unwrap_or("oidc");
        if method != "oidc" {
            let what = format!("{method:?} is not in this build; set \"oidc\"");
            return Err((METHOD, what));
        }
        let secret = settings.secret_files.get(SECRET).cloned();
        Ok(Some(Self::Endpoint {
            url,
            client: needed(CLIENT, "write the client's id here")?,
            secret: secret.ok_or((
                SECRET,
                "is missing; name the file of the secret here".into(),
            ))?,
            scope: settings.property(SCOPE).map(str::to_owned),
            ca: settings.property(CA).map(PathBuf::from),
        }))
    }

    /// The property that says where tokens come from.
    pub(super) fn property(&self) -> &'static str {
        match self {
            Self::File(_) => TOKEN,
            Self::Endpoint { .. } => ENDPOINT,
        }
    }

    /// A token that is valid now, or why there is none.
    fn token(&self) -> Result<Token, String> {
        let (value, seconds, client) = match self {
            Self::File(path) => (read(path)?, None, None),
            Self::Endpoint {
                url,
                client,
                secret,
                scope,
                ca,
            } => {
                let login = (client.as_str(), read(secret)?);
                let (value, seconds) = fetch(url, login, scope.as_deref(), ca.as_deref())?;
                (value, seconds, Some(client.clone()))
            }
        };
        let claims = claims(&value);
        let until = match (claims.exp, seconds) {
            (Some(exp), _) => (exp * 1e3) as i64,
            (None, Some(seconds)) => now() + (seconds * 1e3) as i64,
            (None, None) => {
                return Err(
                    "the token is no JSON web token with an `exp`, and nothing else says how long it is valid"
                        .into(),
                );
            }
        };
        if until <= now() {
            return Err("the token has expired".into());
        }
        let principal = claims.sub.or(client).unwrap_or_else(|| "nearshore".into());
        Ok(Token {
            value,
            until,
            principal,
        })
    }

    /// How long to wait before the next token is asked for.
    fn pause(&self, token: &Token) -> Duration {
        match self {
            Self::File(_) => READ_EVERY,
            Self::Endpoint { .. } => {
                let left = u64::try_from(token.until - now()).unwrap_or(0);
                Duration::from_millis(left / 5 * 4).max(PAUSES.0)
            }
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    match decode_secret(&bytes) {
        Ok(text) if text.is_empty() => Err(format!("{shown} is empty")),
        Ok(text) => Ok(text),
        Err(what) => Err(format!("{shown}: {what}")),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// What a JSON web token says of itself; nothing if it is opaque.
fn claims(token: &str) -> Claims {
    let part = token.split('.').nth(1).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('='));
    let found = bytes.ok().and_then(|it| serde_json::from_slice(&it).ok());
    found.unwrap_or_default()
}

/// Asks the endpoint for a token; the token, and for how many seconds it is valid.
fn fetch(
    url: &str,
    (client, secret): (&str, String),
    scope: Option<&str>,
    ca: Option<&Path>,
) -> Result<(String, Option<f64>), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_MAX))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls(ca)?)
        .build()
        .into();
    // Not form-encoded before, as RFC 6749 has it: no server that Kafka's and librdkafka's clients reach expects it.
    let login = STANDARD.encode(format!("{client}:{secret}"));
    let mut form = vec![("grant_type", "client_credentials")];
    form.extend(scope.map(|scope| ("scope", scope)));
    let answer = agent
        .post(url)
        .header("authorization", format!("Basic {login}"))
        .header("accept", "application/json")
        .send_form(form);
    let mut answer = answer.map_err(|error| format!("{url}: {error}"))?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(BODY_MAX);
    let body = body
        .read_to_vec()
        .map_err(|error| format!("{url}: {error}"))?;
    let found: Option<Answer> = serde_json::from_slice(&body).ok();
    match (status, found) {
        (
            200,
            Some(Answer {
                access_token: Some(token),
                expires_in,
                ..
            }),
        ) if !token.is_empty() => Ok((token, expires_in)),
        (200, _) => Err(format!("{url} answers without an access_token")),
        (_, found) => {
            let said = found.and_then(|it| match (it.error, it.error_description) {
                (Some(error), Some(more)) => Some(format!(": {error}: {more}")),
                (error, more) => error.or(more).map(|it| format!(": {it}")),
            });
            Err(format!(
                "{url} answers {status}{}",
                said.unwrap_or_default()
            ))
        }
    }
}

fn tls(ca: Option<&Path>) -> Result<ureq::tls::TlsConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots: Vec<ureq::tls::Certificate<'static>> = match ca {
        Some(path) => {
            let shown = path.display();
            let bytes = std::fs::read(path).map_err(|error| format!("{CA}: {shown}: {error}"))?;
            let items = ureq::tls::parse_pem(&bytes).filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(one)) => Some(one),
                _ => None,
            });
            let found: Vec<_> = items.collect();
            if found.is_empty() {
                return Err(format!("{CA}: {shown} has no certificate in PEM form"));
            }
            found
        }
        None => {
            let found = rustls_native_certs::load_native_certs().certs;
            let owned = found.into_iter();
            owned
                .map(|one| ureq::tls::Certificate::from_der(&one).to_owned())
                .collect()
        }
    };
    Ok(ureq::tls::TlsConfig::builder()
        .provider(ureq::tls::TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(ureq::tls::RootCerts::Specific(Arc::new(roots)))
        .build())
}

/// A token that a thread keeps valid, for all clients of the process with this source.
pub(super) struct Kept {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// Why the last attempt gave none.
    failed: Option<String>,
    /// Number of attempts that ended.
    attempts: u64,
}

/// The kept tokens of this process. The thread of one ends when no client holds it.
static KEPT: Mutex<BTreeMap<Source, Weak<Kept>>> = Mutex::new(BTreeMap::new());

impl Kept {
    /// The token of this source, of which there is one in a process.
    pub(super) fn of(source: &Source) -> Arc<Self> {
        let mut all = KEPT.lock();
        if let Some(kept) = all.get(source).and_then(Weak::upgrade) {
            return kept;
        }
        let kept = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        all.retain(|_, kept| kept.strong_count() > 0);
        all.insert(source.clone(), Arc::downgrade(&kept));
        let (source, weak) = (source.clone(), Arc::downgrade(&kept));
        let keep = move || keep(&source, &weak);
        if let Err(error) = std::thread::Builder::new()
            .name("log-token".into())
            .spawn(keep)
        {
            kept.ended(Err(error.to_string()));
        }
        kept
    }

    fn ended(&self, attempt: Result<Token, String>) {
        let mut state = self.state.lock();
        state.attempts += 1;
        match attempt {
            Ok(token) => (state.token, state.failed) = (Some(token), None),
            Err(reason) => state.failed = Some(reason),
        }
        self.changed.notify_all();
    }

    /// The newest token, if it is still valid, and why there is no newer one.
    pub(super) fn now(&self) -> (Option<Token>, Option<String>) {
        let state = self.state.lock();
        let valid = state.token.clone().filter(|token| token.until > now());
        (valid, state.failed.clone())
    }

    /// Waits, blocking, until the first attempt has ended.
    pub(super) fn tried(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.attempts == 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

/// Keeps a token valid for as long as somebody holds it.
fn keep(source: &Source, kept: &Weak<Kept>) {
    let mut failures: u32 = 0;
    loop {
        let attempt = source.token();
        let pause = match &attempt {
            Ok(token) => {
                failures = 0;
                source.pause(token)
            }
            Err(_) => {
                failures = failures.saturating_add(1);
                (PAUSES.0 * 2u32.saturating_pow(failures - 1)).min(PAUSES.1)
            }
        };
        let Some(held) = kept.upgrade() else {
            return;
        };
        held.ended(attempt);
        drop(held);
        // In short naps, so that the thread does not outlive its clients for long.
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if kept.strong_count() == 0 {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            std::thread::park_timeout(left.min(READ_EVERY));
        }
    }
}

/// `name=value` pairs of `sasl.oauthbearer.extensions`, comma-separated (KIP-342).
pub(super) fn extensions(settings: &KafkaSettings) -> Result<Vec<(String, String)>, String> {
    let text = settings.property(EXTENSIONS).unwrap_or_default();
    let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
            _ => Err(format!("{part:?} is not name=value")),
        })
        .collect()
}
