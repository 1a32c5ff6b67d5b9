//! What tests of TLS share: authorities with what they sign for servers and clients, as PEM files; how processes and
//! commands are told where to connect; and that a fault is told everywhere.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};

/// An authority that signs certificates into one folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its certificate.
    pub ca: PathBuf,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Signed {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Both in one file, as a Kafka broker reads them.
    pub both: PathBuf,
}

impl Authority {
    /// A new authority, whose files are written into `dir`.
    pub fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            dir: dir.to_owned(),
            ca: write(dir, &format!("{name}.pem"), &pem),
        }
    }

    /// A certificate for these names that is valid now.
    pub fn sign(&self, file: &str, names: &[&str]) -> Signed {
        self.sign_until(file, names, 2100)
    }

    /// A certificate that has expired.
    pub fn sign_expired(&self, file: &str, names: &[&str]) -> Signed {
        self.sign_until(file, names, 2021)
    }

    fn sign_until(&self, file: &str, names: &[&str], year: i32) -> Signed {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.clone()).expect("valid names");
        // A broker takes a new certificate while it runs only for the same subject.
        params
            .distinguished_name
            .push(DnType::CommonName, &*names[0]);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        let (cert, key) = (signed.pem(), key.serialize_pem());
        Signed {
            cert: write(&self.dir, &format!("{file}.crt"), &cert),
            key: write(&self.dir, &format!("{file}.key"), &key),
            both: write(&self.dir, &format!("{file}.pem"), &format!("{key}{cert}")),
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("the file is written");
    path
}

pub fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("bound").port()
}

pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// How processes and commands reach a service, as environment variables.
pub struct Access(pub Vec<(&'static str, String)>);

impl Access {
    /// Runs a command of the binary.
    pub async fn cli(&self, site: &Site, words: &[&str]) -> Output {
        let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(words)
            .arg("--config")
            .arg(site.folder().join("nearshore.toml"))
            .envs(self.0.iter().map(|(key, value)| (*key, value)))
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, run).await;
        output.expect("it ends").expect("the binary starts")
    }

    /// Starts a process.
    pub fn start(&self, site: &Site, role: &str) -> Process {
        let variables: Vec<(&str, &str)> =
            self.0.iter().map(|(key, value)| (*key, &**value)).collect();
        Process::start_with(site, role, &variables)
    }
}

/// `check` passes, and the events of a user become a list.
pub async fn goes_the_whole_way(site: &Site, access: &Access, user: &str) {
    let checked = access.cli(site, &["check"]).await;
    let report = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{report}");
    let mut process = access.start(site, "all");
    process.becomes_ready().await;
    let events = (0..4).map(|nth| site.bought(user, nth));
    site.send(events.collect()).await;
    eventually(LIMIT, || async {
        let list = site.peek(user).await.list;
        list.map(drop).ok_or_else(|| process.log())
    })
    .await;
}

/// Starts a process that cannot be ready, and waits until it answers: the next one then finds its port taken.
async fn start_listening(site: &Site, access: &Access) -> Process {
    let process = access.start(site, "ingest");
    eventually(LIMIT, || async {
        let answer = process.get("/healthz").await;
        answer.map_err(|error| format!("{error}: {}", process.log()))
    })
    .await;
    process
}

/// For each case: `check`, the log of a process (lines of `target`) and its `/readyz` say these two parts. Returns the
/// processes.
pub async fn are_told(
    site: &Site,
    target: &str,
    cases: &[(Access, [&'static str; 2])],
) -> Vec<Process> {
    let mut processes = Vec::new();
    for (access, _) in cases {
        processes.push(start_listening(site, access).await);
    }
    let all = cases.iter().zip(&processes);
    let told =
        all.map(|((access, parts), process)| is_told(site, access, process, (target, *parts)));
    futures::future::join_all(told).await;
    processes
}

async fn is_told(site: &Site, access: &Access, process: &Process, told: (&str, [&str; 2])) {
    let (target, parts) = told;
    let told = |text: &str| parts.iter().all(|part| text.contains(part));
    let checked = access.cli(site, &["check"]).await;
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    let failed = checked.status.code() == Some(1);
    assert!(told(&report) && failed, "{parts:?}: {report}");
    eventually(LIMIT, || async {
        let (status, page) = process.get("/readyz").await.map_err(|e| e.to_string())?;
        let page = page.replace("\\\"", "\"");
        match status == 503 && told(&page) && told(&process.log()) {
            true => Ok(()),
            false => Err(format!("{parts:?}: {status} {page}\n{}", process.log())),
        }
    })
    .await;
    // One line a minute, and the first is this one.
    let log = process.log();
    let first = log.lines().find(|line| line.contains(target));
    assert!(first.is_some_and(told), "{log}");
}
