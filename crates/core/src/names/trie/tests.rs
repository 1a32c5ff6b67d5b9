//! Laws of the trie: its paths are the names, and its sets and maxima are those of the PUs.

use super::*;
use fixedbitset::FixedBitSet;
use proptest::prelude::*;

const END: u32 = 99;

fn build(names: &[Vec<u32>]) -> Trie {
    let mut sequences = Sequences::new(END);
    names.iter().for_each(|name| sequences.push(name));
    Trie::build(&sequences)
}

/// Every path from the root as (tokens, PU), by walking the trie.
fn paths(trie: &Trie) -> Vec<(Vec<u32>, u32)> {
    fn walk(trie: &Trie, node: &Node, path: &[u32], found: &mut Vec<(Vec<u32>, u32)>) {
        let path: Vec<u32> = path.iter().copied().chain(trie.label(node)).collect();
        let mut leaves = node.leaves.start;
        for child in trie.children(node) {
            assert_eq!(child.leaves.start, leaves, "children tile their parent");
            assert!(child.leaves.start < child.leaves.end, "no subtree is empty");
            leaves = child.leaves.end;
            walk(trie, &child, &path, found);
        }
        if leaves == node.leaves.start && !node.leaves.is_empty() {
            assert_eq!(node.leaves.len(), 1, "a node without children is a leaf");
            found.push((path, trie.pu(node.leaves.start)));
        } else {
            assert_eq!(leaves, node.leaves.end, "children tile their parent");
        }
    }
    let mut found = Vec::new();
    walk(trie, &trie.root(), &[], &mut found);
    found
}

fn expected(names: &[Vec<u32>]) -> Vec<(Vec<u32>, u32)> {
    let mut all: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, pu)| ([name.as_slice(), &[END]].concat(), pu))
        .collect();
    all.sort();
    all
}

fn names() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0u32..3, 0..11), 0..200)
}

fn set(members: &[bool]) -> FixedBitSet {
    let ones = members.iter().enumerate().filter(|(_, one)| **one);
    ones.map(|(at, _)| at).collect()
}

