//! Compares what Prometheus reads with the table and with `docs/metrics.md`.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::*;
use nearshore_core::user::record::Timestamp;

fn known() -> Known {
    Known {
        arms: vec!["a".into(), "b".into()],
        topics: vec!["user-events".into(), "catalog".into()],
        rules: vec!["adults-only".into()],
    }
}

/// Returns the exposition after `act`, on a recorder that nothing else uses.
fn exposed(act: impl FnOnce()) -> String {
    let recorder = recorder().expect("the buckets are not empty");
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, act);
    handle.run_upkeep();
    handle.render()
}

fn start() -> String {
    exposed(|| register(&known()))
}

/// Updates every metric once.
fn update_all() {
    use nearshore_core::user::trigger::{Lane, Reason};
    let second = Duration::from_secs(1);
    records("catalog", RecordOutcome::Dlq, 1);
    events(
        nearshore_core::user::event::Kind::Purchase.into(),
        EventOutcome::Folded,
        1,
    );
    unknown_skus(1);
    fold(second);
    dlq(Stage::Event, "no_key", 1);
    dlq_waiting(Stage::Event, 1);
    update_artefacts();
    update_usage();
    foreign_members(1);
    unknown_namespace(1);
    empty_list(true);
    erases(1);
    state_loads(Cache::Hit, 1);
    state_cached(1);
    state_conflicts(1);
    requests(Reason::First, 1);
    coalesced(1);
    model_refused(Lane::Live, Refused::Late);
    model_waiting(Lane::Live, 1);
    requeue(Lane::Live);
    backfill_paused(true);
    callback(second);
    rewound(1);
    queue(Lane::Urgent, Queue::default());
    running(Lane::Urgent, 1);
    batch("a", Batch::default());
    phase("b", Phase::Model, second);
    rejected(nearshore_core::list::document::Why::NoStock, 1);
    update_written();
    rule_unknown("adults-only");
    published(
        None,
        Lane::Live,
        nearshore_core::list::document::Source::Fallback,
    );
    let fallback = nearshore_core::list::document::Source::Fallback;
    list_earned("a", fallback, &Default::default());
    unchanged(Lane::Backfill);
    fenced_off(nearshore_core::ports::store::Published::Older);
    event_to_list(Lane::Urgent, Start::Cold, second);
    coverage(3, 4);
    retention("catalog", None);
    catalogue(3, 2, 1);
    stock(StockChange::Out, 1);
    stock_to_filter(second);
    blocks(1);
    repeated_pus(2);
    unmatched(nearshore_core::shop::rules::UnmatchedKind::Rule, 1);
    let position: nearshore_core::user::record::Position =
        "0/catalog/3:7".parse().expect("a position");
    lag("nearshore-ingest-main", &position.partition, 5);
    lag_seconds("nearshore-ingest-main", "catalog", second);
    rebalanced(Rebalance::Lost, 1);
    stopped(1);
    round_trips(1);
    log_error(&nearshore_core::ports::log::Error::Stopped("test".into()));
    let full = nearshore_core::ports::store::Error::NotReplicated {
        found: 0,
        wanted: 1,
    };
    store_error(&full);
    engine_error(&nearshore_engine::Error::Stopped);
    model("a", &nearshore_engine::Info::default());
}

fn update_written() {
    let rejected = nearshore_core::names::written::Rejected {
        text: "x".into(),
        why: nearshore_core::names::written::Reject::Theta,
        nearest: None,
    };
    let entries = nearshore_core::names::written::Written {
        rejected: vec![rejected],
        ..Default::default()
    };
    written("a", &entries);
    texts_read(Default::default());
    text_matcher_bound(true);
    text_readings((1, 1));
    endpoint_failing("a", true);
    remote_error(&nearshore_remote::Error::Busy { retry_after: None });
}

fn update_usage() {
    usage(&Usage {
        resident: Some(1),
        memory_limit: Some(1),
        open_fds: Some(1),
        max_fds: Some(1),
    });
}

fn update_artefacts() {
    artefact_bound("a", true);
    artefact_until("a", Timestamp(1_000));
    artefact_refused("a");
    artefact_is_refused("a", true);
    names_without_vector("a", 1);
    names_without_table("a", 1);
    texts_without_vector("a", 1);
}

fn names(exposition: &str) -> BTreeSet<&str> {
    let types = exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).collect()
}

fn series(exposition: &str) -> BTreeSet<&str> {
    let lines = exposition
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, _)| series)
        .collect()
}

#[test]
fn every_known_series_is_exported_as_zero_from_the_start() {
    let exposition = start();
    for metric in ALL {
        for values in metric.series(&known()) {
            let suffix = if matches!(metric.kind, Kind::Seconds | Kind::Sizes) {
                "_count"
            } else {
                ""
            };
            let labels: Vec<_> = metric
                .labels
                .iter()
                .zip(&values)
                .map(|((l, _), v)| format!("{l}=\"{v}\""))
                .collect();
            let labels = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", labels.join(","))
            };
            let line = format!("{}{suffix}{labels} 0", metric.name);
            assert!(
                exposition.lines().any(|found| found == line),
                "no line {line}"
            );
        }
    }
}

