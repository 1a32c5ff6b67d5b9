//! Proposes products for SKUs that have only titles.
//!
//! Decides which titles are one product: those whose words are the same when sizes, brands and labels are cut off, in any
//! order, singular or plural. A small group whose words differ in one typing error or abbreviation from a group five
//! times its size in the same category is joined to it; a pair that is less clear is listed as unsure, and kept apart.
//! Invariant: equal rows give equal products in any order, every row with a title has one product, and a key of the map before keeps
//! its product. It does not know what a word means.

use std::collections::{BTreeMap, BTreeSet};

use super::map::{Line, Map, id_of};
use super::title::{Labels, Untitled, bracket_parts, is_size, line, split_words, without_brackets};
use crate::names::matcher::{Form, partner};

/// Fewest products of a part in brackets that is a label, and their share in all.
const TAIL_PRODUCTS: usize = 12;
const TAIL_SHARE: f64 = 0.01;
/// Fewest products of a brand, and of other beginnings of each of these.
const BRAND_PRODUCTS: usize = 8;
const BRAND_OTHERS: usize = 3;
/// Shares of a brand's products that others begin as well, and of its titles that begin with it.
const BRAND_SHARED: f64 = 0.6;
const BRAND_FIRST: f64 = 0.8;
/// How many times as large the group is that a misspelled one joins.
const LARGER: usize = 5;
/// Worth of a word for which another one stands, in a group's confidence.
const JOINED: f64 = 0.8;
/// Most other groups named for an unsure one.
const UNSURE_MAX: usize = 3;
/// Most groups of one place that are compared with each other.
const BUCKET_MAX: usize = 4_000;

/// Titles with one key.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Number of SKUs by what is left of their titles.
    cores: BTreeMap<String, usize>,
    categories: BTreeMap<String, usize>,
    example: String,
    skus: usize,
}

/// The key of a product: its words in alphabetical order.
pub(super) fn key_of(core: &str) -> String {
    let words = Form::of(core).sorted().join(" ");
    // A title of signs alone is a product of its own.
    if words.is_empty() {
        core.to_owned()
    } else {
        words
    }
}

/// The products of rows. `before` is the map of an earlier run, as people have edited it.
pub fn propose(rows: &[Untitled], before: &Map) -> Map {
    let labels = learn(rows, &before.labels);
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in rows {
        let core = labels.core(row);
        if core.is_empty() {
            continue;
        }
        let group = groups.entry(key_of(&core)).or_default();
        *group.cores.entry(core).or_default() += 1;
        if let Some(category) = &row.category {
            *group.categories.entry(category.clone()).or_default() += 1;
        }
        if group.example.is_empty() || row.title < group.example {
            group.example.clone_from(&row.title);
        }
        group.skus += 1;
    }
    let known = before.by_key();
    let (joined, unsure) = joined(&groups, &known);
    let mut map = Map {
        labels,
        lines: Vec::new(),
        skus: before.skus.clone(),
    };
    let mut members: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for key in groups.keys() {
        let to = joined.get(key).unwrap_or(key);
        members.entry(to).or_default().push(key);
    }
    let mut made: BTreeMap<String, Line> = before
        .lines
        .iter()
        .map(|line| (line.pu_id.clone(), line.emptied()))
        .collect();
    for (to, keys) in members {
        let id = known
            .get(to)
            .map_or_else(|| id_of(to), |line| line.pu_id.clone());
        let of: Vec<(&str, &Group)> = keys.iter().map(|key| (*key, &groups[*key])).collect();
        let proposed = proposed((&id, to), &of, unsure.get(to));
        match made.get_mut(&id) {
            Some(line) => line.add(proposed),
            None => drop(made.insert(id, proposed)),
        }
    }
    map.lines = made.into_values().collect();
    map.lines
        .sort_by(|a, b| b.skus.cmp(&a.skus).then(a.pu_id.cmp(&b.pu_id)));
    map
}

/// The line of one product.
fn proposed(
    (id, to): (&str, &str),
    keys: &[(&str, &Group)],
    unsure: Option<&BTreeSet<String>>,
) -> Line {
    let own = keys
        .iter()
        .find(|(key, _)| *key == to)
        .map(|(_, group)| *group);
    let most = |counts: &BTreeMap<String, usize>| {
        let best = counts.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0)));
        best.map(|(text, _)| text.clone())
    };
    let skus: usize = keys.iter().map(|(_, group)| group.skus).sum();
    let exact = own.map_or(0, |group| group.skus);
    let sure = if unsure.is_some() { 0.5 } else { 1.0 };
    let confidence = sure * (exact as f64 + JOINED * (skus - exact) as f64) / skus.max(1) as f64;
    Line {
        pu_id: id.to_owned(),
        pu: own
            .and_then(|group| most(&group.cores))
            .unwrap_or_else(|| to.to_owned()),
        category: own.and_then(|group| most(&group.categories)),
        keys: keys.iter().map(|(key, _)| (*key).to_owned()).collect(),
        skus,
        confidence: (confidence * 100.0).round() / 100.0,
        unsure: unsure
            .into_iter()
            .flatten()
            .take(UNSURE_MAX)
            .cloned()
            .collect(),
        example: own.map_or_else(String::new, |group| group.example.clone()),
    }
}

