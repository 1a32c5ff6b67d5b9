//! TLS of the connection: its files, and what an error of TLS means for the configuration.
//!
//! The files are read again for each connection, so that a rotated certificate is used without a restart. A port that is
//! silent or hangs up is looked at: it may be one for TLS, or one without. Invariant: a file that cannot be used is told
//! by its key, and no key's bytes are told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::{ClientTlsConfig, ConnectionAddr, RedisError, TlsCertificates};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::settings::{RedisSettings, TargetKind};
use nearshore_core::ports::store::Error;

/// Reads the files of `redis.tls_*`, and makes rustls use ring.
pub(super) fn read(settings: &RedisSettings) -> Result<TlsCertificates, Error> {
    use_ring();
    let root_cert = match &settings.tls_ca {
        Some(path) => Some(certificates("redis.tls_ca", path)?),
        None => None,
    };
    let client_tls = match (&settings.tls_cert, &settings.tls_key) {
        (Some(cert), Some(key)) => Some(pair(cert, key)?),
        (None, None) => None,
        (Some(_), None) => return Err(refused("redis.tls_cert", "needs redis.tls_key beside it")),
        (None, Some(_)) => return Err(refused("redis.tls_key", "needs redis.tls_cert beside it")),
    };
    Ok(TlsCertificates {
        client_tls,
        root_cert,
    })
}

/// Makes ring the cryptography of rustls, which has none by itself. The first provider of a process stays.
fn use_ring() {
    let _stays = rustls::crypto::ring::default_provider().install_default();
}

fn refused(key: &str, reason: impl Into<String>) -> Error {
    Error::Refused {
        addr: key.into(),
        reason: reason.into(),
    }
}

fn bytes(key: &str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| refused(key, format!("{}: {error}", path.display())))
}

/// The bytes of a file with at least one certificate.
fn certificates(key: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = bytes(key, path)?;
    let mut roots = RootCertStore::empty();
    let mut found = CertificateDer::pem_slice_iter(&bytes);
    let usable = found.all(|one| one.is_ok_and(|one| roots.add(one).is_ok())) && !roots.is_empty();
    match usable {
        true => Ok(bytes),
        false => Err(refused(
            key,
            format!("{} has no certificate in PEM form", path.display()),
        )),
    }
}

/// The client's certificate and key, if they belong together.
fn pair(cert: &Path, key: &Path) -> Result<ClientTlsConfig, Error> {
    let client_cert = certificates("redis.tls_cert", cert)?;
    let client_key = bytes("redis.tls_key", key)?;
    let wrong = |why: &str| refused("redis.tls_key", format!("{} {why}", key.display()));
    let parsed = PrivateKeyDer::from_pem_slice(&client_key)
        .map_err(|_| wrong("has no private key in PEM form; one with a password is not read"))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&client_cert)
        .filter_map(Result::ok)
        .collect();
    rustls::ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(chain, parsed)
        .map_err(|_| wrong("is not the key of the certificate in redis.tls_cert"))?;
    Ok(ClientTlsConfig {
        client_cert,
        client_key,
    })
}

/// What an error of TLS is about: our key, what is wrong, and what to do; `None` if it is no error of TLS.
pub(super) fn explain(settings: &RedisSettings, error: &RedisError) -> Option<String> {
    let text = error.to_string();
    let says = |part: &str| text.contains(part);
    let ca = match &settings.tls_ca {
        Some(path) => format!("a CA of {}", path.display()),
        None => "a CA of this system".into(),
    };
    Some(if says("UnknownIssuer") || says("BadSignature") {
        format!(
            "redis.tls_ca: the certificate of Redis is not by {ca}; name the file of the CA that signed it"
        )
    } else if says("certificate expired") || says("Certificate: Expired") {
        "redis.url: the certificate of Redis has expired; renew it there, and this client connects again by itself".into()
    } else if says("certificate not valid for name") || says("NotValidForName") {
        let names = text
            .split("only valid for ")
            .nth(1)
            .unwrap_or("another name");
        format!(
            "redis.url: the certificate of Redis is for {}; write such a name here, or renew the certificate with this name",
            plain(names)
        )
    } else if says("invalid peer certificate") {
        format!("redis.tls_ca: the certificate of Redis is not accepted ({text})")
    } else if says("CertificateRequired")
        || (says("HandshakeFailure") && settings.tls_cert.is_none())
    {
        "redis.tls_cert: Redis wants a certificate of this client; name its file here, and its key's file as redis.tls_key".into()
    } else if says("received fatal alert: ") && settings.tls_cert.is_some() {
        "redis.tls_cert: Redis does not accept this certificate: it has expired, or Redis does not trust its CA; the file is read again at each attempt".into()
    } else if says("InvalidContentType") || says("corrupt message") {
        NO_TLS.into()
    } else {
        return None;
    })
}

