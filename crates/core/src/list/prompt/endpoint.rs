//! Where the model of an arm is, if it is elsewhere: an OpenAI-compatible server, and how long it may take.
//!
//! Values only; the crate `nearshore_remote` asks the server.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `arms.endpoint`: the server of an arm's model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Address of the API, as in `https://models.example:8000/v1`.
    pub url: String,
    /// File with the key, relative to the configuration file; read for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// File with the CA of the server's certificate, in PEM form; without it the system's CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Most time for a connection.
    #[serde(default = "connect_timeout", with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub connect_timeout: Duration,
    /// Most time for one try, from the request to the last byte of the answer.
    #[serde(default = "read_timeout", with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub read_timeout: Duration,
    /// Most time for the answer about one user: waiting for a free place and all tries.
    #[serde(default = "timeout", with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub timeout: Duration,
    /// Most requests at once.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Most further tries after a failed one.
    #[serde(default = "retries")]
    pub retries: usize,
    /// Failures in a row after which the server is left alone.
    #[serde(default = "failures_max")]
    pub failures_max: u32,
    /// How long it is left alone; then one request tries whether it is back.
    #[serde(default = "pause", with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub pause: Duration,
    /// Most tokens of an answer.
    #[serde(default = "max_tokens")]
    pub max_tokens: u32,
    /// Temperature of sampling; 0 takes the likeliest token.
    #[serde(default)]
    pub temperature: f64,
    /// Seed of sampling.
    #[serde(default)]
    pub seed: u32,
}

fn connect_timeout() -> Duration {
    Duration::from_secs(3)
}
fn read_timeout() -> Duration {
    Duration::from_secs(30)
}
fn timeout() -> Duration {
    Duration::from_secs(60)
}
fn concurrency() -> usize {
    8
}
fn retries() -> usize {
    2
}
fn failures_max() -> u32 {
    5
}
fn pause() -> Duration {
    Duration::from_secs(10)
}
fn max_tokens() -> u32 {
    256
}

impl Endpoint {
    /// A server at this address, with the defaults of everything else.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            api_key_file: None,
            ca_file: None,
            connect_timeout: connect_timeout(),
            read_timeout: read_timeout(),
            timeout: timeout(),
            concurrency: concurrency(),
            retries: retries(),
            failures_max: failures_max(),
            pause: pause(),
            max_tokens: max_tokens(),
            temperature: 0.0,
            seed: 0,
        }
    }

    /// What is wrong with values that have the right type: the key, and what is allowed.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, key, what: String| {
            if !holds {
                problems.push((key, what));
            }
        };
        let scheme = self.url.starts_with("http://") || self.url.starts_with("https://");
        let url = || {
            format!(
                "{:?} must begin with http:// or https://, and end with the API's path, as /v1",
                self.url
            )
        };
        let plain = !self.url.contains(['@', '?', '#']);
        must(
            plain,
            "url",
            "must have no user, password or query; the key goes into api_key_file".into(),
        );
        must(scheme, "url", url());
        let tls = self.ca_file.is_none() || self.url.starts_with("https://");
        must(tls, "ca_file", "is only for a url with https://".into());
        for (key, time) in [
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
            ("timeout", self.timeout),
            ("pause", self.pause),
        ] {
            must(!time.is_zero(), key, "must be longer than 0s".into());
        }
        must(
            self.concurrency >= 1,
            "concurrency",
            "must be at least 1".into(),
        );
        must(
            self.failures_max >= 1,
            "failures_max",
            "must be at least 1".into(),
        );
        must(
            self.max_tokens >= 1,
            "max_tokens",
            "must be at least 1".into(),
        );
        must(
            self.retries <= 10,
            "retries",
            format!("{} is more than 10", self.retries),
        );
        let warm = (0.0..=2.0).contains(&self.temperature);
        must(
            warm,
            "temperature",
            format!("{} must be from 0 to 2", self.temperature),
        );
        problems
    }

    /// Whether a key is sent without TLS to another machine.
    pub fn tells_its_key(&self) -> bool {
        let is_safe = self.url.starts_with("https://") || is_local(&self.url);
        self.api_key_file.is_some() && !is_safe
    }
}

/// Whether an address is of this machine, where nobody else hears a key.
fn is_local(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or_default();
    let host = host.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(endpoint: &Endpoint) -> Vec<&'static str> {
        endpoint
            .problems()
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }

    #[test]
    fn values_that_cannot_work_are_told_by_their_key() {
        assert_eq!(keys(&Endpoint::at("http://models:8000/v1")), [""; 0]);
        assert_eq!(keys(&Endpoint::at("http://a:b@models:8000/v1")), ["url"]);
        let wrong = Endpoint {
            ca_file: Some("ca.pem".into()),
            timeout: Duration::ZERO,
            concurrency: 0,
            temperature: f64::NAN,
            ..Endpoint::at("models:8000")
        };
        let wanted = ["url", "ca_file", "timeout", "concurrency", "temperature"];
        assert_eq!(keys(&wrong), wanted);
    }

    #[test]
    fn a_key_without_tls_is_told_unless_it_stays_on_this_machine() {
        let tells = |url: &str| {
            let endpoint = Endpoint {
                api_key_file: Some("key".into()),
                ..Endpoint::at(url)
            };
            endpoint.tells_its_key()
        };
        for url in [
            "https://m/v1",
            "http://127.0.0.1:80/v1",
            "http://[::1]:80/v1",
            "http://localhost/v1",
        ] {
            assert!(!tells(url), "{url}");
        }
        for url in [
            "http://m/v1",
            "http://localhost.m/v1",
            "http://127.0.0.1.m:80/v1",
        ] {
            assert!(tells(url), "{url}");
        }
        assert!(!Endpoint::at("http://m/v1").tells_its_key());
    }
}
