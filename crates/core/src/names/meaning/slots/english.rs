//! English: which words of a stretch name something, and which say negation, subject and duration.
//!
//! Decides by closed lists of words. Invariant: the words behind a negation are in negated parts alone. It does not
//! know grammar beyond these lists.

use super::{Part, Stretch, Subject};

/// Words and sequences that negate what follows.
#[rustfmt::skip]
const CUES: &[&str] = &[
    "no", "not", "non", "without", "w/o", "never", "nor", "neither", "none", "zero", "except", "minus", "hate",
    "avoid", "avoiding", "dislike", "isn't", "isnt", "aren't", "arent", "wasn't", "wasnt", "don't", "dont",
    "doesn't", "doesnt", "didn't", "didnt", "haven't", "havent", "hasn't", "hasnt", "ain't", "instead of",
    "other than", "rather than", "anything but", "free of", "free from", "allergic to", "no longer", "lack of",
];

/// Sequences with a negation that complain: they name something, or say that it lasts.
#[rustfmt::skip]
const KEPT: &[&str] = &[
    "can't", "cant", "cannot", "can not", "couldn't", "not sleeping", "not eating", "no energy", "no appetite",
    "no sleep", "no taste", "no smell",
];

/// Sequences with a negation that say nothing of what is named.
#[rustfmt::skip]
const IDLE: &[&str] = &[
    "won't go away", "wont go away", "doesn't go away", "doesnt go away", "not going away", "does not go away",
    "will not go away", "won't stop", "wont stop", "doesn't stop", "does not stop", "not stopping",
    "not getting better", "isn't getting better", "doesn't get better", "does not get better", "not feeling well",
    "not feeling good", "don't feel well", "don't feel good", "dont feel well", "not only", "not just", "no doubt",
    "not sure", "no idea", "don't know", "dont know", "no matter", "why not", "if not", "or not", "not without",
    "don't mind", "nothing helps", "nothing works", "not improving", "no matter what",
];

/// Words that end a negation.
#[rustfmt::skip]
pub(super) const ENDS: &[&str] = &[
    "but", "however", "though", "although", "yet", "just", "only", "need", "want", "looking", "please", "still",
    "i", "i'm", "i've", "im", "ive", "because", "she", "he", "they", "except", "so", "something", "then", "also",
];

/// Sequences that negate what stands before them.
#[rustfmt::skip]
const GONE: &[&str] = &[
    "is gone", "are gone", "has gone", "gone", "went away", "has stopped", "have stopped", "is over",
    "is not a problem", "isn't a problem", "is no problem", "not an issue", "ruled out", "is better now",
    "cleared up",
];

/// What products are often sold without: "no sugar cookies" are cookies.
#[rustfmt::skip]
const WITHOUT: &[&str] = &[
    "sugar", "salt", "alcohol", "fragrance", "caffeine", "gluten", "lactose", "dairy", "nut", "peanut", "fat",
    "sodium", "paraben", "sulfate", "egg", "soy", "wheat", "dye", "oil", "perfume", "sweetener", "added", "meat",
    "milk",
];

/// Words for other persons, and for animals that are shopped for.
#[rustfmt::skip]
const PERSONS: &[&str] = &[
    "mother", "mom", "mum", "mommy", "mummy", "mama", "father", "dad", "daddy", "papa", "parent", "parents", "son",
    "sons", "daughter", "daughters", "baby", "babies", "child", "children", "kid", "kids", "toddler", "toddlers",
    "infant", "infants", "newborn", "wife", "husband", "spouse", "partner", "girlfriend", "boyfriend", "fiance",
    "fiancee", "brother", "sister", "grandma", "grandmother", "granny", "nana", "grandpa", "grandfather",
    "grandparents", "aunt", "uncle", "cousin", "niece", "nephew", "friend", "neighbour", "neighbor", "colleague",
    "coworker", "boss", "teenager", "boy", "girl", "mother-in-law", "father-in-law", "roommate", "flatmate",
    "grandson", "granddaughter", "grandchild", "dog", "dogs", "cat", "cats", "puppy", "kitten", "him", "her",
    "them",
];

/// Words that may stand before a person.
#[rustfmt::skip]
const OWNERS: &[&str] = &[
    "my", "our", "the", "a", "an", "his", "her", "their", "your", "old", "elderly", "little", "dear", "young",
    "sick", "poor", "new", "older", "younger",
];

