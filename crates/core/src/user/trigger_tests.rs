//! Cases of the trigger, and its law: no event is lost between trigger and claim.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::user::event::{Event, Item, Profile};
use crate::user::fold::fold;
use crate::user::fold::tests::{BASE, kinds};
use crate::user::record::Offset;
use crate::user::state::ClaimRate;

const WINDOW: usize = 6;

/// A user on the path from fold to request and claim.
struct Path {
    loaded: LoadedUser,
    policy: Policy,
    enabled: bool,
    profile_matters: bool,
    is_history: bool,
    next: i64,
    is_known: bool,
}

impl Path {
    fn new(policy: Policy) -> Self {
        Self {
            loaded: LoadedUser::default(),
            policy,
            enabled: true,
            profile_matters: true,
            is_history: false,
            next: 0,
            is_known: false,
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
        let step = fold(&mut self.loaded.state, record, WINDOW);
        let context = TriggerContext {
            policy: &self.policy,
            ns: "a",
            first: !self.is_known,
            is_history: self.is_history,
            profile_matters: self.profile_matters,
            enabled: self.enabled,
        };
        let request = trigger(&mut self.loaded, record, step, &context);
        self.is_known = true;
        (step, request)
    }

    fn event_at(&mut self, at: i64, kind: Kind) -> Option<Request> {
        let record = self.record(at, event(kind));
        self.deliver(&record).1
    }

    fn claim(&mut self, request: &Request) {
        claimed(&mut self.loaded.activity, request.due);
    }
}

fn event(kind: Kind) -> Change {
    Change::Event(Event {
        kind,
        item: Item::Sku("a".into()),
        qty: 1,
        price: None,
        ts: None,
        shown_in: None,
    })
}

fn aged(age: u8) -> Change {
    Change::Profile(Profile([("age".to_owned(), json!(age))].into()))
}

fn seconds(request: &Request) -> i64 {
    (request.due.0 - BASE) / 1000
}

#[test]
fn the_first_record_of_a_user_requests_a_list_on_the_urgent_lane() {
    let mut path = Path::new(Policy::default());
    let request = path.event_at(0, Kind::Impression).expect("first");
    assert_eq!(
        (request.reason, request.lane),
        (Reason::First, Lane::Urgent)
    );
    assert_eq!((seconds(&request), request.time), (0, Timestamp(BASE)));
    assert_eq!(
        path.loaded.activity.pending.as_ref().map(|p| p.due),
        Some(request.due)
    );
    assert_eq!(
        path.event_at(1, Kind::Purchase),
        None,
        "a request is pending"
    );
}

#[test]
fn the_second_list_is_requested_by_any_record_that_counts_and_waits_for_the_quiet_period() {
    let mut path = Path::new(Policy::default());
    let first = path.event_at(0, Kind::View).expect("first");
    path.claim(&first);
    assert_eq!(path.event_at(1, Kind::Impression), None, "counts nothing");
    let second = path
        .event_at(2, Kind::View)
        .expect("the first list has not seen it");
    assert_eq!((seconds(&second), second.reason), (32, Reason::Activity));
    path.claim(&second);
    assert_eq!(path.event_at(33, Kind::View), None, "too little");
    let third = path.event_at(34, Kind::Purchase).expect("enough activity");
    assert_eq!(seconds(&third), 92, "claim_every after the second");
}

#[test]
fn ten_views_request_exactly_one_list() {
    let mut path = Path::new(Policy::default());
    let first = path.event_at(0, Kind::View).expect("first");
    path.claim(&first);
    let second = path.event_at(40, Kind::View).expect("the second list");
    path.claim(&second);
    for n in 1..10 {
        assert_eq!(path.event_at(100 + n, Kind::View), None, "{n}");
    }
    let request = path.event_at(110, Kind::View).expect("enough activity");
    assert_eq!(
        (request.reason, request.lane),
        (Reason::Activity, Lane::Live)
    );
    assert_eq!(path.loaded.activity.score, 100);
}

#[test]
fn a_changed_profile_requests_a_list_only_if_it_matters() {
    for (matters, reason) in [(true, Some(Reason::Profile)), (false, None)] {
        let mut path = Path::new(Policy::default());
        let first = path.event_at(0, Kind::View).expect("first");
        path.claim(&first);
        path.profile_matters = matters;
        let record = path.record(1, aged(40));
        let (step, request) = path.deliver(&record);
        assert_eq!(step, Step::ProfileChanged);
        assert_eq!(request.map(|r| r.reason), reason);
        let same = path.record(2, aged(40));
        assert_eq!(path.deliver(&same), (Step::Folded, None));
    }
}

#[test]
fn a_pending_request_is_sent_again_once_overdue_by_record_time() {
    let mut path = Path::new(Policy::default());
    let first = path.event_at(0, Kind::View).expect("first");
    assert_eq!(
        path.event_at(600, Kind::Purchase),
        None,
        "600 is reached, not passed"
    );
    let again = path.event_at(601, Kind::Impression).expect("overdue");
    assert_eq!(again.reason, Reason::Overdue);
    assert!(again.due > first.due);
    assert_eq!(path.event_at(602, Kind::Purchase), None, "sent again once");
}

#[test]
fn a_year_of_history_asks_once_and_the_first_live_record_asks_again_in_its_own_lane() {
    let mut path = Path::new(Policy::default());
    path.is_history = true;
    let week = 7 * 86_400;
    let asked: Vec<Request> = (0..52)
        .filter_map(|nth| path.event_at(nth * week, Kind::Purchase))
        .collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (asked[0].lane, asked[0].reason),
        (Lane::Backfill, Reason::First)
    );
    path.is_history = false;
    let live = path.event_at(52 * week, Kind::Purchase).expect("a request");
    assert_eq!((live.lane, live.reason), (Lane::Live, Reason::Overdue));
    // History that comes after a claim asks again, once.
    path.claim(&live);
    path.is_history = true;
    let late = [52, 53].map(|nth| path.event_at(nth * week, Kind::Purchase));
    let lanes = late.map(|request| request.map(|request| request.lane));
    assert_eq!(lanes, [Some(Lane::Backfill), None]);
}

