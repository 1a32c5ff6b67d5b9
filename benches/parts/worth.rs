//! What a fifth of the model's time earns, by the order in which users wait for it: a generate member in this process
//! on a real Kafka and a real Redis, with a stand-in for the model that knows what some users buy next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nearshore::members::clock::wall_clock;
use nearshore::members::generate::{Generate, GenerateSettings, LoadedArm, Ranking, Scorer};
use nearshore::members::records::request_record;
use nearshore_core::list::document::{Document, Stage};
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::prompt::Template;
use nearshore_core::list::terms::{BUCKETS, Weights};
use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse, ScoredName};
use nearshore_core::ports::log::Delivery;
use nearshore_core::ports::store::{FoldWrite, ListEdit, Users};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Accepted, Change, Event, Item, Kind, Profile, UserId};
use nearshore_core::user::fold::fold;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::{Activity, UserState};
use nearshore_core::user::trigger::{Lane, Reason, Request};
use nearshore_kafka::KafkaLog;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::process::{LIMIT, Site, now};
use crate::{Options, machine};

const PRODUCTS: usize = 400;
const NAMES: usize = 10;
/// Model time of a user.
const COST: Duration = Duration::from_millis(5);
/// Users of a question to the model.
const BATCH: usize = 16;

/// Users with as much visible history.
struct Part {
    /// Share of all users.
    share: f64,
    /// Share of them of whom the model knows what they buy next.
    known: f64,
    /// How many products they buy next.
    next: usize,
}

/// The users by [`BUCKETS`]. The model knows of 30 % of all what they buy next, mostly of new users.
const PARTS: [Part; BUCKETS.len()] = [
    Part {
        share: 0.18,
        known: 0.95,
        next: 4,
    },
    Part {
        share: 0.12,
        known: 0.5,
        next: 1,
    },
    Part {
        share: 0.25,
        known: 0.1,
        next: 1,
    },
    Part {
        share: 0.2,
        known: 0.1,
        next: 1,
    },
    Part {
        share: 0.15,
        known: 0.1,
        next: 1,
    },
    Part {
        share: 0.1,
        known: 0.1,
        next: 1,
    },
];

/// Prints what is earned by measured gains with noise, by the true ones, and without any.
pub async fn run(options: &Options) {
    let users = users(options.number("model-users", 4_000));
    let known = users.iter().filter(|user| user.known).count();
    println!(
        "a fifth of the model's time: {} users, the model knows what {:.0} % of them buy next; {}",
        users.len(),
        known as f64 * 100.0 / users.len() as f64,
        machine()
    );
    let mut random = StdRng::seed_from_u64(4);
    let truth = BUCKETS.map(|least| true_gain(&users, least));
    let noisy = truth.map(|gain| gain * random.random_range(0.5..1.5));
    for (how, gains) in [
        (
            "gains as measured, with an error of up to 50 %",
            Some(noisy),
        ),
        ("true gains of the buckets", Some(truth)),
        ("no gains: by arrival", None),
    ] {
        let (earned, covered) = earned(&users, gains).await;
        println!(
            "  {how}: {:.1} % of the gain, coverage {:.2} %",
            earned * 100.0,
            covered * 100.0
        );
    }
}

/// A user whose next products may be known.
struct User {
    id: String,
    least: usize,
    known: bool,
    next: Vec<usize>,
}

fn users(all: usize) -> Vec<User> {
    let mut random = StdRng::seed_from_u64(2);
    let mut users = Vec::new();
    for (part, least) in PARTS.iter().zip(BUCKETS) {
        for _ in 0..(part.share * all as f64) as usize {
            users.push(User {
                id: format!("u{}", users.len()),
                least,
                known: random.random_bool(part.known),
                // The fallback and the list by demand have the first products by id.
                next: (0..part.next)
                    .map(|nth| random.random_range(100..PRODUCTS - 4) + nth)
                    .collect(),
            });
        }
    }
    // They arrive in no order.
    users.shuffle(&mut random);
    users
}

fn worth(user: &User) -> usize {
    if user.known { user.next.len() } else { 0 }
}

/// What the model adds to the mean user of a bucket.
fn true_gain(users: &[User], least: usize) -> f64 {
    let of: Vec<usize> = users
        .iter()
        .filter(|user| user.least == least)
        .map(worth)
        .collect();
    of.iter().sum::<usize>() as f64 / of.len().max(1) as f64
}

