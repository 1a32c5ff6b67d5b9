//! The report at the end of a run: faults, a table of invariants, and on request one line of JSON.

use std::collections::BTreeMap;

use serde_json::json;

use crate::checker::{Row, Wrong};
use crate::journal::Journal;
use crate::plan::{Fault, Size, Stores};

/// Most resident memory of a member: states of a few thousand users and librdkafka's queues.
const MEMORY: u64 = 400 << 20;
/// Examples printed per invariant.
const EXAMPLES: usize = 4;

/// Invariants that this run cannot check, and what checks them.
const ELSEWHERE: [(u32, &str, &str); 2] = [
    (
        8,
        "hand-over",
        "needs a second namespace: integration tests of backfill and promote",
    ),
    (
        11,
        "clocks",
        "one clock per machine: the simulation moves them by an hour",
    ),
];

/// Rows about the run itself, not about what is stored.
pub fn observed(size: &Size, journal: &Journal) -> Vec<Row> {
    let mut rows = vec![];
    let (reads, declared, regressions) = journal.reads();
    let mut row = Row::new(4, "monotone lists, as a client reads them");
    row.checked = reads;
    row.wrong = regressions
        .into_iter()
        .map(|what| (Wrong::Stale, what))
        .collect();
    row.note = format!("{declared} were older within a failover");
    rows.push(row);

    let mut row = Row::new(9, "bounded: memory of each member");
    let memory = journal.most_memory();
    let most = memory.values().map(|(_, most)| *most).max().unwrap_or(0);
    for (name, (first, most)) in &memory {
        row.check(if *most <= MEMORY {
            Ok(())
        } else {
            Err((
                Wrong::Other,
                format!("{name}: {} MiB, from {}", most >> 20, first >> 20),
            ))
        });
    }
    row.note = format!("at most {} MiB", most >> 20);
    rows.push(row);

    let mut row = Row::new(0, "drain: SIGTERM ends a member with exit code 0");
    let drains = journal.drains();
    for (clean, took) in &drains {
        let good = *clean && *took <= size.drain_max;
        row.check(if good {
            Ok(())
        } else {
            Err((
                Wrong::Other,
                format!("a member ended after {took:.1?}, exit 0: {clean}"),
            ))
        });
    }
    let slowest = drains
        .iter()
        .map(|(_, took)| *took)
        .max()
        .unwrap_or_default();
    row.note = format!("slowest {slowest:.1?}, at most {:.0?}", size.drain_max);
    rows.push(row);

    let mut row = Row::new(0, "no member ends by itself");
    row.checked = journal.faults(<[_]>::len);
    row.wrong = journal
        .ends()
        .into_iter()
        .map(|what| (Wrong::Other, what))
        .collect();
    rows.push(row);
    rows
}

fn totals(rows: &[Row]) -> BTreeMap<Wrong, usize> {
    let mut totals = BTreeMap::new();
    for (wrong, _) in rows.iter().flat_map(|row| &row.wrong) {
        *totals.entry(*wrong).or_default() += 1;
    }
    totals
}

fn count(totals: &BTreeMap<Wrong, usize>, wrong: Wrong) -> usize {
    totals.get(&wrong).copied().unwrap_or(0)
}

/// Number of faults by kind.
fn kinds(journal: &Journal) -> BTreeMap<&'static str, usize> {
    let kind = |fault: &Fault| match fault {
        Fault::Kill(_) => "SIGKILL",
        Fault::Term(_) => "SIGTERM",
        Fault::Stop(..) => "SIGSTOP",
        Fault::Cut(..) => "network",
        Fault::Broker(..) => "broker",
        Fault::Primary(..) => "primary killed",
        Fault::Freeze(_) => "primary frozen",
        Fault::Flush => "SCRIPT FLUSH",
        Fault::Replay => "replay",
    };
    let mut kinds = BTreeMap::new();
    journal.faults(|faults| {
        for done in faults {
            *kinds.entry(kind(&done.fault)).or_default() += 1;
        }
    });
    kinds
}

