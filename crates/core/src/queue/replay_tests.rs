//! Cases of points, plans and goals, and the law of a goal.

use proptest::prelude::*;

use super::*;

fn partition(number: i32) -> Partition {
    Partition {
        incarnation: 0,
        topic: "user-events".into(),
        number,
    }
}

fn kept(number: i32, begin: i64, end: i64, oldest: Option<i64>) -> Kept {
    Kept {
        partition: partition(number),
        begin: Offset(begin),
        end: Offset(end),
        oldest: oldest.map(Timestamp),
    }
}

fn record(offset: i64) -> Record {
    Record {
        position: Position {
            partition: partition(0),
            offset: Offset(offset),
        },
        time: Timestamp(0),
        key: None,
        value: None,
        headers: Vec::new(),
    }
}

fn places(of: &[(i32, i64)]) -> Since {
    of.iter()
        .map(|(number, at)| (partition(*number), Resume(*at)))
        .collect()
}

#[test]
fn points_are_parsed_and_ambiguous_texts_refused() {
    let offsets = |of: &[(&str, i32, i64)]| {
        let each = of.iter().map(|(t, n, at)| (((*t).to_owned(), *n), *at));
        Point::Offsets(each.collect())
    };
    let day = Duration::from_secs(86_400);
    for (text, point) in [
        ("earliest", Point::Earliest),
        ("latest", Point::Latest),
        ("last=7d", Point::Last(day * 7)),
        ("last=90m", Point::Last(Duration::from_secs(5400))),
        ("1970-01-02T00:00:00Z", Point::Time(Timestamp(86_400_000))),
        (
            "1970-01-02T01:00:00+01:00",
            Point::Time(Timestamp(86_400_000)),
        ),
        ("a:0=5", offsets(&[("a", 0, 5)])),
        ("a:0=5, b:c:12=0", offsets(&[("a", 0, 5), ("b:c", 12, 0)])),
    ] {
        assert_eq!(text.parse(), Ok(point), "{text}");
    }
    for wrong in [
        "",
        "yesterday",
        "7d",
        "last=",
        "a=5",
        ":0=5",
        "a:0=-1",
        "a:-1=0",
        "a:0=1,a:0=2",
        "2026-13-01T00:00:00Z",
    ] {
        assert!(wrong.parse::<Point>().is_err(), "{wrong:?}");
    }
}

#[test]
fn a_time_before_the_oldest_record_is_refused_if_records_were_deleted() {
    let since = places(&[(0, 12), (1, 0)]);
    let retained = [kept(0, 10, 20, Some(500)), kept(1, 0, 9, Some(2_000))];
    let time = Timestamp(1_000);
    let found = starts(&Point::Time(time), &retained, (&since, time));
    assert_eq!(found, Ok(places(&[(0, 12), (1, 0)])));

    let deleted = [kept(0, 10, 20, Some(1_001)), kept(1, 0, 9, Some(2_000))];
    let refused = starts(&Point::Time(time), &deleted, (&since, time)).expect_err("deleted");
    let text = refused.to_string();
    assert_eq!(
        text,
        "0/user-events/0: 1970-01-01T00:00:01Z is no longer retained; the earliest is offset 10 of 1970-01-01T00:00:01.001Z"
    );
}

#[test]
fn an_offset_outside_its_partition_is_refused() {
    let kept = [kept(0, 10, 20, Some(0)), kept(1, 5, 5, None)];
    let start = |text: &str| {
        starts(
            &text.parse().expect("a point"),
            &kept,
            (&Since::new(), Timestamp(0)),
        )
    };
    assert_eq!(start("user-events:0=20"), Ok(places(&[(0, 20), (1, 5)])));
    for (text, part) in [
        ("user-events:0=9", "offset 9 is no longer retained"),
        ("user-events:0=21", "offset 21 is beyond its end 20"),
        ("user-events:2=0", "user-events has no partition 2"),
        ("other:0=0", "other has no partition 0"),
    ] {
        let error = start(text).expect_err(text).to_string();
        assert!(error.contains(part), "{error}");
    }
    let end = ends(
        &"user-events:0=15".parse().expect("a point"),
        &kept,
        &Since::new(),
    );
    assert_eq!(end, Ok(places(&[(0, 15), (1, 5)])));
}

#[test]
fn a_plan_survives_json_and_an_end_before_its_start_is_refused() {
    let mut plan = Plan {
        v: 1,
        from: "earliest".into(),
        to: "latest".into(),
        starts: places(&[(0, 0), (1, 7)]),
        ends: places(&[(0, 10), (1, 7)]),
        complete_since: BTreeMap::from([(partition(1), Timestamp(99))]),
        created_at: Timestamp(1),
        config: "c".into(),
        stage: Stage::Events,
        cursor: None,
        totals: Totals::default(),
    };
    assert_eq!(Plan::parse(&plan.to_json()).expect("reads"), plan);
    assert!(
        plan.to_json()
            .contains(r#""starts":"0/user-events/0:0,0/user-events/1:7""#),
        "{}",
        plan.to_json()
    );
    assert_eq!((plan.records(), plan.check()), (10, Ok(())));
    plan.starts.insert(partition(1), Resume(8));
    assert!(plan.check().is_err());
}

#[test]
fn records_at_or_after_the_end_are_removed_and_reported() {
    let mut goal = Goal {
        next: places(&[(0, 3)]),
        ends: places(&[(0, 6)]),
    };
    let mut records = vec![record(3), record(4)];
    assert!(!goal.cut(&partition(0), &mut records));
    assert_eq!(records.len(), 2);
    let mut records = vec![record(4), record(6), record(9)];
    assert!(goal.cut(&partition(0), &mut records));
    assert_eq!(records, [record(4)]);
    let mut unassigned = vec![record(0)];
    assert!(goal.cut(&partition(5), &mut unassigned) && unassigned.is_empty());
    goal.passed(&partition(0), Resume(5));
    assert_eq!((goal.left(), goal.reached()), (1, false));
    goal.passed(&partition(0), Resume(4));
    assert_eq!(goal.left(), 1, "progress never goes back");
    goal.passed(&partition(0), Resume(100));
    assert!(goal.reached());
    assert_eq!(
        goal.places(),
        &places(&[(0, 6)]),
        "progress never passes the end"
    );
}

proptest! {
    #[test]
    fn a_goal_is_reached_iff_each_partition_is(ends in prop::collection::vec(0i64..5, 1..4), passes in prop::collection::vec((0i32..4, 0i64..6), 0..30)) {
        let numbered = |of: &[i64]| -> Since { (0..).zip(of).map(|(n, at)| (partition(n), Resume(*at))).collect() };
        let mut goal = Goal { next: numbered(&vec![0; ends.len()]), ends: numbered(&ends) };
        let mut done = vec![0i64; ends.len()];
        for (number, at) in passes {
            goal.passed(&partition(number), Resume(at));
            if let Some(done) = done.get_mut(number as usize) {
                *done = (*done).max(at);
            }
        }
        let left: i64 = ends.iter().zip(&done).map(|(end, done)| (end - done).max(0)).sum();
        prop_assert_eq!(goal.left(), left as u64);
        prop_assert_eq!(goal.reached(), left == 0);
    }
}
