//! Checks what types cannot: one function per section, each adding pairs of dotted key and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use strum::VariantNames;

use super::Config;
use crate::files;
use nearshore_core::list::prompt::{Arm, Template};
use nearshore_core::list::terms::Weights;
use nearshore_core::ports::{log, store};
use nearshore_core::shop::arms::delay_of;
use nearshore_core::shop::rules::{unreachable, validate};
use nearshore_core::user::event::Kind;
use nearshore_core::user::state::{VERSION_CURRENT, VERSION_OLDEST};

type Found = Vec<(String, String)>;

/// Everything that is wrong beyond types.
pub(super) fn verify(config: &Config) -> Found {
    let mut found = Found::new();
    for section in [
        namespace,
        kafka,
        topics,
        redis,
        events,
        state,
        trigger,
        lanes,
        demand,
        selection,
        merchant,
        engine,
        align,
        fallback,
        metrics,
        log,
        rules,
        segments,
        arms,
        templates,
        super::free::verify,
        super::texts::verify,
        named_files,
    ] {
        section(config, &mut found);
    }
    found
}

fn must(found: &mut Found, holds: bool, key: &str, what: impl Into<String>) {
    if !holds {
        found.push((key.to_owned(), what.into()));
    }
}

fn above_zero(found: &mut Found, key: &str, duration: Duration) {
    must(found, !duration.is_zero(), key, "must be longer than 0s");
}

fn at_least_one(found: &mut Found, key: &str, number: usize) {
    must(found, number >= 1, key, "must be at least 1");
}

/// Finite and not negative.
fn weight(found: &mut Found, key: &str, number: f64) {
    let fits = number.is_finite() && number >= 0.0;
    must(
        found,
        fits,
        key,
        format!("{number} must be a number of at least 0"),
    );
}

/// Weights of an arm's terms, set by hand; with an artefact they take the place of its own.
fn weights(found: &mut Found, key: &str, (arm, config): (&Arm, &Config)) {
    let key = format!("{key}.weights");
    if arm.artefact.is_some() {
        // What they read is in the artefact, which is looked at when the arm is loaded.
        if let (false, Err(error)) = (
            arm.weights.is_empty(),
            Weights::beside_artefact(&arm.weights),
        ) {
            found.push((key, error.to_string()));
        }
        return;
    }
    match Weights::by_hand(&arm.weights) {
        Err(error) => found.push((key, error.to_string())),
        Ok(weights) => {
            let read = !weights.use_vectors() || config.encoder().is_some();
            let what = "text and typical need vectors of texts: name a sentence encoder's folder in engine.encoder";
            must(found, read, &key, what);
        }
    }
}

fn repeated<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut seen = BTreeSet::new();
    ids.enumerate()
        .filter(|(_, id)| !seen.insert(*id))
        .collect()
}

/// Whether `text` is a short id: 1 to `longest` of a-z, 0-9 and -.
fn is_id(text: &str, longest: usize) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=longest).contains(&text.len()) && text.chars().all(fits)
}

fn namespace(config: &Config, found: &mut Found) {
    let what = format!("{:?} must be 1 to 32 of a-z, 0-9 and -", config.namespace);
    must(found, is_id(&config.namespace, 32), "namespace", what);
    let reserved =
        "\"nearshore\" is the prefix of keys that all namespaces share; choose another name";
    must(
        found,
        config.namespace != "nearshore",
        "namespace",
        reserved,
    );
}

