//! How two names agree letter by letter: the share of words that have a partner, and the share of letters that agree.
//!
//! Decides what counts as a typing error and as an abbreviation. Invariant: every share is from 0 to 1, and 1 between
//! equal names. It does not know how frequent words are.

/// Worth of a partner that differs by typing errors or is an abbreviation, against 1 for the same word.
const NEAR: f32 = 0.8;
const SHORT: f32 = 0.7;

/// Letters of a word that is compared; longer ones are compared by so many.
const LETTERS_MAX: usize = 64;

/// Share of the letters of `words` that are in words with a partner among `others`.
pub(super) fn aligned(words: &[String], others: &[String]) -> f32 {
    let mut sum = 0.0;
    let mut all = 0.0;
    for word in words {
        let letters = word.len() as f32;
        let best = others
            .iter()
            .map(|other| partner(word, other))
            .fold(0.0, f32::max);
        sum += letters * best;
        all += letters;
    }
    if all > 0.0 { sum / all } else { 0.0 }
}

/// How well two words go together.
pub(crate) fn partner(a: &str, b: &str) -> f32 {
    if a == b {
        return 1.0;
    }
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    // Numbers are right or wrong: 10 is no typing error of 100.
    let numeric = |word: &str| word.starts_with(|c: char| c.is_numeric());
    if short.len() < 2 || numeric(short) || numeric(long) {
        return 0.0;
    }
    let same_start = short.as_bytes()[0] == long.as_bytes()[0];
    if same_start && short.len() >= 3 && long.starts_with(short) {
        return NEAR;
    }
    let allowed: u32 = if short.len() >= 10 { 2 } else { 1 };
    let longer = long.len() - short.len();
    // "unsweetened" is the contrary of "sweetened", and "cornmeal" is no plural of "meal".
    if longer >= 2 && long.ends_with(short) {
        return 0.0;
    }
    if short.len() >= 4 && longer <= allowed as usize && differ(short, long, allowed) {
        return NEAR;
    }
    // "chclt" of "chocolate": the same beginning, and all letters in order.
    if same_start && short.len() >= 3 && short.len() * 3 >= long.len() && is_within(short, long) {
        return SHORT;
    }
    0.0
}

/// Whether the letters of one word are in another one, in order.
fn is_within(short: &str, long: &str) -> bool {
    let mut rest = long.bytes();
    short.bytes().all(|c| rest.any(|other| other == c))
}

/// Whether two words differ by at most so many typing errors; two letters in the wrong order are one.
fn differ(a: &str, b: &str, allowed: u32) -> bool {
    let distance = distance(a.as_bytes(), b.as_bytes());
    if distance <= allowed {
        return true;
    }
    distance == allowed + 1 && is_swapped(a.as_bytes(), b.as_bytes())
}

/// Whether two words are the same but for two neighbouring letters in the wrong order.
fn is_swapped(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let Some(at) = a.iter().zip(b).position(|(x, y)| x != y) else {
        return false;
    };
    at + 1 < a.len() && a[at] == b[at + 1] && a[at + 1] == b[at] && a[at + 2..] == b[at + 2..]
}

/// Share of letters that agree: 1 less the edit distance by the longer one's length, of the first 64 bytes.
pub(super) fn likeness(a: &str, b: &str) -> f32 {
    let a = &a.as_bytes()[..a.len().min(LETTERS_MAX)];
    let b = &b.as_bytes()[..b.len().min(LETTERS_MAX)];
    let longer = a.len().max(b.len());
    if longer == 0 {
        return 1.0;
    }
    1.0 - distance(a, b) as f32 / longer as f32
}

/// Edit distance, all rows of a column at once as bits (Myers 1999); of at most 64 bytes of `a`.
fn distance(a: &[u8], b: &[u8]) -> u32 {
    let a = &a[..a.len().min(LETTERS_MAX)];
    if a.is_empty() {
        return b.len() as u32;
    }
    let mut places = [0u64; 256];
    for (row, c) in a.iter().enumerate() {
        places[usize::from(*c)] |= 1 << row;
    }
    let last = 1u64 << (a.len() - 1);
    let (mut up, mut down) = (u64::MAX, 0u64);
    let mut distance = a.len() as u32;
    for c in b {
        let equal = places[usize::from(*c)];
        let diagonal = (((equal & up).wrapping_add(up)) ^ up) | equal | down;
        let mut more = down | !(diagonal | up);
        let mut less = up & diagonal;
        distance += u32::from(more & last != 0);
        distance -= u32::from(less & last != 0);
        more = (more << 1) | 1;
        less <<= 1;
        up = less | !(diagonal | more);
        down = more & diagonal;
    }
    distance
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn partners_are_typing_errors_and_abbreviations() {
        for (a, b, expected) in [
            ("milk", "milk", 1.0),
            ("shampoo", "shmapoo", NEAR),
            ("shampoo", "shampo", NEAR),
            ("choc", "chocolate", NEAR),
            ("chclt", "chocolate", SHORT),
            ("milk", "silk", NEAR),
            ("10", "100", 0.0),
            ("tea", "pea", 0.0),
            ("sweetened", "unsweetened", 0.0),
            ("milk", "bread", 0.0),
        ] {
            assert_eq!(partner(a, b), expected, "{a} {b}");
            assert_eq!(partner(b, a), expected, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn the_distance_is_that_of_the_table(a in "[a-c]{0,12}", b in "[a-c]{0,12}") {
            let expected = strsim::levenshtein(&a, &b) as u32;
            prop_assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected);
        }

        #[test]
        fn shares_are_from_0_to_1(a in any::<String>(), b in any::<String>()) {
            let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
            for share in [aligned(&words(&a), &words(&b)), likeness(&a, &b)] {
                prop_assert!((0.0..=1.0).contains(&share));
            }
            prop_assert_eq!(likeness(&a, &a), 1.0);
        }
    }
}