proptest! {
    #[test]
    fn paths_are_the_sorted_names_each_cut_after_its_first_distinct_token(names in names()) {
        let trie = build(&names);
        let (found, expected) = (paths(&trie), expected(&names));
        prop_assert_eq!(found.len(), expected.len());
        for (nth, ((path, pu), (name, own))) in found.iter().zip(&expected).enumerate() {
            prop_assert_eq!(pu, own);
            prop_assert_eq!(trie.leaf(*pu), Some(nth as u32));
            prop_assert!(name.starts_with(path));
            let others = expected.iter().filter(|(other, _)| other.starts_with(path));
            prop_assert!(others.count() == expected.iter().filter(|(other, _)| other == name).count());
        }
        let depth = expected.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
        prop_assert_eq!(trie.depth(), depth);
    }

    #[test]
    fn siblings_start_with_different_tokens_or_are_unlabelled(names in names()) {
        let trie = build(&names);
        let mut nodes = vec![trie.root()];
        while let Some(node) = nodes.pop() {
            let children: Vec<Node> = trie.children(&node).collect();
            prop_assert!(children.len() != 1, "a chain is compressed");
            let mut first: Vec<_> = children.iter().map(|c| trie.first_token(c)).collect();
            if first.first() == Some(&None) {
                prop_assert!(first.iter().all(Option::is_none));
                prop_assert!(children.iter().all(|child| child.leaves.len() == 1));
            } else {
                first.dedup();
                prop_assert_eq!(first.len(), children.len());
            }
            nodes.extend(children);
        }
    }

    #[test]
    fn permitted_leaves_are_those_of_the_pus_and_a_patch_equals_a_new_set(
        names in names(),
        members in prop::collection::vec(any::<bool>(), 0..260),
        later in prop::collection::vec(any::<bool>(), 0..260),
    ) {
        let trie = build(&names);
        let held = |members: &[bool], pu: usize| members.get(pu) == Some(&true);
        let mut leaves = Permitted::new(&trie, &set(&members));
        for leaf in 0..names.len() as u32 {
            prop_assert_eq!(leaves.contains(leaf), held(&members, trie.pu(leaf) as usize));
        }
        leaves.patch(&trie, &set(&members), &set(&later));
        prop_assert_eq!(&leaves, &Permitted::new(&trie, &set(&later)));
        if let Some(pu) = later.iter().position(|one| *one) {
            leaves.set(&trie, pu as u32, false);
            prop_assert!(trie.leaf(pu as u32).is_none_or(|leaf| !leaves.contains(leaf)));
        }
    }

    #[test]
    fn counts_and_maxima_of_a_range_are_those_of_its_leaves(
        names in names(),
        members in prop::option::of(prop::collection::vec(any::<bool>(), 260)),
        own in prop::collection::vec((0u32..220, -20f64..20.0), 0..12),
        run in (0u32..220, 0u32..220),
    ) {
        let trie = build(&names);
        let many = names.len() as u32;
        let run = run.0.min(many)..run.1.min(many).max(run.0.min(many));
        let permitted = members.map(|members| Permitted::new(&trie, &set(&members)));
        let log = |pu: u32| f64::from(pu.wrapping_mul(0x9e37_79b9) >> 16 & 31) - 9.0;
        let dense = |pu: u32| f64::from(pu % 5) / 4.0;
        let weights = LogWeights::new(&trie, log).map(&trie, |pu, log| log + dense(pu));
        let own_weights = Own::new(&trie, own.iter().copied());
        let may = |leaf: &u32| permitted.as_ref().is_none_or(|set| set.contains(*leaf));
        let at = |leaf: u32| {
            let pu = trie.pu(leaf);
            let own = own.iter().filter(|(of, _)| *of == pu).map(|(_, log)| log);
            log(pu) + dense(pu) + own.sum::<f64>()
        };
        let values: Vec<f64> = run.clone().filter(may).map(at).collect();
        let expected = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prop_assert_eq!(weights.max(&run, permitted.as_ref(), &own_weights), expected);
        for leaf in run.clone() {
            prop_assert_eq!(weights.at(leaf, &own_weights), at(leaf));
        }
        if let Some(permitted) = &permitted {
            prop_assert_eq!(permitted.count(&run) as usize, run.clone().filter(may).count());
            let found: Vec<u32> = permitted.ones(&run).collect();
            prop_assert_eq!(found, run.clone().filter(may).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_name_may_be_a_prefix_of_another() {
    let trie = build(&[vec![1, 2], vec![1], vec![1, 2, 3]]);
    let found: Vec<u32> = paths(&trie).into_iter().map(|(_, pu)| pu).collect();
    assert_eq!(found, [2, 0, 1]);
}

#[test]
fn an_end_token_inside_a_name_is_dropped() {
    let trie = build(&[vec![1], vec![1, END, 2]]);
    assert_eq!(paths(&trie), [(vec![1, 2], 1), (vec![1, END], 0)]);
}

#[test]
fn one_name_makes_the_root_a_leaf_and_no_name_an_empty_root() {
    let one = build(&[vec![5]]);
    assert_eq!(one.first_token(&one.root()), Some(5));
    assert_eq!(one.children(&one.root()).count(), 0);
    let none = build(&[]);
    assert!(none.root().leaves.is_empty());
    assert_eq!(none.children(&none.root()).count(), 0);
}

#[test]
fn a_word_that_a_user_takes_from_has_the_maximum_of_the_others() {
    let trie = build(&(0..70).map(|name| vec![name]).collect::<Vec<_>>());
    let weights = LogWeights::new(&trie, f64::from);
    let leaf = trie.leaf(63).expect("a name");
    let own = Own::new(&trie, [(63, -100.0), (0, 200.0)].into_iter());
    assert_eq!(weights.max(&(1..leaf + 1), None, &own), 62.0);
    assert_eq!(weights.max(&(0..leaf + 1), None, &own), 200.0);
    let none = Permitted::new(&trie, &set(&[]));
    assert_eq!(weights.max(&(0..70), Some(&none), &own), f64::NEG_INFINITY);
}
