//! Checks that the rules can read the profiles that are stored.
//!
//! Invariant: it only reads, and it names no user. A rule whose field has a value that it cannot compare is off for that
//! user unless it is `required`; without this check nobody would notice before a list is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Item;
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::ops::coverage::leave_out;
use nearshore_core::ports::store::{Error, Namespaces, Users};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::rules::Table;
use nearshore_core::user::event::Profile;
use nearshore_redis::RedisStore;

/// Profiles that are read at most; a scan goes by hash, so they are a sample.
const SAMPLE: usize = 1_000;

/// Fields of profiles that are named at most.
const FIELDS_SHOWN: usize = 12;

/// Compares the rules with a sample of the stored profiles. Nothing is said where Redis does not answer or no profile
/// is stored: other checks say the first, and the second is the case before the first start.
pub(super) async fn check(config: &Config) -> Vec<Item> {
    if config.rules.is_empty() && config.segments.is_empty() {
        return Vec::new();
    }
    let Ok(store) = RedisStore::new(config.redis.clone()) else {
        return Vec::new();
    };
    // For a network that drops all packets: the check of Redis before this one has said so.
    let limit = Duration::from_secs(10);
    match tokio::time::timeout(limit, profiles(&store, &config.namespace)).await {
        Ok(Ok(profiles)) if profiles.is_empty() => Vec::new(),
        Ok(Ok(profiles)) => judge(config, &profiles),
        Ok(Err(error @ Error::Corrupt { .. })) => {
            vec![Item::warn("rule inputs", format!("not checked: {error}"))]
        }
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn profiles(store: &RedisStore, ns: &str) -> Result<Vec<Profile>, Error> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let (mut users, next) = store.scan(ns, cursor).await?;
        let loaded = loop {
            match store.load(ns, &users).await {
                Err(error) => leave_out(error, &mut users)?,
                Ok(loaded) => break loaded,
            }
        };
        found.extend(
            loaded
                .into_iter()
                .filter_map(|user| Some(user.state.profile?.profile)),
        );
        if next.is_none() || found.len() >= SAMPLE {
            return Ok(found);
        }
        cursor = next;
    }
}

/// One item per rule and segment whose field no profile has: one wrong letter would switch the rule off for everyone.
fn absent_fields(config: &Config, profiles: &[Profile]) -> Vec<Item> {
    let rules = config.rules.iter().map(|it| ("rule", &it.id, &it.when));
    let segments = config.segments.iter();
    let segments =
        segments.flat_map(|it| it.when.iter().map(move |when| ("segment", &it.id, when)));
    let asked = rules.chain(segments);
    let absent = asked.filter(|(_, _, when)| profiles.iter().all(|one| when.is_absent(one)));
    let known: BTreeSet<&str> = profiles
        .iter()
        .flat_map(|profile| profile.0.keys().map(String::as_str))
        .collect();
    let known: Vec<&str> = known.into_iter().take(FIELDS_SHOWN).collect();
    let items = absent.map(|(kind, id, when)| {
        let (field, of) = (&when.field, profiles.len());
        let found =
            format!("{kind} {id:?} asks for {field}, which none of {of} stored profiles has");
        Item::warn("rule inputs", found).advise(format!(
            "is the field's name right? profiles have {}",
            known.join(", ")
        ))
    });
    items.collect()
}

/// One item per rule that could not be applied to some of the profiles.
pub(super) fn judge(config: &Config, profiles: &[Profile]) -> Vec<Item> {
    let table = Table::compile(&config.rules, &[], &Catalogue::default());
    let now = wall_clock();
    let mut unreadable: BTreeMap<String, usize> = BTreeMap::new();
    for profile in profiles {
        for rule in table.judge(Some(profile), now).unreadable {
            *unreadable.entry(rule).or_default() += 1;
        }
    }
    let of = profiles.len();
    let mut items = absent_fields(config, profiles);
    if unreadable.is_empty() && items.is_empty() {
        let found = format!("{of} stored profiles have no value that a rule cannot compare");
        return vec![Item::ok("rule inputs", found)];
    }
    let rules = config.rules.iter();
    let rules = rules.filter_map(|rule| Some((rule, unreadable.get(&rule.id)?)));
    items.extend(rules.map(|(rule, n)| {
        let (id, field) = (&rule.id, &rule.when.field);
        let so = match rule.required {
            true => "it is required, so it forbids for these users",
            false => "the rule is off for these users",
        };
        let found = format!(
            "rule {id:?} cannot compare the value of {field} in {n} of {of} stored profiles; {so}"
        );
        Item::warn("rule inputs", found).advise(
            "send the field in a form that the rule compares (docs/contract.md, What a rule compares), or set required = true",
        )
    }));
    items
}
