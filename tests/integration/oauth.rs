//! Promise: a Kafka that wants tokens (OAUTHBEARER) is reached by all commands and processes: tokens come from an
//! endpoint or a file, are renewed while a process runs, and where there is none, or the broker refuses it, `check`, the
//! log and `/readyz` name our key.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::Private;
use serde_json::{Value, json};

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Site};
use crate::tls::{Access, are_told, free_port, goes_the_whole_way, shown};

const CLIENT: (&str, &str) = ("shop", "s3cret");
const AUDIENCE: &str = "kafka";
/// Longer than a process needs for one list, and short enough to be renewed in the test.
const LIFETIME: u64 = 12;

/// Who gives out tokens, and the key that they are signed with.
struct Issuer {
    key: EcKey<Private>,
    /// Tokens given out so far.
    given: AtomicUsize,
    port: u16,
}

impl Issuer {
    async fn start() -> Arc<Self> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let issuer = Arc::new(Self {
            key: EcKey::generate(&group).expect("a key"),
            given: AtomicUsize::new(0),
            port: listener.local_addr().expect("bound").port(),
        });
        let routes = axum::Router::new()
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route("/opaque", post(opaque))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        issuer
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    fn token(&self, audience: &str, seconds: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let now = now.as_secs();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "ES256", "kid": "one", "typ": "JWT"}));
        let claims = json!({"sub": "shop", "scope": "kafka", "aud": audience, "iat": now, "exp": now + seconds});
        let signed = format!("{head}.{}", part(claims));
        let digest = openssl::sha::sha256(signed.as_bytes());
        let signature = EcdsaSig::sign(&digest, &self.key).expect("signed");
        let padded = |number: &openssl::bn::BigNumRef| number.to_vec_padded(32).expect("32 bytes");
        let signature = [padded(signature.r()), padded(signature.s())].concat();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

