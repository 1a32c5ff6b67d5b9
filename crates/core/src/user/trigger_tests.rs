//! No event is lost between trigger and take.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::user::event::{Event, Item, Profile};
use crate::user::fold::fold;
use crate::user::fold::tests::{BASE, kinds};
use crate::user::record::Offset;
use crate::user::state::ClaimRate;

const WINDOW: usize = 6;

/// A user, the way from fold to request, and what a generation would see.
struct Way {
    held: Held,
    policy: Policy,
    enabled: bool,
    profile_matters: bool,
    next: i64,
    known: bool,
}

impl Way {
    fn new(policy: Policy) -> Self {
        Self {
            held: Held::default(),
            policy,
            enabled: true,
            profile_matters: true,
            next: 0,
            known: false,
        }
    }

    fn record(&mut self, at: i64, change: Change) -> Accepted {
        self.next += 1;
        let mut position: Position = "0/t/0:0".parse().expect("valid");
        position.offset = Offset(self.next);
        Accepted {
            user: UserId("u".into()),
            position,
            time: Timestamp(BASE + at * 1000),
            change,
        }
    }

    fn deliver(&mut self, record: &Accepted) -> (Step, Option<Request>) {
        let step = fold(&mut self.held.state, record, WINDOW);
        let ask = TriggerContext {
            policy: &self.policy,
            ns: "a",
            first: !self.known,
            profile_matters: self.profile_matters,
            enabled: self.enabled,
        };
        let request = trigger(&mut self.held, record, step, &ask);
        self.known = true;
        (step, request)
    }

    fn does(&mut self, at: i64, kind: Kind) -> Option<Request> {
        let record = self.record(at, event(kind));
        self.deliver(&record).1
    }

    fn claim(&mut self, request: &Request) {
        claimed(&mut self.held.activity, request.due);
    }
}

fn event(kind: Kind) -> Change {
    Change::Event(Event {
        kind,
        item: Item::Sku("a".into()),
        qty: 1,
        price: None,
        ts: None,
    })
}

fn aged(age: u8) -> Change {
    Change::Profile(Profile([("age".to_owned(), json!(age))].into()))
}

fn seconds(request: &Request) -> i64 {
    (request.due.0 - BASE) / 1000
}

#[test]
fn the_first_sight_of_a_user_always_asks_urgently() {
    let mut way = Way::new(Policy::default());
    let request = way.does(0, Kind::Impression).expect("first");
    assert_eq!(
        (request.reason, request.lane),
        (Reason::First, Lane::Urgent)
    );
    assert_eq!((seconds(&request), request.time), (30, Timestamp(BASE)));
    assert_eq!(
        way.held.activity.pending.as_ref().map(|p| p.due),
        Some(request.due)
    );
    assert_eq!(way.does(1, Kind::Purchase), None, "a request is out");
}

#[test]
fn ten_views_are_exactly_one_list() {
    let mut way = Way::new(Policy::default());
    let first = way.does(0, Kind::View).expect("first");
    way.claim(&first);
    for nth in 1..10 {
        assert_eq!(way.does(100 + nth, Kind::View), None, "{nth}");
    }
    let request = way.does(110, Kind::View).expect("moved");
    assert_eq!(
        (request.reason, request.lane),
        (Reason::Activity, Lane::Live)
    );
    assert_eq!(way.held.activity.score, 100);
}

#[test]
fn a_profile_asks_only_if_it_alters_something() {
    for (matters, asks) in [(true, Some(Reason::Profile)), (false, None)] {
        let mut way = Way::new(Policy::default());
        let first = way.does(0, Kind::View).expect("first");
        way.claim(&first);
        way.profile_matters = matters;
        let record = way.record(1, aged(40));
        let (step, request) = way.deliver(&record);
        assert_eq!(step, Step::ProfileChanged);
        assert_eq!(request.map(|r| r.reason), asks);
        let same = way.record(2, aged(40));
        assert_eq!(way.deliver(&same), (Step::Folded, None));
    }
}

#[test]
fn a_pending_request_is_asked_again_once_it_is_overdue_by_record_time() {
    let mut way = Way::new(Policy::default());
    let first = way.does(0, Kind::View).expect("first");
    assert_eq!(
        way.does(630, Kind::Purchase),
        None,
        "due 30 + 600, not after it"
    );
    let again = way.does(631, Kind::Impression).expect("overdue");
    assert_eq!(again.reason, Reason::Overdue);
    assert!(again.due > first.due);
    assert_eq!(way.does(632, Kind::Purchase), None, "asked again once");
}

