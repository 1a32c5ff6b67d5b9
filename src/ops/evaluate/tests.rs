//! The protocol: nothing after a cut, and nothing of a held-out user, changes a list.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nearshore_core::learn::bootstrap::Random;
use nearshore_core::text::vectors::Vectors;
use serde_json::Value;

use super::align::{AlignOptions, Among};
use super::*;
use crate::ops::files::{Decoding, LogsSource};

const START: i64 = 1_700_006_400_000;
const PRODUCTS: usize = 12;
const DAYS: i64 = 180;

/// One purchase: time, user, SKU.
type Bought = (i64, usize, usize);

/// Purchases of users who each like two products, and all of whom buy the first one.
fn purchases(users: usize) -> Vec<Bought> {
    let mut random = Random::new(5);
    let mut bought = Vec::new();
    for user in 0..users {
        for day in 0..DAYS / 6 {
            let product = match random.below(4) {
                0 => 0,
                1 => 1 + user % 7,
                2 => 1 + (user + 1) % 7,
                _ => random.below(PRODUCTS),
            };
            let at = START + day * 6 * DAY + random.below(1_000_000) as i64;
            bought.push((at, user, product * 2 + random.below(2)));
        }
    }
    bought
}

fn catalogue(products: usize) -> String {
    let skus =
        (0..products * 2).map(|sku| format!("s{sku},PRODUCT {:02},9,C{}\n", sku / 2, sku / 8));
    format!("sku,pu,stock,category\n{}", skus.collect::<String>())
}

fn events(bought: &[Bought]) -> String {
    let mut text = "user,timestamp,type,sku\n".to_owned();
    for (at, user, sku) in bought {
        let _ = writeln!(text, "u{user},{at},purchase,s{sku}");
    }
    text
}

fn logs(events: &str, profiles: Option<&str>, catalogue: &str) -> Logs {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        vec![path]
    };
    let source = LogsSource {
        events: file("e.csv", events),
        profiles: profiles.map(|text| file("p.csv", text)).unwrap_or_default(),
        catalog: file("c.csv", catalogue),
    };
    let decoding = Decoding {
        topics: Default::default(),
        limits: Default::default(),
        ignore: Default::default(),
        naming: None,
    };
    Logs::default()
        .read(&source, &decoding, &ProgressBar::hidden())
        .expect("read")
}

fn order() -> Order {
    Order {
        cuts: Vec::new(),
        window: Duration::from_secs(40 * 86_400),
        visible: [0, 1, 3]
            .map(Visible::Products)
            .into_iter()
            .chain([Visible::More])
            .collect(),
        folds: 1,
        seed: 3,
        resamples: 100,
        curve: true,
        align: true,
        cold: 0.3,
        model_users: 0,
        encoder: None,
        table: None,
        baseline: BASELINE.to_owned(),
    }
}

fn config() -> Config {
    Config {
        segments: serde_json::from_value(serde_json::json!([
            {"id": "old", "when": [{"field": "age", "in": ["65+"]}]}
        ]))
        .expect("segments"),
        ..Config::default()
    }
}

fn profiles(users: usize, after: &str) -> String {
    let rows = (0..users).map(|user| {
        let age = if user % 3 == 0 { "65+" } else { "35-44" };
        format!("u{user},{START},{age}\n")
    });
    format!("user,timestamp,age\n{}{after}", rows.collect::<String>())
}

fn run(logs: Logs, order: &Order) -> anyhow::Result<Evaluation> {
    let progress = Progress {
        bar: ProgressBar::hidden(),
    };
    evaluate(logs, order, &config(), &progress)
}

/// The result without its times.
fn json(of: &Evaluation) -> String {
    let mut value = serde_json::to_value(of).expect("JSON");
    value.as_object_mut().expect("an object").remove("times");
    value.to_string()
}

fn route<'a>(cell: &'a Cell, name: &str) -> &'a measure::Summary {
    cell.routes
        .iter()
        .find(|it| it.route == name)
        .expect("the route")
}

/// Vectors that an encoder could have made of the names and of the profiles' values.
fn by_hash(history: &History) -> Vectors {
    let names = history.catalogue.pus().iter().map(|pu| pu.name.clone());
    let values = ["age 65+", "age 35-44"].map(str::to_owned);
    let mut vectors = Vectors::new("by hash", 4);
    for text in names.chain(values) {
        let number = |seed: u64| uniform(seed, &text) as f32 - 0.5;
        vectors
            .insert(&text, &[0, 1, 2, 3].map(number))
            .expect("fits");
    }
    vectors
}

