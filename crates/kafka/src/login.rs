//! The login of one client, which is renewed while the client runs: [`Login`].
//!
//! Invariant: a client whose password was rotated logs in by the file's password at its next attempt, whichever of broker
//! and file was changed first; one that logs in by tokens has the newest. A file that cannot be read, while it is being
//! replaced, changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::Client;

use super::health::{self, Health};
use super::oauth::{self, Kept, Source, Token};
use super::{KafkaSettings, native};

/// How often the files are read at most.
const READ_EVERY: Duration = Duration::from_secs(2);

/// How long a first token may take: longer than the endpoint of tokens may.
const FIRST_MAX: Duration = Duration::from_secs(12);

/// User and password.
type Pair = (String, String);

/// Reads a client's user and password again, or gives it its next token.
pub(super) struct Login {
    settings: KafkaSettings,
    /// When the files were read, and what was in them; `None` where no file holds the login.
    read: Option<Mutex<(Instant, Pair)>>,
    tokens: Option<Tokens>,
}

/// The tokens of one client.
struct Tokens {
    source: Source,
    kept: Arc<Kept>,
    given: Mutex<Given>,
}

/// What the client has.
struct Given {
    token: Option<Token>,
    /// When a failure was told.
    told: Option<Instant>,
}

impl Login {
    /// Reads the files, and begins to fetch a token if one is needed.
    pub(super) fn new(settings: &KafkaSettings) -> Self {
        let files = ["sasl.username", "sasl.password"];
        let in_file = files
            .iter()
            .any(|name| settings.secret_files.contains_key(*name));
        let pair = settings.login().filter(|_| in_file);
        // What is wrong with it was refused before a client was made.
        let source = Source::of(settings).ok().flatten();
        Self {
            settings: settings.clone(),
            read: pair.map(|pair| Mutex::new((Instant::now(), pair))),
            tokens: source.map(|source| Tokens {
                kept: Kept::of(&source),
                source,
                given: Mutex::new(Given {
                    token: None,
                    told: None,
                }),
            }),
        }
    }

    /// Whether the client has no token yet and needs one.
    pub(super) fn waits(&self) -> bool {
        let lacks = |tokens: &Tokens| tokens.given.lock().token.is_none();
        self.tokens.as_ref().is_some_and(lacks)
    }

    /// As [`Login::renew`], after a wait, blocking, for the first token.
    pub(super) fn ready<C: ClientContext>(&self, client: &Client<C>, health: &Health) {
        if let Some(tokens) = self.tokens.as_ref().filter(|_| self.waits()) {
            tokens.kept.tried(FIRST_MAX);
        }
        self.renew(client, health);
    }

    /// Gives the client what the files have now, or a newer token, if that is new. Cheap; reads no more than every few
    /// seconds.
    pub(super) fn renew<C: ClientContext>(&self, client: &Client<C>, health: &Health) {
        if let Some(tokens) = &self.tokens {
            self.give(tokens, client, health);
        }
        let Some(read) = &self.read else {
            return;
        };
        let Some(mut read) = read.try_lock() else {
            return;
        };
        if read.0.elapsed() < READ_EVERY {
            return;
        }
        read.0 = Instant::now();
        let Some(pair) = self.settings.login().filter(|pair| *pair != read.1) else {
            return;
        };
        let property = self.settings.key("sasl.password");
        match native::set_login(client, &pair) {
            Ok(()) => {
                tracing::info!(
                    "{property}: its file has changed; the next connection logs in by it"
                );
                read.1 = pair;
            }
            Err(error) => tracing::warn!(target: "kafka", "{property}: {error}"),
        }
    }

    fn give<C: ClientContext>(&self, tokens: &Tokens, client: &Client<C>, health: &Health) {
        let Some(mut given) = tokens.given.try_lock() else {
            return;
        };
        let key = self.settings.key(tokens.source.property());
        let (token, failed) = tokens.kept.now();
        if let Some(token) = token
            .as_ref()
            .filter(|it| given.token.as_ref() != Some(*it))
        {
            let extensions = oauth::extensions(&self.settings).unwrap_or_default();
            match native::set_token(client, token, &extensions) {
                Ok(()) => given.token = Some(token.clone()),
                Err(error) => {
                    health.explain(&format!(
                        "{key}: librdkafka does not take the token: {error}"
                    ));
                }
            }
        }
        let Some(reason) = failed else {
            return;
        };
        if given.told.is_some_and(|told| told.elapsed() < READ_EVERY) {
            return;
        }
        given.told = Some(Instant::now());
        match token {
            Some(_) => health::warn(&format!(
                "{key}: no new token: {reason}; the present one is still valid"
            )),
            None => {
                let text = format!("{key}: no token: {reason}");
                health.explain(&text);
                health::tell(&text);
            }
        }
    }
}