/// Words by which a person says "I".
#[rustfmt::skip]
const SELF: &[&str] = &[
    "i", "i'm", "im", "i've", "ive", "i'd", "me", "my", "myself", "mine",
];

/// Words for a person who was named before.
#[rustfmt::skip]
const HE: &[&str] = &[
    "he", "she", "he's", "she's", "his", "her", "they", "they're", "their",
];

/// Words that name nothing, at the ends of a part.
#[rustfmt::skip]
const CARRIERS: &[&str] = &[
    "i", "i'm", "im", "i've", "ive", "i'd", "id", "me", "my", "myself", "he", "she", "he's", "she's", "his", "her",
    "they", "their", "our", "we", "have", "has", "had", "having", "got", "gets", "getting", "get", "am", "is",
    "are", "was", "were", "be", "been", "being", "need", "needs", "want", "wants", "looking", "searching", "search",
    "for", "something", "anything", "some", "any", "a", "an", "the", "to", "help", "helps", "relieve", "treat",
    "with", "against", "of", "please", "can", "could", "you", "recommend", "suggest", "what", "what's", "which",
    "how", "good", "best", "buy", "really", "very", "bad", "severe", "terrible", "awful", "slight", "mild", "and",
    "or", "but", "just", "only", "also", "still", "so", "it", "that", "this", "from", "suffering", "suffer",
    "suffers", "do", "does", "did", "like", "would", "show", "find", "give", "where", "there", "there's", "now",
    "already", "lately", "recently", "keep", "keeps", "complains", "complaining", "about", "in", "on", "at",
    "contain", "contains", "containing", "both", "signs", "sign", "symptoms", "symptom", "then", "however",
    "though", "although", "because", "as", "since", "ago", "too", "either", "it's", "its", "if", "when", "else",
    "feel", "feels", "feeling", "all", "go", "hi", "hello", "experiencing", "who", "has", "take", "use", "eat",
    "drink", "kind", "sort", "wear",
];

/// Reads a stretch in lower case.
pub(super) fn read(stretch: &str) -> Stretch {
    let said: Vec<&str> = stretch.split_whitespace().map(trimmed).collect();
    let mut words: Vec<&str> = said.into_iter().filter(|word| !word.is_empty()).collect();
    let all: String = words.join(" ");
    cut_sequences(&mut words, IDLE);
    let days = duration(&mut words);
    let (subject, subject_of_all) = subject(&mut words);
    let is_or = words.iter().any(|word| matches!(*word, "or" | "nor"));
    let (parts, is_open) = parts(&words, &all);
    Stretch {
        parts,
        subject,
        subject_of_all,
        days,
        is_open,
        is_or,
    }
}

/// A word without the signs around it.
fn trimmed(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric())
}

/// The words of the sequence that begins at a place, if one does.
fn starts<'a>(words: &[&str], at: usize, sequences: &[&'a str]) -> Option<(&'a str, usize)> {
    let found = sequences.iter().filter_map(|sequence| {
        let length = sequence.split(' ').count();
        let rest = words.get(at..at + length)?;
        let same = sequence
            .split(' ')
            .zip(rest)
            .all(|(a, b)| a == b.replace('\u{2019}', "'"));
        same.then_some((*sequence, length))
    });
    found.max_by_key(|(_, length)| *length)
}

fn cut_sequences(words: &mut Vec<&str>, sequences: &[&str]) {
    let mut at = 0;
    while at < words.len() {
        match starts(words, at, sequences) {
            Some((_, length)) => drop(words.drain(at..at + length)),
            None => at += 1,
        }
    }
}

/// Takes the words of a duration out; its days.
fn duration(words: &mut Vec<&str>) -> Option<u32> {
    for at in 0..words.len() {
        let Some((days, length)) = measure(words, at) else {
            continue;
        };
        let next = words.get(at + length).copied();
        // "A three year old" is a person, and "7 day pill box" is a box.
        if matches!(next, Some("old" | "olds" | "supply" | "pack")) {
            continue;
        }
        let before = at.checked_sub(1).map(|before| words[before]);
        let leads = matches!(
            before,
            Some("for" | "since" | "past" | "last" | "over" | "about" | "almost" | "nearly")
        );
        let trails = matches!(next, Some("now" | "already" | "long" | "straight" | "of"));
        if leads || trails || at + length == words.len() && at > 0 && before != Some("in") {
            let mut from = at;
            while from > 0 && LEADS.contains(&words[from - 1]) {
                from -= 1;
            }
            let to = at + length + usize::from(trails);
            words.drain(from..to);
            return Some(days);
        }
    }
    None
}

