//! The login of one client, which is read again when its file changes: [`Login`].
//!
//! Invariant: a client whose password was rotated logs in by the file's password at its next attempt, whichever of broker
//! and file was changed first. A file that cannot be read, while it is being replaced, changes nothing.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::Client;

use super::{KafkaSettings, native};

/// How often the files are read at most.
const READ_EVERY: Duration = Duration::from_secs(2);

/// User and password.
type Pair = (String, String);

/// Reads a client's user and password again.
pub(super) struct Login {
    settings: KafkaSettings,
    /// When the files were read, and what was in them; `None` where no file holds the login.
    read: Option<Mutex<(Instant, Pair)>>,
}

impl Login {
    pub(super) fn new(settings: &KafkaSettings) -> Self {
        let files = ["sasl.username", "sasl.password"];
        let in_file = files
            .iter()
            .any(|name| settings.secret_files.contains_key(*name));
        let pair = settings.login().filter(|_| in_file);
        Self {
            settings: settings.clone(),
            read: pair.map(|pair| Mutex::new((Instant::now(), pair))),
        }
    }

    /// Gives the client what the files have now, if that is new. Cheap; reads no more than every few seconds.
    pub(super) fn renew<C: ClientContext>(&self, client: &Client<C>) {
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
}
