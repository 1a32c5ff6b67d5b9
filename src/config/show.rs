//! Prints the effective configuration as TOML, without secrets.
//!
//! Invariant: a value whose key names a password, secret, token or private key, or belongs to `sasl.*` and is not one of
//! [`SASL_PUBLIC`], is never printed, and neither is the password in a URL. Paths of secret files are not secret.

use std::time::Duration;

use toml::{Table, Value};

use super::Config;
use super::reference::{Known, dotted};

/// Properties of `sasl.*` that help to find a wrong login and are no secrets.
const SASL_PUBLIC: [&str; 10] = [
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
];

const MASK: &str = "***";

pub(super) fn effective(config: &Config) -> String {
    let mut table = match Table::try_from(config) {
        Ok(table) => table,
        Err(error) => return format!("# cannot be written as TOML: {error}\n"),
    };
    mask(&mut table, &Known::all(), "");
    toml::to_string_pretty(&table)
        .unwrap_or_else(|error| format!("# cannot be written as TOML: {error}\n"))
}

fn mask(table: &mut Table, known: &Known, path: &str) {
    for (key, value) in table.iter_mut() {
        let path = dotted(path, key);
        if is_secret(&path) {
            *value = Value::String(MASK.into());
            continue;
        }
        let known = known.child(key);
        match value {
            Value::Table(child) => mask(child, known.unwrap_or(&Known::Free), &path),
            Value::Array(items) => {
                for item in items {
                    if let Value::Table(item) = item {
                        mask(item, known.unwrap_or(&Known::Free), &path);
                    }
                }
            }
            Value::String(text) => {
                let is_duration = matches!(known, Some(Known::Leaf(Value::String(shown))) if humantime::parse_duration(shown).is_ok());
                *text = match humantime::parse_duration(text) {
                    Ok(duration) if is_duration => words(duration),
                    _ => without_password(text),
                };
            }
            _ => {}
        }
    }
}

fn is_secret(path: &str) -> bool {
    let path = path.to_lowercase();
    let names_files = path.ends_with("_file") || path.contains("secret_files");
    if SASL_PUBLIC.iter().any(|public| path.ends_with(public)) {
        return false;
    }
    let words = ["password", "secret", "sasl.", "token", "ssl.key.pem"];
    !names_files && words.iter().any(|word| path.contains(word)) && !path.ends_with("prompt_tokens")
}

/// A duration in one unit: humantime would write 365 days as `11months 30days 3h ...`.
fn words(duration: Duration) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ];
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    let whole = units.iter().find(|(unit, _)| millis.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => humantime::format_duration(duration).to_string(),
    }
}

/// Writes `redis://user:word@host` as `redis://user:***@host`; other text is unchanged.
fn without_password(text: &str) -> String {
    let masked = || {
        let (scheme, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let at = authority.rfind('@')?;
        let colon = authority[..at].find(':')?;
        Some(format!(
            "{scheme}://{}:{MASK}{}",
            &rest[..colon],
            &rest[at..]
        ))
    };
    masked().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_configuration_shows_no_secret() {
        let mut config = Config::default();
        config.redis.url = "redis://me:hunter2@cache:6379/0".into();
        config
            .kafka
            .properties
            .insert("sasl.password".into(), "hunter2".into());
        config
            .kafka
            .consumer
            .insert("ssl.key.password".into(), "hunter2".into());
        config
            .kafka
            .producer
            .insert("sasl.oauthbearer.client.secret".into(), "hunter2".into());
        config
            .kafka
            .secret_files
            .insert("sasl.password".into(), "/run/secrets/kafka".into());
        config
            .kafka
            .properties
            .insert("sasl.oauthbearer.config".into(), "hunter2".into());
        for (key, value) in [("sasl.username", "shop"), ("sasl.mechanism", "PLAIN")] {
            config.kafka.properties.insert(key.into(), value.into());
        }
        let shown = config.effective();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("redis://me:***@cache:6379/0"), "{shown}");
        assert!(shown.contains("/run/secrets/kafka"), "{shown}");
        assert!(shown.contains("shop") && shown.contains("PLAIN"), "{shown}");
    }

    #[test]
    fn a_url_is_masked_only_if_it_has_a_password() {
        for url in [
            "redis://localhost:6379",
            "redis://me@host/0?a=b:c",
            "not a url",
        ] {
            assert_eq!(without_password(url), url);
        }
        assert_eq!(without_password("redis://:pw@h"), "redis://:***@h");
        assert_eq!(without_password("redis://u:p@w@h"), "redis://u:***@h");
    }

    #[test]
    fn durations_are_shown_in_one_unit() {
        assert_eq!(words(Duration::from_secs(365 * 86_400)), "365d");
        assert_eq!(words(Duration::from_secs(90)), "90s");
        assert_eq!(words(Duration::from_millis(500)), "500ms");
    }
}
