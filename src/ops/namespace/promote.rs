//! Which namespaces there are, and which is served: [`list`] and [`promote`].
//!
//! Invariant: promoting flips one pointer and nothing else, and only where the checks hold or a person
//! insists; the namespace that was served is fed on, so going back is a flip too.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use crate::ops::coverage::{Coverage, coverage};
use nearshore_core::ports::store::{self, Store};
use nearshore_core::queue::replay::{Plan, Stage};
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::Admin;

/// What is noted of a namespace in the register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// When it was first filled.
    pub created_at: Timestamp,
    /// By which command.
    pub by: String,
    /// When another was promoted in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demoted_at: Option<Timestamp>,
}

impl Note {
    pub(super) async fn of<S: Store>(store: &S, ns: &str) -> anyhow::Result<Self> {
        let all = store.namespaces().await?;
        // One that was filled by an older program is not in the register.
        let read = |text: &String| serde_json::from_str(text).context("nearshore:namespaces");
        Ok(all.get(ns).map(read).transpose()?.unwrap_or_default())
    }
}

/// Puts a namespace that is being filled by `run` into the register, unless it is there.
pub async fn enroll<S: Store>(store: &S, ns: &str) -> Result<(), store::Error> {
    if store.namespaces().await?.contains_key(ns) {
        return Ok(());
    }
    let note = serde_json::json!({"created_at": wall_clock(), "by": "run"});
    store.enroll(ns, Some(&note.to_string())).await
}

/// A namespace, as `namespace list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listing {
    /// Its name.
    pub namespace: String,
    /// Whether it is served.
    pub active: bool,
    /// When it was first filled, and by which command.
    #[serde(flatten)]
    pub note: Note,
    /// Where its backfill stands, if it had one.
    pub stage: Option<Stage>,
    /// Records that its ingest has still to do; `None` where Kafka does not tell.
    pub lag: Option<u64>,
    /// Members of its ingest now.
    pub members: Option<usize>,
}

/// All namespaces, by name.
pub async fn list<S: Store>(config: &Config, store: &S) -> anyhow::Result<Vec<Listing>> {
    let mut notes: BTreeMap<String, Note> = BTreeMap::new();
    for ns in store.namespaces().await?.into_keys() {
        let note = Note::of(store, &ns).await?;
        notes.insert(ns, note);
    }
    let active = store.active().await?;
    if let Some(active) = &active {
        notes.entry(active.clone()).or_default();
    }
    let admin = Admin::new(&config.kafka)?;
    let mut all = Vec::new();
    for (ns, note) in notes {
        let plan = store.plan(&ns).await?;
        let stage = plan
            .and_then(|text| Plan::parse(&text).ok())
            .map(|plan| plan.stage);
        all.push(Listing {
            active: active.as_ref() == Some(&ns),
            note,
            stage,
            lag: lag(config, &admin, &ns).await.ok(),
            members: admin.members(&group(&ns)).await.ok(),
            namespace: ns,
        });
    }
    Ok(all)
}

async fn lag(
    config: &Config,
    admin: &Admin,
    ns: &str,
) -> Result<u64, nearshore_core::ports::log::Error> {
    let topics: [&str; 2] = [&config.topics.user_events, &config.topics.profile_changes];
    Ok(admin.lag(&group(ns), &topics).await?.values().sum())
}

/// How good a namespace must be to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Most records that its ingest has still to do.
    pub lag: u64,
    /// Largest share of users whose list trails their state or is missing, beyond the share in the served namespace; and by
    /// how much coverage of the users served now may be lower.
    pub unserved: f64,
    /// Users looked at in each namespace; `None`: all.
    pub sample: Option<u64>,
}

/// One check before a promotion: what was found, and whether it is good enough.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was found.
    pub found: String,
}

/// Checks a namespace and, if all holds or `force`, makes it the served one. False: it was not.
pub async fn promote<S: Store>(
    config: &Config,
    store: &S,
    (bounds, force): (&Bounds, bool),
) -> anyhow::Result<(Vec<Check>, bool)> {
    let ns = &config.namespace;
    let old = store.active().await?;
    if old.as_deref() == Some(ns) {
        return Ok((Vec::new(), true));
    }
    let checks = checks(config, store, (old.as_deref(), bounds)).await?;
    if !force && checks.iter().any(|check| !check.ok) {
        return Ok((checks, false));
    }
    let known =
        store.namespaces().await?.contains_key(ns) || !store.scan(ns, None).await?.0.is_empty();
    ensure!(
        known,
        "there is no namespace {ns}; see `nearshore namespace list`"
    );
    if let Some(old) = &old {
        let mut note = Note::of(store, old).await?;
        note.demoted_at = Some(wall_clock());
        store
            .enroll(old, Some(&serde_json::to_string(&note)?))
            .await?;
    }
    let flipped = store.set_active(ns, old.as_deref()).await?;
    ensure!(
        flipped,
        "another namespace was promoted meanwhile; look and try again"
    );
    let mut note = Note::of(store, ns).await?;
    note.demoted_at = None;
    store
        .enroll(ns, Some(&serde_json::to_string(&note)?))
        .await?;
    Ok((checks, true))
}

