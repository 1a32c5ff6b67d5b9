//! The check of a promotion that asks the evaluation: are the lists of the namespace's arms worse on held-out users than
//! those of the served one: [`evaluated`].
//!
//! Invariant: it fails only if the interval of the difference is wholly below 0, or if the arms of the served namespace
//! are not known. What cannot be measured, such as a log of a few days, does not fail it: the reason is told.

use std::collections::BTreeMap;

use anyhow::Context;
use indicatif::ProgressBar;
use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::list::document::Document;
use nearshore_core::list::prompt::Arm;
use nearshore_core::ports::store::Store;
use nearshore_core::shop::arms::arms_for;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

use super::promote::Check;
use crate::config::Config;
use crate::ops::coverage::shown;
use crate::ops::evaluate::namespaces::{Compared, Served, compare_namespaces};
use crate::ops::topics;

/// Most users of the served namespace whose lists are asked which arm made them.
const USERS: usize = 500;

/// What the evaluation of a promotion is asked with.
pub struct Asked {
    /// The configuration of the served namespace.
    pub served: Config,
    /// Erased users with the times of their erases: the topics may still have what is older.
    pub erased: BTreeMap<UserId, Timestamp>,
}

/// Compares the arms of `config`'s namespace with those of the served one, `old`.
pub(super) async fn evaluated<S: Store>(
    config: &Config,
    store: &S,
    old: &str,
    asked: &Asked,
) -> anyhow::Result<Check> {
    let served = &asked.served;
    let check = |ok: bool, found: String| Check {
        check: "evaluation",
        ok,
        found,
    };
    let ns = &config.namespace;
    let (new_arms, old_arms) = (arms_for(ns, &config.arms), arms_for(old, &served.arms));
    if let Some(other) = unknown_arm(store, old, &old_arms).await? {
        let found = format!(
            "not asked: most lists of {old} are of {other}, which this configuration does not have for it; \
             give the one that {old} runs with by --served-config FILE"
        );
        return Ok(check(false, found));
    }
    if same(&new_arms, &old_arms) && config.base == served.base {
        return Ok(check(true, format!("{old} has the same arms")));
    }
    let mut logs =
        match topics::read(config, &topics::decoding(config), &ProgressBar::hidden()).await {
            Ok(logs) => logs,
            Err(error) => return Ok(check(true, format!("not measured: {error:#}"))),
        };
    logs.leave_out(&asked.erased);
    let (new, old_config, old_name) = (config.clone(), served.clone(), old.to_owned());
    // The evaluation takes all cores for seconds, and a model has a runtime of its own.
    let compared = tokio::task::spawn_blocking(move || {
        let first = Served {
            namespace: &old_name,
            config: &old_config,
        };
        let second = Served {
            namespace: &new.namespace,
            config: &new,
        };
        compare_namespaces(logs, [first, second])
    });
    Ok(match compared.await.context("the evaluation")? {
        Ok(compared) => {
            let worse = compared.second_less_first.high < 0.0;
            check(!worse, told(&compared, old))
        }
        Err(error) => check(true, format!("not measured: {error:#}")),
    })
}

/// The arm and epoch that most lists of a namespace are of, if it is none of `arms`.
async fn unknown_arm<S: Store>(
    store: &S,
    ns: &str,
    arms: &[Arm],
) -> anyhow::Result<Option<String>> {
    let (mut users, _) = store.scan(ns, None).await?;
    users.truncate(USERS);
    let mut counts: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for shown in shown(store, ns, &mut users).await?.into_iter().flatten() {
        let doc = Document::parse(&shown.doc).ok();
        if let Some(doc) = doc.filter(|doc| !doc.arm.is_empty()) {
            *counts.entry((doc.arm, shown.epoch)).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(_, lists)| *lists);
    let unknown = most.filter(|((id, epoch), _)| {
        let mut known = arms.iter();
        !known.any(|arm| arm.id == *id && arm.epoch == *epoch)
    });
    Ok(unknown.map(|((id, epoch), _)| format!("arm {id}, epoch {epoch}")))
}

/// Whether two namespaces have arms that make the same lists, whatever namespaces the arms name.
fn same(new: &[Arm], old: &[Arm]) -> bool {
    let unnamed = |arm: &Arm| Arm {
        namespaces: Vec::new(),
        ..arm.clone()
    };
    new.iter().map(unnamed).eq(old.iter().map(unnamed))
}

fn told(compared: &Compared, old: &str) -> String {
    let interval = |it: &Interval| format!("{:+.4} [{:+.4}, {:+.4}]", it.mean, it.low, it.high);
    let mut found = format!(
        "Recall@10 {:.4}, in {old} {:.4}: {} on {} held-out users at {}",
        compared.second.mean,
        compared.first.mean,
        interval(&compared.second_less_first),
        compared.second_less_first.users,
        compared.cut,
    );
    if !compared.informed.is_empty() {
        let arms = compared.informed.join(", ");
        found += &format!("; the artefact of {arms} knows purchases after that");
    }
    found
}
