//! Promise: a Kafka that wants TLS, a certificate of the client, or a login is reached, and an event goes the whole way;
//! where a certificate or a login is not accepted, `check`, the log and `/readyz` name our key and what to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::harness::variable;
use crate::process::Site;
use crate::tls::{Access, Authority, Signed, are_told, free_port, goes_the_whole_way, shown};

/// Listeners of the broker beside the plain one: name, protocol.
const LISTENERS: [(&str, &str); 5] = [
    ("MTLS", "SSL"),
    ("LOGIN", "SASL_SSL"),
    ("EXPIRED", "SSL"),
    ("ELSEWHERE", "SSL"),
    ("OPEN", "SSL"),
];

/// A broker with a listener for each case; it ends with the test's process at the latest.
struct Broker {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    authority: Authority,
    client: Signed,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let files = dir.path().join("files");
        std::fs::create_dir(&files).expect("a folder");
        let authority = Authority::new(&files, "ca");
        let client = authority.sign("client", &["nearshore"]);
        let broker = Self {
            ports: (0..2 + LISTENERS.len()).map(|_| free_port()).collect(),
            dir,
            authority,
            client,
        };
        let (owner, port) = (std::process::id().to_string(), broker.ports[0].to_string());
        let settings = broker.settings();
        let words = settings.iter().flat_map(|setting| ["--set", setting]);
        let mut start = vec!["start", "--owner", &owner, "--port", &port];
        start.extend(words);
        broker.run(&start);
        // One request may set one credential of a user.
        std::thread::scope(|scope| {
            for bits in ["256", "512"] {
                let broker = &broker;
                scope.spawn(move || broker.add_login(bits));
            }
        });
        broker
    }

    fn settings(&self) -> Vec<String> {
        let own = |file: &str, names: &[&str]| self.authority.sign(file, names).both;
        let good = own("broker", &["localhost"]);
        let keystores = [
            good.clone(),
            good.clone(),
            self.authority.sign_expired("expired", &["localhost"]).both,
            own("elsewhere", &["kafka.example"]),
            good,
        ];
        let [plain, controller] = [self.ports[0], self.ports[1]];
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{plain}");
        let mut map = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
        let mut settings = Vec::new();
        for ((name, protocol), keystore) in LISTENERS.iter().zip(keystores) {
            listeners += &format!(",{name}://localhost:{}", self.port(name));
            map += &format!(",{name}:{protocol}");
            let prefix = format!("listener.name.{}", name.to_lowercase());
            settings.extend([
                format!("{prefix}.ssl.keystore.type=PEM"),
                format!("{prefix}.ssl.keystore.location={}", keystore.display()),
                format!("{prefix}.ssl.truststore.type=PEM"),
                format!(
                    "{prefix}.ssl.truststore.location={}",
                    self.authority.ca.display()
                ),
            ]);
        }
        let jaas = "org.apache.kafka.common.security";
        settings.extend([
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners={listeners}"),
            format!("listener.security.protocol.map={map}"),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            "listener.name.mtls.ssl.client.auth=required".into(),
            "listener.name.login.sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,PLAIN".into(),
            format!("listener.name.login.plain.sasl.jaas.config={jaas}.plain.PlainLoginModule required user_shop=\"one\";"),
            format!("listener.name.login.scram-sha-512.sasl.jaas.config={jaas}.scram.ScramLoginModule required;"),
            format!("listener.name.login.scram-sha-256.sasl.jaas.config={jaas}.scram.ScramLoginModule required;"),
        ]);
        settings
    }

    fn port(&self, listener: &str) -> u16 {
        let nth = LISTENERS.iter().position(|(name, _)| *name == listener);
        self.ports[2 + nth.expect("a listener")]
    }

    fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    fn run(&self, words: &[&str]) {
        let home = variable("NEARSHORE_TEST_KAFKA_HOME");
        let mut command = Command::new(format!("{home}/kafka"));
        command.args(words);
        if words[0] != "tool" {
            command.arg("--dir").arg(self.dir.path());
        }
        let output = command.output().expect("scripts/kafka starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{words:?}: {said}");
    }

    /// Gives the user `shop` the password `one` for SCRAM, by Kafka's own tool.
    fn add_login(&self, bits: &str) {
        let (plain, login) = (self.plain(), format!("SCRAM-SHA-{bits}=[password=one]"));
        let tool = ["tool", "kafka.admin.ConfigCommand", "--alter"];
        let user = ["--entity-type", "users", "--entity-name", "shop"];
        let words = ["--bootstrap-server", &plain, "--add-config", &login];
        self.run(&[&tool[..], &user, &words].concat());
    }

    /// Replaces the certificate of a listener while the broker runs.
    async fn renew(&self, listener: &str, signed: &Signed) {
        let admin: AdminClient<DefaultClientContext> = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", self.plain())
            .create()
            .expect("valid settings");
        let key = format!(
            "listener.name.{}.ssl.keystore.location",
            listener.to_lowercase()
        );
        let file = signed.both.display().to_string();
        let alter = AlterConfig::new(ResourceSpecifier::Broker(1)).set(&key, &file);
        let altered = admin.alter_configs([&alter], &AdminOptions::new()).await;
        for result in altered.expect("Kafka answers") {
            result.expect("the setting is accepted");
        }
    }

    /// A configuration for a listener; what is not given is right.
    fn access(&self, listener: &str) -> Kafka {
        let mut found = LISTENERS.iter().filter(|(name, _)| *name == listener);
        let (_, protocol) = found.next().expect("a listener");
        let mut kafka = Kafka {
            brokers: format!("localhost:{}", self.port(listener)),
            properties: BTreeMap::new(),
            password: None,
        };
        kafka.set("security.protocol", &protocol.to_lowercase());
        kafka.set("ssl.ca.location", &shown(&self.authority.ca));
        kafka.set("broker.address.family", "v4");
        kafka
    }

    fn with_certificate(&self, listener: &str, client: &Signed) -> Kafka {
        let mut kafka = self.access(listener);
        kafka.set("ssl.certificate.location", &shown(&client.cert));
        kafka.set("ssl.key.location", &shown(&client.key));
        kafka
    }

    fn with_login(&self, mechanism: &str, password: &str) -> Kafka {
        let mut kafka = self.access("LOGIN");
        kafka.set("sasl.mechanism", mechanism);
        kafka.set("sasl.username", "shop");
        let file = self.dir.path().join(format!("{mechanism}-{password}"));
        std::fs::write(&file, format!("{password}\n")).expect("the file is written");
        kafka.password = Some(file);
        kafka
    }
}