fn kafka(config: &Config, found: &mut Found) {
    let kafka = &config.kafka;
    let address = |broker: &str| {
        let port = broker
            .trim()
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse::<u16>()));
        matches!(port, Some((host, Ok(_))) if !host.is_empty())
    };
    let bad = kafka.brokers.split(',').find(|broker| !address(broker));
    let what = format!(
        "{:?} is not host:port, separated by commas",
        bad.unwrap_or_default()
    );
    must(found, bad.is_none(), "kafka.brokers", what);
    let prefix = &kafka.group_prefix;
    let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let valid = (1..=100).contains(&prefix.len()) && prefix.chars().all(known);
    let what = format!("{prefix:?} is not 1 to 100 letters, digits, '.', '_' or '-'");
    must(found, valid, "kafka.group_prefix", what);
    if let Some(id) = &kafka.instance_id {
        let valid = (1..=100).contains(&id.len()) && id.chars().all(known);
        let what = format!("{id:?} is not 1 to 100 letters, digits, '.', '_' or '-'");
        must(found, valid, "kafka.instance_id", what);
    }
    above_zero(found, "kafka.session_timeout", kafka.session_timeout);
    above_zero(found, "kafka.ack_timeout", kafka.ack_timeout);
    // `named_files` reports a missing file, with its own key.
    let tls = kafka.tls_files();
    let mut files = kafka
        .secret_files
        .values()
        .chain(tls.iter().map(|(_, file)| file));
    if files.all(|path| path.exists())
        && let Err(error) = kafka.check()
    {
        let (key, what) = refused_key(config, &error);
        must(found, false, &key, what);
    }
}

/// The key that librdkafka or the log refused, and why.
fn refused_key(config: &Config, error: &log::Error) -> (String, String) {
    let kafka = &config.kafka;
    let text = error.to_string();
    if let log::Error::Refused { what, reason } = error
        && what.starts_with("kafka.")
    {
        return (what.replace('"', ""), reason.clone());
    }
    for (section, properties) in [
        ("properties", &kafka.properties),
        ("consumer", &kafka.consumer),
        ("producer", &kafka.producer),
    ] {
        let named = |key: &&String| text.contains(&format!("\"{key}\""));
        if let Some(key) = properties.keys().find(named) {
            // librdkafka repeats key and value at the end: a value may be a secret.
            let reason = text
                .rsplit_once(&format!(" {key}"))
                .map_or(&*text, |(reason, _)| reason);
            let reason = reason.trim_start_matches("kafka properties: Client config error: ");
            return (format!("kafka.{section}.{key}"), reason.to_owned());
        }
    }
    ("kafka".to_owned(), text)
}

fn topics(config: &Config, found: &mut Found) {
    let topics = &config.topics;
    let mut owners = BTreeMap::new();
    for (key, name) in topics.keyed() {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let valid = (1..=249).contains(&name.len()) && name.chars().all(fits);
        let key = format!("topics.{key}");
        must(
            found,
            valid,
            &key,
            format!(
                "{name:?} is not a valid topic name: use 1 to 249 letters, digits, '.', '_' or '-'"
            ),
        );
        if let Some(first) = owners.insert(name, key.clone()) {
            must(
                found,
                false,
                &key,
                format!("{name:?} is already {first}; every topic needs its own name"),
            );
        }
    }
    for (nth, input) in config.inputs.iter().enumerate() {
        let key = format!("inputs[{nth}].topic");
        let name = &*input.topic;
        must(found, !name.is_empty(), &key, "is empty");
        if let Some(first) = owners.insert(name, key.clone()) {
            let what =
                format!("{name:?} is already {first}; a topic has one mapping, and ours have none");
            must(found, false, &key, what);
        }
    }
    for name in config.kafka.incarnations.keys() {
        let known = owners.contains_key(name.as_str());
        let key = format!("kafka.incarnations.{name}");
        must(
            found,
            known,
            &key,
            "no topic of [topics] or [[inputs]] has this name",
        );
    }
}

fn redis(config: &Config, found: &mut Found) {
    let redis = &config.redis;
    // `named_files` reports a missing file, with its own key.
    if redis.files().iter().all(|(_, file)| file.exists())
        && let Err(store::Error::Refused { addr, reason }) = redis.check()
    {
        must(found, false, &addr, reason);
    }
    for (key, duration) in [
        ("replicas_max", redis.replicas_max),
        ("connect_max", redis.connect_max),
        ("response_max", redis.response_max),
        ("connection_age", redis.connection_age),
        ("counts_ttl", redis.counts_ttl),
    ] {
        above_zero(found, &format!("redis.{key}"), duration);
    }
    above_zero(found, "redis.state_ttl", redis.state_ttl);
    above_zero(found, "redis.list_ttl", redis.list_ttl);
    let outlived = redis.list_ttl > redis.state_ttl;
    must(
        found,
        !outlived,
        "redis.list_ttl",
        "must not be longer than redis.state_ttl",
    );
}