/// A table that a model could have made of the names.
fn table_by_hash(history: &History) -> ProductTable {
    let pus = history.catalogue.pus();
    let products: Vec<String> = pus.iter().map(|pu| pu.id.to_string()).collect();
    let score = |of: &str, name: &str| -(uniform(3, &format!("{of} {name}")) as f32) * 9.0;
    let row = |of: &String| products.iter().map(|name| score(of, name)).collect();
    let scores: Vec<Vec<f32>> = products.iter().map(row).collect();
    ProductTable::build(Default::default(), products, &scores)
}

/// The list of each test user, visible history and route at a cut, with the user's state.
fn lists(logs: Logs, cut: i64) -> BTreeMap<(String, usize, String), (Vec<u32>, String)> {
    let (order, config) = (order(), config());
    let cuts = [Timestamp(cut)];
    let mut history = History::replay(logs, &config);
    history.read_texts(by_hash(&history));
    history.read_table(Arc::new(table_by_hash(&history)));
    let mut run = Run::new(&history, &order, &config, &cuts).expect("a run");
    let split = run.splits().expect("splits").remove(0);
    let train = split
        .train
        .iter()
        .map(|nth| &history.users[*nth as usize])
        .collect();
    let mut shop = run.shop(train, 0, false);
    let bar = indicatif::ProgressBar::hidden();
    let tuned = run.tuned(&split);
    run.align_all(&tuned, &mut shop, &Progress { bar })
        .expect("its own catalogue");
    assert!(shop.aligned.is_some());
    let mut lists = BTreeMap::new();
    for (visible, case) in run.cases(&split, &shop) {
        for route in run.routes.iter().filter(|route| route.can_rank(&shop)) {
            let ranked = route.rank(&[&case], &shop).expect("ranked").remove(0);
            let list = match ranked {
                routes::Ranked::Scores(scores) => {
                    top(&scores, 20, |it| case.permitted.contains(it as usize))
                }
                routes::Ranked::List(list) => list,
            };
            let user = case.request.user.0.to_string();
            let key = (user, visible, route.name().to_owned());
            lists.insert(key, (list, format!("{:?}", case.state)));
        }
    }
    lists
}

#[test]
fn permuting_what_comes_after_the_cut_changes_no_list() {
    let cut = START + 120 * DAY;
    let bought = purchases(60);
    let before = lists(
        logs(
            &events(&bought),
            Some(&profiles(60, "")),
            &catalogue(PRODUCTS),
        ),
        cut,
    );
    assert!(before.len() > 200, "{}", before.len());
    // Other products, other times, other profiles: all that comes after, shuffled.
    let mut random = Random::new(11);
    let mut after: Vec<usize> = (0..bought.len())
        .filter(|nth| bought[*nth].0 >= cut)
        .collect();
    let mut permuted = bought.clone();
    for nth in (1..after.len()).rev() {
        after.swap(nth, random.below(nth + 1));
    }
    let places: Vec<usize> = (0..bought.len())
        .filter(|nth| bought[*nth].0 >= cut)
        .collect();
    for (place, from) in places.iter().zip(&after) {
        permuted[*place].2 = bought[*from].2;
        permuted[*place].0 = cut + random.below(1 << 31) as i64;
    }
    assert_ne!(permuted, bought);
    let later = format!("u1,{},65+\nu2,{},65+\n", cut + 1, cut);
    let after = lists(
        logs(
            &events(&permuted),
            Some(&profiles(60, &later)),
            &catalogue(PRODUCTS),
        ),
        cut,
    );
    assert_eq!(before.len(), after.len());
    for (key, list) in &before {
        assert_eq!(Some(list), after.get(key), "{key:?}");
    }
    // What comes before does change lists: the comparison can fail.
    permuted[0].2 = (permuted[0].2 + 7) % (PRODUCTS * 2);
    permuted[1].2 = (permuted[1].2 + 7) % (PRODUCTS * 2);
    let other = lists(
        logs(
            &events(&permuted),
            Some(&profiles(60, "")),
            &catalogue(PRODUCTS),
        ),
        cut,
    );
    assert_ne!(before, other);
}

#[test]
fn records_of_test_users_change_no_list_of_others() {
    let cut = START + 120 * DAY;
    let bought = purchases(60);
    let all = || {
        logs(
            &events(&bought),
            Some(&profiles(60, "")),
            &catalogue(PRODUCTS),
        )
    };
    let before = lists(all(), cut);
    let mut users: Vec<&String> = before.keys().map(|(user, _, _)| user).collect();
    users.dedup();
    let tester: usize = users[0][1..].parse().expect("a number");
    let more = (0..500).map(|nth| (START + nth * 1000, tester, 7));
    let bought: Vec<Bought> = bought.iter().copied().chain(more).collect();
    let after = lists(
        logs(
            &events(&bought),
            Some(&profiles(60, "")),
            &catalogue(PRODUCTS),
        ),
        cut,
    );
    for (key, list) in before.iter().filter(|((user, _, _), _)| user != users[0]) {
        assert_eq!(Some(list), after.get(key), "{key:?}");
    }
}