/// What is cut off: parts in brackets that many products have, and words that many products begin with.
fn learn(rows: &[Untitled], before: &Labels) -> Labels {
    let mut labels = before.clone();
    let mut heads: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut all: BTreeSet<String> = BTreeSet::new();
    for row in rows {
        let head = line(&without_brackets(&row.title, |_| true));
        all.insert(head.clone());
        for part in bracket_parts(&row.title) {
            let form = line(part);
            if !form.is_empty() && !is_size(part) {
                heads.entry(form).or_default().insert(head.clone());
            }
        }
    }
    let least = (all.len() as f64 * TAIL_SHARE).max(TAIL_PRODUCTS as f64);
    let many = heads
        .into_iter()
        .filter(|(_, heads)| heads.len() as f64 >= least);
    labels.tails.extend(many.map(|(part, _)| part));
    let cores: BTreeSet<String> = rows.iter().map(|row| labels.core(row)).collect();
    labels.brands.extend(begins(&cores, 1));
    let longer = begins(&cores, 2);
    // "Fenbar organic" is a brand and a word of the product.
    let new = longer
        .into_iter()
        .filter(|brand| !labels.brands.contains(first_word(brand)));
    let new: Vec<String> = new.collect();
    labels.brands.extend(new);
    labels
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}

/// Beginnings of so many words that are brands: they stand before what others stand before as well, and rarely elsewhere.
fn begins(cores: &BTreeSet<String>, words: usize) -> BTreeSet<String> {
    let whole: BTreeSet<String> = cores.iter().map(|core| line(core)).collect();
    let mut rests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut firsts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut inside: BTreeMap<String, usize> = BTreeMap::new();
    for core in cores {
        let form = Form::of(core);
        if words == 1 {
            form.words
                .iter()
                .skip(1)
                .for_each(|word| *inside.entry(word.clone()).or_default() += 1);
        }
        if let Some((first, rest)) = split_words(core, words) {
            // What is only in brackets names no product.
            let named = !rest.starts_with(['(', '[']);
            let (first, rest) = (line(first), key_of(rest));
            if named && first.starts_with(|c: char| c.is_alphabetic()) {
                firsts
                    .entry(rest.clone())
                    .or_default()
                    .insert(first.clone());
                rests.entry(first).or_default().insert(rest);
            }
        }
    }
    let shared = |rest: &String| {
        let alone = usize::from(whole.contains(rest));
        firsts.get(rest).map_or(0, BTreeSet::len) + alone > BRAND_OTHERS
    };
    let is_brand = |first: &String, rests: &BTreeSet<String>| {
        let others = rests.iter().filter(|rest| shared(rest)).count();
        let elsewhere = inside.get(first).copied().unwrap_or(0);
        rests.len() >= BRAND_PRODUCTS
            && others as f64 >= BRAND_SHARED * rests.len() as f64
            && rests.len() as f64 >= BRAND_FIRST * (rests.len() + elsewhere) as f64
    };
    rests
        .into_iter()
        .filter(|(first, rests)| is_brand(first, rests))
        .map(|(first, _)| first)
        .collect()
}

/// Keys that join another one, and keys that may be another one.
fn joined(
    groups: &BTreeMap<String, Group>,
    known: &BTreeMap<&str, &Line>,
) -> (BTreeMap<String, String>, BTreeMap<String, BTreeSet<String>>) {
    let mut buckets: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for key in groups.keys() {
        let words: Vec<&str> = key.split(' ').collect();
        for (at, word) in words.iter().enumerate() {
            let others = words.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<&str> = others.map(|(_, word)| *word).collect();
            buckets
                .entry(others.join(" "))
                .or_default()
                .push((key, word));
        }
    }
    let mut best: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    let mut unsure: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (others, bucket) in buckets
        .iter()
        .filter(|(_, bucket)| bucket.len() <= BUCKET_MAX)
    {
        for (a, word_a) in bucket {
            for (b, word_b) in bucket.iter().filter(|(b, _)| a < b) {
                // A person saw both, and could have joined them.
                let apart = known.contains_key(a) && known.contains_key(b);
                if apart || partner(word_a, word_b) == 0.0 {
                    continue;
                }
                let (small, large) = if groups[*a].skus <= groups[*b].skus {
                    (*a, *b)
                } else {
                    (*b, *a)
                };
                let clear = is_clear(word_a, word_b, !others.is_empty())
                    && groups[large].skus >= LARGER * groups[small].skus
                    && same_category(&groups[small], &groups[large])
                    && !known.contains_key(small);
                if clear {
                    let one = (groups[large].skus, large);
                    let known = best.entry(small).or_insert(one);
                    *known = (*known).max(one);
                } else if same_category(&groups[small], &groups[large]) {
                    unsure
                        .entry(small.to_owned())
                        .or_default()
                        .insert(large.to_owned());
                }
            }
        }
    }
    let mut joined = BTreeMap::new();
    for small in best.keys().copied() {
        // A group that joins may be joined itself; sizes rise on the way, so this ends.
        let mut to = small;
        while let Some((_, next)) = best.get(to) {
            to = next;
        }
        joined.insert(small.to_owned(), to.to_owned());
    }
    unsure.retain(|key, _| !joined.contains_key(key));
    (joined, unsure)
}

/// Whether one word surely stands for the other: a typing error, or a word cut short beside others that are the same.
fn is_clear(a: &str, b: &str, beside: bool) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let is_cut = long.len() - short.len() >= 2;
    // In a word of four letters another letter makes another word: pear, bear.
    beside || (!is_cut && short.len() >= 5)
}

/// Whether two groups have a category in common, or one of them has none.
fn same_category(a: &Group, b: &Group) -> bool {
    a.categories.is_empty()
        || b.categories.is_empty()
        || a.categories
            .keys()
            .any(|category| b.categories.contains_key(category))
}
