//! Settings of the store: address, timeouts and times to live. Every key has its default here, and its description in
//! `config/nearshore.toml`.

use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls;
use nearshore_core::ports::store::Error;
use nearshore_core::text::decode_secret;

/// Section `[redis]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://[user[:password]@]host:port[/db]`, or `rediss://…` for TLS; several, comma-separated, or
    /// `redis+cluster://…` and `rediss+cluster://…` = Redis Cluster.
    pub url: String,
    /// User of Redis' ACL; may be part of `url` instead.
    pub username: Option<String>,
    /// File with the password, trailing line break ignored.
    pub password_file: Option<PathBuf>,
    /// File with the CAs (PEM) that sign Redis' certificate; those of the system if there is none.
    pub tls_ca: Option<PathBuf>,
    /// File with this client's certificate (PEM), for a Redis that asks for one.
    pub tls_cert: Option<PathBuf>,
    /// File with the key of that certificate (PEM).
    pub tls_key: Option<PathBuf>,
    /// Replicas that must acknowledge a write before an offset is committed; 0 = none.
    pub min_replicas: u32,
    /// How long the replicas may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub replicas_max: Duration,
    /// How long connecting may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub connect_max: Duration,
    /// How long an answer may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub response_max: Duration,
    /// Age at which a connection is replaced, so that a changed DNS name is resolved again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub connection_age: Duration,
    /// How long the state of an idle user is kept, counted from the last write.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub state_ttl: Duration,
    /// How long a list is kept, counted from its publish; at most `state_ttl`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub list_ttl: Duration,
    /// How long a 7-day bucket of counts is kept, counted from its last write.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub counts_ttl: Duration,
    /// Version of the encoding of a state that is written; `state.write_version` in the file.
    #[serde(skip)]
    pub write_version: u8,
}

const DAY: u64 = 24 * 60 * 60;

impl Default for RedisSettings {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".into(),
            username: None,
            password_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            min_replicas: 0,
            replicas_max: Duration::from_secs(1),
            connect_max: Duration::from_secs(1),
            response_max: Duration::from_secs(1),
            connection_age: Duration::from_secs(60 * 60),
            state_ttl: Duration::from_secs(180 * DAY),
            list_ttl: Duration::from_secs(30 * DAY),
            counts_ttl: Duration::from_secs(400 * DAY),
            write_version: nearshore_core::user::state::VERSION_CURRENT,
        }
    }
}

/// Where to connect to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) cluster: bool,
    pub(super) nodes: Vec<ConnectionInfo>,
    /// For messages, without a password.
    pub(super) addr: String,
    /// Its files, if this is TLS.
    pub(super) tls: Option<TlsCertificates>,
}

impl RedisSettings {
    /// [`RedisSettings::state_ttl`] in milliseconds, for scripts.
    pub(super) fn state_ms(&self) -> u64 {
        millis(self.state_ttl)
    }

    /// [`RedisSettings::list_ttl`] in milliseconds, at most the state's: no list outlives its state.
    pub(super) fn list_ms(&self) -> u64 {
        millis(self.list_ttl.min(self.state_ttl))
    }

    /// [`RedisSettings::counts_ttl`] in milliseconds.
    pub(super) fn counts_ms(&self) -> u64 {
        millis(self.counts_ttl)
    }

    /// Checks `url` and what is in the files; connects to nothing.
    pub fn check(&self) -> Result<(), Error> {
        self.target().map(drop)
    }

    /// The files that these settings name, each with its key.
    pub fn files(&self) -> Vec<(&'static str, &PathBuf)> {
        let all = [
            ("redis.password_file", &self.password_file),
            ("redis.tls_ca", &self.tls_ca),
            ("redis.tls_cert", &self.tls_cert),
            ("redis.tls_key", &self.tls_key),
        ];
        let named = all
            .into_iter()
            .filter_map(|(key, path)| Some((key, path.as_ref()?)));
        named.collect()
    }