fn shape(size: &Size) -> String {
    let stores = match size.stores {
        Stores::Sentinel if size.direct => {
            "a Redis primary with 2 replicas and 3 Sentinels, which members ask themselves"
        }
        Stores::Sentinel => "a Redis primary with 2 replicas and 3 Sentinels",
        Stores::Cluster => "a Redis Cluster of 3",
    };
    format!(
        "seed {}: {} ingest, {} generate, {} partitions, {} users, {} brokers, {stores}",
        size.seed, size.ingest, size.generate, size.partitions, size.users, size.brokers
    )
}

/// Prints the table; true if all invariants hold.
pub fn print(size: &Size, journal: &Journal, (rows, spread): (&[Row], &[usize])) -> bool {
    println!("\n{}", shape(size));
    let kinds: Vec<String> = kinds(journal)
        .iter()
        .map(|(kind, n)| format!("{n} x {kind}"))
        .collect();
    println!("faults: {}", kinds.join(", "));
    if spread.len() > 1 {
        println!("keys per node: {spread:?}");
    }
    println!(
        "\n   #  {:<62} {:>8} {:>6}  note",
        "invariant", "checked", "wrong"
    );
    for row in rows {
        let number = if row.number == 0 {
            "-".into()
        } else {
            row.number.to_string()
        };
        println!(
            "  {number:>2}  {:<62} {:>8} {:>6}  {}",
            row.name,
            row.checked,
            row.wrong.len(),
            row.note
        );
    }
    for (number, name, where_) in ELSEWHERE {
        println!("  {number:>2}  {name:<62} {:>8} {:>6}  {where_}", "-", "-");
    }
    for row in rows.iter().filter(|row| !row.wrong.is_empty()) {
        println!("\n{} ({} wrong):", row.name, row.wrong.len());
        for (wrong, what) in row.wrong.iter().take(EXAMPLES) {
            println!("  {wrong:?}: {what}");
        }
    }
    let totals = totals(rows);
    let good = totals.is_empty();
    println!(
        "\n{} lost, {} stale, {} doubled, {} leaked, {} other: {}",
        count(&totals, Wrong::Lost),
        count(&totals, Wrong::Stale),
        count(&totals, Wrong::Doubled),
        count(&totals, Wrong::Leaked),
        count(&totals, Wrong::Other),
        if good {
            "all invariants hold"
        } else {
            "VIOLATED"
        }
    );
    good
}

/// The result as one line of JSON.
pub fn json(size: &Size, journal: &Journal, rows: &[Row]) -> String {
    let totals = totals(rows);
    let faults = journal.faults(|faults| {
        let one = |done: &crate::journal::Done| {
            json!({"at": done.at.as_secs_f64(), "seconds": done.took.as_secs_f64(), "fault": done.fault.to_string(), "how": done.how})
        };
        faults.iter().map(one).collect::<Vec<_>>()
    });
    let table: Vec<_> = rows
        .iter()
        .map(|row| {
            let examples: Vec<_> = row.wrong.iter().take(EXAMPLES).map(|(wrong, what)| format!("{wrong:?}: {what}")).collect();
            json!({"invariant": row.number, "name": row.name, "checked": row.checked, "wrong": row.wrong.len(), "note": row.note, "examples": examples})
        })
        .collect();
    json!({
        "seed": size.seed, "ingest": size.ingest, "generate": size.generate, "partitions": size.partitions,
        "users": size.users, "events": size.events, "brokers": size.brokers, "stores": format!("{:?}", size.stores),
        "broken": size.broken.map(|broken| broken.name()), "faults": faults, "table": table,
        "lost": count(&totals, Wrong::Lost), "stale": count(&totals, Wrong::Stale), "doubled": count(&totals, Wrong::Doubled),
        "leaked": count(&totals, Wrong::Leaked), "other": count(&totals, Wrong::Other), "ok": totals.is_empty(),
    })
    .to_string()
}
