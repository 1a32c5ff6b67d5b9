//! What an error of TLS or of a login means for the configuration: [`explain`] and [`look`].
//!
//! Decides which of our keys a complaint of librdkafka is about, and what to do. librdkafka says that a certificate is
//! not accepted and not why, so [`look`] asks the broker for its certificate by the same OpenSSL. Invariant: a look sends
//! no bytes of Kafka and no secret, and changes no client.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Ref, X509VerifyResult};
use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;

use super::{KafkaSettings, oauth};

/// How long a broker may take to accept a connection, and then each message of the handshake.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// What a complaint is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Key and remedy.
    Told(String),
    /// The certificate of the broker at this address is not accepted.
    Certificate(String),
    /// The broker at this address closed the first connection without TLS: its port may be one for TLS.
    MaybeTls(String),
}

/// Explains an error of librdkafka, or a line of its log; `None` if it is about neither TLS nor a login.
pub(super) fn explain(
    settings: &KafkaSettings,
    code: Option<RDKafkaErrorCode>,
    reason: &str,
) -> Option<Complaint> {
    use RDKafkaErrorCode as Code;
    let says = |part: &str| reason.contains(part);
    let at = address(reason).unwrap_or_else(|| settings.brokers.clone());
    if says("certificate verify failed") {
        return Some(Complaint::Certificate(at));
    }
    let set = settings.property("security.protocol").unwrap_or_default();
    let is_tls = set.to_ascii_lowercase().ends_with("ssl");
    let disconnected = says("Disconnected") || says("closed by peer");
    if !is_tls && disconnected && says("in state APIVERSION_QUERY") {
        return Some(Complaint::MaybeTls(at));
    }
    let protocol = settings.key("security.protocol");
    let told = if (disconnected && says("in state SSL_HANDSHAKE")) || says("wrong version number") {
        format!(
            "{protocol}: {at} does not answer by TLS; if its port is one without TLS, name the port with TLS in kafka.brokers"
        )
    } else if says("alert certificate required") || says("alert number 116") {
        format!(
            "{}: {at} wants a certificate of this client; name its file here, and its key's file as ssl.key.location",
            settings.key("ssl.certificate.location")
        )
    } else if refuses_certificate(reason) {
        refused_certificate(settings, &at)
    } else if says("not valid in current SASL state") {
        format!(
            "{protocol}: {at} wants no login; set ssl, or plaintext if the port is one without TLS"
        )
    } else if says("mechanism handshake failed") {
        let offered = reason.split("supported mechanisms: ").nth(1);
        let offered = offered.and_then(|rest| rest.split(" (").next());
        format!(
            "{}: {at} offers {}; set one of them",
            settings.key(settings.mechanism_name()),
            offered
                .filter(|offered| !offered.is_empty())
                .unwrap_or("another mechanism")
        )
    } else if matches!(
        code,
        Some(Code::Authentication | Code::SaslAuthenticationFailed)
    ) || says("SASL authentication error")
    {
        refused_login(settings, &at)
    } else if set.eq_ignore_ascii_case("ssl") && disconnected && at_once(reason) {
        format!("{protocol}: {at} closes each connection; if its port wants a login, set sasl_ssl")
    } else {
        return None;
    };
    Some(Complaint::Told(told))
}

/// Whether a connection that was made ended within two seconds, in words such as `(after 13ms in state UP)`.
fn at_once(reason: &str) -> bool {
    let after = reason.rsplit("(after ").next();
    let milliseconds = after.and_then(|after| after.split_once("ms in state UP"));
    milliseconds.is_some_and(|(number, _)| number.parse::<u32>().is_ok_and(|ms| ms < 2000))
}

/// Whether a TLS alert is about this client's certificate.
fn refuses_certificate(reason: &str) -> bool {
    [
        "alert bad certificate",
        "alert certificate unknown",
        "alert certificate expired",
        "alert certificate revoked",
        "alert unsupported certificate",
        "alert unknown ca",
        // librdkafka does not even send it.
        "No matching issuer found in server",
    ]
    .iter()
    .any(|alert| reason.contains(alert))
}

