//! TLS to the server: whose certificates are trusted, and what an error of a connection means for the configuration.
//!
//! Invariant: nothing goes back to plaintext: the scheme of `endpoint.url` decides. The CA's file is read at start.

use std::error::Error as _;
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use nearshore_core::list::prompt::Endpoint;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::Error;

/// A connector that uses TLS where `endpoint.url` says so.
pub(crate) fn connector(
    endpoint: &Endpoint,
    http: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, Error> {
    let wrong = |what: String| Error::Setting {
        key: "ca_file",
        what,
    };
    let mut roots = RootCertStore::empty();
    if endpoint.url.starts_with("https://") {
        match &endpoint.ca_file {
            Some(file) => {
                let bytes = std::fs::read(file);
                let bytes =
                    bytes.map_err(|error| wrong(format!("{file} cannot be read: {error}")))?;
                let mut found = CertificateDer::pem_slice_iter(&bytes);
                let usable = found.all(|one| one.is_ok_and(|one| roots.add(one).is_ok()));
                if !usable || roots.is_empty() {
                    return Err(wrong(format!("{file} has no certificate in PEM form")));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    let what =
                        "this system has no CAs; name the file of the server's CA".to_owned();
                    return Err(wrong(what));
                }
            }
        }
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http))
}

/// What an error before an answer means.
pub(crate) fn explain(url: &str, error: &legacy::Error) -> Error {
    let mut texts = Vec::new();
    let mut cause = error.source();
    while let Some(one) = cause {
        texts.push(one.to_string());
        cause = one.source();
    }
    let why = texts.last().cloned().unwrap_or_else(|| error.to_string());
    let all = texts.join(": ");
    if let Some((key, why)) = of_tls(&all) {
        return Error::Tls { key, why };
    }
    match error.is_connect() {
        true => Error::Connect {
            url: url.to_owned(),
            why,
        },
        false => Error::Answer {
            what: format!("the connection ended before the answer ({why})"),
        },
    }
}

/// Our key and what is wrong, if the text is of an error of TLS.
fn of_tls(text: &str) -> Option<(&'static str, String)> {
    let says = |part: &str| text.contains(part);
    Some(if says("UnknownIssuer") || says("BadSignature") {
        let why =
            "the server's certificate is not by this CA; name the file of the CA that signed it";
        ("endpoint.ca_file", why.into())
    } else if says("certificate expired") || says("Expired") {
        (
            "endpoint.url",
            "the server's certificate has expired; renew it there".into(),
        )
    } else if says("not valid for name") || says("NotValidForName") {
        let why = "the server's certificate is for another name; write that name into url";
        ("endpoint.url", why.into())
    } else if says("invalid peer certificate") {
        (
            "endpoint.ca_file",
            format!("the server's certificate is not accepted ({text})"),
        )
    } else if says("InvalidContentType") || says("corrupt message") {
        let why = "this port does not answer by TLS; write http:// where TLS is not wanted, or name the port with TLS";
        ("endpoint.url", why.into())
    } else {
        return None;
    })
}
