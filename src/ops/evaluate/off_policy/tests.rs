//! What counts as shown and as bought, and what is told of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use nearshore_core::list::document::{
    Audit, CandidatesAudit, Document, NameAudit, Shown as ShownProduct, SkuAudit, Source, Update,
};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::Limits;
use nearshore_core::user::record::{Fences, Offset, Partition, Position, Record, Timestamp};

use super::shown::{Shown, shown};
use super::*;
use crate::ops::files::{Decoding, Logs, Topic};

const START: i64 = 1_700_000_000_000;
const HOUR: i64 = 3_600_000;

const POLICY: Weighing = Weighing {
    gamma: 1.0,
    explore: 0.0,
    epsilon: 0.0,
};

fn record(topic: &str, offset: i64, at: i64, key: &str, value: Option<String>) -> Record {
    Record {
        position: Position {
            partition: Partition {
                incarnation: 0,
                topic: topic.into(),
                number: 0,
            },
            offset: Offset(offset),
        },
        time: Timestamp(START + at),
        key: Some(Bytes::from(key.to_owned())),
        value: value.map(Bytes::from),
        headers: Vec::new(),
    }
}

/// Events as user, hours from the start, and JSON; null erases the user.
fn events(of: &[(&str, i64, String)]) -> Vec<Accepted> {
    let decoding = Decoding {
        topics: Topics::default(),
        limits: Limits::default(),
        ignore: BTreeSet::new(),
        naming: None,
    };
    let mut logs = Logs::default();
    for (nth, (user, hours, json)) in (0..).zip(of) {
        let (topic, value) = match json.as_str() {
            "null" => (Topic::Profiles, None),
            json => (Topic::Events, Some(json.to_owned())),
        };
        let record = record(topic.name(), nth, hours * HOUR, user, value);
        logs.add(topic, &[record], &decoding, String::new);
    }
    assert_eq!(logs.rejects.total(), 0, "{:?}", logs.rejects);
    logs.records
}

fn buys(sku: &str) -> String {
    format!(r#"{{"type":"purchase","sku":"{sku}"}}"#)
}

/// A list with the name TEA, which shows these of its SKUs, or the name SALT too.
struct List<'a> {
    user: &'a str,
    claim: u64,
    source: Source,
    /// Hours from the start.
    at: i64,
    /// It has seen the events before this one.
    seen: i64,
    skus: &'a [&'a str],
}

const TEAS: [&str; 4] = ["t1", "t2", "t3", "t4"];
const SHARES: [f64; 4] = [0.4, 0.3, 0.2, 0.1];

impl List<'_> {
    fn id(&self) -> String {
        format!(
            "{}-{}-{}",
            self.user,
            self.claim,
            self.source.stage().number()
        )
    }

    fn document(&self) -> Document {
        Document {
            list_id: self.id(),
            user: Some(self.user.into()),
            arm: "a".into(),
            source: self.source,
            at: Timestamp(START + self.at * HOUR),
            segment: "default".into(),
            stale: false,
            reason: None,
            pus: vec![ShownProduct {
                pu: "TEA".into(),
                name: "TEA".into(),
                score: 0.0,
                skus: self.skus.iter().map(|sku| (*sku).into()).collect(),
            }],
        }
    }

    fn audit(&self) -> Audit {
        let mut left = 1.0;
        let sku = |sku: &&str| {
            let at = TEAS.iter().position(|it| it == sku).expect("a tea");
            let ee = SHARES[at] / left;
            left -= SHARES[at];
            SkuAudit {
                sku: (*sku).into(),
                ee: Some(ee),
            }
        };
        Audit {
            list_id: self.id(),
            selection: Some(POLICY),
            names: vec![NameAudit {
                pu: "TEA".into(),
                skus: self.skus.iter().map(sku).collect(),
                candidates: Some(CandidatesAudit {
                    skus: TEAS.map(str::to_owned).into(),
                    share: SHARES.into(),
                    best: vec![0.0; 4],
                    others: Vec::new(),
                }),
                ..NameAudit::default()
            }],
            ..Audit::default()
        }
    }

    /// The update, an hour after what caused the list.
    fn update(&self, audit: &Audit) -> Record {
        let seen: Fences = (self.seen > 0)
            .then(|| record("user-events", self.seen - 1, 0, "", None).position)
            .into_iter()
            .collect();
        let (doc, audit) = (self.document().to_json(), audit.to_json());
        let value = Update::json((self.claim, 1), &seen, (&doc, &audit));
        let key = format!("main/{}", self.user);
        record("recall-updates", 0, (self.at + 1) * HOUR, &key, Some(value))
    }
}

fn list<'a>(user: &'a str, claim: u64, (at, seen): (i64, i64), skus: &'a [&'a str]) -> List<'a> {
    List {
        user,
        claim,
        source: Source::Mixture,
        at,
        seen,
        skus,
    }
}

