//! TLS to a server: whose certificates are accepted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use nearshore_core::list::prompt::Endpoint;
use nearshore_remote::{Client, Error};
use rcgen::{CertifiedIssuer, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::fake::{Act, serve};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("signed")
}

/// A server with a certificate by `ca` for `name`; its port.
async fn start(ca: &Ca, name: &str) -> u16 {
    let key = KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
    let cert = params.signed_by(&key, ca).expect("signed");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("they belong together");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let script = Arc::new(Mutex::new(VecDeque::from([Act::says("Milk")])));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, script, Arc::default()).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn only_a_certificate_by_the_named_ca_and_for_the_name_is_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, others) = (ca(), ca());
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ours.pem()).expect("written");
    let endpoint = |scheme: &str, port: u16| Endpoint {
        retries: 0,
        ca_file: (scheme == "https").then(|| file.display().to_string()),
        ..Endpoint::at(&format!("{scheme}://localhost:{port}/v1"))
    };
    let ask = async |endpoint: &Endpoint| {
        let client = Client::new(endpoint, "m").expect("a client");
        client.complete("x").await
    };
    let port = start(&ours, "localhost").await;
    let answer = ask(&endpoint("https", port)).await.expect("an answer");
    assert_eq!(answer.text, "Milk");
    for (port, key) in [
        (start(&others, "localhost").await, "endpoint.ca_file: "),
        (start(&ours, "models.example").await, "endpoint.url: "),
    ] {
        let error = ask(&endpoint("https", port)).await.expect_err("refused");
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        assert!(error.to_string().starts_with(key), "{error}");
    }
    // Without TLS the port does not answer, and nothing of ours is wrong but the scheme.
    let error = ask(&endpoint("http", port)).await.expect_err("no TLS");
    assert!(error.to_string().contains("endpoint.url"), "{error}");
    // A port without TLS.
    let plain = crate::fake::Fake::start([Act::says("Milk")]).await;
    let port = plain
        .endpoint
        .url
        .rsplit(':')
        .next()
        .and_then(|it| it.trim_end_matches("/v1").parse().ok());
    let endpoint = Endpoint {
        read_timeout: std::time::Duration::from_secs(2),
        ..endpoint("https", port.expect("a port"))
    };
    let error = ask(&endpoint).await.expect_err("no TLS");
    assert!(error.to_string().starts_with("endpoint."), "{error}");
}