fn refused_certificate(settings: &KafkaSettings, at: &str) -> String {
    let key = settings.key("ssl.certificate.location");
    match settings.property("ssl.certificate.location") {
        Some(file) => format!(
            "{key}: {at} does not accept the certificate in {file}: it is expired, or the broker does not trust its CA; renew it, then start this process again"
        ),
        None => format!(
            "{key}: {at} wants a certificate of this client; name its file here, and its key's file as ssl.key.location"
        ),
    }
}

fn refused_login(settings: &KafkaSettings, at: &str) -> String {
    if let Ok(Some(source)) = oauth::Source::of(settings) {
        return format!(
            "{}: {at} refuses the token; its issuer, audience, scope or subject is not what the broker expects",
            settings.key(source.property())
        );
    }
    let user = settings.property("sasl.username").unwrap_or_default();
    let by = settings
        .property(settings.mechanism_name())
        .unwrap_or_default();
    let key = settings.key("sasl.password");
    let remedy = match settings.secret_files.get("sasl.password") {
        Some(file) => format!(
            "check sasl.username, and the password in {}, which is read again",
            file.display()
        ),
        None => "name the file of the password here".to_owned(),
    };
    format!("{key}: {at} refuses the login of {user:?} by {by}; {remedy}")
}

/// The `host:port` in a reason such as `sasl_ssl://broker:9093/1: SSL handshake failed`.
fn address(reason: &str) -> Option<String> {
    let words = reason.split([' ', '/']);
    // Lines of the log begin with the thread, `[thrd:broker:9092/1]: `.
    let known = words.map(|word| {
        word.trim_start_matches("[thrd:")
            .trim_end_matches([':', ','])
    });
    known
        .filter_map(|word| Some((word, word.rsplit_once(':')?)))
        .find(|(_, (host, port))| !host.is_empty() && port.parse::<u16>().is_ok())
        .map(|(word, _)| word.to_owned())
}

/// Looks at the broker at `at`, and explains the complaint; `None` if there is nothing wrong to be seen. Blocks for
/// seconds.
pub(super) fn look(settings: &KafkaSettings, complaint: &Complaint) -> Option<String> {
    match complaint {
        Complaint::Told(text) => Some(text.clone()),
        Complaint::MaybeTls(at) => {
            let has_tls = speaks_tls(at).unwrap_or(false);
            let key = settings.key("security.protocol");
            has_tls.then(|| {
                format!(
                    "{key}: the port of {at} is one for TLS; set ssl, or sasl_ssl if it wants a login, or name the port without TLS in kafka.brokers"
                )
            })
        }
        Complaint::Certificate(at) => {
            let ca = settings.key("ssl.ca.location");
            Some(match handshake(settings, at) {
                Ok(Some(fault)) => fault.explain(settings, at),
                // It is accepted now: the client finds that out at its next attempt.
                Ok(None) => format!(
                    "{ca}: the certificate of {at} was not accepted; the client tries again"
                ),
                Err(error) => format!(
                    "{ca}: the certificate of {at} is not accepted ({error}); name the file of the CA that signed it"
                ),
            })
        }
    }
}

/// Why a certificate is not accepted.
struct Fault {
    error: X509VerifyResult,
    /// From when and to when it is valid, as OpenSSL writes times.
    valid: (String, String),
    names: Vec<String>,
}

/// Codes of OpenSSL, `X509_V_ERR_*`.
const NOT_YET_VALID: i32 = 9;
const EXPIRED: i32 = 10;
const OTHER_NAME: [i32; 2] = [62, 64];