const NO_TLS: &str = "redis.url: this port does not answer by TLS; name the port with TLS, or write redis:// where TLS is not wanted";
const TLS: &str =
    "redis.url: this port is one for TLS; write rediss://, or name the port without TLS";

/// Names as people write them: rustls prints `DnsName("a")`.
fn plain(names: &str) -> String {
    let words = names.split('"').skip(1).step_by(2);
    match words.collect::<Vec<_>>() {
        none if none.is_empty() => names.to_owned(),
        words => words.join(", "),
    }
}

/// Whether a failed connection says nothing about its reason, although somebody accepted it.
pub(super) fn is_silent(error: &RedisError) -> bool {
    error.is_timeout() || (error.is_io_error() && !error.is_connection_refusal())
}

/// Whether the port speaks the other protocol than `redis.url` says; `None` if not, or if it says nothing.
pub(super) async fn look(settings: &RedisSettings, limit: Duration) -> Option<String> {
    let target = settings.target().ok()?;
    let (first, is_tls) = match &target.kind {
        TargetKind::Sentinel(sentinels) => (sentinels.nodes.first()?, sentinels.tls.is_some()),
        _ => (target.nodes.first()?, target.tls.is_some()),
    };
    let (host, port) = match first.addr() {
        ConnectionAddr::Tcp(host, port) => (host.clone(), *port),
        ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
        _ => return None,
    };
    let question = match is_tls {
        true => b"PING\r\n".to_vec(),
        false => hello(&host)?,
    };
    let answer = tokio::time::timeout(limit, ask((host, port), &question));
    let answer = answer.await.ok()?.ok()?;
    match (is_tls, answer) {
        // Kinds of records: a handshake or an alert, by any version of TLS.
        (false, [0x15 | 0x16, 3]) => Some(TLS.into()),
        (true, [b'+' | b'-', _]) => Some(NO_TLS.into()),
        _ => None,
    }
}

/// The first message of a handshake.
fn hello(host: &str) -> Option<Vec<u8>> {
    use_ring();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).ok()?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).ok()?;
    Some(bytes)
}

/// Sends bytes to a new connection; the first two of the answer.
async fn ask(address: (String, u16), question: &[u8]) -> std::io::Result<[u8; 2]> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(question).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn names_of_a_certificate_are_told_as_people_write_them() {
        let rustls = "DnsName(\"a.example\"), DnsName(\"b.example\")";
        assert_eq!(plain(rustls), "a.example, b.example");
        assert_eq!(plain("another name"), "another name");
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_by_their_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let junk = dir.path().join("junk");
        std::fs::write(&junk, "no PEM\n").expect("written");
        let settings =
            |ca: Option<&PathBuf>, cert: Option<&PathBuf>, key: Option<&PathBuf>| RedisSettings {
                url: "rediss://h:1".into(),
                tls_ca: ca.cloned(),
                tls_cert: cert.cloned(),
                tls_key: key.cloned(),
                ..RedisSettings::default()
            };
        for (settings, says) in [
            (settings(Some(&junk), None, None), "redis.tls_ca refuses: "),
            (
                settings(None, Some(&junk), None),
                "redis.tls_cert refuses: needs redis.tls_key",
            ),
            (
                settings(None, None, Some(&junk)),
                "redis.tls_key refuses: needs redis.tls_cert",
            ),
            (
                settings(None, Some(&junk), Some(&junk)),
                "redis.tls_cert refuses: ",
            ),
        ] {
            let error = settings.check().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        let plain = RedisSettings {
            tls_ca: Some(junk),
            ..RedisSettings::default()
        };
        let error = plain.check().expect_err("no TLS").to_string();
        assert!(error.contains("has no effect without TLS"), "{error}");
    }
}
