//! Laws of the search: it equals brute force over the names, without a trie, and a score is the sum of its terms.

use super::*;
use crate::names::trie::Sequences;
use fixedbitset::FixedBitSet;
use proptest::prelude::*;

const END: u32 = 9;

/// The model of these tests: a value from the whole path of a token.
fn hashed(path: &[u32], seed: u32) -> f32 {
    let hash = path.iter().fold(seed, |hash, token| {
        (hash ^ token).wrapping_mul(0x0100_0193).rotate_left(7)
    });
    (hash >> 12) as f32 / (1 << 18) as f32 - 2.0
}

fn logit(path: &[u32]) -> f32 {
    hashed(path, 0x811c_9dc5)
}

fn build(names: &[Vec<u32>]) -> Trie {
    let mut sequences = Sequences::new(END);
    names.iter().for_each(|name| sequences.push(name));
    Trie::build(&sequences)
}

/// Answers waves as an engine does: by the tokens before each node, found by the parents' paths.
#[derive(Default)]
struct Engine {
    paths: Vec<Vec<u32>>,
    waves: usize,
    rows: usize,
}

impl Engine {
    fn run(search: &mut Search, rows_max: usize, mean: impl Fn(&[u32]) -> f32) -> Self {
        let mut engine = Self::default();
        while let Some(wave) = search.next_wave(rows_max) {
            let (mut logits, mut means) = (Vec::new(), Vec::new());
            for node in &wave.nodes {
                assert_eq!(node.id as usize, engine.paths.len(), "ids count up");
                let parent = node.parent.map_or(&[][..], |id| &engine.paths[id as usize]);
                let path = [parent, &node.chain].concat();
                for token in &node.children {
                    let path = [&path[..], &[*token]].concat();
                    logits.push(logit(&path));
                    means.push(mean(&path));
                }
                engine.rows += node.chain.len();
                engine.paths.push(path);
            }
            engine.waves += 1;
            search.feed(&logits, &means);
        }
        engine
    }
}

#[derive(Clone, Debug)]
struct Case {
    names: Vec<Vec<u32>>,
    permitted: Option<Vec<bool>>,
    n: usize,
    weight: f64,
    /// Weighted tables of log-weights per PU.
    tables: Vec<(f64, Vec<f64>)>,
    /// Log-weights of one user.
    own: Vec<(u32, f64)>,
    means: bool,
    rows_max: usize,
}

impl Case {
    fn is_permitted(&self, pu: usize) -> bool {
        self.permitted.as_ref().is_none_or(|bits| bits[pu])
    }

    fn mean(&self, path: &[u32]) -> f32 {
        if self.means { hashed(path, 77) } else { 0.0 }
    }

    /// Sum of the weighted tables of a PU.
    fn table(&self, pu: u32) -> f64 {
        let tables = self.tables.iter();
        tables
            .map(|(weight, logs)| weight * logs[pu as usize])
            .sum()
    }

    /// Sum of all terms beside the model's.
    fn terms(&self, pu: u32) -> f64 {
        let own = self.own.iter().filter(|(of, _)| *of == pu);
        self.table(pu) + own.map(|(_, log)| log).sum::<f64>()
    }

    fn search(&self) -> Vec<Found> {
        let trie = build(&self.names);
        let permitted = self.permitted.as_ref().map(|bits| {
            let ones = bits.iter().enumerate().filter(|(_, bit)| **bit);
            let pus: FixedBitSet = ones.map(|(pu, _)| pu).collect();
            Arc::new(Permitted::new(&trie, &pus))
        });
        let has_terms = !self.tables.is_empty() || !self.own.is_empty();
        let terms = has_terms.then(|| Terms {
            weights: Arc::new(LogWeights::new(&trie, |pu| self.table(pu))),
            own: Own::new(&trie, self.own.iter().copied()),
        });
        let question = Question {
            permitted,
            n: self.n,
            weight: self.weight,
            terms,
        };
        let mut search = Search::new(&trie, question);
        let engine = Engine::run(&mut search, self.rows_max, |path| self.mean(path));
        assert!(
            self.weight > 0.0 || engine.waves == 0,
            "weight 0 asks no model"
        );
        assert!(search.is_proven());
        search.into_answer()
    }

