//! Laws of the search: equal to brute force over the names themselves, without a trie.

use super::*;
use proptest::prelude::*;

const END: u32 = 9;

/// The model of these tests: a logit from a token's whole path.
fn logit(path: &[u32]) -> f32 {
    let hash = path.iter().fold(0x811c_9dc5_u32, |hash, token| {
        (hash ^ token).wrapping_mul(0x0100_0193).rotate_left(7)
    });
    (hash >> 12) as f32 / (1 << 18) as f32 - 2.0
}

/// Answers waves as an engine would: by the tokens before each node, from parents' paths.
struct Engine {
    paths: Vec<Vec<u32>>,
    waves: usize,
    rows: usize,
}

impl Engine {
    fn run(search: &mut Search, rows_max: usize) -> Self {
        let (paths, waves, rows) = (Vec::new(), 0, 0);
        let mut engine = Self { paths, waves, rows };
        while let Some(wave) = search.next_wave(rows_max) {
            let mut logits = Vec::new();
            for node in &wave.nodes {
                assert_eq!(node.id as usize, engine.paths.len(), "ids count up");
                let parent = node.parent.map_or(&[][..], |id| &engine.paths[id as usize]);
                let path = [parent, &node.chain].concat();
                logits.extend(
                    node.children
                        .iter()
                        .map(|t| logit(&[&path, &[*t][..]].concat())),
                );
                engine.rows += node.chain.len();
                engine.paths.push(path);
            }
            engine.waves += 1;
            search.feed(&logits);
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
    terms: Vec<(f64, Vec<f32>)>,
    rows_max: usize,
}

impl Case {
    fn is_permitted(&self, pu: usize) -> bool {
        self.permitted.as_ref().is_none_or(|bits| bits[pu])
    }

    fn search(&self) -> Vec<Found> {
        let trie = Trie::build(&self.names, END);
        let bits = self.permitted.as_ref().map(|bits| {
            let ones = bits.iter().enumerate().filter(|(_, bit)| **bit);
            trie.by_leaf(&ones.map(|(pu, _)| pu).collect())
        });
        let lean = |(weight, mass): &'_ (f64, Vec<f32>)| (*weight, mass.clone());
        let terms: Vec<_> = self.terms.iter().map(lean).collect();
        let question = Question {
            permitted: bits,
            n: self.n,
            weight: self.weight,
            terms: (terms.iter())
                .map(|(weight, mass)| Leaning {
                    weight: *weight,
                    mass,
                })
                .collect(),
        };
        let mut search = Search::new(&trie, question);
        Engine::run(&mut search, self.rows_max);
        search.into_answer()
    }

    /// Every permitted name with its score, by prefixes of the names themselves: no trie.
    fn brute_force(&self) -> Vec<Found> {
        let ended = |pu: usize| [self.names[pu].as_slice(), &[END]].concat();
        let all: Vec<usize> = (0..self.names.len())
            .filter(|pu| self.is_permitted(*pu))
            .collect();
        let mut found: Vec<Found> = (all.iter())
            .map(|pu| {
                let name = ended(*pu);
                let (mut score, mut model) = (0.0, 0.0);
                for depth in 0..name.len() {
                    let under: Vec<usize> = (all.iter().copied())
                        .filter(|other| ended(*other).starts_with(&name[..depth]))
                        .collect();
                    let mut tokens: Vec<u32> = under.iter().map(|p| ended(*p)[depth]).collect();
                    tokens.sort_unstable();
                    tokens.dedup();
                    let of = |token: u32| {
                        let path = [&name[..depth], &[token]].concat();
                        let below = (under.iter().copied()).filter(|p| ended(*p)[depth] == token);
                        (
                            f64::from(logit(&path)),
                            self.mixed(f64::from(logit(&path)), below),
                        )
                    };
                    let own = of(name[depth]);
                    model += own.0 - log_sum(tokens.iter().map(|token| of(*token).0));
                    score += own.1 - log_sum(tokens.iter().map(|token| of(*token).1));
                }
                let alike: Vec<usize> = all.iter().copied().filter(|p| ended(*p) == name).collect();
                model -= (alike.len() as f64).ln();
                score += self.mixed(0.0, [*pu].into_iter())
                    - log_sum(alike.iter().map(|pu| self.mixed(0.0, [*pu].into_iter())));
                let model = if self.weight == 0.0 { 0.0 } else { model };
                Found {
                    pu: *pu as u32,
                    score,
                    model,
                }
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.truncate(self.n);
        found
    }

    fn mixed(&self, logit: f64, pus: impl Iterator<Item = usize> + Clone) -> f64 {
        let terms = self.terms.iter().map(|(weight, mass)| {
            weight * pus.clone().map(|pu| f64::from(mass[pu])).sum::<f64>().ln()
        });
        self.weight * logit + terms.sum::<f64>()
    }
}

fn log_sum(x: impl Iterator<Item = f64>) -> f64 {
    x.map(f64::exp).sum::<f64>().ln()
}

fn cases() -> impl Strategy<Value = Case> {
    let names = prop::collection::vec(prop::collection::vec(0u32..4, 0..6), 0..40);
    (
        names,
        0usize..45,
        prop::sample::select(vec![0.0, 0.5, 1.0]),
        1usize..20,
    )
        .prop_flat_map(|(names, n, weight, rows_max)| {
            let bits = prop::collection::vec(any::<bool>(), names.len());
            let mass = prop::collection::vec(0.01f32..10.0, names.len());
            let terms = prop::collection::vec((-1f64..2.0, mass), 0..3);
            (prop::option::of(bits), terms).prop_map(move |(permitted, terms)| Case {
                names: names.clone(),
                permitted,
                n,
                weight,
                terms,
                rows_max,
            })
        })
}

proptest! {
    #[test]
    fn search_equals_brute_force(case in cases()) {
        let (found, expected) = (case.search(), case.brute_force());
        prop_assert_eq!(found.len(), expected.len());
        let all = Case { n: case.names.len(), ..case.clone() }.brute_force();
        for (found, expected) in found.iter().zip(&expected) {
            // Where rounding decides between two names, either may stand here.
            prop_assert!((found.score - expected.score).abs() < 1e-9, "{found:?} {expected:?}");
            let own = all.iter().find(|name| name.pu == found.pu).expect("permitted");
            prop_assert!((found.score - own.score).abs() < 1e-9, "{found:?} {own:?}");
            prop_assert!((found.model - own.model).abs() < 1e-9, "{found:?} {own:?}");
        }
    }

    #[test]
    fn names_are_distinct_legal_and_as_many_as_there_are(case in cases()) {
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
    fn all_names_together_are_a_distribution(case in cases()) {
        let found = Case { n: case.names.len(), ..case }.search();
        let sum: f64 = found.iter().map(|found| found.score.exp()).sum();
        prop_assert!(found.is_empty() || (sum - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn weight_0_and_one_term_are_the_demand(case in cases(), seed in any::<u64>()) {
        let mass: Vec<f32> = (0..case.names.len() as u64)
            .map(|pu| (pu.wrapping_mul(seed | 1) % 1009) as f32 + 1.0)
            .collect();
        let case = Case { weight: 0.0, terms: vec![(1.0, mass.clone())], ..case };
        let mut order: Vec<usize> =
            (0..mass.len()).filter(|pu| case.is_permitted(*pu)).collect();
        let total: f64 = order.iter().map(|pu| f64::from(mass[*pu])).sum();
        order.sort_by(|a, b| mass[*b].total_cmp(&mass[*a]));
        for (found, pu) in case.search().iter().zip(order) {
            prop_assert!((found.score - (f64::from(mass[pu]) / total).ln()).abs() < 1e-9);
            prop_assert_eq!(mass[found.pu as usize], mass[pu]);
        }
    }
}

#[test]
fn equal_scores_come_in_pu_order_and_names_alike_stay_two() {
    let names = vec![vec![1, 2], vec![1], vec![1, 2], vec![1, 2]];
    let mass = vec![1.0; 4];
    let (permitted, rows_max) = (Some(vec![true, false, true, true]), 8);
    let terms = vec![(1.0, mass)];
    let case = Case {
        names,
        permitted,
        n: 2,
        weight: 1.0,
        terms,
        rows_max,
    };
    let pus: Vec<u32> = case.search().iter().map(|found| found.pu).collect();
    assert_eq!(pus, [0, 2]);
}

#[test]
fn a_chain_is_asked_for_once_and_never_to_a_leaf() {
    let names = [vec![1, 2, 3, 4], vec![1, 2, 3, 5], vec![6, 7, 8]];
    let trie = Trie::build(&names, END);
    let question = Question {
        n: 3,
        weight: 1.0,
        ..Question::default()
    };
    let mut search = Search::new(&trie, question);
    let engine = Engine::run(&mut search, 100);
    assert_eq!(engine.paths, [vec![], vec![1, 2, 3]]);
    assert_eq!((engine.waves, engine.rows), (2, 3));
}

#[test]
fn what_cannot_be_among_the_n_best_is_not_asked_for() {
    let names: Vec<Vec<u32>> = (0..64).map(|i| vec![i % 8, 1, i / 8 % 8]).collect();
    let trie = Trie::build(&names, END);
    let question = Question {
        n: 1,
        weight: 20.0,
        ..Question::default()
    };
    let mut search = Search::new(&trie, question);
    // One row a wave: strictly best first, so a confident model is asked along one path.
    let engine = Engine::run(&mut search, 1);
    assert!(engine.paths.len() < 9, "{:?}", engine.paths);
}
