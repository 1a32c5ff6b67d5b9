//! Laws of the search: it equals brute force over the names, without a trie.

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
    /// Masses per PU with their exponents.
    terms: Vec<(f64, Vec<f32>)>,
    /// Log-weights of one user.
    own: Vec<(u32, f64)>,
    sums: bool,
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

    fn has_prior(&self) -> bool {
        !self.terms.is_empty() || !self.own.is_empty()
    }

    /// Log-weight of a PU by all terms beside the model.
    fn log_mass(&self, pu: u32) -> f64 {
        let terms = self.terms.iter();
        let shared = terms.map(|(weight, mass)| weight * f64::from(mass[pu as usize]).ln());
        shared.sum()
    }

    fn search(&self) -> Vec<Found> {
        let trie = build(&self.names);
        let permitted = self.permitted.as_ref().map(|bits| {
            let ones = bits.iter().enumerate().filter(|(_, bit)| **bit);
            let pus: FixedBitSet = ones.map(|(pu, _)| pu).collect();
            Arc::new(Permitted::new(&trie, &pus))
        });
        let prior = self.has_prior().then(|| Prior {
            masses: Arc::new(Masses::new(&trie, |pu| self.log_mass(pu))),
            own: Own::new(&trie, self.own.iter().copied()),
            sums: self.sums,
        });
        let question = Question {
            permitted,
            n: self.n,
            weight: self.weight,
            prior,
        };
        let mut search = Search::new(&trie, question);
        Engine::run(&mut search, self.rows_max, |path| self.mean(path));
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
        let mut sums = [0.0; 3];
        let mut add = |own: [f64; 3], siblings: &[[f64; 3]]| {
            for (nth, sum) in sums.iter_mut().enumerate() {
                *sum += own[nth] - log_sum(siblings.iter().map(|sibling| sibling[nth]));
            }
        };
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
                self.edges(&path, &below.collect::<Vec<_>>())
            };
            let siblings: Vec<_> = tokens.iter().map(|token| of(*token)).collect();
            add(of(name[depth]), &siblings);
        }
        let alike = all.iter().copied().filter(|p| ended(*p) == name);
        let alike: Vec<_> = alike.map(|pu| [self.measure(&[pu]), 0.0, 0.0]).collect();
        add([self.measure(&[pu]), 0.0, 0.0], &alike);
        let [score, model, baseline] = sums;
        let asked = if self.weight == 0.0 { 0.0 } else { 1.0 };
        Found {
            pu: pu as u32,
            score,
            model: asked * model,
            baseline: asked * baseline,
        }
    }

    /// Mixture, model and mean of a child, before normalisation over its siblings.
    fn edges(&self, path: &[u32], below: &[usize]) -> [f64; 3] {
        let (logit, mean) = (f64::from(logit(path)), f64::from(self.mean(path)));
        let score = self.weight * (logit - mean) + self.measure(below);
        [score, logit, mean]
    }

    fn measure(&self, pus: &[usize]) -> f64 {
        if !self.has_prior() && self.weight != 0.0 {
            return 0.0;
        }
        let own = |pu: usize| -> f64 {
            let logs = self.own.iter().filter(|(of, _)| *of as usize == pu);
            logs.map(|(_, log)| log).sum()
        };
        let masses = pus
            .iter()
            .map(|pu| (self.log_mass(*pu as u32) + own(*pu)).exp());
        let shared = if self.sums || self.weight == 0.0 {
            1
        } else {
            pus.len()
        };
        (masses.sum::<f64>() / shared as f64).ln()
    }
}

fn log_sum(x: impl Iterator<Item = f64>) -> f64 {
    x.map(f64::exp).sum::<f64>().ln()
}

fn cases() -> impl Strategy<Value = Case> {
    let names = prop::collection::vec(prop::collection::vec(0u32..4, 0..6), 0..40);
    let flags = (any::<bool>(), any::<bool>(), 1usize..20);
    let weight = prop::sample::select(vec![0.0, 0.5, 1.0]);
    (names, 0usize..45, weight, flags).prop_flat_map(|(names, n, weight, flags)| {
        let bits = prop::collection::vec(any::<bool>(), names.len());
        let mass = prop::collection::vec(0.01f32..10.0, names.len());
        let terms = prop::collection::vec((-1f64..2.0, mass), 0..3);
        let own = prop::collection::vec((0..40u32, -3f64..3.0), 0..4);
        let (sums, means, rows_max) = flags;
        (prop::option::of(bits), terms, own).prop_map(move |(permitted, terms, own)| Case {
            names: names.clone(),
            permitted,
            n,
            weight,
            terms,
            own,
            sums,
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
        prop_assert!(near(found.baseline, own.baseline), "{found:?} {own:?}");
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
    fn all_names_together_are_a_distribution(case in cases()) {
        let found = Case { n: case.names.len(), ..case }.search();
        let sum: f64 = found.iter().map(|found| found.score.exp()).sum();
        prop_assert!(found.is_empty() || (sum - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn with_demand_alone_the_order_is_exactly_that_of_demand(
        case in cases(), seed in any::<u64>(), lambda in 0.05f64..3.0,
    ) {
        let mass: Vec<f32> = (0..case.names.len() as u64)
            .map(|pu| (pu.wrapping_mul(seed | 1) % 11) as f32 + 1.0)
            .collect();
        let terms = vec![(lambda, mass.clone())];
        let case = Case { weight: 0.0, terms, own: Vec::new(), ..case };
        let mut order: Vec<u32> =
            (0..mass.len() as u32).filter(|pu| case.is_permitted(*pu as usize)).collect();
        let of = |pu: u32| lambda * f64::from(mass[pu as usize]).ln();
        let total = log_sum(order.iter().map(|pu| of(*pu)));
        // Equal demand must give the order of PUs, without differences by rounding.
        order.sort_by(|a, b| mass[*b as usize].total_cmp(&mass[*a as usize]).then(a.cmp(b)));
        order.truncate(case.n);
        let found = case.search();
        prop_assert_eq!(found.iter().map(|found| found.pu).collect::<Vec<_>>(), order);
        for found in found {
            prop_assert!((found.score - (of(found.pu) - total)).abs() < 1e-9);
        }
    }
}

#[test]
fn equal_scores_are_in_pu_order_and_names_with_equal_tokens_stay_two() {
    let names = vec![vec![1, 2], vec![1], vec![1, 2], vec![1, 2]];
    let case = Case {
        names,
        permitted: Some(vec![true, false, true, true]),
        n: 2,
        weight: 1.0,
        terms: vec![(1.0, vec![1.0; 4])],
        own: Vec::new(),
        sums: true,
        means: false,
        rows_max: 8,
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