#[test]
fn a_redelivered_record_asks_again_iff_its_own_request_is_out() {
    let mut way = Way::new(Policy::default());
    let source = way.record(0, event(Kind::Purchase));
    let (_, first) = way.deliver(&source);
    let first = first.expect("first");
    let later = way.record(1, event(Kind::Purchase));
    assert_eq!(way.deliver(&later), (Step::Folded, None));
    let (step, again) = way.deliver(&source);
    let again = again.expect("its own");
    assert_eq!(step, Step::Duplicate);
    assert_eq!(
        (again.due, again.time, again.lane),
        (first.due, first.time, Lane::Urgent)
    );
    assert_eq!(way.deliver(&later), (Step::Duplicate, None));
    way.claim(&again);
    assert_eq!(way.deliver(&source), (Step::Duplicate, None));
}

#[test]
fn a_user_is_listed_no_more_often_than_their_pace() {
    let policy = Policy {
        claims_per_day: 3,
        ..Policy::default()
    };
    let mut way = Way::new(policy);
    // BASE is 22:13:20 UTC: 6400 s before midnight.
    for (at, due) in [(0, 30), (40, 90), (95, 150), (160, 6400), (6500, 6530)] {
        let request = way.does(at, Kind::Purchase).expect("moved");
        assert_eq!(seconds(&request), due, "at {at}");
        way.claim(&request);
    }
    assert_eq!(
        way.held.activity.claim_rate.claims, 2,
        "counted anew on the next day"
    );
}

#[test]
fn one_record_from_a_wrong_clock_does_not_silence_a_user() {
    let mut way = Way::new(Policy::default());
    let first = way.does(40_000_000, Kind::Purchase).expect("first");
    way.claim(&first);
    let request = way.does(0, Kind::Purchase).expect("moved");
    assert_eq!(seconds(&request), 30);
}

#[test]
fn takes_are_counted_on_the_day_of_the_latest_due() {
    let mut activity = Activity::default();
    for (due, day, claims) in [
        (5, 0, 1),
        (DAY - 1, 0, 2),
        (DAY, 1, 1),
        (7, 1, 2),
        (3 * DAY, 3, 1),
    ] {
        claimed(&mut activity, Timestamp(due));
        let last = activity.claim_rate.last.max(Timestamp(due));
        assert_eq!(activity.claim_rate, ClaimRate { last, day, claims });
    }
}

#[test]
fn an_erased_user_asks_for_nothing_until_they_are_heard_of_again() {
    let mut way = Way::new(Policy::default());
    assert!(way.does(0, Kind::View).is_some());
    let erase = way.record(5, Change::Erase);
    assert_eq!(way.deliver(&erase), (Step::Erased, None));
    assert_eq!(way.held.activity, Activity::default());
    assert_eq!(
        way.does(5, Kind::Purchase),
        None,
        "not later than the erase"
    );
    let back = way.does(6, Kind::Impression).expect("like one never seen");
    assert_eq!((back.reason, back.lane), (Reason::First, Lane::Urgent));
}

#[test]
fn what_outlives_an_erase_is_listed_anew_for_the_list_is_gone() {
    let mut way = Way::new(Policy::default());
    let first = way.does(9, Kind::View).expect("first");
    way.claim(&first);
    let erase = way.record(5, Change::Erase);
    let request = way.deliver(&erase).1.expect("their list went");
    assert_eq!(request.reason, Reason::Activity);
    assert_eq!(way.deliver(&erase).1.map(|r| r.due), Some(request.due));
}

#[test]
fn while_a_backfill_catches_up_users_move_and_nothing_is_asked() {
    let mut way = Way::new(Policy::default());
    way.enabled = false;
    let record = way.record(0, event(Kind::Impression));
    assert_eq!(way.deliver(&record), (Step::Folded, None));
    assert_eq!(way.deliver(&record), (Step::Duplicate, None));
    assert_eq!(
        (way.held.activity.score, &way.held.activity.pending),
        (ACTIVITY_ENOUGH, &None)
    );
    assert_eq!(way.does(1, Kind::Cart), None);
    assert_eq!(way.held.activity.score, 150);
    way.enabled = true;
    assert!(way.does(2, Kind::Impression).is_some(), "caught up");
}