#[test]
fn a_redelivered_record_repeats_its_request_iff_it_is_pending() {
    let mut path = Path::new(Policy::default());
    let source = path.record(0, event(Kind::Purchase));
    let (_, first) = path.deliver(&source);
    let first = first.expect("first");
    let later = path.record(1, event(Kind::Purchase));
    assert_eq!(path.deliver(&later), (Step::Folded, None));
    let (step, again) = path.deliver(&source);
    let again = again.expect("its request is pending");
    assert_eq!(step, Step::Duplicate);
    assert_eq!(
        (again.due, again.time, again.lane),
        (first.due, first.time, Lane::Urgent)
    );
    assert_eq!(path.deliver(&later), (Step::Duplicate, None));
    path.claim(&again);
    assert_eq!(path.deliver(&source), (Step::Duplicate, None));
}

#[test]
fn the_claim_rate_delays_requests_of_a_user() {
    let policy = Policy {
        claims_per_day: 3,
        ..Policy::default()
    };
    let mut path = Path::new(policy);
    // BASE is 22:13:20 UTC: 6400 s before midnight.
    for (at, due) in [(0, 0), (5, 35), (40, 95), (96, 6400), (6500, 6530)] {
        let request = path.event_at(at, Kind::Purchase).expect("enough activity");
        assert_eq!(seconds(&request), due, "at {at}");
        path.claim(&request);
    }
    assert_eq!(
        path.loaded.activity.claim_rate.claims, 2,
        "the count starts again on the next day"
    );
}

#[test]
fn one_record_from_a_wrong_clock_does_not_delay_later_requests() {
    let mut path = Path::new(Policy::default());
    let first = path.event_at(40_000_000, Kind::Purchase).expect("first");
    path.claim(&first);
    let request = path.event_at(0, Kind::Purchase).expect("enough activity");
    assert_eq!(seconds(&request), 30);
}

