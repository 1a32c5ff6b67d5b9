//! An audit survives its stored form, which is small, and bytes that are none are refused.

use proptest::prelude::*;

use super::super::{CandidatesAudit, RejectedName, Why, WrittenAudit, WrittenName};
use super::*;
use crate::learn::off_policy::Weighing;
use crate::names::written::Reject;

/// An audit of twenty names with five SKUs each, ten terms and fifty events.
fn audit() -> Audit {
    let hash = |nth: u64| hex::encode(hashed(nth));
    let event = |nth: u64| format!("0/user-events/{}:{}", nth % 4, 7_000_000 + nth * 911);
    let position = |text: &str| text.parse::<Position>().expect("a position");
    Audit {
        list_id: "0123456789abcdef".into(),
        claim: 17,
        seen: ["0/profile-changes/2:9", "0/user-events/1:7"]
            .map(position)
            .into_iter()
            .collect(),
        arm: "a".into(),
        epoch: 3,
        artefact: "0123456789ab".into(),
        model: Some(Model {
            name: "SmolLM2-135M-Instruct".into(),
            ..Model::default()
        }),
        asked: "asked".into(),
        template: hash(1),
        calibration: "none".into(),
        prompt: hash(2),
        prompt_tokens: 311,
        events: (0..50).map(|nth| position(&event(nth))).collect(),
        events_cut: 2,
        rules: vec!["no-wine".into()],
        rules_unknown: vec!["no-wine".into()],
        segment: "default".into(),
        demand: "1763000000000:12".into(),
        catalogue: 91_803,
        selection: None,
        names: (0..20).map(name).collect(),
        dropped: vec![Dropped {
            pu: "WINE".into(),
            score: -0.5,
            why: Why::NoStock,
        }],
        written: None,
        texts: None,
        times: Times {
            source: Timestamp(1_763_000_000_000),
            due: Timestamp(1_763_000_030_000),
            queued: Duration::from_millis(1_250),
            generated: Duration::ZERO,
            published: Duration::from_millis(7),
        },
    }
}

const TERMS: [&str; 10] = [
    "assortment",
    "bias",
    "cosine",
    "demand",
    "neighbours",
    "reach",
    "reach_ever",
    "repeat",
    "text",
    "weeks",
];

fn name(nth: u64) -> NameAudit {
    let kinds = ["FLUID MILK", "COLD CEREAL", "SOFT DRINKS", "CHEESE"];
    let share = |(at, term): (usize, &&str)| {
        let share = number(nth * 31 + at as u64) * 8.0 - 6.0;
        ((*term).to_owned(), share as f32)
    };
    let sku = |sku: u64| SkuAudit {
        sku: format!("{}", 800_000 + (number(nth * 5 + sku) * 9e6) as u64),
        // Of 256 steps.
        ee: Some((number(nth * 77 + sku) * 255.0 + 1.0).floor() / 256.0),
    };
    NameAudit {
        pu: format!("{} {nth}", kinds[nth as usize % 4]),
        score: -(number(nth + 7) * 9.0) as f32,
        terms: TERMS.iter().enumerate().map(share).collect(),
        skus: (0..5).map(sku).collect(),
        candidates: None,
    }
}

/// A number from 0 to 1 that looks random.
fn number(nth: u64) -> f64 {
    let bytes = hashed(nth);
    f64::from(u16::from_le_bytes([bytes[0], bytes[1]])) / 65_536.0
}

/// A hash: bytes that look random.
fn hashed(nth: u64) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(nth.to_le_bytes()).to_vec()
}

/// The audit with numbers as they are read back.
fn rounded_to_stored(mut audit: Audit) -> Audit {
    let to = |value: f32, each: f64| (rounded(f64::from(value), each) as f64 / each) as f32;
    for name in &mut audit.names {
        name.score = to(name.score, SCORE);
        name.terms
            .values_mut()
            .for_each(|share| *share = to(*share, SHARE));
        for sku in &mut name.skus {
            sku.ee = sku
                .ee
                .map(|ee| (rounded(ee.ln(), SHARE) as f64 / SHARE).exp());
        }
    }
    audit
        .dropped
        .iter_mut()
        .for_each(|it| it.score = to(it.score, SCORE));
    audit
}