async fn keys(State(issuer): State<Arc<Issuer>>) -> String {
    let mut context = BigNumContext::new().expect("memory");
    let mut numbers = [(); 2].map(|()| openssl::bn::BigNum::new().expect("memory"));
    let [x, y] = &mut numbers;
    let point = issuer.key.public_key();
    point
        .affine_coordinates(issuer.key.group(), x, y, &mut context)
        .expect("a point");
    let part = |number: &openssl::bn::BigNum| {
        URL_SAFE_NO_PAD.encode(number.to_vec_padded(32).expect("32 bytes"))
    };
    let key = json!({"kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "alg": "ES256", "x": part(x), "y": part(y)});
    json!({ "keys": [key] }).to_string()
}

async fn token(
    State(issuer): State<Arc<Issuer>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let login = STANDARD.encode(format!("{}:{}", CLIENT.0, CLIENT.1));
    let sent = headers.get("authorization").and_then(|it| it.to_str().ok());
    if sent != Some(&format!("Basic {login}")) {
        let said = json!({"error": "invalid_client", "error_description": "no such client"});
        return (StatusCode::UNAUTHORIZED, said.to_string());
    }
    assert_eq!(body, "grant_type=client_credentials&scope=kafka+write");
    issuer.given.fetch_add(1, Ordering::Relaxed);
    let token = issuer.token(AUDIENCE, LIFETIME);
    (
        StatusCode::OK,
        json!({ "access_token": token, "expires_in": LIFETIME }).to_string(),
    )
}

/// A token that says nothing of its end.
async fn opaque() -> String {
    json!({ "access_token": "abc", "token_type": "bearer" }).to_string()
}

/// A broker that wants tokens; it ends with the test's process at the latest.
struct Broker {
    dir: tempfile::TempDir,
    ports: [u16; 3],
}

impl Broker {
    fn start(issuer: &Issuer) -> Self {
        let broker = Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
            ports: [free_port(), free_port(), free_port()],
        };
        let [plain, controller, tokens] = broker.ports;
        let listeners = format!("PLAINTEXT://127.0.0.1:{plain},TOKEN://127.0.0.1:{tokens}");
        let security = "org.apache.kafka.common.security.oauthbearer";
        let keys = issuer.url("jwks");
        let settings = [
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners={listeners}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TOKEN:SASL_PLAINTEXT".into(),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            "listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER".into(),
            format!("listener.name.token.oauthbearer.sasl.jaas.config={security}.OAuthBearerLoginModule required;"),
            format!("listener.name.token.oauthbearer.sasl.server.callback.handler.class={security}.OAuthBearerValidatorCallbackHandler"),
            // A connection ends when its token does, unless the client logs in again.
            "listener.name.token.oauthbearer.connections.max.reauth.ms=600000".into(),
            format!("sasl.oauthbearer.jwks.endpoint.url={keys}"),
            format!("sasl.oauthbearer.expected.audience={AUDIENCE}"),
        ];
        let (owner, port) = (std::process::id().to_string(), plain.to_string());
        let mut words = vec!["start", "--owner", &owner, "--port", &port];
        words.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        broker.run(&words, &keys);
        broker
    }

    fn run(&self, words: &[&str], allowed: &str) {
        let home = variable("NEARSHORE_TEST_KAFKA_HOME");
        let allowed = format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={allowed}");
        let output = Command::new(format!("{home}/kafka"))
            .args(words)
            .arg("--dir")
            .arg(self.dir.path())
            .env("JAVA_TOOL_OPTIONS", allowed)
            .output()
            .expect("scripts/kafka starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{words:?}: {said}");
    }

    fn access(&self, properties: &[(&str, &str)], secrets: &[(&str, &Path)]) -> Access {
        let protocol = [("security.protocol", "sasl_plaintext")];
        let all = protocol.iter().chain(&[("sasl.mechanism", "OAUTHBEARER")]);
        let all = all.chain(properties);
        let all = all.map(|(key, value)| format!("{key:?} = {value:?}"));
        let secrets = secrets.iter();
        let secrets = secrets.map(|(key, file)| format!("{key:?} = {:?}", shown(file)));
        let table = |all: Vec<String>| format!("{{ {} }}", all.join(", "));
        Access(vec![
            (
                "NEARSHORE__KAFKA__BROKERS",
                format!("127.0.0.1:{}", self.ports[2]),
            ),
            ("NEARSHORE__KAFKA__PROPERTIES", table(all.collect())),
            ("NEARSHORE__KAFKA__SECRET_FILES", table(secrets.collect())),
        ])
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["stop", "--kill"], "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_reached_by_tokens_which_are_renewed_and_each_fault_names_its_key() {
    let issuer = Issuer::start().await;
    let given = issuer.clone();
    let broker = tokio::task::spawn_blocking(move || Broker::start(&given)).await;
    let broker = broker.expect("it starts");
    let site = Site::open_on(&format!("127.0.0.1:{}", broker.ports[0]), &[]).await;
    site.catalogue().await;
    let (secret, wrong) = (
        site.write("secret", "s3cret\n"),
        site.write("wrong", "no\n"),
    );
    let endpoint = "sasl.oauthbearer.token.endpoint.url";
    let (url, opaque) = (issuer.url("token"), issuer.url("opaque"));
    let by_client = |url: &str, secret: &Path| {
        let properties = [
            ("sasl.oauthbearer.method", "oidc"),
            (endpoint, url),
            ("sasl.oauthbearer.client.id", CLIENT.0),
            ("sasl.oauthbearer.scope", "kafka write"),
        ];
        broker.access(&properties, &[("sasl.oauthbearer.client.secret", secret)])
    };
    let fetched = by_client(&url, &secret);
    goes_the_whole_way(&site, &fetched, "ann").await;
    let file = site.write("token", &issuer.token(AUDIENCE, 600));
    let of_file = broker.access(&[], &[("sasl.oauthbearer.token", &file)]);
    goes_the_whole_way(&site, &of_file, "bob").await;

    // One process over several lifetimes of a token: its connections are renewed, not dropped.
    let mut process = fetched.start(&site, "all");
    process.becomes_ready().await;
    let before = issuer.given.load(Ordering::Relaxed);
    for nth in 0..3 {
        let wanted = before + 2 * (nth + 1);
        eventually(LIMIT, || async {
            let given = issuer.given.load(Ordering::Relaxed);
            (given >= wanted).then_some(()).ok_or(given.to_string())
        })
        .await;
        let user = format!("user-{nth}");
        site.send((0..4).map(|n| site.bought(&user, n)).collect())
            .await;
        eventually(LIMIT, || async {
            let list = site.peek(&user).await.list;
            list.map(drop).ok_or_else(|| process.log())
        })
        .await;
    }
    drop(process);

    let foreign = site.write("foreign", &issuer.token("another", 600));
    let cases = [
        (
            by_client(&url, &wrong),
            [endpoint, "answers 401: invalid_client: no such client"],
        ),
        (
            by_client(&opaque, &secret),
            [endpoint, "nothing else says how long it is valid"],
        ),
        (
            broker.access(&[], &[("sasl.oauthbearer.token", &foreign)]),
            [
                "kafka.secret_files.\"sasl.oauthbearer.token\"",
                "refuses the token",
            ],
        ),
    ];
    let mut processes = are_told(&site, " kafka::fault: ", &cases).await;
    // Mended in their files, they go on by themselves.
    std::fs::write(&wrong, "s3cret\n").expect("written");
    std::fs::write(&foreign, issuer.token(AUDIENCE, 600)).expect("written");
    for nth in [0, 2] {
        processes[nth].becomes_ready().await;
    }
}
