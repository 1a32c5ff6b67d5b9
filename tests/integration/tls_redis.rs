//! Promise: a Redis that wants TLS and a certificate of the client is reached, alone or as a cluster; its certificate,
//! CA and password, and the client's certificate, are rotated while lists are made, and no process ends; where one is
//! not accepted, `check`, the log and `/readyz` name our key and what to do.

use std::path::Path;

use nearshore_redis::{RedisSettings, RedisStore};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};
use crate::store_faults::{Server, store_at};
use crate::tls::{Access, Authority, Signed, are_told, free_port, goes_the_whole_way, shown};
use crate::way::is_exact;

/// A Redis with a port for TLS beside its plain one.
struct Redis {
    server: Server,
    tls: u16,
}

impl Redis {
    async fn start(ca: &Path, signed: &Signed, more: &[&str]) -> Self {
        let tls = free_port();
        let words = [
            "--tls-port",
            &tls.to_string(),
            "--tls-cert-file",
            &shown(&signed.cert),
            "--tls-key-file",
            &shown(&signed.key),
            "--tls-ca-cert-file",
            &shown(ca),
        ];
        let server = Server::start(&[&words, more].concat()).await;
        Self { server, tls }
    }

    fn url(&self) -> String {
        format!("rediss://localhost:{}", self.tls)
    }
}

const OPTIONAL: [&str; 2] = ["--tls-auth-clients", "no"];