#[test]
fn a_stored_audit_is_the_audit_with_rounded_numbers_in_a_quarter_of_the_bytes() {
    let audit = audit();
    let stored = StoredAudit::pack(&audit);
    let json = serde_json::to_string(&audit).expect("JSON");
    // Digits that look random are the worst case: audits of real lists take half as much (docs/measurements/sizing.md).
    let (bytes, of_json) = (stored.as_bytes().len(), json.len());
    assert!(
        bytes <= 1_900 && of_json >= 4 * bytes,
        "{bytes} of {of_json}"
    );
    let read = stored.read().expect("its own bytes");
    assert_eq!(read, rounded_to_stored(audit.clone()));
    for (name, before) in read.names.iter().zip(&audit.names) {
        let sum: f32 = name.terms.values().sum();
        let sum_before: f32 = before.terms.values().sum();
        assert!((sum - sum_before).abs() < 0.006, "shares still add up");
        for (sku, before) in name.skus.iter().zip(&before.skus) {
            let (ee, before) = (sku.ee.expect("one"), before.ee.expect("one"));
            assert!((ee / before - 1.0).abs() <= 0.001, "{ee} for {before}");
        }
    }
    assert_eq!(
        serde_json::from_str::<Audit>(&stored.json()).expect("JSON"),
        read
    );
}

#[test]
fn the_store_never_has_candidates() {
    let mut told = audit();
    told.selection = Some(Weighing {
        gamma: 2.0,
        explore: 0.1,
        epsilon: 0.02,
    });
    let candidates = CandidatesAudit {
        skus: vec!["1069102".into()],
        share: vec![0.5],
        best: vec![0.25],
        others: Vec::new(),
    };
    told.names[0].candidates = Some(candidates);
    assert_eq!(StoredAudit::pack(&told), StoredAudit::pack(&audit()));
}

#[test]
fn an_audit_without_anything_and_one_of_an_earlier_release_are_read() {
    let empty = Audit::default();
    assert_eq!(
        StoredAudit::pack(&empty).read().expect("its own bytes"),
        empty
    );
    let fallback = Audit {
        names: vec![NameAudit {
            pu: "A".into(),
            skus: vec![SkuAudit {
                sku: "a".into(),
                ee: None,
            }],
            ..NameAudit::default()
        }],
        ..Audit::default()
    };
    assert_eq!(
        StoredAudit::pack(&fallback).read().expect("its own bytes"),
        fallback
    );
    let json = serde_json::to_string(&audit()).expect("JSON");
    let stored = StoredAudit::from(json.as_str());
    assert_eq!(stored.read().expect("JSON"), audit());
    assert_eq!(stored.json(), json);
    let none = StoredAudit::default();
    assert!(matches!(none.read(), Err(StoredAuditError::NotKept)));
    assert_eq!(none.json(), "{}");
    let later = StoredAudit::from(vec![9, 9]);
    assert!(matches!(later.read(), Err(StoredAuditError::Form(9))));
    assert_eq!(later.json(), "{}");
}

proptest! {
    #[test]
    fn damaged_bytes_are_an_error_or_an_audit_and_never_a_panic(
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = StoredAudit::pack(&audit()).as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = with;
        bytes.truncate(1 + cut.index(bytes.len()));
        let _ = StoredAudit::from(bytes).read();
    }

    #[test]
    fn any_columns_are_an_error_or_an_audit(plain in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = vec![COLUMNS];
        bytes.extend(miniz_oxide::deflate::compress_to_vec(&plain, 1));
        let _ = StoredAudit::from(bytes).read();
    }
}

#[test]
fn what_a_model_wrote_survives_the_stored_form() {
    let written = WrittenAudit {
        names: vec![WrittenName {
            text: "1 l milk".into(),
            pu: "MILK".into(),
            probability: 0.9312,
        }],
        reasons: [(Reject::Theta, 3), (Reject::TooLong, 1)].into(),
        rejected: vec![RejectedName {
            text: "unicorn".into(),
            why: Reject::Theta,
            nearest: Some(("CORN".into(), 0.11)),
        }],
        chatter: 2,
        is_cut: true,
    };
    let with = Audit {
        written: Some(written.clone()),
        ..audit()
    };
    let packed = StoredAudit::pack(&with);
    assert_eq!(packed.as_bytes()[0], WITH_WRITTEN);
    assert_eq!(packed.read().expect("an audit").written, Some(written));
    assert!(
        packed
            .json()
            .contains(r#""reasons":{"theta":3,"too_long":1}"#)
    );
    // The form without it is as it was.
    let without = StoredAudit::pack(&audit());
    assert_eq!(without.as_bytes()[0], COLUMNS);
    assert_eq!(without.read().expect("an audit").written, None);
    let cut = StoredAudit::from(packed.as_bytes()[..packed.as_bytes().len() / 2].to_vec());
    assert!(cut.read().is_err());
}