#[test]
fn weights_are_rounded_to_hundredths_and_never_negative() {
    for (weight, wanted) in [
        (0.29, 29),
        (1.0, 100),
        (0.005, 1),
        (-1.0, 0),
        (f64::NAN, 0),
        (1e30, u32::MAX),
    ] {
        assert_eq!(hundredths(weight), wanted, "{weight}");
    }
}

#[test]
fn a_request_is_read_back_from_its_json() {
    let mut way = Way::new(Policy::default());
    let request = way.does(0, Kind::View).expect("first");
    let text = serde_json::to_string(&request).expect("writes");
    assert_eq!(
        text,
        r#"{"v":1,"ns":"a","user":"u","reason":"first","source":"0/t/0:1","time":1700000000000,"due":1700000030000,"lane":"urgent"}"#
    );
    assert_eq!(
        serde_json::from_str::<Request>(&text).expect("reads"),
        request
    );
}

#[derive(Clone, Debug)]
enum Act {
    Does(Kind, i64),
    Profile(u8, i64),
    Claim(usize),
    /// The state is written, the request is not; the record is delivered again.
    CrashThen(Kind, i64),
    /// Any record delivered again.
    Again(prop::sample::Index),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let gap = -20i64..400;
    let act = prop_oneof![
        5 => (kinds(), gap.clone()).prop_map(|(kind, gap)| Act::Does(kind, gap)),
        1 => (0u8..3, gap.clone()).prop_map(|(age, gap)| Act::Profile(age, gap)),
        3 => (0usize..9).prop_map(Act::Claim),
        2 => (kinds(), gap).prop_map(|(kind, gap)| Act::CrashThen(kind, gap)),
        1 => any::<prop::sample::Index>().prop_map(Act::Again),
    ];
    prop::collection::vec(act, 0..60)
}

/// The world around a user, with its own reckoning of what moved since the last take.
struct World {
    way: Way,
    now: i64,
    records: Vec<Accepted>,
    out: Vec<Request>,
    score: u32,
    seen: bool,
    claimed: u32,
    asked: u32,
}

impl World {
    fn deliver(&mut self, record: Accepted, crash: bool) {
        let (step, request) = self.way.deliver(&record);
        self.score += match (step, &record.change) {
            (Step::ProfileChanged, _) => 100,
            (Step::Folded, change) => event_weight(change, &self.way.policy.weights),
            _ => 0,
        };
        self.seen |= matches!(step, Step::Folded | Step::ProfileChanged);
        let request = if crash {
            self.way.deliver(&record).1
        } else {
            request
        };
        self.asked += u32::from(request.is_some());
        self.out.extend(request);
        self.records.push(record);
    }

    fn claim(&mut self, which: usize) {
        if !self.out.is_empty() {
            let request = self.out.remove(which % self.out.len());
            self.way.claim(&request);
            self.score = 0;
            self.claimed += 1;
        }
    }

    fn act(&mut self, act: &Act) {
        let (change, gap, crash) = match act {
            Act::Does(kind, gap) => (event(*kind), *gap, false),
            Act::CrashThen(kind, gap) => (event(*kind), *gap, true),
            Act::Profile(age, gap) => (aged(*age), *gap, false),
            Act::Claim(which) => return self.claim(*which),
            Act::Again(which) => {
                if !self.records.is_empty() {
                    let record = self.records[which.index(self.records.len())].clone();
                    let (_, request) = self.way.deliver(&record);
                    self.asked += u32::from(request.is_some());
                    self.out.extend(request);
                }
                return;
            }
        };
        self.now += gap;
        let record = self.way.record(self.now, change);
        self.deliver(record, crash);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn pending_and_take_lose_no_event(acts in acts()) {
        let mut world = World {
            way: Way::new(Policy::default()), now: 0, records: Vec::new(), out: Vec::new(),
            score: 0, seen: false, claimed: 0, asked: 0,
        };
        for act in &acts {
            world.act(act);
            let activity = &world.way.held.activity;
            // Either a request is out that will see it, or it has not moved enough.
            prop_assert!(world.score < 100 || !world.out.is_empty(), "{:?}", activity);
            prop_assert!(world.claimed > 0 || !world.seen || !world.out.is_empty(), "no first list");
            prop_assert!(activity.pending.is_none() || !world.out.is_empty());
        }
        while !world.out.is_empty() {
            world.claim(0);
        }
        prop_assert!(world.score < 100 && world.way.held.activity.pending.is_none());
        prop_assert_eq!(world.claimed, world.asked);
    }
}