#[test]
fn equal_orders_give_equal_results_on_any_number_of_threads() {
    let bought = purchases(60);
    let on = |threads: usize, bought: &[Bought]| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        let logs = logs(
            &events(bought),
            Some(&profiles(60, "")),
            &catalogue(PRODUCTS),
        );
        pool.install(|| json(&run(logs, &order()).expect("a result")))
    };
    let one = on(1, &bought);
    assert_eq!(one, on(3, &bought));
    // The order of rows does not matter either.
    let reversed: Vec<Bought> = bought.iter().rev().copied().collect();
    assert_eq!(one, on(2, &reversed));
}

#[test]
fn what_everyone_buys_is_found_by_demand_and_what_a_user_buys_again_by_repeat() {
    let logs = logs(
        &events(&purchases(200)),
        Some(&profiles(200, "")),
        &catalogue(PRODUCTS),
    );
    let found = run(logs, &order()).expect("a result");
    let all = found
        .cells
        .iter()
        .find(|it| it.visible == "3" && it.targets == Targets::All);
    let all = all.expect("a cell");
    let demand = route(all, BASELINE);
    let (random, both) = (route(all, "random"), route(all, "demand + repeat"));
    assert!(demand.recall[0].mean > random.recall[0].mean + 0.1);
    assert!(both.ndcg.mean > demand.ndcg.mean, "{both:?} {demand:?}");
    assert_eq!(found.illegal, 0);
    assert!(demand.nats.expect("nats").mean < random.nats.expect("nats").mean);
    let cold = found.cold.first().expect("cold products");
    assert!(
        cold.routes.iter().all(|it| it.recall[2].mean > 0.99),
        "fewer products than 20"
    );
    let sizes: Vec<usize> = found.curve.iter().map(|it| it.train_users).collect();
    assert!(sizes.contains(&0) && sizes.contains(&found.protocol.train_users));
}

#[test]
fn every_user_is_tested_once_with_folds() {
    let logs = logs(&events(&purchases(40)), None, &catalogue(PRODUCTS));
    let config = Config::default();
    let history = History::replay(logs, &config);
    let order = Order {
        folds: 5,
        ..order()
    };
    let cuts = [Timestamp(START + 120 * DAY)];
    let splits = Run::new(&history, &order, &config, &cuts)
        .expect("a run")
        .splits();
    let splits = splits.expect("splits");
    let mut tested: Vec<u32> = splits.iter().flat_map(|split| split.test.clone()).collect();
    tested.sort_unstable();
    assert_eq!(tested, (0..40).collect::<Vec<_>>());
    for split in &splits {
        assert!(split.train.iter().all(|nth| !split.test.contains(nth)));
        assert_eq!(split.train.len() + split.tune.len() + split.test.len(), 40);
    }
}

#[test]
fn visible_are_the_newest_records_of_at_most_so_many_products() {
    let (order, config) = (order(), config());
    let logs = logs(
        &events(&purchases(60)),
        Some(&profiles(60, "")),
        &catalogue(PRODUCTS),
    );
    let history = History::replay(logs, &config);
    let cuts = [Timestamp(START + 120 * DAY)];
    let mut run = Run::new(&history, &order, &config, &cuts).expect("a run");
    let split = run.splits().expect("splits").remove(0);
    let train = split
        .train
        .iter()
        .map(|nth| &history.users[*nth as usize])
        .collect();
    let shop = run.shop(train, 0, false);
    let mut seen = [0; 4];
    for (visible, case) in run.cases(&split, &shop) {
        seen[visible] += 1;
        assert!(case.state.profile.is_some());
        assert!(case.state.window.iter().all(|event| event.time < cuts[0]));
        let products = case.own.len();
        match order.visible[visible] {
            Visible::Products(n) => assert_eq!(products, n),
            Visible::More => assert!(products > 3),
        }
        let bought = &history.users[case.user as usize].bought;
        let newest = bought
            .iter()
            .rfind(|line| line.at < cuts[0].0)
            .expect("a purchase");
        let is_seen = case.own.iter().any(|own| own.pu == newest.product);
        assert_eq!(is_seen, products > 0);
        assert!(!case.targets.is_empty());
        let known = |product: &u32| {
            bought
                .iter()
                .any(|it| it.at < cuts[0].0 && it.product == *product)
        };
        assert!(!case.new_targets.iter().any(known));
    }
    assert!(seen.iter().all(|n| *n > 3), "{seen:?}");
}