/// Share of all gain that is on lists after a fifth of the model's time, and share of the users with a list.
async fn earned(users: &[User], gains: Option<[f64; BUCKETS.len()]>) -> (f64, f64) {
    let site = Site::open(&[]).await;
    write_states(&site, users).await;
    let (asked, open) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let model = StandIn {
        next: users
            .iter()
            .filter(|user| user.known)
            .map(|user| (user.id.clone(), user.next.clone()))
            .collect(),
        asked: asked.clone(),
        open: open.clone(),
        most: users.len() / 5,
    };
    let group = site.settings.group("generate");
    let log = KafkaLog::join(
        &site.settings,
        &group,
        &site.topics.lanes().each_ref().map(|lane| &**lane),
    );
    let mut member = Generate::new(
        log.expect("valid settings"),
        site.store.clone(),
        Arc::new(ArcSwap::from_pointee(snapshot())),
        vec![arm(model, gains)],
        settings(&site, group),
    );
    member.warm().await;
    let records = users
        .iter()
        .map(|user| request_record(&site.topics, &request(&site, user)));
    site.producer
        .send(records.collect())
        .await
        .expect("written");
    let mut published = 0;
    let run = async {
        // The order is one of users in memory: the model answers once every user has a list and waits.
        while asked.load(Ordering::Relaxed) < users.len() / 5 {
            published += step(&mut member).await;
            open.store(published >= users.len() as u64, Ordering::Relaxed);
        }
        // The last answers are published.
        for _ in 0..200 {
            step(&mut member).await;
        }
    };
    tokio::time::timeout(LIMIT * 4, run).await.expect("it ends");
    earned_of(&site, users).await
}

/// Of the users' stored lists: share of all gain that is on lists of the model, and share of the users with a list.
async fn earned_of(site: &Site, users: &[User]) -> (f64, f64) {
    let ids: Vec<UserId> = users
        .iter()
        .map(|user| UserId(user.id.as_str().into()))
        .collect();
    let peeks = site
        .store
        .peek(&site.ns, &ids)
        .await
        .expect("Redis answers");
    let lists: Vec<_> = peeks.into_iter().map(|peek| peek.list).collect();
    let covered = lists.iter().flatten().count();
    let mut found = 0;
    for (user, list) in users.iter().zip(&lists) {
        let Some(list) = list.as_ref().filter(|list| list.stage == Stage::Model) else {
            continue;
        };
        let document = Document::parse(&list.doc).expect("a document");
        let has = |next: &&usize| document.pus.iter().any(|pu| pu.name == name(**next));
        found += user.next.iter().filter(has).count();
    }
    let all: usize = users.iter().map(worth).sum();
    (
        found as f64 / all as f64,
        covered as f64 / users.len() as f64,
    )
}

/// Takes what the log has, and serves once. Returns how many lists were published.
async fn step(member: &mut Generate<KafkaLog, nearshore_redis::RedisStore, StandIn>) -> u64 {
    let waited = tokio::time::timeout(Duration::from_millis(2), member.wait()).await;
    match waited.map(|delivery| delivery.expect("Kafka answers")) {
        Ok(Some(Delivery::Batch(batch))) => {
            member
                .receive(&batch, wall_clock())
                .await
                .expect("requests");
        }
        Ok(Some(Delivery::Assigned(partitions))) => member.assigned(&partitions),
        Ok(Some(Delivery::Revoked { partitions, .. })) => member.revoked(&partitions),
        Ok(None) | Err(_) => {}
    }
    member.turn(wall_clock()).await.expect("a turn").published
}

/// Writes the users' states as ingest would: with as many products bought as their bucket has.
async fn write_states(site: &Site, users: &[User]) {
    for some in users.chunks(500) {
        let writes = some.iter().map(|user| FoldWrite {
            user: UserId(user.id.as_str().into()),
            expected: 0,
            state: state(user),
            activity: Activity::default(),
            profile_changed: true,
            list: ListEdit::Keep,
        });
        let writes: Vec<FoldWrite> = writes.collect();
        site.store
            .fold(&site.ns, &writes)
            .await
            .expect("Redis answers");
    }
}

fn state(user: &User) -> UserState {
    let mut state = UserState::default();
    let profile = Profile([("code".to_owned(), json!(user.id))].into());
    let bought = |sku: usize| {
        Change::Event(Event {
            kind: Kind::Purchase,
            item: Item::Sku(format!("s{sku}")),
            qty: 1,
            price: None,
            ts: None,
            shown_in: None,
        })
    };
    let changes = [Change::Profile(profile)]
        .into_iter()
        .chain((0..user.least).map(bought));
    for (nth, change) in changes.enumerate() {
        let record = Accepted {
            user: UserId(user.id.as_str().into()),
            position: format!("0/t/0:{nth}").parse().expect("a position"),
            time: Timestamp(now().0 - 1_000 + nth as i64),
            change,
        };
        fold(&mut state, &record, 50);
    }
    state
}