async fn checks<S: Store>(
    config: &Config,
    store: &S,
    (old, bounds): (Option<&str>, &Bounds),
) -> anyhow::Result<Vec<Check>> {
    let ns = &config.namespace;
    let mut checks = Vec::new();
    let plan = store
        .plan(ns)
        .await?
        .map(|text| Plan::parse(&text))
        .transpose()?;
    checks.push(match plan.map(|plan| plan.stage) {
        None => check("backfill", true, "it had none"),
        Some(Stage::Done) => check("backfill", true, "done"),
        Some(stage) => check("backfill", false, format!("under way: {stage}")),
    });
    let admin = Admin::new(&config.kafka)?;
    let members = admin.members(&group(ns)).await?;
    let fed = match members {
        0 => format!("nobody follows live; start `nearshore run --namespace {ns}`"),
        some => format!("{some} members of {}", group(ns)),
    };
    checks.push(check("fed", members > 0, fed));
    let behind = lag(config, &admin, ns).await?;
    let found = format!("{behind} records, at most {}", bounds.lag);
    checks.push(check("lag", behind <= bounds.lag, found));
    let own = coverage(store, ns, ns, bounds.sample).await?;
    let mut served = None;
    if let Some(old) = old {
        let ours = coverage(store, old, ns, bounds.sample).await?;
        let theirs = coverage(store, old, old, bounds.sample).await?;
        served = Some(Served { old, ours, theirs });
    }
    checks.extend(as_good(own, served, bounds.unserved));
    Ok(checks)
}

/// What rounding may cost a share.
const HAIR: f64 = 1e-9;

/// The users that are served now.
struct Served<'a> {
    /// The namespace that serves them.
    old: &'a str,
    /// Their lists in the namespace to be promoted.
    ours: Coverage,
    /// Their lists in the one that serves them.
    theirs: Coverage,
}

/// Whether lists are as good as in the served namespace. While live is busy some users have always done something that no
/// list has seen yet, in every namespace that is fed: only what goes beyond that counts. The namespaces are looked at one
/// after the other, so coverage, too, has that much room.
fn as_good(own: Coverage, served: Option<Served>, most: f64) -> Vec<Check> {
    let usual = served.as_ref().map_or(0.0, |it| 1.0 - it.theirs.share());
    let unserved = 1.0 - own.share();
    let mut found = format!(
        "{} of {} users ({:.2} %), at most {:.2} %",
        own.users - own.covered,
        own.users,
        unserved * 100.0,
        most * 100.0
    );
    if let Some(Served { old, .. }) = &served {
        found += &format!(" more than the {:.2} % of {old}", usual * 100.0);
    }
    let enough = own.users > 0 && unserved <= most + usual + HAIR;
    let mut checks = vec![check("unserved users", enough, found)];
    if let Some(Served { old, ours, theirs }) = served {
        let found = format!(
            "{:.2} % of {} users of {old}; there {:.2} %",
            ours.share() * 100.0,
            ours.users,
            theirs.share() * 100.0
        );
        let enough = ours.share() + most + HAIR >= theirs.share();
        checks.push(check("coverage", enough, found));
    }
    checks
}

fn check(check: &'static str, ok: bool, found: impl Into<String>) -> Check {
    Check {
        check,
        ok,
        found: found.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(covered: u64) -> Coverage {
        Coverage {
            covered,
            users: 1_000,
        }
    }

    fn good(own: u64, ours: u64, theirs: Option<u64>) -> [bool; 2] {
        let served = theirs.map(|theirs| Served {
            old: "main",
            ours: of(ours),
            theirs: of(theirs),
        });
        let checks = as_good(of(own), served, 0.01);
        [checks[0].ok, checks.get(1).is_none_or(|check| check.ok)]
    }

    #[test]
    fn who_trails_everywhere_is_not_held_against_a_namespace() {
        assert_eq!(good(990, 990, None), [true, true]);
        assert_eq!(good(989, 989, None), [false, true]);
        // A busy stream: a seventh has just done something.
        assert_eq!(good(851, 851, Some(860)), [true, true]);
        assert_eq!(good(849, 849, Some(860)), [false, false]);
        // New users only: those who are served now would lose.
        assert_eq!(good(995, 700, Some(995)), [true, false]);
        assert!(!as_good(Coverage::default(), None, 1.0)[0].ok);
    }
}
