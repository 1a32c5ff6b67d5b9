//! Settings of the store: address, timeouts and times to live. Every key has its default here, and its description in
//! `config/nearshore.toml`.

use std::path::PathBuf;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sentinel::Sentinels;
use super::tls;
use nearshore_core::ports::store::Error;
use nearshore_core::text::decode_secret;

/// Section `[redis]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://[user[:password]@]host:port[/db]`, or `rediss://…` for TLS; several, comma-separated, or
    /// `redis+cluster://…` and `rediss+cluster://…` = Redis Cluster; `redis+sentinel://[user[:password]@]host:port,…/name[/db]`
    /// and `rediss+sentinel://…` = the primary that Sentinels know by this name.
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
    /// User of the Sentinels' ACL; that of `url` and `username` is the primary's.
    pub sentinel_username: Option<String>,
    /// File with the Sentinels' password; without it they are asked without one.
    pub sentinel_password_file: Option<PathBuf>,
    /// Whether Sentinels speak TLS; as the primary does, if not given.
    pub sentinel_tls: Option<bool>,
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
            sentinel_username: None,
            sentinel_password_file: None,
            sentinel_tls: None,
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
    pub(super) kind: TargetKind,
    /// With Sentinels one, whose address is that of the first of them: they are asked for the primary's.
    pub(super) nodes: Vec<ConnectionInfo>,
    /// For messages, without a password.
    pub(super) addr: String,
    /// Its files, if this is TLS.
    pub(super) tls: Option<TlsCertificates>,
}

/// What answers at the addresses of [`Target::nodes`].
#[derive(Debug)]
pub(super) enum TargetKind {
    Single,
    Cluster,
    Sentinel(Sentinels),
}

