//! Slots survive: labelled texts, sentences that are put together, and any text at all.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const CASES: &str = include_str!("../../../../../../tests/fixtures/words/slots.jsonl");

/// A clause as the labels write it: `-` for negated, the core, `@user` or `@other`, and days.
fn written(clause: &Clause) -> String {
    let Slots {
        negated,
        subject,
        days,
    } = clause.slots;
    let sign = if negated { "-" } else { "" };
    let subject = match subject {
        Subject::Unsaid => "",
        Subject::User => " @user",
        Subject::Other => " @other",
    };
    let days = days.map_or_else(String::new, |days| format!(" {days}d"));
    format!("{sign}{}{subject}{days}", clause.core)
}

/// A labelled text: its language and set, and what it says.
fn cases() -> Vec<(String, String, Vec<String>)> {
    let case = |line: &str| {
        let case: Value = serde_json::from_str(line).expect("a case");
        let text = |key: &str| case[key].as_str().expect("a text").to_owned();
        let said = case["said"].as_array().expect("what it says");
        let said = said
            .iter()
            .map(|said| said.as_str().expect("a text").to_owned());
        let group = format!("{} {}", text("lang"), text("set"));
        (group, text("text"), said.collect())
    };
    CASES.lines().map(case).collect()
}

/// Parts of a label without what is not compared: signs of negation with cores, subjects, days.
fn compared(said: &[String], slot: usize) -> Vec<String> {
    let of = |said: &String| {
        let words: Vec<&str> = said.split(' ').collect();
        let days = |word: &&str| {
            word.strip_suffix('d')
                .is_some_and(|it| it.parse::<u32>().is_ok())
        };
        match slot {
            0 => said.starts_with('-').to_string(),
            1 => words
                .iter()
                .filter(|word| word.starts_with('@'))
                .copied()
                .collect(),
            _ => words.iter().filter(|word| days(word)).copied().collect(),
        }
    };
    said.iter().map(of).collect()
}

#[test]
fn labelled_texts_are_read_as_labelled_with_the_accuracy_of_the_page() {
    // Right wholly, in negation, in subject, in duration, of how many; by language and set.
    let mut right: BTreeMap<String, [usize; 5]> = BTreeMap::new();
    for (group, text, said) in cases() {
        let got: Vec<String> = clauses(&text).iter().map(written).collect();
        let counts = right.entry(group).or_default();
        counts[0] += usize::from(got == said);
        for slot in 0..3 {
            counts[1 + slot] += usize::from(compared(&got, slot) == compared(&said, slot));
        }
        counts[4] += 1;
    }
    assert_eq!(right.len(), 4);
    for (group, [whole, negation, subject, duration, all]) in right {
        let least = |share: f64| (share * all as f64) as usize;
        assert!(all >= 28, "{group}");
        assert!(whole >= least(0.9), "{group}: {whole} of {all}");
        for (slot, right) in [
            ("negation", negation),
            ("subject", subject),
            ("duration", duration),
        ] {
            assert!(right >= least(0.95), "{group}: {slot} {right} of {all}");
        }
    }
}

/// What is put around a name, and what that says.
type Around = (&'static str, &'static str);

const ENGLISH_NAMES: &[&str] = &[
    "cough",
    "knee pain",
    "yogurt",
    "red wine",
    "dog biscuits",
    "vitamin c",
];
const ENGLISH_NOT: &[Around] = &[
    ("", ""),
    ("no ", "-"),
    ("not ", "-"),
    ("i don't want ", "-"),
    ("without ", "-"),
];
const ENGLISH_WHO: &[Around] = &[
    ("", ""),
    (" for my mother", "other"),
    (" for a friend", "other"),
    (" for me", "user"),
];
const ENGLISH_LONG: &[Around] = &[
    ("", ""),
    (" for three weeks", "21"),
    (" for 10 days", "10"),
    (" for a month", "30"),
];

const CHINESE_NAMES: &[&str] = &["咳嗽", "膝盖疼", "酸奶", "红酒", "维生素"];
const CHINESE_NOT: &[Around] = &[("", ""), ("没有", "-"), ("不要", "-"), ("无", "-")];
const CHINESE_WHO: &[Around] = &[
    ("", ""),
    ("给妈妈买", "other"),
    ("我妈妈", "other"),
    ("帮朋友买", "other"),
];
const CHINESE_LONG: &[Around] = &[
    ("", ""),
    ("三个星期了", "21"),
    ("十天", "10"),
    ("一个月了", "30"),
];