    /// Reads `url` and the files of the password and of TLS.
    pub(super) fn target(&self) -> Result<Target, Error> {
        let refused = |reason: String| Error::Refused {
            addr: "redis.url".into(),
            reason,
        };
        let (scheme, rest) = self
            .url
            .split_once("://")
            .ok_or_else(|| refused("no redis:// in it; write redis://host:port".into()))?;
        let (cluster, is_tls) = match scheme {
            "redis" => (rest.contains(','), false),
            "rediss" => (rest.contains(','), true),
            "redis+cluster" => (true, false),
            "rediss+cluster" => (true, true),
            other => {
                return Err(refused(format!(
                    "{other}:// is none of redis://, rediss://, redis+cluster:// and rediss+cluster://"
                )));
            }
        };
        if rest.contains('#') {
            return Err(refused(
                "it has a # in it; write %23 for one in a password".into(),
            ));
        }
        let tls = self.tls(is_tls)?;
        let password = self.password()?;
        let mut nodes = Vec::new();
        for part in rest.split(',') {
            let part = part.rsplit_once("://").map_or(part, |(_, host)| host);
            let scheme = if is_tls { "rediss" } else { "redis" };
            let info = format!("{scheme}://{}", part.trim())
                .into_connection_info()
                .map_err(|error| refused(error.to_string()))?;
            nodes.push(self.with_credentials(info, password.as_deref()));
        }
        let addrs: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
        Ok(Target {
            cluster,
            nodes,
            addr: addrs.join(","),
            tls,
        })
    }

    /// The files of TLS. Without TLS there must be none: what they are for would not happen.
    fn tls(&self, is_tls: bool) -> Result<Option<TlsCertificates>, Error> {
        if is_tls {
            return tls::read(self).map(Some);
        }
        let named = [
            ("tls_ca", &self.tls_ca),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
        ];
        match named.iter().find(|(_, path)| path.is_some()) {
            None => Ok(None),
            Some((key, _)) => Err(Error::Refused {
                addr: format!("redis.{key}"),
                reason: "has no effect without TLS; write redis.url with rediss://".into(),
            }),
        }
    }

    fn password(&self) -> Result<Option<String>, Error> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let refused = |reason: String| Error::Refused {
            addr: "redis.password_file".into(),
            reason: format!("{}: {reason}", path.display()),
        };
        let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        let secret = decode_secret(&bytes).map_err(|what| refused(what.into()))?;
        Ok(Some(secret))
    }

    fn with_credentials(&self, info: ConnectionInfo, password: Option<&str>) -> ConnectionInfo {
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = password {
            redis = redis.set_password(password);
        }
        info.set_redis_settings(redis).set_tcp_settings(self.tcp())
    }

    /// TCP options. Without them redis-rs waits a quarter of an hour for the kernel to give up a dead peer.
    pub(super) fn tcp(&self) -> TcpSettings {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5));
        TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive)
            .set_user_timeout(self.response_max.max(Duration::from_secs(5)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, Error> {
        let settings = RedisSettings {
            url: url.into(),
            ..RedisSettings::default()
        };
        settings.target()
    }

    #[test]
    fn several_addresses_or_the_cluster_scheme_mean_a_cluster() {
        for (url, cluster, addr) in [
            ("redis://h:1", false, "h:1"),
            ("redis://u:secret@h:1/2", false, "h:1"),
            ("redis+cluster://h:1", true, "h:1"),
            ("redis://h:1,i:2", true, "h:1,i:2"),
            ("redis://h:1, redis://i:2", true, "h:1,i:2"),
            ("rediss://h:1", false, "h:1"),
            ("rediss://h:1,rediss://i:2", true, "h:1,i:2"),
            ("rediss+cluster://h:1", true, "h:1"),
        ] {
            let target = target(url).expect("valid");
            assert_eq!((target.cluster, target.addr.as_str()), (cluster, addr));
        }
    }

    #[test]
    fn a_wrong_address_is_refused_with_the_reason() {
        for (url, reason) in [
            ("h:1", "no redis:// in it"),
            ("rediss://h:1#insecure", "a # in it"),
            ("http://h:1", "http:// is none of"),
        ] {
            let error = target(url).expect_err(url).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_password_is_read_from_its_file_without_mark_and_line_break() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("password");
        std::fs::write(&path, "\u{feff}s3cret\r\n").expect("written");
        let settings = RedisSettings {
            password_file: Some(path),
            ..RedisSettings::default()
        };
        let target = settings.target().expect("valid");
        assert_eq!(target.nodes[0].redis_settings().password(), Some("s3cret"));
        assert!(!format!("{target:?}").contains("s3cret"));
    }

    #[test]
    fn a_list_never_outlives_its_state() {
        let settings = RedisSettings {
            state_ttl: Duration::from_secs(5),
            ..RedisSettings::default()
        };
        assert_eq!(settings.list_ms(), 5000);
    }
}
