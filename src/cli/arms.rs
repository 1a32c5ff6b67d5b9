//! `arms`: what each arm's lists earned, as a table or JSON.

use std::process::ExitCode;

use anyhow::Context;

use super::{Common, block_on, with_config};
use crate::config::Config;
use crate::ops::arms::{ArmRow, Arms, arms};
use nearshore_core::shop::shares::MISMATCH_BELOW;
use nearshore_redis::RedisStore;

pub(super) fn run(common: &Common, namespace: Option<&str>) -> anyhow::Result<ExitCode> {
    with_config(common, |mut config| {
        if !namespace.is_none_or(|name| super::use_namespace(&mut config, name)) {
            return Ok(ExitCode::from(2));
        }
        block_on(print(&config, common.json))
    })
}

async fn print(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let store = RedisStore::new(config.redis.clone());
    let found = arms(config, &store.context("redis.url; see `nearshore check`")?).await?;
    match json {
        true => out!("{}", serde_json::to_string(&found)?),
        false => out!("{}", lines(&found).join("\n")),
    }
    Ok(ExitCode::SUCCESS)
}

/// The report for people.
fn lines(found: &Arms) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<24} {:>5} {:>6} {:>9} {:>10} {:>9} {:>9} {:>6} {:>8}",
        "arm", "epoch", "share", "users", "exposures", "fallbacks", "purchases", "hits", "fallback"
    )];
    lines.extend(found.arms.iter().map(line));
    lines.push(format!(
        "{} users have no list yet; purchases and hits are those of {} of all users",
        found.without_list,
        percent(found.hits_sample)
    ));
    if found.moved > 0 {
        lines.push(format!(
            "{} lists are of another arm than the user's is now: `nearshore refresh --all` renews them",
            found.moved
        ));
    }
    match &found.test {
        None => lines.push("shares not tested: that needs two arms with users".into()),
        Some(test) => {
            let fits = match found.mismatch {
                true => format!(
                    "sample ratio mismatch (p under {MISMATCH_BELOW}): something besides the hash decides who has a \
                     list, so do not compare these arms; docs/runbook.md says what to look for"
                ),
                false => "users fit the shares".into(),
            };
            lines.push(format!(
                "chi-square {:.2} with {} degrees of freedom, p = {:.4}: {fits}",
                test.chi_square, test.freedom, test.p
            ));
        }
    }
    lines
}

fn line(row: &ArmRow) -> String {
    let name = if row.arm.is_empty() {
        "(no arm)"
    } else {
        &row.arm
    };
    let of_purchases = |n: u64| match row.purchases {
        0 => "-".to_owned(),
        purchases => percent(n as f64 / purchases as f64),
    };
    format!(
        "{name:<24} {:>5} {:>6} {:>9} {:>10} {:>9} {:>9} {:>6} {:>8}",
        row.epoch,
        row.share.map_or("-".to_owned(), percent),
        row.users,
        row.exposures,
        row.fallbacks,
        row.purchases,
        of_purchases(row.hits),
        of_purchases(row.fallback_hits),
    )
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::shop::shares;

    #[test]
    fn the_report_names_a_mismatch_and_gives_hits_as_shares_of_purchases() {
        let test = shares::test(&[(7_500, 3), (2_200, 1)]);
        let row = ArmRow {
            arm: "a".into(),
            epoch: 2,
            share: Some(0.75),
            users: 7_500,
            exposures: 9_000,
            purchases: 200,
            hits: 60,
            fallback_hits: 50,
            ..ArmRow::default()
        };
        let found = Arms {
            namespace: "main".into(),
            arms: vec![row, ArmRow::default()],
            without_list: 3,
            moved: 1,
            mismatch: test.is_some_and(|test| test.is_mismatch()),
            test,
            hits_sample: 0.1,
        };
        let text = lines(&found).join("\n");
        for part in [
            " 75.0%      7500       9000         0       200  30.0%    25.0%",
            "(no arm) ",
            "3 users have no list yet; purchases and hits are those of 10.0% of all users",
            "1 lists are of another arm",
            "p = 0.0000: sample ratio mismatch",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }
}