#[test]
fn updates_add_no_series_except_those_with_labels_known_later() {
    let (before, after) = (
        start(),
        exposed(|| {
            register(&known());
            update_all();
        }),
    );
    let new: BTreeSet<_> = series(&after)
        .difference(&series(&before))
        .map(|s| s.split('{').next().unwrap_or(s))
        .collect();
    let later = [
        "nearshore_consumer_lag",
        "nearshore_consumer_lag_seconds",
        "nearshore_model_info",
        "nearshore_topic_retention_seconds",
    ];
    assert_eq!(new, BTreeSet::from(later));
}

#[test]
fn every_metric_of_the_table_has_an_update_function() {
    let exposition = exposed(|| {
        update_all();
        build();
    });
    let table: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names(&exposition), table);
}

#[test]
fn names_end_in_their_unit_and_no_label_names_a_user_or_product() {
    for metric in ALL {
        let name = metric.name;
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        // Prometheus' own clients export `process_*` under the same names.
        let ours = name.starts_with("nearshore_") || name.starts_with("process_");
        assert!(ours && plain, "{name}");
        assert_eq!(
            name.ends_with("_total"),
            metric.kind == Kind::Counter,
            "{name}"
        );
        assert!(
            metric.kind != Kind::Seconds || name.ends_with("_seconds"),
            "{name}"
        );
        for (label, _) in metric.labels {
            assert!(
                !["user", "sku", "pu", "le", "quantile"].contains(label),
                "{name}{{{label}}}"
            );
        }
    }
}

#[test]
fn histograms_are_exported_as_buckets_without_quantiles() {
    let exposition = exposed(update_all);
    assert!(!exposition.contains("quantile="));
    let line =
        "nearshore_event_to_list_seconds_bucket{lane=\"urgent\",start=\"cold\",le=\"0.5\"} 0";
    assert!(exposition.contains(line), "{exposition}");
    assert!(
        exposition.contains("nearshore_batch_users_bucket{le=\"256\"}"),
        "{exposition}"
    );
}

/// Returns the row that `docs/metrics.md` must have for a metric.
fn row(metric: &Metric) -> String {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Seconds | Kind::Sizes => "histogram",
    };
    let labels = metric.labels.iter().map(|(label, values)| match values {
        Values::These(these) => format!("`{label}`: {}", these.join(", ")),
        Values::Arms => format!("`{label}`: configured ids, {NO_ARM}"),
        Values::Topics => format!("`{label}`: configured names"),
        Values::Rules => format!("`{label}`: configured ids"),
        Values::Later => format!("`{label}`"),
    });
    let labels = labels.collect::<Vec<_>>().join("; ");
    format!(
        "| `{}` | {kind} | {labels} | {} |",
        metric.name, metric.help
    )
}

#[test]
fn the_page_has_a_row_for_each_metric_and_no_other() {
    let page = include_str!("../../docs/metrics.md");
    let described: BTreeSet<_> = page
        .lines()
        .filter(|line| line.starts_with("| `nearshore_") || line.starts_with("| `process_"))
        .map(str::to_owned)
        .collect();
    let exported: BTreeSet<_> = ALL.iter().map(|metric| row(metric)).collect();
    for missing in exported.difference(&described) {
        println!("{missing}");
    }
    let extra: Vec<_> = described.difference(&exported).collect();
    let missing: Vec<_> = exported.difference(&described).collect();
    assert!(
        extra.is_empty() && missing.is_empty(),
        "docs/metrics.md lacks the rows {missing:#?} and has the wrong rows {extra:#?}"
    );
}

/// Runs `promtool check metrics` where it is installed (Debian package `prometheus`), and prints that it is skipped
/// elsewhere.
#[test]
fn the_exposition_passes_promtool() {
    let tool = std::env::var("NEARSHORE_TEST_PROMTOOL").unwrap_or_else(|_| "promtool".into());
    let child = Command::new(tool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: promtool is not installed (Debian package prometheus)");
        return;
    };
    let exposition = exposed(|| {
        register(&known());
        update_all();
    });
    let mut input = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut input, exposition.as_bytes()).expect("promtool reads");
    drop(input);
    let output = child.wait_with_output().expect("promtool ends");
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{warnings}");
    assert_eq!(warnings.trim(), "", "promtool has warnings");
}

#[test]
fn every_error_code_has_a_heading_on_the_errors_page() {
    let page = include_str!("../../docs/errors.md");
    let heading = |code: &&&str| page.lines().any(|line| line == format!("### {code}"));
    let codes = nearshore_core::user::event::Reject::ALL_CODES
        .iter()
        .chain(<Failure as strum::VariantNames>::VARIANTS);
    let missing: Vec<_> = codes.filter(|code| !heading(code)).collect();
    assert!(missing.is_empty(), "docs/errors.md lacks {missing:?}");
}