/// What a url begins with: kind of target and whether it is TLS.
const SCHEMES: [(&str, UrlKind, bool); 6] = [
    ("redis", UrlKind::Single, false),
    ("rediss", UrlKind::Single, true),
    ("redis+cluster", UrlKind::Cluster, false),
    ("rediss+cluster", UrlKind::Cluster, true),
    ("redis+sentinel", UrlKind::Sentinel, false),
    ("rediss+sentinel", UrlKind::Sentinel, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum UrlKind {
    Single,
    Cluster,
    Sentinel,
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
            ("redis.sentinel_password_file", &self.sentinel_password_file),
        ];
        let named = all
            .into_iter()
            .filter_map(|(key, path)| Some((key, path.as_ref()?)));
        named.collect()
    }

    /// Reads `url` and the files of the passwords and of TLS.
    pub(super) fn target(&self) -> Result<Target, Error> {
        let (scheme, rest) = self
            .url
            .split_once("://")
            .ok_or_else(|| refused("no redis:// in it; write redis://host:port"))?;
        let known = SCHEMES.iter().find(|(name, ..)| *name == scheme);
        let Some((_, kind, is_tls)) = known else {
            let all: Vec<String> = SCHEMES.iter().map(|it| format!("{}://", it.0)).collect();
            return Err(refused(format!(
                "{scheme}:// is none of {}",
                all.join(", ")
            )));
        };
        if rest.contains('#') {
            return Err(refused("it has a # in it; write %23 for one in a password"));
        }
        if *kind == UrlKind::Sentinel {
            return self.behind_sentinels(rest, *is_tls);
        }
        self.without_sentinels()?;
        let tls = self.tls(*is_tls)?;
        let password = password("redis.password_file", self.password_file.as_ref())?;
        let mut nodes = Vec::new();
        for part in rest.split(',') {
            let part = part.rsplit_once("://").map_or(part, |(_, host)| host);
            let info = connection(*is_tls, part)?;
            nodes.push(self.with_credentials(info, password.as_deref()));
        }
        let addrs: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
        let is_cluster = *kind == UrlKind::Cluster || rest.contains(',');
        Ok(Target {
            kind: match is_cluster {
                true => TargetKind::Cluster,
                false => TargetKind::Single,
            },
            nodes,
            addr: addrs.join(","),
            tls,
        })
    }

    /// Reads `[user[:password]@]host:port,…/name[/db]`; the credentials are the primary's.
    fn behind_sentinels(&self, rest: &str, is_tls: bool) -> Result<Target, Error> {
        let advice = "write redis+sentinel://host:26379,host:26379/NAME, NAME being that of `sentinel monitor`";
        let (user, places) = match rest.rsplit_once('@') {
            Some((user, places)) => (Some(user), places),
            None => (None, rest),
        };
        let (hosts, path) = places
            .split_once('/')
            .ok_or_else(|| refused(format!("the name of the primary is missing; {advice}")))?;
        let (name, db) = match path.trim_end_matches('/').split_once('/') {
            Some((name, db)) => (name, format!("/{db}")),
            None => (path.trim_end_matches('/'), String::new()),
        };
        if name.is_empty() || hosts.is_empty() {
            return Err(refused(format!("a host or the name is missing; {advice}")));
        }
        let sentinel_tls = self.sentinel_tls.unwrap_or(is_tls);
        let tls = self.tls(is_tls || sentinel_tls)?;
        let key = "redis.sentinel_password_file";
        let secret = password(key, self.sentinel_password_file.as_ref())?;
        let mut nodes = Vec::new();
        for host in hosts.split(',') {
            let host = host.trim();
            let port = match host.rsplit_once(':') {
                Some((_, port)) if !port.contains(']') => "",
                _ => ":26379",
            };
            let info = connection(sentinel_tls, &format!("{host}{port}"))?;
            let username = self.sentinel_username.as_deref();
            nodes.push(with_login(info, username, secret.as_deref()).set_tcp_settings(self.tcp()));
        }
        let first = hosts.split(',').next().unwrap_or_default().trim();
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let primary = connection(is_tls, &format!("{user}{first}{db}"))?;
        let secret = password("redis.password_file", self.password_file.as_ref())?;
        let addrs: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
        Ok(Target {
            nodes: vec![self.with_credentials(primary, secret.as_deref())],
            addr: format!("{}/{name}", addrs.join(",")),
            kind: TargetKind::Sentinel(Sentinels {
                name: name.to_owned(),
                nodes,
                tls: tls.clone().filter(|_| sentinel_tls),
            }),
            tls: tls.filter(|_| is_tls),
        })
    }

    /// Without Sentinels there must be none of their keys: what they are for would not happen.
    fn without_sentinels(&self) -> Result<(), Error> {
        let named = [
            ("sentinel_username", self.sentinel_username.is_some()),
            (
                "sentinel_password_file",
                self.sentinel_password_file.is_some(),
            ),
            ("sentinel_tls", self.sentinel_tls.is_some()),
        ];
        match named.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((key, _)) => Err(Error::Refused {
                addr: format!("redis.{key}"),
                reason: "has no effect without Sentinels; write redis.url with redis+sentinel://"
                    .into(),
            }),
        }
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

    fn with_credentials(&self, info: ConnectionInfo, password: Option<&str>) -> ConnectionInfo {
        with_login(info, self.username.as_deref(), password).set_tcp_settings(self.tcp())
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

fn refused(reason: impl Into<String>) -> Error {
    Error::Refused {
        addr: "redis.url".into(),
        reason: reason.into(),
    }
}

/// One address as redis-rs reads it.
fn connection(is_tls: bool, rest: &str) -> Result<ConnectionInfo, Error> {
    let scheme = if is_tls { "rediss" } else { "redis" };
    format!("{scheme}://{}", rest.trim())
        .into_connection_info()
        .map_err(|error| refused(error.to_string()))
}

/// The password in a file, if one is named.
fn password(key: &str, path: Option<&PathBuf>) -> Result<Option<String>, Error> {
    let Some(path) = path else {
        return Ok(None);
    };
    let refused = |reason: String| Error::Refused {
        addr: key.into(),
        reason: format!("{}: {reason}", path.display()),
    };
    let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let secret = decode_secret(&bytes).map_err(|what| refused(what.into()))?;
    Ok(Some(secret))
}

fn with_login(
    info: ConnectionInfo,
    username: Option<&str>,
    password: Option<&str>,
) -> ConnectionInfo {
    let mut redis = info.redis_settings().clone();
    if let Some(username) = username {
        redis = redis.set_username(username);
    }
    if let Some(password) = password {
        redis = redis.set_password(password);
    }
    info.set_redis_settings(redis)
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
            let is_cluster = matches!(target.kind, TargetKind::Cluster);
            assert_eq!((is_cluster, target.addr.as_str()), (cluster, addr));
        }
    }

    #[test]
    fn sentinels_have_a_login_and_tls_of_their_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("password");
        std::fs::write(&path, "watch").expect("written");
        let settings = RedisSettings {
            url: "redis+sentinel://shop:s3cret@a:1, b/main/2".into(),
            sentinel_username: Some("watcher".into()),
            sentinel_password_file: Some(path),
            sentinel_tls: Some(true),
            ..RedisSettings::default()
        };
        let target = settings.target().expect("valid");
        assert_eq!(target.addr, "a:1,b:26379/main");
        let primary = target.nodes[0].redis_settings();
        let login = (primary.username(), primary.password(), primary.db());
        assert_eq!(login, (Some("shop"), Some("s3cret"), 2));
        assert!(target.tls.is_none());
        let TargetKind::Sentinel(sentinels) = target.kind else {
            panic!("no Sentinels");
        };
        assert_eq!(sentinels.name, "main");
        assert!(sentinels.tls.is_some());
        for node in &sentinels.nodes {
            let redis = node.redis_settings();
            let login = (redis.username(), redis.password(), redis.db());
            assert_eq!(login, (Some("watcher"), Some("watch"), 0));
        }
        let alone = RedisSettings {
            url: "redis://a:1".into(),
            ..settings
        };
        let error = alone.target().expect_err("no Sentinels").to_string();
        assert!(error.contains("redis.sentinel_username"), "{error}");
    }

    #[test]
    fn a_wrong_address_is_refused_with_the_reason() {
        for (url, reason) in [
            ("h:1", "no redis:// in it"),
            ("rediss://h:1#insecure", "a # in it"),
            ("http://h:1", "http:// is none of"),
            (
                "redis+sentinel://h:1,i:2",
                "the name of the primary is missing",
            ),
            ("redis+sentinel://h:1/", "a host or the name is missing"),
            ("redis+sentinel:///main", "a host or the name is missing"),
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
