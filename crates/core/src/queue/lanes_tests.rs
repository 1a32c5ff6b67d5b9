//! Cases of the lanes, and the lanes compared with a slow model of them.

use proptest::prelude::*;

use super::*;

const NOON: Timestamp = Timestamp(1_700_000_000_000);

fn at(partition: usize, offset: i64) -> Position {
    format!("0/regen/{partition}:{offset}")
        .parse()
        .expect("valid")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A request made at noon and delayed by `delay` seconds.
fn request(user: &str, lane: Lane, delay: u64) -> Request {
    Request {
        v: 1,
        ns: "a".into(),
        user: UserId(user.into()),
        reason: Reason::Activity,
        source: None,
        time: NOON,
        due: NOON.after(seconds(delay)),
        lane,
        force: false,
    }
}

fn lanes() -> Lanes {
    Lanes::new(Policy::default())
}

fn users(work: &[Work]) -> Vec<String> {
    work.iter().map(|w| w.request.user.to_string()).collect()
}

#[test]
fn requests_of_a_user_are_merged_with_all_their_positions() {
    let mut lanes = lanes();
    let mut first = request("u", Lane::Backfill, 10);
    first.reason = Reason::Refresh;
    first.force = true;
    let mut second = request("u", Lane::Live, 30);
    second.time = NOON.after(seconds(20));
    second.due = NOON.after(seconds(50));
    second.source = Some(at(9, 9));
    assert_eq!(lanes.offer(first, at(0, 0), NOON), Offered::Queued);
    assert_eq!(
        lanes.offer(second.clone(), at(1, 5), NOON.after(seconds(20))),
        Offered::Merged
    );
    assert_eq!(
        lanes.offer(second.clone(), at(1, 5), NOON.after(seconds(21))),
        Offered::Again
    );
    let mut other = request("u", Lane::Live, 0);
    other.ns = "b".into();
    assert_eq!(
        lanes.offer(other, at(1, 6), NOON.after(seconds(22))),
        Offered::Queued
    );
    assert_eq!((lanes.len(), lanes.room()), (2, 9_997));
    let work = lanes.cut(NOON.after(seconds(22)), 1).remove(0);
    assert_eq!(
        work.request,
        Request {
            reason: Reason::Refresh,
            force: true,
            due: NOON.after(seconds(10)),
            ..second
        }
    );
    assert_eq!(work.positions, [at(0, 0), at(1, 5)]);
    assert_eq!(work.arrived, NOON);
}

#[test]
fn backfill_of_a_namespace_in_history_waits_and_all_others_go() {
    let mut lanes = lanes();
    for (offset, (user, lane)) in [
        ("old", Lane::Backfill),
        ("here", Lane::Live),
        ("elsewhere", Lane::Backfill),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = request(user, lane, 0);
        request.ns = if user == "elsewhere" { "b" } else { "a" }.into();
        lanes.offer(request, at(0, offset as i64), NOON);
    }
    let namespaces = ["a", "b"].map(str::to_owned);
    assert_eq!(lanes.backfill_namespaces(), namespaces.into());
    lanes.hold_backfill(["a".to_owned()].into());
    let mut served = users(&lanes.cut(NOON, 9));
    served.sort();
    assert_eq!(served, ["elsewhere", "here"]);
    assert_eq!(lanes.next_due(NOON), None);
    lanes.hold_backfill(BTreeSet::new());
    assert_eq!(lanes.next_due(NOON), Some(Duration::ZERO));
    assert_eq!(users(&lanes.cut(NOON, 9)), ["old"]);
}

#[test]
fn a_request_due_much_later_is_deferred() {
    let mut lanes = lanes();
    lanes.offer(request("paced", Lane::Live, 40_000), at(0, 0), NOON);
    lanes.offer(request("quiet", Lane::Live, 30), at(0, 1), NOON);
    assert!(lanes.deferred(NOON.after(seconds(59))).is_empty());
    let deferred = lanes.deferred(NOON.after(seconds(60)));
    assert_eq!(users(&deferred), ["paced"]);
    assert_eq!(deferred[0].positions, [at(0, 0)]);
    assert_eq!(users(&lanes.cut(NOON.after(seconds(60)), 9)), ["quiet"]);
    assert!(lanes.is_empty());
    // Requeued again and again with a clock that is an hour behind: the delay applies once, not once per round.
    let behind = |n: u64| NOON.after(seconds(n)).before(seconds(3_600));
    let mut waited = Duration::ZERO;
    assert!(
        lanes.deferred(behind(0)).is_empty(),
        "after the clock went back the interval starts again"
    );
    for round in 0..1_000_u64 {
        let now = behind(round * 60);
        let requeued = request("u", Lane::Live, 600);
        lanes.offer_again(requeued, at(0, 2), (now, waited));
        let later = now.after(seconds(60));
        match lanes.deferred(later).pop() {
            Some(work) => waited = later.since(work.arrived),
            None => {
                assert_eq!(users(&lanes.cut(later, 1)), ["u"]);
                assert_eq!(round, 9, "ten minutes, its delay");
                return;
            }
        }
    }
    panic!("it is requeued for ever");
}

#[test]
fn full_lanes_defer_distant_requests_to_make_room() {
    let mut lanes = Lanes::new(Policy {
        unserved_max: 100,
        ..Policy::default()
    });
    let mut offset = 0;
    while lanes.room() > 0 {
        let deferred = request(
            &format!("distant-{offset}"),
            Lane::Live,
            40_000 + offset as u64,
        );
        lanes.offer(deferred, at(0, offset), NOON);
        offset += 1;
    }
    let deferred = lanes.deferred(NOON.after(seconds(1)));
    assert_eq!((deferred.len(), lanes.room()), (50, 50));
    assert_eq!(deferred[0].request.user.0.as_ref(), "distant-99");
    lanes.offer(request("due", Lane::Urgent, 0), at(0, offset), NOON);
    assert_eq!(users(&lanes.cut(NOON.after(seconds(1)), 9)), ["due"]);
    assert!(
        lanes.deferred(NOON.after(seconds(2))).is_empty(),
        "there is room"
    );
}

#[test]
fn a_wrong_clock_costs_at_most_the_delay_of_the_request() {
    let hour = seconds(3600);
    for (clock, wait) in [
        (NOON, 30),                          // correct
        (NOON.after(seconds(20)), 10),       // arrived after 20 s
        (NOON.after(hour), 0),               // an hour ahead
        (Timestamp(NOON.0 - 3_600_000), 30), // an hour behind
    ] {
        let mut lanes = lanes();
        lanes.offer(request("u", Lane::Live, 30), at(0, 0), clock);
        assert_eq!(lanes.next_due(clock), Some(seconds(wait)));
        assert_eq!(lanes.cut(clock.after(seconds(wait)), 9).len(), 1);
        assert_eq!(lanes.next_due(clock), None);
    }
}

#[test]
fn backfill_gets_only_idle_places_while_live_is_behind() {
    for (wait, backfill_paused, wanted) in
        [(0, false, 1), (60, false, 1), (61, false, 0), (0, true, 0)]
    {
        let mut lanes = lanes();
        lanes.pause_backfill(backfill_paused);
        for n in 0..30 {
            lanes.offer(request(&format!("l{n}"), Lane::Live, 0), at(0, n), NOON);
            lanes.offer(request(&format!("b{n}"), Lane::Backfill, 0), at(1, n), NOON);
        }
        let batch = lanes.cut(NOON.after(seconds(wait)), 3);
        let backfill = batch
            .iter()
            .filter(|w| w.request.lane == Lane::Backfill)
            .count();
        assert_eq!(backfill, wanted, "{wait} {backfill_paused}");
        let mut rest = 0;
        while lanes.status(Lane::Live, NOON).due > 0 {
            rest += lanes.cut(NOON.after(seconds(wait)), 16).len();
        }
        assert!(rest > 0);
        assert!(
            !lanes.cut(NOON.after(seconds(wait)), 16).is_empty(),
            "idle places"
        );
    }
}

#[test]
fn a_revoked_request_is_dropped_unless_another_partition_has_one() {
    let mut lanes = lanes();
    lanes.offer(request("one", Lane::Live, 0), at(0, 0), NOON);
    lanes.offer(request("both", Lane::Live, 0), at(0, 1), NOON);
    lanes.offer(request("both", Lane::Live, 0), at(1, 7), NOON);
    lanes.revoke(&[at(0, 0).partition]);
    let batch = lanes.cut(NOON, 9);
    assert_eq!(users(&batch), ["both"]);
    assert_eq!(batch[0].positions, [at(1, 7)]);
    assert!(lanes.is_empty());
    assert_eq!(lanes.room(), 10_000);
}

#[test]
fn a_status_has_waiting_and_due_users_and_the_oldest_age() {
    let mut lanes = lanes();
    lanes.offer(request("a", Lane::Live, 0), at(0, 0), NOON);
    lanes.offer(request("b", Lane::Live, 5), at(0, 1), NOON);
    lanes.offer(request("c", Lane::Live, 50), at(0, 2), NOON);
    let now = NOON.after(seconds(10));
    assert_eq!(lanes.cut(now, 0), []);
    let found = lanes.status(Lane::Live, now);
    assert_eq!(
        found,
        LaneStatus {
            waiting: 1,
            due: 2,
            oldest: seconds(10)
        }
    );
    assert_eq!(lanes.status(Lane::Urgent, now), LaneStatus::default());
    assert_eq!(lanes.next_due(now), Some(Duration::ZERO));
}

#[derive(Clone, Debug)]
enum Act {
    Offer {
        user: u8,
        lane: Lane,
        delay: u64,
        partition: usize,
    },
    Again(prop::sample::Index),
    Wait(i64),
    Cut(usize),
    Revoke(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let lane = prop_oneof![Just(Lane::Urgent), Just(Lane::Live), Just(Lane::Backfill)];
    let act = prop_oneof![
        6 => (0u8..12, lane, 0u64..90, 0usize..3).prop_map(|(user, lane, delay, partition)| {
            Act::Offer { user, lane, delay, partition }
        }),
        1 => any::<prop::sample::Index>().prop_map(Act::Again),
        2 => (-5i64..200).prop_map(Act::Wait),
        2 => (0usize..5).prop_map(Act::Cut),
        1 => (0usize..3).prop_map(Act::Revoke),
    ];
    prop::collection::vec(act, 0..80)
}

/// A user's merged requests in the slow model.
#[derive(Clone, Debug)]
struct Model {
    user: String,
    lane: Lane,
    ready: Timestamp,
    positions: BTreeSet<Position>,
}

struct World {
    lanes: Lanes,
    model: Vec<Model>,
    now: Timestamp,
    next: i64,
}

impl World {
    fn offer(&mut self, mut request: Request, position: Position) {
        request.time = self.now;
        request.due = self.now.after(request.due.since(NOON));
        let (user, lane, ready) = (request.user.to_string(), request.lane, request.due);
        let offered = self.lanes.offer(request, position.clone(), self.now);
        match self.model.iter_mut().find(|m| m.user == user) {
            Some(kept) => {
                assert_eq!(offered, Offered::Merged);
                kept.lane = kept.lane.min(lane);
                kept.ready = kept.ready.min(ready);
                kept.positions.insert(position);
            }
            None => {
                assert_eq!(offered, Offered::Queued);
                let positions = BTreeSet::from([position]);
                self.model.push(Model {
                    user,
                    lane,
                    ready,
                    positions,
                });
            }
        }
    }

    /// Removes the work from the model, which must have it with all positions.
    fn remove(&mut self, work: &Work) -> (usize, Model) {
        let user = work.request.user.to_string();
        let place = self.model.iter().position(|m| m.user == user);
        let place = place.expect("work that was offered, and once");
        let found = self.model.remove(place);
        assert_eq!(
            work.positions,
            found.positions.iter().cloned().collect::<Vec<_>>()
        );
        assert_eq!((work.request.lane, work.ready), (found.lane, found.ready));
        (place, found)
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Offer {
                user,
                lane,
                delay,
                partition,
            } => {
                self.next += 1;
                let position = at(partition, self.next);
                self.offer(request(&format!("u{user}"), lane, delay), position);
            }
            Act::Again(which) => {
                let all: Vec<_> = self
                    .model
                    .iter()
                    .flat_map(|m| m.positions.clone())
                    .collect();
                if !all.is_empty() {
                    let position = all[which.index(all.len())].clone();
                    let offered = self
                        .lanes
                        .offer(request("x", Lane::Live, 0), position, self.now);
                    assert_eq!(offered, Offered::Again);
                }
            }
            Act::Wait(s) => self.now = Timestamp(self.now.0 + s * 1000),
            Act::Cut(most) => self.cut(most),
            Act::Revoke(partition) => {
                self.lanes.revoke(&[at(partition, 0).partition]);
                for model in &mut self.model {
                    model
                        .positions
                        .retain(|p| p.partition.number != partition as i32);
                }
                self.model.retain(|m| !m.positions.is_empty());
            }
        }
    }

    fn cut(&mut self, most: usize) {
        let before = self.model.clone();
        // A user once due stays due, also when the clock goes back a little.
        let due = self.model.iter().filter(|m| m.ready <= self.now).count();
        let batch = self.lanes.cut(self.now, most);
        assert!(
            batch.len() <= most && batch.len() >= due.min(most),
            "no idle places"
        );
        for work in &batch {
            let (place, found) = self.remove(work);
            let first = |m: &&Model| m.lane == found.lane && m.ready <= self.now;
            assert!(
                self.model[..place].iter().find(first).is_none(),
                "{before:?}: first in, first out"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_position_leaves_once_and_in_order(acts in acts()) {
        let mut world = World { lanes: lanes(), model: Vec::new(), now: NOON, next: 0 };
        for act in acts {
            world.act(act);
            let held: usize = world.model.iter().map(|m| m.positions.len()).sum();
            prop_assert_eq!(world.lanes.len(), world.model.len());
            prop_assert_eq!(world.lanes.room(), 10_000 - held);
            let next = world.model.iter().map(|m| m.ready.since(world.now)).min();
            prop_assert!(world.lanes.next_due(world.now) <= next);
        }
        world.now = world.now.after(seconds(86_400));
        while !world.lanes.is_empty() {
            world.cut(16);
        }
        prop_assert!(world.model.is_empty());
        prop_assert_eq!(world.lanes.next_due(world.now), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lanes_get_their_shares_to_within_one_place(
        shares in prop::array::uniform3(1u32..100), sizes in prop::collection::vec(1usize..17, 1..20),
    ) {
        let [urgent, live, backfill] = shares;
        let mut lanes = Lanes::new(Policy { urgent, live, backfill, ..Policy::default() });
        for n in 0..320 {
            for lane in LANES {
                let user = format!("{lane:?}{n}");
                lanes.offer(request(&user, lane, 0), at(lane as usize, n), NOON);
            }
        }
        let (mut served, mut all) = ([0f64; 3], 0.0);
        for size in sizes {
            for work in lanes.cut(NOON, size) {
                served[work.request.lane as usize] += 1.0;
                all += 1.0;
                for (served, share) in served.iter().zip(shares) {
                    let fair = all * f64::from(share) / f64::from(urgent + live + backfill);
                    prop_assert!((served - fair).abs() <= 1.0, "{} of {} for {}", served, fair, share);
                }
            }
        }
    }
}

#[test]
fn a_backfill_of_any_length_leaves_room_for_live() {
    let mut lanes = Lanes::new(Policy {
        unserved_max: 100,
        ..Policy::default()
    });
    let mut offered = 0;
    while lanes.wants_backfill() {
        let one = request(&format!("b{offered}"), Lane::Backfill, 0);
        lanes.offer(one, at(2, offered), NOON);
        offered += 1;
    }
    assert_eq!((offered, lanes.room()), (50, 50));
    // A backfill user with a live request moves to the live lane and counts there.
    lanes.offer(request("b0", Lane::Live, 0), at(1, 0), NOON);
    assert_eq!(lanes.len(), 50);
    assert!(!lanes.wants_backfill(), "48 of 50");
    let mut served = 0;
    while !lanes.wants_backfill() {
        served += lanes.cut(NOON, 1).len();
    }
    assert_eq!(served, 25, "the live one, and backfill down to half");
    lanes.clear();
    assert!(lanes.wants_backfill());
}