fn events(config: &Config, found: &mut Found) {
    let ignore = &config.events.ignore;
    for (nth, kind) in ignore.iter().enumerate() {
        let key = format!("events.ignore[{nth}]");
        must(found, !kind.is_empty(), &key, "is empty; give a type");
        let known = Kind::VARIANTS.contains(&kind.as_str());
        let what = format!("{kind:?} is a type that Nearshore folds; it cannot be ignored");
        must(found, !known, &key, what);
    }
    for (nth, kind) in repeated(ignore.iter().map(String::as_str)) {
        let what = format!("{kind:?} is given twice");
        must(found, false, &format!("events.ignore[{nth}]"), what);
    }
}

fn state(config: &Config, found: &mut Found) {
    at_least_one(found, "state.window", config.state.window);
    must(
        found,
        config.state.window <= 1_000,
        "state.window",
        "must be at most 1000",
    );
    at_least_one(found, "state.cache_users", config.state.cache_users);
    let known = VERSION_OLDEST..=VERSION_CURRENT;
    let what = format!("must be {VERSION_OLDEST} to {VERSION_CURRENT}");
    let valid = known.contains(&config.state.write_version);
    must(found, valid, "state.write_version", what);
}

fn trigger(config: &Config, found: &mut Found) {
    let trigger = &config.trigger;
    let weights = &trigger.weights;
    let all = [
        ("purchase", weights.purchase),
        ("cart", weights.cart),
        ("search", weights.search),
        ("click", weights.click),
        ("view", weights.view),
        ("impression", weights.impression),
        ("profile", weights.profile),
    ];
    for (name, number) in all {
        weight(found, &format!("trigger.weights.{name}"), number);
    }
    let triggers = all.iter().any(|(_, number)| *number > 0.0);
    must(
        found,
        triggers,
        "trigger.weights",
        "all weights are 0: no event would request a list; make one of them positive",
    );
    above_zero(found, "trigger.pending_max", trigger.pending_max);
    at_least_one(
        found,
        "trigger.claims_per_day",
        trigger.claims_per_day as usize,
    );
}

fn lanes(config: &Config, found: &mut Found) {
    let lanes = &config.lanes;
    let serves = lanes.urgent > 0 || lanes.live > 0;
    must(
        found,
        serves,
        "lanes",
        "urgent and live are both 0: no live user would get a list; make one of them positive",
    );
    at_least_one(found, "lanes.batch_max", lanes.batch_max);
    let room = lanes.unserved_max >= lanes.batch_max;
    must(
        found,
        room,
        "lanes.unserved_max",
        "must be at least lanes.batch_max",
    );
    above_zero(found, "lanes.max_wait", lanes.max_wait);
    above_zero(found, "lanes.objective", lanes.objective);
    above_zero(found, "lanes.requeue_after", lanes.requeue_after);
}

fn demand(config: &Config, found: &mut Found) {
    let demand = &config.demand;
    above_zero(found, "demand.half_life", demand.half_life);
    let long_enough = demand.keep >= demand.half_life;
    must(
        found,
        long_enough,
        "demand.keep",
        "must not be shorter than demand.half_life",
    );
    weight(found, "demand.smoothing", demand.smoothing);
    above_zero(found, "demand.every", demand.every);
    let stored = config.redis.counts_ttl >= demand.keep;
    let what = "must not be longer than redis.counts_ttl";
    must(found, stored, "demand.keep", what);
}

fn selection(config: &Config, found: &mut Found) {
    let selection = &config.selection;
    let share = (0.0..1.0).contains(&selection.epsilon);
    must(
        found,
        share,
        "selection.epsilon",
        "must be at least 0 and below 1",
    );
    let power = selection.gamma > 0.0 && selection.gamma <= 1000.0;
    must(
        found,
        power,
        "selection.gamma",
        "must be above 0 and at most 1000",
    );
    let part = (0.0..=1.0).contains(&selection.explore);
    must(found, part, "selection.explore", "must be 0 to 1");
    at_least_one(found, "selection.top_k", selection.top_k);
}