/// A configuration of Kafka.
struct Kafka {
    brokers: String,
    properties: BTreeMap<String, String>,
    password: Option<PathBuf>,
}

impl Kafka {
    fn set(&mut self, property: &str, value: &str) {
        self.properties.insert(property.into(), value.into());
    }

    fn access(&self) -> Access {
        let table = |pairs: Vec<(&str, String)>| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("{key:?} = {value:?}"));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        };
        let properties = self.properties.iter();
        let properties = properties.map(|(key, value)| (&**key, value.clone()));
        let secrets = self.password.iter();
        let secrets = secrets.map(|path| ("sasl.password", shown(path)));
        Access(vec![
            ("NEARSHORE__KAFKA__BROKERS", self.brokers.clone()),
            ("NEARSHORE__KAFKA__PROPERTIES", table(properties.collect())),
            ("NEARSHORE__KAFKA__SECRET_FILES", table(secrets.collect())),
        ])
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run(&["stop", "--kill"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_reached_by_tls_and_by_a_login_and_each_fault_names_its_key() {
    let broker = tokio::task::spawn_blocking(Broker::start)
        .await
        .expect("it starts");
    let site = Site::open_on(&broker.plain(), &[]).await;
    site.catalogue().await;
    let mutual = broker.with_certificate("MTLS", &broker.client).access();
    goes_the_whole_way(&site, &mutual, "ann").await;
    let scram = broker.with_login("SCRAM-SHA-512", "one");
    goes_the_whole_way(&site, &scram.access(), "bob").await;
    for mechanism in ["SCRAM-SHA-256", "PLAIN"] {
        let access = broker.with_login(mechanism, "one").access();
        let checked = access.cli(&site, &["check"]).await;
        let report = String::from_utf8_lossy(&checked.stdout);
        assert_eq!(checked.status.code(), Some(0), "{mechanism}: {report}");
    }
    faults(&broker, &site).await;
}

/// Each fault is told; a broker with a new certificate, and a password that its file has, end theirs.
async fn faults(broker: &Broker, site: &Site) {
    let other = Authority::new(broker.dir.path(), "other");
    let mut wrong_ca = broker.access("OPEN");
    wrong_ca.set("ssl.ca.location", &shown(&other.ca));
    let stranger = broker.with_certificate("MTLS", &other.sign("stranger", &["nearshore"]));
    let mut plain = broker.access("OPEN");
    plain.properties.clear();
    let mut tls_to_plain = broker.access("OPEN");
    tls_to_plain.brokers = broker.plain();
    let ca = "kafka.properties.\"ssl.ca.location\"";
    let certificate = "kafka.properties.\"ssl.certificate.location\"";
    let protocol = "kafka.properties.\"security.protocol\"";
    let password = "kafka.secret_files.\"sasl.password\"";
    let cases = [
        (
            broker.access("EXPIRED"),
            ["kafka.brokers: ", "has expired (Jan  1"],
        ),
        (
            broker.with_login("SCRAM-SHA-512", "two"),
            [password, "the login of \"shop\" by SCRAM-SHA-512"],
        ),
        (
            broker.with_login("PLAIN", "two"),
            [password, "the login of \"shop\" by PLAIN"],
        ),
        (wrong_ca, [ca, "is not by a CA of"]),
        (
            broker.access("ELSEWHERE"),
            ["kafka.brokers: ", "is for kafka.example;"],
        ),
        (
            broker.access("MTLS"),
            [certificate, "wants a certificate of this client"],
        ),
        (
            stranger,
            [certificate, "does not accept the certificate in"],
        ),
        (plain, [protocol, "is one for TLS; set ssl"]),
        (tls_to_plain, [protocol, "does not answer by TLS"]),
    ];
    let file = cases[1].0.password.clone().expect("a login");
    let cases = cases.map(|(kafka, parts)| (kafka.access(), parts));
    let mut processes = are_told(site, " kafka::fault: ", &cases).await;
    broker
        .renew("EXPIRED", &broker.authority.sign("renewed", &["localhost"]))
        .await;
    std::fs::write(file, "one\n").expect("the file is written");
    for process in &mut processes[..2] {
        process.becomes_ready().await;
    }
}