/// Words before a duration.
#[rustfmt::skip]
const LEADS: &[&str] = &[
    "for", "since", "past", "last", "over", "about", "almost", "nearly", "the", "more", "than", "at", "least",
    "around",
];

/// The days of a duration that begins at a place, and its words: "three weeks", "a few days", "weeks", "yesterday".
fn measure(words: &[&str], at: usize) -> Option<(u32, usize)> {
    if words[at] == "yesterday" {
        return Some((1, 1));
    }
    let joined: Option<(&str, &str)> = words[at].split_once('-');
    if let Some((number, unit)) = joined
        && let (Some(number), Some(unit)) = (number_of(number), unit_of(unit))
    {
        return Some((number.saturating_mul(unit), 1));
    }
    let sequences = [
        ("a couple of", 2),
        ("couple of", 2),
        ("a few", 3),
        ("half a", 0),
        ("several", 3),
        ("few", 3),
        ("many", 3),
        ("all", 1),
    ];
    for (sequence, number) in sequences {
        if let Some((_, length)) = starts(words, at, &[sequence])
            && let Some(unit) = words.get(at + length).and_then(|word| unit_of(word))
        {
            let days = if number == 0 { unit / 2 } else { number * unit };
            return Some((days.max(1), length + 1));
        }
    }
    if let Some(number) = number_of(words[at])
        && let Some(unit) = words.get(at + 1).and_then(|word| unit_of(word))
    {
        return Some((number.saturating_mul(unit).max(1), 2));
    }
    // "For weeks".
    let is_led = at > 0 && matches!(words[at - 1], "for" | "last" | "past" | "since");
    let unit = unit_of(words[at]).filter(|_| is_led)?;
    let number = if words[at].ends_with('s') { 3 } else { 1 };
    Some((number * unit, 1))
}

fn unit_of(word: &str) -> Option<u32> {
    Some(match word {
        "day" | "days" | "night" | "nights" => 1,
        "week" | "weeks" | "wk" | "wks" => 7,
        "fortnight" => 14,
        "month" | "months" => 30,
        "year" | "years" => 365,
        _ => return None,
    })
}

fn number_of(word: &str) -> Option<u32> {
    let names = [
        "a", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve",
    ];
    if word == "an" {
        return Some(1);
    }
    if let Some(at) = names.iter().position(|name| *name == word) {
        return Some(at.max(1) as u32);
    }
    word.parse()
        .ok()
        .filter(|number| (1..=999).contains(number))
}

/// Takes the words of a subject out: whose it is, and whether it holds for what stands before, too.
fn subject(words: &mut Vec<&str>) -> (Subject, bool) {
    for at in 0..words.len() {
        if matches!(words[at], "for" | "to")
            && let Some(end) = person(words, at + 1)
        {
            words.drain(at..end);
            return (Subject::Other, true);
        }
        if words[at] == "for" && matches!(words.get(at + 1), Some(&("me" | "myself"))) {
            words.drain(at..at + 2);
            return (Subject::User, true);
        }
        let is_owned = matches!(words[at], "my" | "our");
        if is_owned && let Some(end) = person(words, at) {
            words.drain(at..end);
            return (Subject::Other, false);
        }
    }
    if words.iter().any(|word| HE.contains(word)) {
        return (Subject::Other, false);
    }
    match words.iter().any(|word| SELF.contains(word)) {
        true => (Subject::User, false),
        false => (Subject::Unsaid, false),
    }
}