fn merchant(config: &Config, found: &mut Found) {
    for (key, what) in nearshore_core::shop::merchant::validate(&config.merchant) {
        must(found, false, &format!("merchant.{key}"), what);
    }
}

fn engine(config: &Config, found: &mut Found) {
    at_least_one(found, "engine.batch_rows_max", config.engine.batch_rows_max);
    at_least_one(found, "engine.kv_mb_max", config.engine.kv_mb_max);
    above_zero(found, "engine.generation_max", config.engine.generation_max);
    if let Some(why) = config.engine.device.refuses(config.engine.precision) {
        must(found, false, "engine.precision", why);
    }
    must(
        found,
        !config.engine.share_adapted || config.engine.device == nearshore_engine::Place::Cpu,
        "engine.share_adapted",
        "is for the CPU; set it to false, and each adapter is merged into weights of its own",
    );
}

fn fallback(config: &Config, found: &mut Found) {
    above_zero(found, "fallback.every", config.fallback.every);
    at_least_one(found, "fallback.names", config.fallback.names);
}

fn align(config: &Config, found: &mut Found) {
    let enough = config.align.users_min >= 2;
    let what = "must be at least 2: what one user has done is in no artefact";
    must(found, enough, "align.users_min", what);
    let wordings = &config.align.table_wordings;
    let once = |wording: &String| wording.matches("{name}").count() == 1;
    let what = "must be sentences, each with {name} once, where the product's name is";
    let are = !wordings.is_empty() && wordings.iter().all(once);
    must(found, are, "align.table_wordings", what);
}

fn metrics(config: &Config, found: &mut Found) {
    let share = (0.0..=1.0).contains(&config.metrics.hits_sample);
    let what = "must be a share, 0 to 1";
    must(found, share, "metrics.hits_sample", what);
    let share = (0.0..=1.0).contains(&config.audit.keep);
    must(found, share, "audit.keep", what);
    let share = (0.0..=1.0).contains(&config.audit.candidates);
    must(found, share, "audit.candidates", what);
}

fn log(config: &Config, found: &mut Found) {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level);
    if let Err(error) = filter {
        must(found, false, "log.level", error.to_string());
    }
}

/// Adds the problems that [`validate`] found in one item, without the id, which the key already gives.
fn add_item(found: &mut Found, key: &str, problems: Vec<String>) {
    for problem in problems {
        let (_, what) = problem.split_once("\": ").unwrap_or(("", &problem));
        must(found, false, key, what);
    }
}

fn rules(config: &Config, found: &mut Found) {
    for (nth, id) in repeated(config.rules.iter().map(|rule| rule.id.as_str())) {
        let what = format!("{id:?} is used twice; give each one its own id");
        must(found, false, &format!("rules[{nth}].id"), what);
    }
    for (nth, rule) in config.rules.iter().enumerate() {
        let problems = validate(std::slice::from_ref(rule), &[]);
        add_item(found, &format!("rules[{nth}]"), problems);
    }
}

fn segments(config: &Config, found: &mut Found) {
    for (nth, id) in repeated(config.segments.iter().map(|segment| segment.id.as_str())) {
        let what = format!("{id:?} is used twice; give each one its own id");
        must(found, false, &format!("segments[{nth}].id"), what);
    }
    for (nth, segment) in config.segments.iter().enumerate() {
        let problems = validate(&[], std::slice::from_ref(segment));
        add_item(found, &format!("segments[{nth}]"), problems);
    }
    for (nth, earlier) in unreachable(&config.segments) {
        let what = format!(
            "no user is ever in it: who meets its conditions is in {earlier:?}, which is before it; move it up"
        );
        must(found, false, &format!("segments[{nth}]"), what);
    }
}

