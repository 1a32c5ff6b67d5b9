//! Tests the configuration from outside: the reference file, error lines, overrides by variables.

use std::collections::BTreeSet;
use std::path::Path;

use nearshore::config::{Config, REFERENCE};
use toml::{Table, Value};

/// Loads `text` as `nearshore.toml` and returns the error lines, without the folder.
fn problems(text: impl AsRef<[u8]>, env: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, text).expect("written");
    std::fs::write(folder.path().join("prompt.jinja"), "{{ profile }}").expect("written");
    std::fs::write(folder.path().join("broken.jinja"), "one\n{% if %}").expect("written");
    std::fs::write(folder.path().join("model.gguf"), "").expect("written");
    let env = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    match Config::load(Some(&path), env) {
        Ok(_) => String::new(),
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let prefix = format!("{}/", folder.path().display());
            lines.join("\n").replace(&prefix, "")
        }
    }
}

fn uncommented() -> Table {
    let lines = REFERENCE.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.parse().expect("the optional keys are valid TOML")
}

fn paths(table: &Table, above: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = format!("{above}{key}");
        match value {
            Value::Table(child) => {
                into.insert(path.clone());
                paths(child, &format!("{path}."), into);
            }
            Value::Array(items) if items.is_empty() => {}
            _ => {
                into.insert(path);
            }
        }
    }
}

#[test]
fn the_reference_file_equals_the_default_configuration() {
    let written: Table = REFERENCE.parse().expect("the reference is TOML");
    let read: Config = Value::Table(written.clone())
        .try_into()
        .expect("it is a Config");
    assert_eq!(read, Config::default());

    let default = Table::try_from(Config::default()).expect("a Config is TOML");
    let (mut in_default, mut in_file) = (BTreeSet::new(), BTreeSet::new());
    paths(&default, "", &mut in_default);
    paths(&written, "", &mut in_file);
    assert_eq!(
        in_default, in_file,
        "keys of Config::default() and of config/nearshore.toml"
    );
}

#[test]
fn the_optional_keys_of_the_reference_file_are_accepted() {
    let read: Config = Value::Table(uncommented())
        .try_into()
        .expect("it is a Config");
    assert_eq!(read.arms.len(), 1);
    assert_eq!(read.rules.len(), 3);
    assert!(read.redis.password_file.is_some());
}

/// Every name that serde accepts at a place is in the reference file. Serde lists the names when it refuses one.
#[test]
fn no_accepted_key_is_missing_from_the_reference_file() {
    let shown = uncommented();
    let mut places = vec![Vec::new()];
    let mut checked = 0;
    while let Some(place) = places.pop() {
        let Some(names) = accepted(&place) else {
            continue;
        };
        for name in names {
            let mut path: Vec<String> = place.clone();
            path.push(name.clone());
            assert!(
                exists(&shown, &path),
                "{} is not in config/nearshore.toml",
                path.join(".")
            );
            checked += 1;
            places.push(path);
        }
    }
    assert!(checked > 80, "only {checked} keys were checked");
}

fn exists(table: &Table, path: &[String]) -> bool {
    let Some((head, rest)) = path.split_first() else {
        return true;
    };
    match table.get(head) {
        None => false,
        Some(_) if rest.is_empty() => true,
        Some(Value::Table(child)) => exists(child, rest),
        Some(Value::Array(items)) => items
            .iter()
            .filter_map(Value::as_table)
            .any(|child| exists(child, rest)),
        Some(_) => false,
    }
}

/// Names of the fields at a place, from serde's error for a field that does not exist.
fn accepted(place: &[String]) -> Option<Vec<String>> {
    let probe = Value::Table(Table::from_iter([(
        "no_such_key".to_owned(),
        Value::Boolean(true),
    )]));
    let wrap = |many: bool| {
        place.iter().rev().fold(probe.clone(), |value, key| {
            let lists = ["arms", "rules", "segments", "boosts", "pins", "inputs"];
            let listed = many && lists.contains(&key.as_str());
            let value = if listed || (many && key == "when" && place[0] == "segments") {
                Value::Array(vec![value])
            } else {
                value
            };
            Value::Table(Table::from_iter([(key.clone(), value)]))
        })
    };
    let error = Config::deserialize_value(wrap(true))?;
    let (_, list) = error.split_once("expected ")?;
    error.contains("unknown field `no_such_key`").then(|| {
        list.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    })
}

trait Probe {
    fn deserialize_value(value: Value) -> Option<String>;
}

impl Probe for Config {
    fn deserialize_value(value: Value) -> Option<String> {
        let read: Result<Self, _> = value.try_into();
        read.err().map(|error| error.message().to_owned())
    }
}