impl Fault {
    fn of(error: X509VerifyResult, certificate: Option<&X509Ref>) -> Self {
        let valid = certificate.map(|it| (it.not_before().to_string(), it.not_after().to_string()));
        let names = certificate.and_then(X509Ref::subject_alt_names);
        let name = |name: &openssl::x509::GeneralNameRef| match (name.dnsname(), name.ipaddress()) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Some(&[a, b, c, d])) => Some(format!("{a}.{b}.{c}.{d}")),
            _ => None,
        };
        Self {
            error,
            valid: valid.unwrap_or_default(),
            names: names
                .map(|names| names.iter().filter_map(name).collect())
                .unwrap_or_default(),
        }
    }

    fn explain(&self, settings: &KafkaSettings, at: &str) -> String {
        let by_itself = "this client connects again by itself";
        match self.error.as_raw() {
            EXPIRED => format!(
                "kafka.brokers: the certificate of {at} has expired ({}); renew it on the broker, and {by_itself}",
                self.valid.1
            ),
            NOT_YET_VALID => format!(
                "kafka.brokers: the certificate of {at} is not valid before {}; are the clocks right?",
                self.valid.0
            ),
            code if OTHER_NAME.contains(&code) => format!(
                "kafka.brokers: the certificate of {at} is for {}; use such a name here and in the broker's advertised.listeners, or renew the certificate with this name",
                match self.names.is_empty() {
                    true => "no name".to_owned(),
                    false => self.names.join(", "),
                }
            ),
            _ => {
                let ca = match settings.ca() {
                    Some(file) => format!("a CA of {file}"),
                    None => "a CA of this system".to_owned(),
                };
                format!(
                    "{}: the certificate of {at} is not by {ca} ({}); name the file of the CA that signed it",
                    settings.key("ssl.ca.location"),
                    self.error.error_string()
                )
            }
        }
    }
}

/// Makes a TLS handshake, and returns what is wrong with the broker's certificate.
fn handshake(settings: &KafkaSettings, at: &str) -> Result<Option<Fault>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (host, _) = at.rsplit_once(':').ok_or("it has no port")?;
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(|e| text(&e))?;
    trust(settings, &mut builder).map_err(|e| text(&e))?;
    let found = Arc::new(Mutex::new(None));
    let seen = found.clone();
    builder.set_verify_callback(SslVerifyMode::PEER, move |ok, context| {
        if !ok {
            let fault = Fault::of(context.error(), context.current_cert());
            seen.lock().get_or_insert(fault);
        }
        true
    });
    let stream = connect(at)?;
    let named = settings.property("ssl.endpoint.identification.algorithm") != Some("none");
    let connection = builder.build().configure().map_err(|e| text(&e))?;
    let connected = connection
        .verify_hostname(named)
        .connect(host.trim_matches(['[', ']']), stream);
    // A broker that wants a certificate of the client ends the handshake, after it has shown its own.
    match (found.lock().take(), connected) {
        (Some(fault), _) => Ok(Some(fault)),
        (_, Err(error)) => Err(text(&error)),
        (_, Ok(_)) => Ok(None),
    }
}