fn arms(config: &Config, found: &mut Found) {
    for (nth, id) in repeated(config.arms.iter().map(|arm| arm.id.as_str())) {
        must(
            found,
            false,
            &format!("arms[{nth}].id"),
            format!("{id:?} is used twice; give each one its own id"),
        );
    }
    let mut epochs = BTreeMap::new();
    for (nth, arm) in config.arms.iter().enumerate() {
        let key = format!("arms[{nth}]");
        let valid = is_id(&arm.id, 32);
        let what = format!("{:?} must be 1 to 32 of a-z, 0-9 and -", arm.id);
        must(found, valid, &format!("{key}.id"), what);
        if let Some(first) = epochs.insert(arm.epoch, &arm.id) {
            let what = format!(
                "{} is already the epoch of {first:?}; an epoch is never reused, so give a higher one",
                arm.epoch
            );
            must(found, false, &format!("{key}.epoch"), what);
        }
        must(
            found,
            arm.epoch >= 1,
            &format!("{key}.epoch"),
            "must be at least 1",
        );
        let room = arm.prompt_tokens >= 32;
        must(
            found,
            room,
            &format!("{key}.prompt_tokens"),
            "must be at least 32",
        );
        if let Some(what) = arm.sha256.as_ref().and_then(|it| it.problem(&arm.model)) {
            must(found, false, &format!("{key}.sha256"), what);
        }
        at_least_one(found, &format!("{key}.names"), arm.names);
        weights(found, &key, (arm, config));
        let valid = arm.theta.is_none_or(f64::is_finite);
        must(
            found,
            valid,
            &format!("{key}.theta"),
            "must be a finite number: scores are compared with it",
        );
    }
    let shared = config.arms.is_empty() || config.arms.iter().any(|arm| arm.share > 0);
    must(
        found,
        shared,
        "arms",
        "all shares are 0: no user would have an arm; make one of them positive",
    );
}

fn templates(config: &Config, found: &mut Found) {
    for (nth, arm) in config.arms.iter().enumerate() {
        let key = format!("arms[{nth}].template");
        let path = config.resolve(&arm.template);
        match files::read_filled(&path, "write a prompt into it") {
            Err(error) => must(found, false, &key, error.to_string()),
            Ok(text) => {
                if let Err(error) = Template::load(&text, &path.display().to_string()) {
                    must(found, false, &key, error.to_string());
                }
            }
        }
    }
}

/// Whether weights set by hand give the model a part. What an artefact's weights need is checked when it is read.
fn needs_model(arm: &Arm) -> bool {
    let by_hand = Weights::by_hand(&arm.weights);
    arm.artefact.is_none() && by_hand.is_ok_and(|weights| weights.use_model())
}

fn named_files(config: &Config, found: &mut Found) {
    let token = config.http.inspect_token_file.clone();
    let token = token.map(|file| ("http.inspect_token_file".to_owned(), file));
    let mut paths: Vec<(String, std::path::PathBuf)> = token.into_iter().collect();
    for (nth, arm) in config.arms.iter().enumerate() {
        let key = format!("arms[{nth}].model");
        match delay_of(&arm.model) {
            Some(Ok(_)) => {}
            Some(Err(error)) => must(found, false, &key, error),
            None if needs_model(arm) && arm.endpoint.is_none() => {
                paths.push((key, config.resolve(&arm.model)))
            }
            None => {} // Calibration files are not checked here: `nearshore calibrate` writes them.
        }
    }
    if let Some(folder) = config.encoder() {
        paths.push(("engine.encoder".to_owned(), folder.join("config.json")));
    }
    let redis = config.redis.files().into_iter();
    let redis = redis.map(|(key, path)| (key.to_owned(), path.clone()));
    let secrets = config.kafka.secret_files.iter();
    let secrets = secrets.map(|(name, path)| (format!("kafka.secret_files.{name}"), path.clone()));
    let tls = config.kafka.tls_files().into_iter();
    let tls = tls.map(|(key, file)| (key.replace('"', ""), file));
    for (key, path) in paths.into_iter().chain(secrets).chain(tls).chain(redis) {
        if let Err(error) = std::fs::metadata(&path) {
            must(found, false, &key, unreadable(&path, &error));
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}
