//! Lists the namespaces, and changes which one is served: [`list`] and [`promote`].
//!
//! Invariant: a promotion changes one pointer and two notes in the register, and only if the checks hold or it is
//! forced. The namespace that was served before is still fed, so it can be promoted back at once.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use crate::ops::coverage::{Coverage, coverage};
use crate::ops::namespace::evaluated::{Asked, evaluated};
use nearshore_core::ports::store::{self, Store};
use nearshore_core::queue::replay::{Plan, Stage};
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::Admin;

/// The register's entry of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Note {
    /// When it was first filled; 0 if it is not in the register.
    pub created_at: Timestamp,
    /// The command that first filled it.
    pub by: String,
    /// When another namespace was promoted in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demoted_at: Option<Timestamp>,
}

impl Note {
    pub(super) async fn of<S: Store>(store: &S, ns: &str) -> anyhow::Result<Self> {
        let all = store.namespaces().await?;
        // A namespace that an older program filled is not in the register.
        let read = |text: &String| serde_json::from_str(text).context("nearshore:namespaces");
        Ok(all.get(ns).map(read).transpose()?.unwrap_or_default())
    }
}

/// Adds a namespace that `run` fills to the register, unless it is there already.
pub async fn enroll<S: Store>(store: &S, ns: &str) -> Result<(), store::Error> {
    if store.namespaces().await?.contains_key(ns) {
        return Ok(());
    }
    let note = serde_json::json!({"created_at": wall_clock(), "by": "run"});
    store.enroll(ns, Some(&note.to_string())).await
}

/// One namespace, as `namespace list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Listing {
    /// Its name.
    pub namespace: String,
    /// Whether it is served.
    pub active: bool,
    /// When it was first filled, and by which command.
    #[serde(flatten)]
    pub note: Note,
    /// Stage of its backfill; `None` if it had none.
    pub stage: Option<Stage>,
    /// Records that its ingest group has not folded yet; `None` if Kafka did not answer.
    pub lag: Option<u64>,
    /// Members of its ingest group now; `None` if Kafka did not answer.
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
            members: admin.members(&group(&config.kafka, &ns)).await.ok(),
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
    let topics = config.topics.of_users();
    let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    Ok(admin
        .lag(&group(&config.kafka, ns), &topics)
        .await?
        .values()
        .sum())
}

/// What a namespace must fulfil to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Most records that its ingest group may not have folded yet.
    pub lag: u64,
    /// Largest share of users whose list trails their state or is missing, in addition to that share in the served
    /// namespace. Also how much lower the coverage of the users served now may be.
    pub unserved: f64,
    /// Users sampled in each namespace; `None` is all.
    pub sample: Option<u64>,
}

/// One check before a promotion, and its result.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Check {
    /// Name of the check.
    pub check: &'static str,
    /// Whether it passed.
    pub ok: bool,
    /// What was found.
    pub found: String,
}