fn refusal(logs: Logs, order: &Order) -> String {
    run(logs, order).expect_err("refused").to_string()
}

#[test]
fn a_log_from_which_nothing_can_be_measured_is_refused_with_advice() {
    let of = |users: usize| events(&purchases(users));
    let all = catalogue(PRODUCTS);
    let check = |found: String, expected: &str| assert!(found.contains(expected), "{found}");
    check(
        refusal(logs(&of(0), None, &all), &order()),
        "there is no purchase of a product",
    );
    check(
        refusal(logs(&of(1), None, &all), &order()),
        "1 user(s) with purchases cannot be split",
    );
    check(
        refusal(logs(&of(40), None, &catalogue(1)), &order()),
        "the catalogue has 1 product(s)",
    );
    check(
        refusal(logs(&of(40), None, "sku,pu,stock\n"), &order()),
        "the catalogue has 0 product(s)",
    );
    check(
        refusal(logs(&of(4), None, &all), &order()),
        "user with --seed 3, of 4 with purchases; give the logs",
    );
    let long = Order {
        window: Duration::from_secs(170 * 86_400),
        ..order()
    };
    check(
        refusal(logs(&of(40), None, &all), &long),
        "give a shorter --window, such as --window 5",
    );
    let late = Order {
        cuts: vec![Timestamp(START + 900 * DAY)],
        ..order()
    };
    check(
        refusal(logs(&of(40), None, &all), &late),
        "--cut 2026-05-03T00:00:00Z is not between",
    );
    let other = Order {
        baseline: "SKU counts".into(),
        ..order()
    };
    check(
        refusal(logs(&of(40), None, &all), &other),
        "--baseline \"SKU counts\" is not a route; the routes are: random; SKU count; ",
    );
    let named = "user,timestamp,years\nu1,1700006400000,65+\n";
    check(
        refusal(logs(&of(40), Some(named), &all), &order()),
        "segment \"old\" asks for the profile field \"age\", which none of 1 profiles has; correct the name, or the \
         profiles: they have years",
    );
}

#[test]
fn the_page_has_every_route_and_no_script_and_loads_nothing() {
    let logs = logs(
        &events(&purchases(60)),
        Some(&profiles(60, "")),
        &catalogue(PRODUCTS),
    );
    let found = run(logs, &order()).expect("a result");
    let page = crate::ops::report::evaluation(&found).expect("a page");
    for name in found.cells[0].routes.iter().map(|it| it.route.as_str()) {
        assert!(page.contains(&format!(">{}<", name)), "{name}");
    }
    assert!(page.contains("Learning curve") && page.contains("Cold products"));
    for absent in ["<script", "http://", "https://", "url(", "NaN"] {
        assert!(!page.contains(absent), "{absent}");
    }
    let text = text(&found);
    assert!(
        text.contains("demand + repeat") && text.contains("R@10 by train users"),
        "{text}"
    );
    let value: Value = serde_json::from_str(&json(&found)).expect("JSON");
    assert!(value["protocol"]["comparisons"].as_u64().expect("a number") > 100);
}

#[test]
fn reference_prompts_have_only_what_several_users_have() {
    let mut bought = purchases(40);
    // Two users alone buy the last product.
    bought.retain(|(_, user, sku)| *sku < 22 || *user < 2);
    let secret = "u1,1700006500000,saw a heron\n";
    let profiles = profiles(40, "").replace("u1,1700006400000,35-44\n", secret);
    let logs = logs(&events(&bought), Some(&profiles), &catalogue(PRODUCTS));
    let history = History::replay(logs, &config());
    let among = Among {
        users: history.users.iter().collect(),
        until: Timestamp(START + DAYS * DAY),
    };
    let population = references::Population::of(&history, &among, &AlignOptions::default());
    let mut names = std::collections::BTreeSet::new();
    for visible in [0, 1, 3, 10] {
        let people = population.people(visible);
        assert!(people.len() >= 8);
        for person in people {
            assert_eq!(person.bought.len(), visible);
            assert!(
                person
                    .profile
                    .values()
                    .all(|age| age == "65+" || age == "35-44")
            );
            assert!(["old", "default"].contains(&person.segment.as_str()));
            names.extend(person.bought);
        }
    }
    assert!(
        !names.contains("PRODUCT 11") && names.len() > 9,
        "{names:?}"
    );
}