#[test]
fn claims_are_counted_on_the_day_of_the_latest_due() {
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
fn an_erased_user_requests_nothing_until_a_later_record() {
    let mut path = Path::new(Policy::default());
    assert!(path.event_at(0, Kind::View).is_some());
    let erase = path.record(5, Change::Erase);
    assert_eq!(path.deliver(&erase), (Step::Erased, None));
    assert_eq!(path.loaded.activity, Activity::default());
    assert_eq!(
        path.event_at(5, Kind::Purchase),
        None,
        "not later than the erase"
    );
    let returned = path.event_at(6, Kind::Impression).expect("like a new user");
    assert_eq!(
        (returned.reason, returned.lane),
        (Reason::First, Lane::Urgent)
    );
}

#[test]
fn events_after_an_erase_request_a_new_list() {
    let mut path = Path::new(Policy::default());
    let first = path.event_at(9, Kind::View).expect("first");
    path.claim(&first);
    let erase = path.record(5, Change::Erase);
    let request = path.deliver(&erase).1.expect("the erase deleted the list");
    assert_eq!(request.reason, Reason::Activity);
    assert_eq!(path.deliver(&erase).1.map(|r| r.due), Some(request.due));
}

#[test]
fn while_disabled_activity_grows_and_nothing_is_requested() {
    let mut path = Path::new(Policy::default());
    path.enabled = false;
    let record = path.record(0, event(Kind::Impression));
    assert_eq!(path.deliver(&record), (Step::Folded, None));
    assert_eq!(path.deliver(&record), (Step::Duplicate, None));
    assert_eq!(
        (path.loaded.activity.score, &path.loaded.activity.pending),
        (ACTIVITY_ENOUGH, &None)
    );
    assert_eq!(path.event_at(1, Kind::Cart), None);
    assert_eq!(path.loaded.activity.score, 150);
    path.enabled = true;
    assert!(
        path.event_at(2, Kind::Impression).is_some(),
        "enabled again"
    );
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
    let mut path = Path::new(Policy::default());
    let request = path.event_at(0, Kind::View).expect("first");
    let text = serde_json::to_string(&request).expect("writes");
    assert_eq!(
        text,
        r#"{"v":1,"ns":"a","user":"u","reason":"first","source":"0/t/0:1","time":1700000000000,"due":1700000000000,"lane":"urgent"}"#
    );
    assert_eq!(
        serde_json::from_str::<Request>(&text).expect("reads"),
        request
    );
}

#[derive(Clone, Debug)]
enum Act {
    Event(Kind, i64),
    Profile(u8, i64),
    Claim(usize),
    /// A crash after the write of the state and before the request; the record is delivered again.
    CrashThen(Kind, i64),
    /// A redelivery of any record.
    Redeliver(prop::sample::Index),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let gap = -20i64..400;
    let act = prop_oneof![
        5 => (kinds(), gap.clone()).prop_map(|(kind, gap)| Act::Event(kind, gap)),
        1 => (0u8..3, gap.clone()).prop_map(|(age, gap)| Act::Profile(age, gap)),
        3 => (0usize..9).prop_map(Act::Claim),
        2 => (kinds(), gap).prop_map(|(kind, gap)| Act::CrashThen(kind, gap)),
        1 => any::<prop::sample::Index>().prop_map(Act::Redeliver),
    ];
    prop::collection::vec(act, 0..60)
}

/// A user with requests and claims, and an independent sum of activity since the last claim.
struct World {
    path: Path,
    now: i64,
    records: Vec<Accepted>,
    out: Vec<Request>,
    score: u32,
    seen: bool,
    claimed: u32,
    requested: u32,
}

impl World {
    fn deliver(&mut self, record: Accepted, crash: bool) {
        let (step, request) = self.path.deliver(&record);
        self.score += match (step, &record.change) {
            (Step::ProfileChanged, _) => 100,
            (Step::Folded, change) => event_weight(change, &self.path.policy.weights),
            _ => 0,
        };
        self.seen |= matches!(step, Step::Folded | Step::ProfileChanged);
        let request = if crash {
            self.path.deliver(&record).1
        } else {
            request
        };
        self.requested += u32::from(request.is_some());
        self.out.extend(request);
        self.records.push(record);
    }

    fn claim(&mut self, which: usize) {
        if !self.out.is_empty() {
            let request = self.out.remove(which % self.out.len());
            self.path.claim(&request);
            self.score = if self.claimed == 0 {
                ACTIVITY_AFTER_FIRST
            } else {
                0
            };
            self.claimed += 1;
        }
    }

    fn act(&mut self, act: &Act) {
        let (change, gap, crash) = match act {
            Act::Event(kind, gap) => (event(*kind), *gap, false),
            Act::CrashThen(kind, gap) => (event(*kind), *gap, true),
            Act::Profile(age, gap) => (aged(*age), *gap, false),
            Act::Claim(which) => return self.claim(*which),
            Act::Redeliver(which) => {
                if !self.records.is_empty() {
                    let record = self.records[which.index(self.records.len())].clone();
                    let (_, request) = self.path.deliver(&record);
                    self.requested += u32::from(request.is_some());
                    self.out.extend(request);
                }
                return;
            }
        };
        self.now += gap;
        let record = self.path.record(self.now, change);
        self.deliver(record, crash);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn pending_requests_and_claims_lose_no_event(acts in acts()) {
        let mut world = World {
            path: Path::new(Policy::default()), now: 0, records: Vec::new(), out: Vec::new(),
            score: 0, seen: false, claimed: 0, requested: 0,
        };
        for act in &acts {
            world.act(act);
            let activity = &world.path.loaded.activity;
            // Either a request is out whose claim will see the events, or activity is too low.
            prop_assert!(world.score < 100 || !world.out.is_empty(), "{:?}", activity);
            prop_assert!(world.claimed > 0 || !world.seen || !world.out.is_empty(), "no first list");
            prop_assert!(activity.pending.is_none() || !world.out.is_empty());
        }
        while !world.out.is_empty() {
            world.claim(0);
        }
        prop_assert!(world.score < 100 && world.path.loaded.activity.pending.is_none());
        prop_assert_eq!(world.claimed, world.requested);
    }
}