fn updates(clock: Clock, lists: &[List<'_>]) -> Updates {
    let mut updates = Updates::new("main", clock);
    for list in lists {
        updates.add(&list.update(&list.audit()));
    }
    updates
}

/// What each name earned: hours until each place was bought.
fn earned(found: &Shown) -> Vec<Vec<Option<i64>>> {
    let names = found.names.iter();
    let places = names.map(|name| name.places.iter().map(|it| it.delay.map(|it| it / HOUR)));
    places.map(Iterator::collect).collect()
}

#[test]
fn a_purchase_counts_for_the_newest_list_that_has_not_seen_it() {
    let lists = [
        list("u", 1, (1, 0), &["t1", "t2"]),
        // It was caused by the second event, and has seen it.
        list("u", 2, (20, 2), &["t3", "t2"]),
    ];
    let of = [
        ("u", 0, buys("t1")),
        ("u", 20, buys("t2")),
        ("u", 30, buys("t3")),
        ("u", 40, buys("t3")),
        // The newest list shows the product without this SKU.
        ("u", 50, buys("t1")),
        ("u", 60, buys("salt")),
        ("v", 70, buys("t1")),
    ];
    let found = shown(&updates(Clock::Positions, &lists), &events(&of), 5);
    assert_eq!(earned(&found), [[None, Some(19)], [Some(10), None]]);
    let elapsed: Vec<i64> = found.names.iter().map(|it| it.elapsed / HOUR).collect();
    assert_eq!(elapsed, [69, 50]);
    assert!(!found.by_impressions);
    // By times a list stood from its update on, an hour later.
    let found = shown(&updates(Clock::Times, &lists), &events(&of), 1);
    assert_eq!(earned(&found), [[None], [Some(9)]]);
}

#[test]
fn where_impressions_name_lists_only_what_they_name_was_shown() {
    let lists = [
        list("u", 1, (1, 0), &["t1", "t2", "t3"]),
        list("u", 2, (20, 1), &["t2", "t1"]),
        list("v", 1, (1, 0), &["t4", "t1"]),
    ];
    let sees =
        |list: &str, what: &str| format!(r#"{{"type":"impression",{what},"list_id":"{list}"}}"#);
    let of = [
        ("u", 5, sees("u-1-0", r#""sku":"t2","position":2"#)),
        ("u", 6, sees("u-1-0", r#""sku":"t1""#)),
        ("u", 7, sees("u-1-0", r#""sku":"t3","position":1"#)),
        ("u", 8, sees("other", r#""sku":"t1""#)),
        ("u", 9, buys("t2")),
        ("u", 9, buys("t3")),
        ("v", 10, sees("v-1-0", r#""pu":"TEA""#)),
        ("v", 11, buys("t1")),
        ("v", 12, buys("t4")),
    ];
    let found = shown(&updates(Clock::Positions, &lists), &events(&of), 5);
    assert!(found.by_impressions);
    // The third SKU was not seen in its place, and the second list not at all.
    let wanted: [&[Option<i64>]; 2] = [&[None, Some(4), None], &[Some(2), Some(1)]];
    assert_eq!(earned(&found), wanted);
    assert_eq!((found.misplaced, found.of_other_lists), (1, 1));
}

#[test]
fn a_list_written_again_stays_what_it_was_and_an_erased_user_has_none() {
    let first = list("u", 1, (1, 0), &["t1", "t2"]);
    let mut updates = updates(Clock::Positions, &[list("v", 1, (1, 0), &["t1"])]);
    updates.add(&first.update(&first.audit()));
    let stripped = list("u", 1, (1, 0), &["t2"]);
    updates.add(&stripped.update(&Audit::default()));
    updates.add(&stripped.update(&stripped.audit()));
    assert_eq!((updates.len(), updates.read), (2, 4));
    let of = [("u", 2, buys("t1")), ("v", 3, buys("t1"))];
    let found = shown(&updates, &events(&of), 5);
    assert_eq!(earned(&found), [vec![Some(1), None], vec![Some(2)]]);
    // With the model's list of the claim, the first list of it is none that stood.
    let second = List {
        source: Source::Model,
        ..list("u", 1, (1, 0), &["t3"])
    };
    updates.add(&second.update(&second.audit()));
    let found = shown(&updates, &events(&of), 5);
    assert_eq!(earned(&found), [vec![None], vec![Some(2)]]);
    let erased = [
        ("u", 2, buys("t1")),
        ("u", 4, "null".to_owned()),
        ("v", 5, buys("t1")),
    ];
    assert_eq!(shown(&updates, &events(&erased), 5).names.len(), 1);
    updates.add(&record("recall-updates", 0, 9, "main/v", None));
    updates.add(&record("recall-updates", 0, 9, "other/u", None));
    assert_eq!(updates.lists.len(), 1);
}

fn asked(target: Weighing) -> Asked {
    Asked {
        target,
        window: Duration::from_secs(2 * 86_400),
        places: 2,
        how: Resampling {
            seed: 1,
            resamples: 200,
        },
        namespace: "main".into(),
    }
}

/// Lists and purchases of many users. Each SKU is bought at the same rate wherever it stands, but for the last one, which
/// everybody buys.
fn shop(users: u32) -> (Updates, Vec<Accepted>) {
    let names: Vec<String> = (0..users).map(|user| format!("u{user:04}")).collect();
    let (mut lists, mut of) = (Vec::new(), Vec::new());
    for (nth, user) in names.iter().enumerate() {
        // Of 50 users as many get each order as its probability says.
        let place = (nth * 7 + 3) as f64 % 50.0 / 50.0;
        let mut sum = 0.0;
        let first = SHARES.iter().position(|share| {
            sum += share;
            place < sum - 1e-9
        });
        let first = first.unwrap_or(3);
        let second = (first + 1 + nth / 50 % 3) % 4;
        lists.push((user, [TEAS[first], TEAS[second]]));
        for sku in [first, second] {
            if sku == 3 || (nth + sku) % 3 == 0 {
                of.push((user.as_str(), 3, buys(TEAS[sku])));
            }
        }
    }
    of.push(("zz", 24 * 5, buys(TEAS[0])));
    let lists = lists.iter().map(|(user, skus)| list(user, 1, (1, 0), skus));
    let lists: Vec<List<'_>> = lists.collect();
    (updates(Clock::Positions, &lists), events(&of))
}

#[test]
fn the_report_says_what_a_policy_is_worth_and_on_what_that_rests() {
    let (updates, records) = shop(600);
    let same = off_policy(&updates, &records, &asked(POLICY)).expect("enough");
    assert_eq!(
        (same.lists, same.found.names, same.shown_by),
        (600, 600, "published")
    );
    assert!(same.found.ips.difference.mean.abs() < 1e-9);
    // A policy that shows the last SKU more often is worth more.
    let flat = Weighing {
        gamma: 0.3,
        ..POLICY
    };
    let better = off_policy(&updates, &records, &asked(flat)).expect("enough");
    assert!(
        better.found.dr.difference.low > 0.0,
        "{:?}",
        better.found.dr
    );
    let text = better.text();
    for wanted in [
        "policy: gamma 0.3, explore 0, epsilon 0",
        "logged: gamma 1, explore 0, epsilon 0, 600 names",
        "600 names shown to 600 users",
        "every published list counts as shown",
        "within 2days",
        "doubly robust",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    let json = serde_json::to_value(&better).expect("JSON");
    assert!(json["dr"]["difference"]["low"].as_f64() > Some(0.0));
    assert_eq!(json["target"]["gamma"], 0.3);
}

#[test]
fn a_policy_that_shows_what_could_not_be_shown_is_told() {
    let (mut updates, records) = shop(600);
    // The lists say that the last SKU had no chance.
    let closed = Weighing {
        epsilon: 0.15,
        ..POLICY
    };
    for lists in updates.lists.values_mut() {
        lists.retain(|list| list.names[0].places.iter().all(|(sku, _)| *sku < 3));
        for list in lists.iter_mut() {
            list.selection = closed;
            let mut left = 0.9;
            for (sku, propensity) in &mut list.names[0].places {
                *propensity = SHARES[*sku] / left;
                left -= SHARES[*sku];
            }
        }
    }
    let found = off_policy(&updates, &records, &asked(POLICY)).expect("enough");
    let text = found.text();
    assert!(text.contains("could not have been shown there"), "{text}");
}

#[test]
fn what_cannot_be_judged_says_what_to_do() {
    let (updates, records) = shop(600);
    let none = Updates::new("main", Clock::Positions);
    let error = off_policy(&none, &records, &asked(POLICY)).expect_err("no list");
    assert!(error.to_string().contains("audit.candidates"), "{error}");
    let impression = r#"{"type":"impression","sku":"t1","list_id":"gone"}"#;
    let unknown = events(&[("u0001", 3, impression.to_owned())]);
    let error = off_policy(&updates, &unknown, &asked(POLICY)).expect_err("none of these lists");
    assert!(error.to_string().contains("--updates"), "{error}");
    let long = Asked {
        window: Duration::from_secs(9 * 86_400),
        ..asked(POLICY)
    };
    let error = off_policy(&updates, &records, &long).expect_err("too young");
    assert!(
        error.to_string().contains("--window of at most 4.9 days"),
        "{error}"
    );
    let far = Weighing {
        gamma: 40.0,
        ..POLICY
    };
    let error = off_policy(&updates, &records, &asked(far)).expect_err("too far");
    assert!(error.to_string().contains("nearer policy"), "{error}");
}

#[test]
fn updates_and_events_of_files_are_read_as_those_of_the_topics() {
    let one = list("u", 1, (1, 0), &["t1", "t2"]);
    let update = one.update(&one.audit());
    let value: serde_json::Value =
        serde_json::from_slice(&update.value.expect("a value")).expect("JSON");
    let row = serde_json::json!({"key": "main/u", "timestamp": update.time.0, "value": value});
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("updates.jsonl");
    std::fs::write(&path, format!("{row}\n{{\"key\":\"main/u\"}}\n")).expect("written");
    let mut read = Updates::new("main", Clock::Times);
    read.read_file(&path).expect("it is read");
    assert_eq!((read.len(), read.refused), (1, 1));
    assert_eq!(read.lists, updates(Clock::Times, &[one]).lists);
}
