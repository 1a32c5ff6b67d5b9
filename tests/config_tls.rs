//! Settings of TLS, logins and members, and hashes of models, that cannot work are refused when the configuration is
//! loaded, by key and place.

use nearshore::config::Config;

/// The problems of a configuration with this text, a line each.
fn problems(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, text).expect("written");
    let found = Config::load(Some(&path), []).expect_err("it is refused");
    let lines = found.iter().map(ToString::to_string);
    let text = lines.collect::<Vec<_>>().join("\n");
    text.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn settings_of_tls_that_cannot_work_are_refused_at_start() {
    let tls = "[kafka.properties]\n\"security.protocol\" = \"ssl\"\n";
    let login =
        "[kafka.properties]\n\"security.protocol\" = \"sasl_ssl\"\n\"sasl.username\" = \"shop\"\n";
    let redis = "[redis]\nurl = \"rediss://h:1\"\n";
    are_refused(&[
        (
            "[kafka.properties]\n",
            "\"ssl.ca.location\" = \"probe\"",
            "nearshore.toml:2:1 kafka.properties.ssl.ca.location: ",
            "has no effect without TLS",
        ),
        (
            tls,
            "\"ssl.ca.location\" = \"/nowhere\"",
            "nearshore.toml:3:1 kafka.properties.ssl.ca.location: ",
            "cannot be read",
        ),
        (
            tls,
            "\"ssl.ca.location\" = \"/dev/null\"",
            "nearshore.toml:3:1 kafka.properties.ssl.ca.location: ",
            "/dev/null cannot be used",
        ),
        (
            login,
            "",
            "kafka.properties.sasl.mechanism: ",
            "GSSAPI is not in this build",
        ),
        (
            login,
            "\"sasl.mechanism\" = \"SCRAM-SHA-512\"",
            "kafka.secret_files.sasl.password: ",
            "is missing",
        ),
        (
            redis,
            "tls_ca = \"/dev/null\"",
            "nearshore.toml:3:1 redis.tls_ca: ",
            "has no certificate in PEM form",
        ),
        (
            redis,
            "tls_cert = \"/dev/null\"",
            "nearshore.toml:3:1 redis.tls_cert: ",
            "needs redis.tls_key beside it",
        ),
        (
            "[redis]\n",
            "tls_ca = \"/dev/null\"",
            "nearshore.toml:2:1 redis.tls_ca: ",
            "has no effect without TLS",
        ),
    ]);
}

#[test]
fn a_source_of_tokens_that_cannot_work_is_refused_at_start() {
    let oauth = "[kafka.properties]\n\"security.protocol\" = \"sasl_ssl\"\n\"sasl.username\" = \"shop\"\n\"sasl.mechanism\" = \"OAUTHBEARER\"\n";
    are_refused(&[
        (
            oauth,
            "",
            "kafka.properties.sasl.oauthbearer.token.endpoint.url: ",
            "name a file with a token",
        ),
        (
            oauth,
            "\"sasl.oauthbearer.token.endpoint.url\" = \"login.example\"",
            "nearshore.toml:5:1 kafka.properties.sasl.oauthbearer.token.endpoint.url: ",
            "is not an address",
        ),
        (
            oauth,
            "\"sasl.oauthbearer.token.endpoint.url\" = \"https://a/t\"\n\"sasl.oauthbearer.client.id\" = \"n\"",
            "kafka.secret_files.sasl.oauthbearer.client.secret: ",
            "is missing",
        ),
        (
            oauth,
            "\"sasl.oauthbearer.client.secret\" = \"s\"",
            "nearshore.toml:5:1 kafka.properties.sasl.oauthbearer.client.secret: ",
            "it is a secret",
        ),
    ]);
}

/// Section, line, key, and what is said.
type Case = (&'static str, &'static str, &'static str, &'static str);

fn are_refused(cases: &[Case]) {
    for (section, line, key, says) in cases {
        let found = problems(&format!("{section}{line}\n"));
        assert!(
            found.contains(key) && found.contains(says),
            "{line}: {found}"
        );
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn an_instance_id_and_hashes_that_cannot_be_are_refused_at_start() {
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t\"\nmodel = \"m\"\n";
    for (section, line, says) in [
        (
            "[kafka]\n",
            "instance_id = \"a b\"",
            "nearshore.toml:2:1 kafka.instance_id: \"a b\" is not",
        ),
        (
            "[kafka.consumer]\n",
            "\"group.instance.id\" = \"x\"",
            "set kafka.instance_id instead",
        ),
        (
            arm,
            "sha256 = \"4D7A\"",
            "nearshore.toml:6:1 arms[0].sha256: \"4D7A\" is not 64",
        ),
        (arm, "sha256 = 7", "a SHA-256, or for a folder"),
        (arm, "sha256 = {}", "names no file"),
    ] {
        let found = problems(&format!("{section}{line}\n"));
        assert!(found.contains(says), "{line}: {found}");
    }
}
