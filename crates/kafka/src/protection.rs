//! Settings of TLS and logins: which CAs are trusted where none are named, and what is refused at start.
//!
//! Decides that no property of TLS may be set without TLS: librdkafka would ignore it and send everything in the clear.
//! Invariant: what librdkafka says about a certificate, a key or a login is told by our key, and no secret is told.

use std::path::PathBuf;

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;

use super::{KafkaSettings, oauth};
use nearshore_core::ports::log::Error;

/// Logins of this build. GSSAPI needs libsasl2.
const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];

/// Properties that name a file or a folder.
const FILES: [&str; 6] = [
    oauth::CA,
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
];

/// What `security.protocol` asks for.
#[derive(Clone, Copy)]
struct Protocol {
    tls: bool,
    login: bool,
}

impl Protocol {
    fn of(config: &ClientConfig) -> Self {
        let name = config.get("security.protocol").unwrap_or_default();
        let name = name.to_ascii_lowercase();
        Self {
            tls: name.ends_with("ssl"),
            login: name.starts_with("sasl_"),
        }
    }
}

/// Where the CAs of the system are: `SSL_CERT_FILE`, or where Debian, Alpine, distroless and others keep them.
fn system_ca() -> Option<PathBuf> {
    let found = openssl_probe::probe();
    found
        .cert_file
        .or_else(|| found.cert_dir.into_iter().next())
}

/// Adds what librdkafka does not find by itself: a vendored OpenSSL looks for CAs where it was built.
pub(super) fn complete(config: &mut ClientConfig) {
    let named = ["ssl.ca.location", "ssl.ca.pem", "ssl.ca.certificate.stores"];
    if !Protocol::of(config).tls || named.iter().any(|key| config.get(key).is_some()) {
        return;
    }
    if let Some(ca) = system_ca() {
        config.set("ssl.ca.location", ca.to_string_lossy());
    }
}

impl KafkaSettings {
    /// The file or folder of the CAs that clients trust; `None` if they are given otherwise, or left to OpenSSL.
    pub(super) fn ca(&self) -> Option<String> {
        let named = self.property("ssl.ca.location").map(str::to_owned);
        let system = || {
            let ca = system_ca().filter(|_| self.property("ssl.ca.pem").is_none())?;
            Some(ca.to_string_lossy().into_owned())
        };
        named.filter(|ca| ca != "probe").or_else(system)
    }

    /// The name under which the mechanism is set: librdkafka knows two.
    pub(super) fn mechanism_name(&self) -> &'static str {
        match self.property("sasl.mechanisms") {
            Some(_) => "sasl.mechanisms",
            None => "sasl.mechanism",
        }
    }

    /// Files that the properties of TLS name, each with our key.
    pub fn tls_files(&self) -> Vec<(String, PathBuf)> {
        let named = |name: &str| match self.property(name) {
            None | Some("probe") => None,
            Some(file) => Some((self.key(name), PathBuf::from(file))),
        };
        FILES.into_iter().filter_map(named).collect()
    }

    /// Makes relative paths of [`KafkaSettings::tls_files`] start at this folder.
    pub fn resolve_tls_files(&mut self, base: &std::path::Path) {
        for section in [&mut self.properties, &mut self.consumer, &mut self.producer] {
            for name in FILES {
                if let Some(file) = section.get_mut(name).filter(|file| *file != "probe") {
                    *file = base.join(&*file).to_string_lossy().into_owned();
                }
            }
        }
    }

    fn refused(&self, property: &str, reason: impl Into<String>) -> Error {
        Error::Refused {
            what: self.key(property),
            reason: reason.into(),
        }
    }
}

/// Checks TLS and login as librdkafka does when a client is made: certificates, keys, mechanisms. Connects to nothing.
pub(super) fn check(
    settings: &KafkaSettings,
    consumer: ClientConfig,
    producer: ClientConfig,
) -> Result<(), Error> {
    let protocols = [Protocol::of(&consumer), Protocol::of(&producer)];
    if !protocols.iter().any(|protocol| protocol.tls) {
        let sections = [&settings.properties, &settings.consumer, &settings.producer];
        let keys = sections.into_iter().flat_map(|section| section.keys());
        let mut all = keys.chain(settings.secret_files.keys());
        if let Some(key) = all.find(|key| key.starts_with("ssl.")) {
            let reason = "has no effect without TLS; set \"security.protocol\" = \"ssl\", or \"sasl_ssl\" with a login";
            return Err(settings.refused(key, reason));
        }
    }
    if !protocols
        .iter()
        .any(|protocol| protocol.tls || protocol.login)
    {
        return Ok(());
    }
    for (protocol, config) in protocols.iter().zip([&consumer, &producer]) {
        if protocol.login {
            check_login(settings, config)?;
        }
    }
    let made = without_brokers(consumer)
        .create::<BaseConsumer>()
        .map(drop)
        .and_then(|()| without_brokers(producer).create::<BaseProducer>().map(drop));
    made.map_err(|error| explain(settings, &error))
}

/// A client without addresses connects to nothing.
fn without_brokers(mut config: ClientConfig) -> ClientConfig {
    config.remove("bootstrap.servers");
    config
}

fn check_login(settings: &KafkaSettings, config: &ClientConfig) -> Result<(), Error> {
    let name = settings.mechanism_name();
    // GSSAPI is librdkafka's default.
    let mechanism = config.get(name).unwrap_or("GSSAPI");
    if !MECHANISMS.contains(&mechanism) {
        let reason = format!(
            "{mechanism} is not in this build; set {}",
            MECHANISMS.join(" or ")
        );
        return Err(settings.refused(name, reason));
    }
    if mechanism == "OAUTHBEARER" {
        let source = oauth::Source::of(settings);
        source.map_err(|(property, what)| settings.refused(property, what))?;
        return match oauth::extensions(settings) {
            Ok(_) => Ok(()),
            Err(what) => Err(settings.refused(oauth::EXTENSIONS, what)),
        };
    }
    for (property, what) in [
        ("sasl.username", "is missing; write the user's name here"),
        (
            "sasl.password",
            "is missing; name the file of the password here",
        ),
    ] {
        if config.get(property).is_none() {
            return Err(settings.refused(property, what));
        }
    }
    Ok(())
}

/// The key that librdkafka complains about when it makes a client.
fn explain(settings: &KafkaSettings, error: &KafkaError) -> Error {
    let text = error.to_string();
    let reason = text.trim_start_matches("Client creation error: ");
    let file = |property: &str| settings.property(property).unwrap_or_default().to_owned();
    let property = ["ssl.key.pem", "ssl.certificate.pem", "ssl.ca.pem"]
        .into_iter()
        .chain(FILES)
        .find(|property| reason.contains(property));
    if let Some(property) = property {
        let why = reason.rsplit("failed: ").next().unwrap_or(reason);
        let what = match file(property) {
            file if file.is_empty() => format!("cannot be used: {why}"),
            file => format!("{file} cannot be used: {why}; it must be PEM"),
        };
        return settings.refused(property, what);
    }
    if reason.contains("Private key check failed") {
        return settings.refused(
            "ssl.key.location",
            "is not the key of the certificate in ssl.certificate.location",
        );
    }
    Error::Refused {
        what: "kafka properties".into(),
        reason: reason.to_owned(),
    }
}