/// Where the words for a person end that begin at a place: "my old mother", "my 3 year old", "kids".
fn person(words: &[&str], from: usize) -> Option<usize> {
    let mut at = from;
    while at < words.len() && at < from + 5 {
        let word = words[at];
        let bare = word
            .strip_suffix("'s")
            .or_else(|| word.strip_suffix("\u{2019}s"))
            .unwrap_or(word);
        if PERSONS.contains(&bare) && !(OWNERS.contains(&word) && at + 1 < words.len()) {
            return Some(at + 1);
        }
        if word == "old" && at > from + 1 && unit_of(words[at - 1]).is_some() {
            let next = words.get(at + 1).is_some_and(|next| PERSONS.contains(next));
            return Some(at + 1 + usize::from(next));
        }
        if word.ends_with("year-old") || word.ends_with("month-old") {
            let next = words.get(at + 1).is_some_and(|next| PERSONS.contains(next));
            return Some(at + 1 + usize::from(next));
        }
        let is_age = number_of(word).is_some() || unit_of(word).is_some();
        if !OWNERS.contains(&word) && !is_age {
            return None;
        }
        at += 1;
    }
    None
}

/// The parts of a stretch, and whether it ends inside of a negation.
fn parts(words: &[&str], all: &str) -> (Vec<Part>, bool) {
    let mut parts: Vec<Part> = Vec::new();
    let mut said: Vec<&str> = Vec::new();
    let mut negated = false;
    let mut at = 0;
    while at < words.len() {
        if let Some((_, length)) = starts(words, at, KEPT) {
            said.extend(&words[at..at + length]);
            at += length;
            continue;
        }
        if let Some((_, length)) = starts(words, at, GONE) {
            push(&mut parts, (&mut said, true), all);
            at += length;
            negated = false;
            continue;
        }
        if let Some(free) = freed(words, at) {
            push(&mut parts, (&mut said, negated), all);
            push(
                &mut parts,
                (
                    &mut vec![words[at].split('-').next().unwrap_or_default()],
                    true,
                ),
                all,
            );
            at += free;
            continue;
        }
        let cue = starts(words, at, CUES);
        if let Some((cue, length)) = cue.filter(|(cue, _)| !(negated && *cue == "except")) {
            push(&mut parts, (&mut said, negated), all);
            if cue == "allergic to" {
                push(&mut parts, (&mut vec!["allergic"], false), all);
            }
            negated = true;
            at += length;
            if let Some(length) = without(words, at, cue) {
                said.extend(&words[at..at + length]);
                push(&mut parts, (&mut said, true), all);
                negated = false;
                at += length;
            }
            continue;
        }
        // A word for "I" right behind the negation is its subject.
        if negated && ENDS.contains(&words[at]) && !said.is_empty() {
            push(&mut parts, (&mut said, true), all);
            negated = false;
        }
        said.push(words[at]);
        at += 1;
    }
    push(&mut parts, (&mut said, negated), all);
    if parts.iter().any(|part| part.negated) {
        // The whole stretch also has what is negated.
        parts.iter_mut().for_each(|part| part.whole.clear());
    }
    (parts, negated)
}

/// How many words say that something is sold without the word at a place: "sugar free", "sugar-free".
fn freed(words: &[&str], at: usize) -> Option<usize> {
    let first = words[at].strip_suffix("-free");
    if first.is_some_and(|first| WITHOUT.contains(&first)) {
        return Some(1);
    }
    let is_free = WITHOUT.contains(&words[at]) && words.get(at + 1) == Some(&"free");
    is_free.then_some(2)
}

/// How many words behind a negation say what a product is sold without, if a product follows.
fn without(words: &[&str], at: usize, cue: &str) -> Option<usize> {
    if !matches!(cue, "no" | "non" | "zero") {
        return None;
    }
    let rest = words.get(at..)?;
    let length = rest
        .iter()
        .take_while(|word| WITHOUT.contains(word))
        .count();
    let follows = rest
        .get(length)
        .is_some_and(|next| !matches!(*next, "or" | "and" | "nor"));
    (length > 0 && follows).then_some(length)
}

/// Ends a part, unless it names nothing.
fn push(parts: &mut Vec<Part>, (said, negated): (&mut Vec<&str>, bool), all: &str) {
    let words = std::mem::take(said);
    let carries = |word: &&str| CARRIERS.contains(&&*word.replace('\u{2019}', "'"));
    let from = words.iter().take_while(|word| carries(word)).count();
    let to = words.len()
        - words[from..]
            .iter()
            .rev()
            .take_while(|word| carries(word))
            .count();
    let core = words[from..to].join(" ");
    if core.chars().any(char::is_alphanumeric) {
        let whole = match negated || core == all {
            true => String::new(),
            false => all.to_owned(),
        };
        parts.push(Part {
            core,
            whole,
            negated,
        });
    }
}