/// Connects to the first address of this name that accepts it.
fn connect(at: &str) -> Result<TcpStream, String> {
    let mut last = "its name has no address".to_owned();
    for address in at.to_socket_addrs().map_err(|error| error.to_string())? {
        match TcpStream::connect_timeout(&address, LOOK_MAX) {
            Ok(stream) => {
                for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
                    set(&stream, Some(LOOK_MAX)).map_err(|error| error.to_string())?;
                }
                return Ok(stream);
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Whether the first message of a handshake is answered by TLS: by a handshake or an alert, of any version.
fn speaks_tls(at: &str) -> Result<bool, String> {
    let builder = SslConnector::builder(SslMethod::tls_client()).map_err(|e| e.to_string())?;
    let hello = Hello::default();
    // It ends when the answer is read, which never comes: only the first message is wanted.
    drop(builder.build().connect("localhost", hello.clone()));
    let mut stream = connect(at)?;
    let mut answer = [0; 2];
    stream
        .write_all(&hello.0.lock())
        .and_then(|()| stream.read_exact(&mut answer))
        .map_err(|error| error.to_string())?;
    Ok(matches!(answer, [0x15 | 0x16, 3]))
}

/// A stream that keeps what is written and never has anything to read.
#[derive(Clone, Debug, Default)]
struct Hello(Arc<Mutex<Vec<u8>>>);

impl Read for Hello {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Hello {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Trusts the CAs that the clients trust.
fn trust(settings: &KafkaSettings, builder: &mut SslConnectorBuilder) -> Result<(), ErrorStack> {
    let mut only = X509StoreBuilder::new()?;
    if let Some(pem) = settings.property("ssl.ca.pem") {
        for ca in X509::stack_from_pem(pem.as_bytes())? {
            only.add_cert(ca)?;
        }
    }
    match settings.ca() {
        None if settings.property("ssl.ca.pem").is_none() => Ok(()),
        None => {
            builder.set_cert_store(only.build());
            Ok(())
        }
        Some(ca) => {
            builder.set_cert_store(only.build());
            match Path::new(&ca).is_dir() {
                true => builder.load_verify_locations(None, Some(ca.as_ref())),
                false => builder.set_ca_file(&ca),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> KafkaSettings {
        let mut settings = KafkaSettings::of("kafka:9093");
        for (key, value) in properties {
            settings
                .properties
                .insert((*key).to_owned(), (*value).to_owned());
        }
        settings
    }

    #[test]
    fn an_address_is_found_in_reasons_of_all_kinds() {
        for (reason, found) in [
            (
                "sasl_ssl://kafka:9093/bootstrap: SSL handshake failed",
                "kafka:9093",
            ),
            (
                "[thrd:ssl://10.0.0.7:9093/1]: ssl://10.0.0.7:9093/1: x",
                "10.0.0.7:9093",
            ),
            ("GroupCoordinator: kafka:9092: Disconnected", "kafka:9092"),
            (
                "[thrd:kafka:9092/bootstrap]: kafka:9092/bootstrap: Disconnected",
                "kafka:9092",
            ),
        ] {
            assert_eq!(address(reason).as_deref(), Some(found), "{reason}");
        }
        assert_eq!(address("1/1 brokers are down"), None);
    }

    #[test]
    fn each_complaint_names_the_key_and_the_remedy() {
        let login = settings(&[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "shop"),
        ]);
        for (reason, parts) in [
            (
                "sasl_ssl://k:1/1: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 3ms in state AUTH_REQ)",
                [
                    "kafka.secret_files.\"sasl.password\"",
                    "\"shop\" by SCRAM-SHA-512",
                ],
            ),
            (
                "sasl_ssl://k:1/1: SASL SCRAM-SHA-512 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 1ms in state AUTH_HANDSHAKE)",
                [
                    "kafka.properties.\"sasl.mechanism\"",
                    "offers PLAIN; set one",
                ],
            ),
            (
                "ssl://k:1/1: Disconnected: SSL connection closed by peer (after 8ms in state SSL_HANDSHAKE)",
                [
                    "kafka.properties.\"security.protocol\"",
                    "does not answer by TLS",
                ],
            ),
            (
                "ssl://k:1/1: SSL handshake failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42",
                [
                    "kafka.properties.\"ssl.certificate.location\"",
                    "wants a certificate",
                ],
            ),
        ] {
            let Some(Complaint::Told(told)) = explain(&login, None, reason) else {
                panic!("{reason} is not explained");
            };
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
            assert!(told.contains("k:1"), "{told}");
        }
    }

    #[test]
    fn a_first_request_without_an_answer_may_be_for_a_port_with_tls() {
        let reason = "k:1/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 56ms in state APIVERSION_QUERY)";
        let found = explain(&settings(&[]), None, reason);
        assert_eq!(found, Some(Complaint::MaybeTls("k:1".into())));
    }

    #[test]
    fn a_connection_that_ends_at_once_may_want_a_login_and_an_idle_one_is_no_fault() {
        let tls = settings(&[("security.protocol", "ssl")]);
        let reason = |ms| {
            format!(
                "ssl://k:1/1: Disconnected: SSL connection closed by peer (after {ms}ms in state UP)"
            )
        };
        let Some(Complaint::Told(told)) = explain(&tls, None, &reason(13)) else {
            panic!("it is not explained");
        };
        assert!(told.contains("set sasl_ssl"), "{told}");
        assert_eq!(explain(&tls, None, &reason(600_000)), None);
    }

    #[test]
    fn an_error_about_something_else_is_not_explained() {
        for reason in [
            "kafka:9092/1: Connect to ipv4#10.0.0.7:9092 failed: Connection refused",
            "kafka:9092/1: Failed to resolve 'kafka:9092': Name or service not known",
        ] {
            assert_eq!(explain(&settings(&[]), None, reason), None);
        }
    }
}