fn request(site: &Site, user: &User) -> Request {
    Request {
        v: 1,
        ns: site.ns.clone(),
        user: UserId(user.id.as_str().into()),
        reason: Reason::Activity,
        source: Some("0/t/0:0".parse().expect("a position")),
        time: now(),
        due: now(),
        lane: Lane::Live,
        force: false,
    }
}

fn name(product: usize) -> String {
    format!("PRODUCT {product:03}")
}

fn snapshot() -> Snapshot {
    let mut catalogue = Catalogue::default();
    for nth in 0..PRODUCTS {
        let sku = json!({
            "sku": format!("s{nth}"), "pu_id": name(nth), "pu": name(nth), "category": "all", "title": "a product",
            "stock": 5, "price": null, "attributes": {},
        });
        let sku = serde_json::from_value(sku).expect("a SKU");
        catalogue.apply(format!("s{nth}"), Some(sku));
    }
    let catalogue = Arc::new(catalogue);
    let demand = Demand::build([], &catalogue, &Default::default(), Timestamp(0));
    let parts = SnapshotParts {
        rules: Arc::new(Table::compile(&[], &[], &catalogue)),
        demand: Arc::new(demand),
        merchant: Arc::default(),
        catalogue,
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: NAMES,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn arm(engine: StandIn, gains: Option<[f64; BUCKETS.len()]>) -> LoadedArm<StandIn> {
    let arm = json!({"id": "a", "epoch": 1, "template": "t.j2", "model": "none", "names": NAMES});
    let weights = [("demand".to_owned(), 1.0), ("model".to_owned(), 1.0)].into();
    let weights = Weights::by_hand(&weights).expect("weights");
    LoadedArm {
        arm: serde_json::from_value(arm).expect("an arm"),
        ranking: Ranking {
            weights: match gains {
                Some(gains) => weights.with_gains(gains),
                None => weights,
            },
            ..Default::default()
        }
        .into(),
        renewed: Default::default(),
        new_texts: None,
        template: Template::load("{{ profile.code }}", "t.j2").expect("a template"),
        info: Default::default(),
        tokenizer: "words".into(),
        count: Arc::new(str::len),
        engine,
    }
}

fn settings(site: &Site, group: String) -> GenerateSettings {
    GenerateSettings {
        group,
        topics: site.topics.clone(),
        lanes: nearshore_core::queue::lanes::Policy {
            batch_max: BATCH,
            ..Default::default()
        },
        arm_seed: "a".into(),
        selection: Default::default(),
        needs: Default::default(),
        texts: None,
        audits_kept: 0.0,
        candidates: 0.0,
        clock: wall_clock,
    }
}

/// A model that names what a user buys next if it knows it, and the last products if not. It takes its time.
struct StandIn {
    next: BTreeMap<String, Vec<usize>>,
    asked: Arc<AtomicUsize>,
    /// Whether it has begun.
    open: Arc<AtomicBool>,
    /// How many users it answers; then its time is over.
    most: usize,
}

impl Scorer for StandIn {
    async fn set_names(&self, _: Arc<Names>) -> Result<(), nearshore_engine::Error> {
        Ok(())
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, nearshore_engine::Error> {
        if requests.iter().any(|request| request.prompt.user == "warm") {
            return Ok(vec![ScoreResponse::default(); requests.len()]);
        }
        while !self.open.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = self.asked.fetch_add(requests.len(), Ordering::Relaxed);
        if before >= self.most {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(COST * requests.len() as u32).await;
        Ok(requests
            .iter()
            .map(|request| self.answer(request))
            .collect())
    }
}

impl StandIn {
    fn answer(&self, request: &ScoreRequest) -> ScoreResponse {
        let next = self.next.get(request.prompt.user.trim());
        let others = (0..PRODUCTS).rev();
        let named = next.into_iter().flatten().copied().chain(others);
        let mut seen = std::collections::BTreeSet::new();
        let distinct = named.filter(|product| seen.insert(*product));
        let named = distinct
            .take(request.n)
            .enumerate()
            .map(|(rank, product)| ScoredName {
                pu: product as u32,
                score: -(rank as f32),
                model: -(rank as f32),
                terms: vec![0.0; request.terms.len()],
            });
        ScoreResponse {
            named: named.collect(),
            ..ScoreResponse::default()
        }
    }
}