/// Checks a namespace and makes it the served one if all checks pass or `force` is set. The evaluation, which reads the
/// log, is asked only with `asked`. Returns whether the namespace is served now.
pub async fn promote<S: Store>(
    config: &Config,
    store: &S,
    (bounds, asked): (&Bounds, Option<&Asked>),
    force: bool,
) -> anyhow::Result<(Vec<Check>, bool)> {
    let ns = &config.namespace;
    let old = store.active().await?;
    if old.as_deref() == Some(ns) {
        return Ok((Vec::new(), true));
    }
    let mut checks = checks(config, store, old.as_deref(), bounds).await?;
    if let (Some(old), Some(asked)) = (old.as_deref(), asked) {
        checks.push(evaluated(config, store, old, asked).await?);
    }
    if !force && checks.iter().any(|check| !check.ok) {
        return Ok((checks, false));
    }
    let known =
        store.namespaces().await?.contains_key(ns) || !store.scan(ns, None).await?.0.is_empty();
    ensure!(
        known,
        "namespace {ns} does not exist; `nearshore namespace list` shows all"
    );
    if let Some(old) = &old {
        let mut note = Note::of(store, old).await?;
        note.demoted_at = Some(wall_clock());
        store
            .enroll(old, Some(&serde_json::to_string(&note)?))
            .await?;
    }
    let stored = store.set_active(ns, old.as_deref()).await?;
    ensure!(
        stored,
        "another namespace was promoted at the same time; see `nearshore namespace list` and try again"
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
    old: Option<&str>,
    bounds: &Bounds,
) -> anyhow::Result<Vec<Check>> {
    let ns = &config.namespace;
    let mut checks = Vec::new();
    let plan = store
        .plan(ns)
        .await?
        .map(|text| Plan::parse(&text))
        .transpose()?;
    checks.push(match plan.map(|plan| plan.stage) {
        None => check("backfill", true, "none"),
        Some(Stage::Done) => check("backfill", true, "done"),
        Some(stage) => check("backfill", false, format!("under way: {stage}")),
    });
    let admin = Admin::new(&config.kafka)?;
    let members = admin.members(&group(&config.kafka, ns)).await?;
    let fed = match members {
        0 => format!("no process follows live; start `nearshore run --namespace {ns}`"),
        some => format!("{some} members of {}", group(&config.kafka, ns)),
    };
    checks.push(check("fed", members > 0, fed));
    let behind = lag(config, &admin, ns).await?;
    let found = format!("{behind} records, at most {}", bounds.lag);
    checks.push(check("lag", behind <= bounds.lag, found));
    let in_new = coverage(store, ns, ns, bounds.sample).await?;
    let mut served = None;
    if let Some(old) = old {
        let new_lists = coverage(store, old, ns, bounds.sample).await?;
        let old_lists = coverage(store, old, old, bounds.sample).await?;
        served = Some(Served {
            old,
            new_lists,
            old_lists,
        });
    }
    checks.extend(coverage_checks(in_new, served, bounds.unserved));
    Ok(checks)
}

/// Tolerance for rounding when shares are compared.
const EPSILON: f64 = 1e-9;

/// The users of the namespace that is served now.
struct Served<'a> {
    /// The served namespace.
    old: &'a str,
    /// Coverage of these users in the namespace to be promoted.
    new_lists: Coverage,
    /// Coverage of these users in the served namespace.
    old_lists: Coverage,
}

/// Checks whether lists are as good as in the served namespace. While live is busy, some users always have events that
/// no list has seen yet, in every namespace that is fed: only the share beyond that counts. The namespaces are scanned
/// one after the other, so coverage gets the same tolerance.
fn coverage_checks(in_new: Coverage, served: Option<Served>, most: f64) -> Vec<Check> {
    let usual = served.as_ref().map_or(0.0, |it| 1.0 - it.old_lists.share());
    let unserved = 1.0 - in_new.share();
    let mut found = format!(
        "{} of {} users ({:.2} %), at most {:.2} %",
        in_new.users - in_new.covered,
        in_new.users,
        unserved * 100.0,
        most * 100.0
    );
    if let Some(Served { old, .. }) = &served {
        found += &format!(" more than the {:.2} % of {old}", usual * 100.0);
    }
    let enough = in_new.users > 0 && unserved <= most + usual + EPSILON;
    let mut checks = vec![check("unserved users", enough, found)];
    if let Some(Served {
        old,
        new_lists,
        old_lists,
    }) = served
    {
        let found = format!(
            "{:.2} % of {} users of {old}; in {old} itself {:.2} %",
            new_lists.share() * 100.0,
            new_lists.users,
            old_lists.share() * 100.0
        );
        let enough = new_lists.share() + most + EPSILON >= old_lists.share();
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

    fn passed(in_new: u64, new_lists: u64, old_lists: Option<u64>) -> [bool; 2] {
        let served = old_lists.map(|old_lists| Served {
            old: "main",
            new_lists: of(new_lists),
            old_lists: of(old_lists),
        });
        let checks = coverage_checks(of(in_new), served, 0.01);
        [checks[0].ok, checks.get(1).is_none_or(|check| check.ok)]
    }

    #[test]
    fn lists_that_trail_in_both_namespaces_do_not_fail_a_promotion() {
        assert_eq!(passed(990, 990, None), [true, true]);
        assert_eq!(passed(989, 989, None), [false, true]);
        // A busy stream: a seventh of the users has events that no list has seen.
        assert_eq!(passed(851, 851, Some(860)), [true, true]);
        assert_eq!(passed(849, 849, Some(860)), [false, false]);
        // Only new users are covered: the users served now would lose their lists.
        assert_eq!(passed(995, 700, Some(995)), [true, false]);
        assert!(!coverage_checks(Coverage::default(), None, 1.0)[0].ok);
    }
}