fn check(
    text: &str,
    name: &str,
    (not, who, long): (&str, &str, &str),
) -> Result<(), TestCaseError> {
    let all = clauses(text);
    prop_assert_eq!(all.len(), 1, "{}: {:?}", text, all);
    let Clause { core, slots, .. } = &all[0];
    prop_assert_eq!(core, name, "{}", text);
    prop_assert_eq!(slots.negated, not == "-", "{}", text);
    let wanted = match who {
        "other" => Subject::Other,
        "user" => Subject::User,
        _ if text.starts_with("i ") => Subject::User,
        _ => Subject::Unsaid,
    };
    prop_assert_eq!(slots.subject, wanted, "{}", text);
    prop_assert_eq!(slots.days, long.parse().ok(), "{}", text);
    Ok(())
}

proptest! {
    #[test]
    fn negation_subject_and_duration_survive_beside_an_english_name(
        name in prop::sample::select(ENGLISH_NAMES), not in prop::sample::select(ENGLISH_NOT),
        who in prop::sample::select(ENGLISH_WHO), long in prop::sample::select(ENGLISH_LONG), upper in any::<bool>(),
    ) {
        let text = format!("{}{name}{}{}", not.0, who.0, long.0);
        let shown = if upper { text.to_uppercase() } else { text.clone() };
        let lower = shown.to_lowercase();
        prop_assert_eq!(clauses(&shown), clauses(&lower));
        check(&text, name, (not.1, who.1, long.1))?;
    }

    #[test]
    fn negation_subject_and_duration_survive_beside_a_chinese_name(
        name in prop::sample::select(CHINESE_NAMES), not in prop::sample::select(CHINESE_NOT),
        who in prop::sample::select(CHINESE_WHO), long in prop::sample::select(CHINESE_LONG),
    ) {
        let text = format!("{}{}{name}{}", who.0, not.0, long.0);
        check(&text, name, (not.1, who.1, long.1))?;
    }

    #[test]
    fn what_stands_behind_a_negation_is_negated_whatever_it_is(
        name in "[b-z]{3,9}( [b-z]{3,9}){0,3}", cue in prop::sample::select(&["no", "not", "without", "never"][..]),
    ) {
        let plain = clauses(&name);
        // Words of the lists say something of themselves.
        prop_assume!(plain.len() == 1 && plain[0].core == name && plain[0].slots == Slots::default());
        prop_assume!(!name.split(' ').any(|word| english::ENDS.contains(&word)));
        let said = clauses(&format!("{cue} {name}"));
        prop_assert!(said.iter().all(|clause| clause.slots.negated && clause.whole.is_empty()), "{:?}", said);
    }

    #[test]
    fn any_text_has_few_clauses_each_with_a_name(text in any::<String>()) {
        let all = clauses(&text);
        prop_assert!(all.len() <= CLAUSES_MAX);
        for clause in &all {
            prop_assert!(clause.core.chars().any(char::is_alphanumeric), "{:?}", clause);
            prop_assert!(!clause.slots.negated || clause.whole.is_empty());
        }
        prop_assert_eq!(all, clauses(&text));
    }

    #[test]
    fn any_words_of_the_lists_in_any_order_have_few_clauses(
        words in prop::collection::vec(prop::sample::select(
            &["no", "not", "for", "my", "mother", "i", "have", "a", "three", "weeks", "cough", ",", "or", "without",
              "sugar", "free", "old", "year", "since", "没有", "不", "咳嗽", "我", "妈妈", "三", "个", "星期", "了", "对", "过敏",
              "除了", "以外", "的", "无", "糖", "半", "年", "，", "、", "好", "岁"][..]), 0..24),
        joint in prop::sample::select(&["", " "][..]),
    ) {
        let all = clauses(&words.join(joint));
        prop_assert!(all.len() <= CLAUSES_MAX);
        prop_assert!(all.iter().all(|clause| clause.core.chars().any(char::is_alphanumeric)));
    }
}

#[test]
fn texts_that_name_nothing_have_no_clause() {
    for text in [
        "",
        " ",
        "!",
        "🙂🙂",
        "\u{200f}\u{202e}",
        "no",
        "for my mother",
        "for three weeks",
        "没有",
        "三个星期",
    ] {
        assert_eq!(clauses(text), [], "{text:?}");
    }
}

#[test]
fn direction_marks_and_a_megabyte_change_nothing_and_take_no_time() {
    let plain = clauses("no cough");
    assert_eq!(clauses("\u{202e}no\u{200f} cough\u{202c}"), plain);
    assert!(clauses(&"no cough, ".repeat(1 << 17)).len() <= CLAUSES_MAX);
    assert!(clauses(&"没有咳嗽，".repeat(1 << 16)).len() <= CLAUSES_MAX);
    assert_eq!(clauses(&"a".repeat(1 << 20))[0].core.len(), BYTES_MAX);
}