#[test]
fn an_empty_file_gives_the_default_configuration() {
    assert_eq!(problems("", &[]), "");
}

#[test]
fn a_misspelt_key_is_reported_with_its_place_and_a_suggestion() {
    insta::assert_snapshot!(
        problems("namespace = \"main\"\n\n[trigger]\nquiet_perod = \"30s\"\n  claim_evry = \"1m\"\n", &[]),
        @r#"
        nearshore.toml:4:1 trigger.quiet_perod: unknown key; did you mean quiet_period?
        nearshore.toml:5:3 trigger.claim_evry: unknown key; did you mean claim_every?
        "#
    );
}

#[test]
fn a_key_in_the_wrong_section_is_reported_with_the_right_one() {
    insta::assert_snapshot!(
        problems("quiet_period = \"3s\"\n[kafka]\nlist_ttl = \"3s\"\n[redis]\nhovercraft = 1\n[eels]\n", &[]),
        @r#"
        nearshore.toml:1:1 quiet_period: unknown key; did you mean trigger.quiet_period?
        nearshore.toml:3:1 kafka.list_ttl: unknown key; did you mean redis.list_ttl?
        nearshore.toml:5:1 redis.hovercraft: unknown key
        nearshore.toml:6:2 eels: unknown key
        "#
    );
}