    /// Every permitted name with its score, by prefixes of the names themselves: no trie.
    fn brute_force(&self) -> Vec<Found> {
        let all: Vec<usize> = (0..self.names.len())
            .filter(|pu| self.is_permitted(*pu))
            .collect();
        let mut found: Vec<Found> = all.iter().map(|pu| self.scored(*pu, &all)).collect();
        found.sort_by(|a, b| b.cmp(a));
        found.truncate(self.n);
        found
    }

    fn scored(&self, pu: usize, all: &[usize]) -> Found {
        let ended = |pu: usize| [self.names[pu].as_slice(), &[END]].concat();
        let name = ended(pu);
        let mut model = 0.0;
        for depth in 0..name.len() {
            let under = (all.iter()).filter(|other| ended(**other).starts_with(&name[..depth]));
            let mut tokens: Vec<u32> = under.map(|other| ended(*other)[depth]).collect();
            tokens.sort_unstable();
            tokens.dedup();
            let of = |token: u32| {
                let path = [&name[..depth], &[token]].concat();
                f64::from(logit(&path)) - f64::from(self.mean(&path))
            };
            model += of(name[depth]) - log_sum(tokens.into_iter().map(of));
        }
        let model = if self.weight == 0.0 { 0.0 } else { model };
        Found {
            pu: pu as u32,
            score: self.weight * model + self.terms(pu as u32),
            model,
        }
    }
}

fn log_sum(x: impl Iterator<Item = f64>) -> f64 {
    x.map(f64::exp).sum::<f64>().ln()
}

fn cases() -> impl Strategy<Value = Case> {
    let names = prop::collection::vec(prop::collection::vec(0u32..4, 0..6), 0..40);
    let weight = prop_oneof![Just(0.0), Just(1.0), 0.01..3.0];
    let rest = (0usize..45, weight, any::<bool>(), 1usize..20);
    (names, rest).prop_flat_map(|(names, (n, weight, means, rows_max))| {
        let bits = prop::collection::vec(any::<bool>(), names.len());
        // Eighths are exact, so that sums tie where they should.
        let logs =
            prop::collection::vec((-64i32..40).prop_map(|n| f64::from(n) / 8.0), names.len());
        let tables = prop::collection::vec(
            (prop::sample::select(vec![-0.5, 0.5, 1.0, 2.0]), logs),
            0..3,
        );
        let own = (-64i32..64).prop_map(|n| f64::from(n) / 8.0);
        let own = prop::collection::vec((0..40u32, own), 0..6);
        (prop::option::of(bits), tables, own).prop_map(move |(permitted, tables, own)| Case {
            names: names.clone(),
            permitted,
            n,
            weight,
            tables,
            own,
            means,
            rows_max,
        })
    })
}

/// Checks that two lists are equal except for the order of names whose scores differ by rounding alone.
fn check(found: &[Found], expected: &[Found], all: &[Found]) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len());
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    for (found, expected) in found.iter().zip(expected) {
        prop_assert!(near(found.score, expected.score), "{found:?} {expected:?}");
        let own = all.iter().find(|name| name.pu == found.pu);
        let own = own.expect("found names are permitted");
        prop_assert!(near(found.score, own.score), "{found:?} {own:?}");
        prop_assert!(near(found.model, own.model), "{found:?} {own:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn search_equals_brute_force(case in cases()) {
        let all = Case { n: case.names.len(), ..case.clone() }.brute_force();
        check(&case.search(), &case.brute_force(), &all)?;
    }

    #[test]
    fn a_shorter_list_is_a_prefix_of_a_longer_one_bit_for_bit_for_any_waves(
        case in cases(), rows_max in 1usize..200,
    ) {
        let longer = Case { n: case.names.len(), rows_max, ..case.clone() }.search();
        let found = case.search();
        prop_assert_eq!(&found[..], &longer[..found.len()]);
    }

    #[test]
    fn names_are_distinct_permitted_and_complete(case in cases()) {
        let found = case.search();
        let mut pus: Vec<u32> = found.iter().map(|found| found.pu).collect();
        pus.sort_unstable();
        pus.dedup();
        prop_assert_eq!(pus.len(), found.len());
        prop_assert!(found.iter().all(|found| case.is_permitted(found.pu as usize)));
        let permitted = (0..case.names.len()).filter(|pu| case.is_permitted(*pu)).count();
        prop_assert_eq!(found.len(), case.n.min(permitted));
        prop_assert!(found.is_sorted_by(|a, b| a > b), "best first, ties by PU");
    }

    #[test]
    fn at_weight_0_the_list_is_exactly_the_order_of_the_terms(case in cases()) {
        let case = Case { weight: 0.0, ..case };
        prop_assert_eq!(case.search(), case.brute_force());
    }

    #[test]
    fn a_term_adds_its_own_value_to_a_name_and_nothing_to_others(
        case in cases(), pu in 0u32..40, log in -9f64..9.0,
    ) {
        let all = Case { n: case.names.len(), ..case };
        let before = all.search();
        let mut with = all;
        with.own.push((pu, log));
        for found in with.search() {
            let same = before.iter().find(|before| before.pu == found.pu);
            let same = same.expect("the same names");
            prop_assert_eq!(found.model, same.model);
            let more = if found.pu == pu { log } else { 0.0 };
            prop_assert!((found.score - same.score - more).abs() < 1e-9);
        }
    }
}