fn access(url: &str, ca: &Path, more: &[(&'static str, String)]) -> Access {
    let mut variables = vec![("NEARSHORE__REDIS__URL", url.to_owned())];
    if url.starts_with("rediss") {
        variables.push(("NEARSHORE__REDIS__TLS_CA", shown(ca)));
    }
    variables.extend(more.iter().cloned());
    Access(variables)
}

fn certificate(signed: &Signed) -> [(&'static str, String); 2] {
    [
        ("NEARSHORE__REDIS__TLS_CERT", shown(&signed.cert)),
        ("NEARSHORE__REDIS__TLS_KEY", shown(&signed.key)),
    ]
}

/// Sets the user's password in Redis.
async fn login(server: &Server, password: &str, rights: &[&str]) {
    let rule = format!(">{password}");
    let user = [
        "ACL",
        "SETUSER",
        "shop",
        "on",
        "resetpass",
        &rule,
        "~*",
        "&*",
    ];
    server.ask(&[&user, rights].concat()).await;
}

async fn folds_on(site: &Site, process: &mut Process, users: &[&str]) {
    process.becomes_ready().await;
    let events = users.iter().enumerate();
    let events = events.map(|(nth, user)| site.bought(user, nth));
    site.send(events.collect()).await;
    site.committed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_passwords_of_redis_are_rotated_while_lists_are_made() {
    let mut site = Site::open(&[]).await;
    let dir = site.folder().to_owned();
    let [one, two] = ["one", "two"].map(|name| Authority::new(&dir, name));
    let (server, client) = (
        one.sign("server", &["localhost"]),
        one.sign("client", &["shop"]),
    );
    let redis = Redis::start(&one.ca, &server, &[]).await;
    let (url, ca) = (redis.url(), dir.join("bundle.pem"));
    std::fs::copy(&one.ca, &ca).expect("a copy");
    site.redis = redis.server;
    site.store = store_at(site.redis.url());
    // What `check` advises: no right to empty the database, which is in @write, is among them.
    let rights = "+@read +@write +@scripting +@connection -@dangerous +info +time +wait";
    let rights: Vec<&str> = rights.split(' ').collect();
    login(&site.redis, "first", &rights).await;
    let password = site.write("password", "first\n");
    let mut more = certificate(&client).to_vec();
    more.push(("NEARSHORE__REDIS__USERNAME", "shop".into()));
    more.push(("NEARSHORE__REDIS__PASSWORD_FILE", shown(&password)));
    let access = access(&url, &ca, &more);
    site.catalogue().await;
    goes_the_whole_way(&site, &access, "ann").await;

    let mut process = access.start(&site, "all");
    let users = ["ann", "bob", "cem", "dee"];
    folds_on(&site, &mut process, &users).await;
    // Redis first: by a CA that the client does not know.
    let second = two.sign("second", &["localhost"]);
    let both = [&one.ca, &two.ca].map(|ca| std::fs::read_to_string(ca).expect("PEM"));
    let trusted = site.write("trusted.pem", &both.concat());
    let (cert, key) = (shown(&second.cert), shown(&second.key));
    let files = [
        "tls-cert-file",
        &cert,
        "tls-key-file",
        &key,
        "tls-ca-cert-file",
        &shown(&trusted),
    ];
    site.redis
        .ask(&[&["CONFIG", "SET"], &files[..]].concat())
        .await;
    site.redis.ask(&["CLIENT", "KILL", "USER", "shop"]).await;
    eventually(LIMIT, || async {
        let (_, page) = process.get("/readyz").await.map_err(|e| e.to_string())?;
        page.contains("redis.tls_ca").then_some(()).ok_or(page)
    })
    .await;
    std::fs::copy(&trusted, &ca).expect("a copy");
    folds_on(&site, &mut process, &users).await;
    // The files first: a certificate by the other CA, and another password.
    let next = two.sign("next", &["shop"]);
    for (from, to) in [(&next.cert, &client.cert), (&next.key, &client.key)] {
        std::fs::rename(from, to).expect("renamed");
    }
    site.write("password", "second\n");
    login(&site.redis, "second", &[]).await;
    site.redis
        .ask(&["CONFIG", "SET", "tls-ca-cert-file", &shown(&two.ca)])
        .await;
    site.redis.ask(&["CLIENT", "KILL", "USER", "shop"]).await;
    folds_on(&site, &mut process, &users).await;
    is_exact(&site).await;
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_cluster_is_reached_by_tls() {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(dir.path(), "ca");
    let signed = authority.sign("both", &["localhost", "127.0.0.1"]);
    let bus = free_port().to_string();
    // It announces a name, as a managed cluster does.
    let cluster = [
        "--tls-cluster",
        "yes",
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-announce-hostname",
        "localhost",
        "--cluster-preferred-endpoint-type",
        "hostname",
    ];
    let redis = Redis::start(&authority.ca, &signed, &cluster).await;
    redis
        .server
        .ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])
        .await;
    let store = RedisStore::new(RedisSettings {
        url: format!("rediss+cluster://localhost:{}", redis.tls),
        tls_ca: Some(authority.ca.clone()),
        tls_cert: Some(signed.cert.clone()),
        tls_key: Some(signed.key.clone()),
        ..RedisSettings::default()
    })
    .expect("valid settings");
    eventually(LIMIT, || async {
        store.ready().await.map_err(|e| e.to_string())
    })
    .await;
    for (what, found) in store.check().await {
        found.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// Servers of which each is faulty for some client.
struct Servers {
    open: Redis,
    mutual: Redis,
    expired: Redis,
    elsewhere: Redis,
}

impl Servers {
    async fn start(one: &Authority) -> Self {
        let good = one.sign("good", &["localhost"]);
        let [old, other] = [
            one.sign_expired("old", &["localhost"]),
            one.sign("other", &["redis.example"]),
        ];
        Self {
            open: Redis::start(&one.ca, &good, &OPTIONAL).await,
            mutual: Redis::start(&one.ca, &good, &[]).await,
            expired: Redis::start(&one.ca, &old, &OPTIONAL).await,
            elsewhere: Redis::start(&one.ca, &other, &OPTIONAL).await,
        }
    }

    /// What is wrong in the first three can be mended without a restart.
    fn cases(&self, one: &Authority, two: &Authority) -> [(Access, [&'static str; 2]); 9] {
        let to = |url: &str| access(url, &one.ca, &[]);
        let (open, mutual) = (self.open.url(), self.mutual.url());
        let user = |file: &str| {
            let file = one.ca.with_file_name(file);
            let variables = [
                ("NEARSHORE__REDIS__USERNAME", "shop".to_owned()),
                ("NEARSHORE__REDIS__PASSWORD_FILE", shown(&file)),
            ];
            access(&open, &one.ca, &variables)
        };
        let stranger = certificate(&two.sign("stranger", &["shop"]));
        let stranger = access(&mutual, &one.ca, &stranger);
        let wrong_ca = access(&open, &two.ca, &[]);
        let plain_to_tls = to(&open.replace("rediss", "redis"));
        let tls_to_plain = to(&self.open.server.url().replace("redis:", "rediss:"));
        [
            (to(&self.expired.url()), ["redis.url: ", "has expired"]),
            (
                user("wrong"),
                ["redis.password_file", "the login is refused"],
            ),
            (user("right"), ["redis.username", "lacks a right"]),
            (wrong_ca, ["redis.tls_ca: ", "is not by a CA of"]),
            (
                to(&self.elsewhere.url()),
                ["redis.url: ", "is for redis.example;"],
            ),
            (to(&mutual), ["redis.tls_cert: ", "wants a certificate"]),
            (stranger, ["redis.tls_cert: ", "does not accept"]),
            (plain_to_tls, ["redis.url: ", "is one for TLS"]),
            (tls_to_plain, ["redis.url: ", "does not answer by TLS"]),
        ]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_redis_names_its_key() {
    let site = Site::open(&[]).await;
    let [one, two] = ["one", "two"].map(|name| Authority::new(site.folder(), name));
    let servers = Servers::start(&one).await;
    login(&servers.open.server, "right", &["+@read", "+@connection"]).await;
    site.write("right", "right\n");
    site.write("wrong", "wrong\n");
    let cases = servers.cases(&one, &two);
    let processes = are_told(&site, " redis: ", &cases).await;
    // A renewed certificate, the right password, a right: no process is started again.
    let renewed = one.sign("renewed", &["localhost"]);
    let (cert, key) = (shown(&renewed.cert), shown(&renewed.key));
    let files = ["tls-cert-file", &cert, "tls-key-file", &key];
    let set = [&["CONFIG", "SET"], &files[..]].concat();
    servers.expired.server.ask(&set).await;
    site.write("wrong", "right\n");
    login(&servers.open.server, "right", &["+@all"]).await;
    // Ready they are not: each has another Redis, and all are in one group.
    for process in &processes[..3] {
        eventually(LIMIT, || async {
            let (_, page) = process.get("/readyz").await.map_err(|e| e.to_string())?;
            page.contains("writable").then_some(()).ok_or(page)
        })
        .await;
    }
}