#[test]
fn all_wrong_values_are_reported_at_once() {
    let text = r#"
[state]
window = "fifty"
cache_users = -1
[trigger]
quiet_period = 30
pending_max = "10 parsecs"
weights = { purchase = "much" }
[topics]
profile_format = "avro"
[http]
listen = "localhost"
[kafka.properties]
"security.protocol" = 5
"#;
    insta::assert_snapshot!(problems(text, &[]), @r#"
    nearshore.toml:3:1 state.window: invalid type: string "fifty", expected a whole number of at least 0
    nearshore.toml:4:1 state.cache_users: invalid value: integer `-1`, expected a whole number of at least 0
    nearshore.toml:6:1 trigger.quiet_period: invalid type: integer `30`, expected a duration; write a duration such as "30s" or "5m"
    nearshore.toml:7:1 trigger.pending_max: invalid value: string "10 parsecs", expected a duration; write a duration such as "30s" or "5m"
    nearshore.toml:8:13 trigger.weights.purchase: invalid type: string "much", expected a number
    nearshore.toml:10:1 topics.profile_format: unknown variant `avro`, expected `plain` or `debezium`
    nearshore.toml:12:1 http.listen: invalid socket address syntax; write address and port such as "127.0.0.1:9464"
    nearshore.toml:13:8 kafka.properties: invalid type: integer `5`, expected a string
    "#);
}

#[test]
fn an_ignored_type_that_is_folded_or_empty_or_given_twice_is_refused() {
    let text = "[events]\nignore = [\"view\", \"\", \"wish\", \"wish\"]\n";
    let found = problems(text, &[]);
    for says in [
        "events.ignore[0]: \"view\" is a type that Nearshore folds; it cannot be ignored",
        "events.ignore[1]: is empty; give a type",
        "events.ignore[3]: \"wish\" is given twice",
    ] {
        assert!(found.contains(says), "{found}");
    }
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn wrong_values_of_the_right_type_are_reported_in_every_section() {
    let text = r#"
namespace = "Main!"
[kafka]
brokers = "kafka"
[topics]
regen_live = "dlq"
catalog = "cata log"
[kafka.incarnations]
orders = 2
[redis]
url = "http://localhost"
list_ttl = "200days"
[state]
window = 0
write_version = 9
[trigger]
claims_per_day = 0
pending_max = "0s"
weights = { purchase = 0, cart = 0, search = 0, click = 0, view = 0, profile = 0, impression = 0 }
[lanes]
urgent = 0
live = 0
unserved_max = 3
[demand]
keep = "1d"
smoothing = -1
[selection]
epsilon = 1.5
top_k = 0
[fallback]
every = "0s"
[log]
level = "nearshore=loud"
[engine]
device = "cuda:1"
precision = "int8"
kv_mb_max = 0
[merchant]
boosts = [{ pu = "A", factor = 0 }]
pins = [{ pu = "A" }]
[metrics]
hits_sample = 2
"#;
    insta::assert_snapshot!(problems(text, &[]), @r#"
    nearshore.toml:2:1 namespace: "Main!" must be 1 to 32 of a-z, 0-9 and -
    nearshore.toml:4:1 kafka.brokers: "kafka" is not host:port, separated by commas
    nearshore.toml:5:2 topics.dlq: "dlq" is already topics.regen_live; every topic needs its own name
    nearshore.toml:7:1 topics.catalog: "cata log" is not a valid topic name: use 1 to 249 letters, digits, '.', '_' or '-'
    nearshore.toml:9:1 kafka.incarnations.orders: no topic of [topics] or [[inputs]] has this name
    nearshore.toml:11:1 redis.url: http:// is none of redis://, rediss://, redis+cluster://, rediss+cluster://, redis+sentinel://, rediss+sentinel://
    nearshore.toml:12:1 redis.list_ttl: must not be longer than redis.state_ttl
    nearshore.toml:14:1 state.window: must be at least 1
    nearshore.toml:15:1 state.write_version: must be 1 to 4
    nearshore.toml:17:1 trigger.claims_per_day: must be at least 1
    nearshore.toml:18:1 trigger.pending_max: must be longer than 0s
    nearshore.toml:19:1 trigger.weights: all weights are 0: no event would request a list; make one of them positive
    nearshore.toml:20:2 lanes: urgent and live are both 0: no live user would get a list; make one of them positive
    nearshore.toml:23:1 lanes.unserved_max: must be at least lanes.batch_max
    nearshore.toml:25:1 demand.keep: must not be shorter than demand.half_life
    nearshore.toml:26:1 demand.smoothing: -1 must be a number of at least 0
    nearshore.toml:28:1 selection.epsilon: must be at least 0 and below 1
    nearshore.toml:29:1 selection.top_k: must be at least 1
    nearshore.toml:31:1 fallback.every: must be longer than 0s
    nearshore.toml:33:1 log.level: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    nearshore.toml:36:1 engine.precision: int8 is for the CPU; on cuda:1 use bf16 or f32
    nearshore.toml:37:1 engine.kv_mb_max: must be at least 1
    nearshore.toml:39:23 merchant.boosts[0].factor: 0 must be above 0, and within 1e-9 and 1e9; to keep a product off lists write a rule or block it
    nearshore.toml:40:9 merchant.pins[0]: has no place; give a position, or a top: among the first so many
    nearshore.toml:42:1 metrics.hits_sample: must be a share, 0 to 1
    "#);
}

#[test]
fn problems_of_arms_rules_and_segments_name_the_item() {
    let text = r#"
[[arms]]
id = "a"
epoch = 1
share = 0
template = "prompt.jinja"
model = "model.gguf"

[[arms]]
id = "a"
epoch = 1
share = 0
template = "broken.jinja"
model = "absent.gguf"
mode = "head"
thata = 1
weights = { model = 1.0 }
[[arms]]
id = "b"
epoch = 2
share = 0
template = "absent.jinja"
theta = nan
model = "model.gguf"

[[rules]]
id = "r"
when = { field = "age", below = 18, equals = 3 }
forbid = {}

[[rules]]
id = "r"
when = { field = "", equals = 3 }
forbid = { pus = ["WINE"] }

[[segments]]
id = "default"
when = []
"#;
    insta::assert_snapshot!(problems(text, &[]), @r#"
    nearshore.toml:2:3 arms: all shares are 0: no user would have an arm; make one of them positive
    nearshore.toml:10:1 arms[1].id: "a" is used twice; give each one its own id
    nearshore.toml:11:1 arms[1].epoch: 1 is already the epoch of "a"; an epoch is never reused, so give a higher one
    nearshore.toml:13:1 arms[1].template: broken.jinja: syntax error: unexpected end of block (in user:2)
    nearshore.toml:14:1 arms[1].model: absent.gguf cannot be read: No such file or directory (os error 2)
    nearshore.toml:15:1 arms[1].mode: "head" needs artefact: the folder that `nearshore align --head` wrote
    nearshore.toml:16:1 arms[1].thata: unknown key; did you mean theta?
    nearshore.toml:22:1 arms[2].template: absent.jinja cannot be read: No such file or directory (os error 2)
    nearshore.toml:23:1 arms[2].theta: must be a finite number: scores are compared with it
    nearshore.toml:26:1 rules[0]: condition on "age": gives more than one comparison
    nearshore.toml:26:1 rules[0]: forbid names no products: give pus, categories or attributes
    nearshore.toml:31:1 rules[1]: condition on "": names no field
    nearshore.toml:32:1 rules[1].id: "r" is used twice; give each one its own id
    nearshore.toml:36:1 segments[0]: segment "default" has no condition and would match every user
    nearshore.toml:36:1 segments[0]: segment "default" is reserved for users whom no segment matches; choose another id
    "#);
}

#[test]
fn an_item_with_a_missing_key_or_a_wrong_type_is_reported() {
    let text = r#"
arms = 3
[[rules]]
id = "r"
when = { field = "age", below = "18" }
forbid = { pus = "WINE" }
[[rules]]
when = { field = "age", below = 18 }
forbid = { pus = ["WINE"] }
[[segments]]
id = "s"
when = { field = "age", below = 18 }
"#;
    insta::assert_snapshot!(problems(text, &[]), @r#"
    nearshore.toml:2:1 arms: invalid type: integer `3`, expected an array
    nearshore.toml:3:1 rules[0]: invalid type: string "WINE", expected an array
    nearshore.toml:7:1 rules[1]: missing field `id`
    nearshore.toml:10:1 segments[0]: invalid type: map, expected an array
    "#);
}

#[test]
fn refused_kafka_properties_and_missing_secret_files_are_reported_at_start() {
    let reserved = "[kafka.consumer]\n\"enable.auto.commit\" = \"true\"\n";
    let unknown = "[kafka.properties]\n\"sesion.timeout.ms\" = \"3\"\n";
    let secret = "[kafka.secret_files]\n\"sasl.password\" = \"/nowhere/kafka\"\n[redis]\npassword_file = \"/nowhere/redis\"\n";
    let all = [reserved, unknown, secret].map(|text| problems(text, &[]));
    insta::assert_snapshot!(all.join("\n"), @r#"
    nearshore.toml:2:1 kafka.consumer.enable.auto.commit: Nearshore sets it itself, since its guarantees depend on it; remove it
    nearshore.toml:2:1 kafka.properties.sesion.timeout.ms: No such configuration property: "sesion.timeout.ms"
    nearshore.toml:2:1 kafka.secret_files.sasl.password: /nowhere/kafka cannot be read: No such file or directory (os error 2)
    nearshore.toml:4:1 redis.password_file: /nowhere/redis cannot be read: No such file or directory (os error 2)
    "#);
}

#[test]
fn a_syntax_error_is_reported_with_line_and_column() {
    insta::assert_snapshot!(problems("[kafka\nbrokers = \n", &[]), @"nearshore.toml:1:7: not valid TOML: unclosed table, expected `]`");
}

#[test]
fn a_missing_file_is_reported() {
    let error = Config::load(Some(Path::new("/nowhere/nearshore.toml")), []).expect_err("missing");
    insta::assert_snapshot!(error[0].to_string(), @"/nowhere/nearshore.toml: cannot be read: No such file or directory (os error 2); name the file with --config");
}

#[test]
fn variables_override_the_file_and_have_the_type_of_their_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, "[kafka]\nbrokers = \"a:1\"\n[state]\nwindow = 7\n").expect("written");
    let env = [
        ("NEARSHORE__KAFKA__BROKERS", "b:2,c:3"),
        ("NEARSHORE__STATE__WINDOW", "9"),
        ("NEARSHORE__TRIGGER__WEIGHTS__CLICK", "0.25"),
        ("NEARSHORE__TRIGGER__QUIET_PERIOD", "5s"),
        ("NEARSHORE__HTTP__INSPECT", "false"),
        (
            "NEARSHORE__KAFKA__PROPERTIES",
            "{ \"socket.keepalive.enable\" = \"true\" }",
        ),
        ("NEARSHORE__NAMESPACE", "7"),
        ("NEARSHORE_TEST_KAFKA", "ignored"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load(Some(&path), env).expect("valid");
    assert_eq!(config.kafka.brokers, "b:2,c:3");
    assert_eq!(config.state.window, 9);
    assert_eq!(config.trigger.weights.click, 0.25);
    assert_eq!(config.trigger.quiet_period.as_secs(), 5);
    assert!(!config.http.inspect);
    assert_eq!(config.kafka.properties["socket.keepalive.enable"], "true");
    assert_eq!(config.namespace, "7");
}

#[test]
fn an_unknown_or_malformed_variable_is_reported() {
    let env = [
        ("NEARSHORE__KAFKA__BROKER", "b:2"),
        ("NEARSHORE__STATE__WINDOW", "many"),
        ("NEARSHORE__STATE__CACHE_USERS", "0"),
        ("NEARSHORE__HTTP__INSPECT", "1"),
        ("NEARSHORE__SHOES", "2"),
    ];
    insta::assert_snapshot!(problems("", &env), @r#"
    NEARSHORE__HTTP__INSPECT http.inspect: invalid type: integer `1`, expected a boolean
    NEARSHORE__KAFKA__BROKER: unknown variable; did you mean NEARSHORE__KAFKA__BROKERS?
    NEARSHORE__SHOES: unknown variable
    NEARSHORE__STATE__WINDOW state.window: "many" is not a TOML value; write one such as 50
    "#);
}

#[test]
fn a_configuration_with_a_byte_order_mark_and_line_ends_of_windows_is_read() {
    let text = "\u{feff}namespace = \"next\"\r\n[trigger]\r\nquiet_perod = 5\r\n";
    insta::assert_snapshot!(
        problems(text, &[]),
        @"nearshore.toml:3:1 trigger.quiet_perod: unknown key; did you mean quiet_period?"
    );
    assert_eq!(problems("\u{feff}namespace = \"next\"\r\n", &[]), "");
}

#[test]
fn a_configuration_that_is_not_utf8_is_refused_with_its_place() {
    let latin = problems(b"namespace = \"main\"\n# caf\xe9\n", &[]);
    assert!(
        latin.starts_with(
            "nearshore.toml:2:6: not UTF-8: byte 0xe9 at column 6; save the file as UTF-8"
        ),
        "{latin}"
    );
    let wide: Vec<u8> = "\u{feff}namespace = \"main\"\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let wide = problems(wide, &[]);
    assert!(
        wide.starts_with("nearshore.toml:1:1: the file is UTF-16; save it as UTF-8"),
        "{wide}"
    );
}

#[test]
fn a_template_or_a_secret_that_is_empty_or_not_utf8_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"prompt.j2\"\nmodel = \"table:0ms\"\n";
    let secret = "[redis]\npassword_file = \"word\"\n";
    for (text, file, bytes, says) in [
        (
            arm,
            "prompt.j2",
            &b""[..],
            "prompt.j2 is empty; write a prompt into it",
        ),
        (
            arm,
            "prompt.j2",
            b"a\ncaf\xe9",
            "prompt.j2:2: not UTF-8: byte 0xe9 at column 4",
        ),
        (
            arm,
            "prompt.j2",
            b"\xff\xfea\0",
            "prompt.j2:1: the file is UTF-16",
        ),
        (
            secret,
            "word",
            b"\n",
            "word: the file is empty; write the secret into it",
        ),
        (
            secret,
            "word",
            b"caf\xe9",
            "word: the file is not UTF-8 text; save it as UTF-8",
        ),
    ] {
        std::fs::write(&path, text).expect("written");
        std::fs::write(folder.path().join(file), bytes).expect("written");
        let problems = Config::load(Some(&path), []).expect_err(says);
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(lines.len() == 1 && lines[0].contains(says), "{lines:?}");
    }
    std::fs::write(&path, arm).expect("written");
    std::fs::write(folder.path().join("prompt.j2"), "\u{feff}{{ segment }}\r\n").expect("written");
    assert!(Config::load(Some(&path), []).is_ok());
}

/// Every key can be set by a variable, here with the value of the reference file.
#[test]
fn every_key_can_be_set_by_its_variable() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, "").expect("written");
    let written: Table = REFERENCE.parse().expect("TOML");
    let mut env = Vec::new();
    variables(&Value::Table(written), "NEARSHORE_", &mut env);
    assert!(env.len() > 55, "only {} variables", env.len());
    let config = Config::load(Some(&path), env).expect("all variables are accepted");
    let default = Config {
        base: folder.path().to_owned(),
        ..Config::default()
    };
    assert_eq!(config, default);
}

fn variables(value: &Value, name: &str, into: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                variables(
                    value,
                    &format!("{name}_{}{}", "_", key.to_uppercase()).replace("___", "__"),
                    into,
                );
            }
        }
        Value::Table(_) => {}
        Value::String(text) => into.push((name.into(), text.clone())),
        other => into.push((name.into(), other.to_string())),
    }
}

#[test]
fn the_effective_configuration_loads_again_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(&path, "[lanes]\nobjective = \"90s\"\n").expect("written");
    let config = Config::load(Some(&path), []).expect("valid");
    std::fs::write(&path, config.effective()).expect("written");
    assert_eq!(Config::load(Some(&path), []).expect("valid"), config);
}

#[test]
fn relative_paths_of_secret_files_start_at_the_folder_of_the_configuration_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nearshore.toml");
    std::fs::write(folder.path().join("word"), "hunter2\n").expect("written");
    let text =
        "[redis]\npassword_file = \"word\"\n[kafka.secret_files]\n\"sasl.password\" = \"word\"\n";
    std::fs::write(&path, text).expect("written");
    let config = Config::load(Some(&path), []).expect("valid in any working directory");
    let word = folder.path().join("word");
    assert_eq!(config.redis.password_file, Some(word.clone()));
    assert_eq!(config.kafka.secret_files["sasl.password"], word);
}