/// A case without terms over these names.
fn plain(names: Vec<Vec<u32>>, n: usize) -> Case {
    Case {
        names,
        permitted: None,
        n,
        weight: 1.0,
        tables: Vec::new(),
        own: Vec::new(),
        means: false,
        rows_max: 8,
    }
}

#[test]
fn a_wanted_name_gains_its_demand_whatever_its_first_token_is() {
    // Many names under each first token, of which the model chooses one much more rarely than the other.
    let names: Vec<Vec<u32>> = (0..40).map(|nth| vec![nth % 2, nth]).collect();
    let rare = u32::from(logit(&[0]) > logit(&[1]));
    let case = plain(names, 40);
    let before = case.search();
    let demand = |wanted: u32| {
        let logs = (0..40).map(|pu| if pu == wanted { 5.0 } else { 0.0 });
        vec![(1.0, logs.collect())]
    };
    for wanted in [rare, 1 - rare] {
        let with = Case {
            tables: demand(wanted),
            ..case.clone()
        };
        let score = |list: &[Found]| list.iter().find(|found| found.pu == wanted).cloned();
        let (before, after) = (score(&before), score(&with.search()));
        let (before, after) = (before.expect("found"), after.expect("found"));
        assert!((after.score - before.score - 5.0).abs() < 1e-9);
    }
}

#[test]
fn names_with_the_same_tokens_have_the_same_term_of_the_model() {
    let found = plain(vec![vec![1, 2], vec![1, 2], vec![3]], 3).search();
    let of = |pu: u32| found.iter().find(|found| found.pu == pu).map(|f| f.model);
    assert_eq!(of(0), of(1));
    let apart = plain(vec![vec![1, 2], vec![3]], 2).search();
    let alone = apart.iter().find(|found| found.pu == 0).map(|f| f.model);
    assert_eq!(of(0), alone, "a second product of a name takes nothing");
}

#[test]
fn equal_scores_are_in_pu_order_and_names_with_equal_tokens_stay_two() {
    let names = vec![vec![1, 2], vec![1], vec![1, 2], vec![1, 2]];
    let case = Case {
        permitted: Some(vec![true, false, true, true]),
        tables: vec![(1.0, vec![1.0; 4])],
        ..plain(names, 2)
    };
    let pus: Vec<u32> = case.search().iter().map(|found| found.pu).collect();
    assert_eq!(pus, [0, 2]);
}

#[test]
fn a_chain_is_forwarded_once_and_never_to_a_leaf() {
    let trie = build(&[vec![1, 2, 3, 4], vec![1, 2, 3, 5], vec![6, 7, 8]]);
    let question = Question {
        n: 3,
        weight: 1.0,
        ..Question::default()
    };
    let mut search = Search::new(&trie, question);
    let engine = Engine::run(&mut search, 100, |_| 0.0);
    assert_eq!(engine.paths, [vec![], vec![1, 2, 3]]);
    assert_eq!((engine.waves, engine.rows), (2, 3));
}

#[test]
fn nodes_that_cannot_lead_to_the_n_best_are_not_expanded() {
    let names: Vec<Vec<u32>> = (0..64).map(|i| vec![i % 8, 1, i / 8 % 8]).collect();
    let trie = build(&names);
    let question = Question {
        n: 1,
        weight: 20.0,
        ..Question::default()
    };
    let mut search = Search::new(&trie, question);
    // One row per wave is strictly best first, so a confident model is run along one path.
    let engine = Engine::run(&mut search, 1, |_| 0.0);
    assert!(engine.paths.len() < 9, "{:?}", engine.paths);
}
