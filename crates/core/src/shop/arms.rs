//! Assigns users to arms: `(user, seed, arms) -> Arm`, by a published hash that any team can compute.
//!
//! Invariant: GrowthBook's hash, version 2: `fnv32a(decimal(fnv32a(seed + user))) % 10000`, over UTF-8 bytes as in its
//! Go and Rust kits (its JavaScript kit hashes UTF-16 units: the same for ASCII, different beyond). It does not know
//! what an arm does.

use std::borrow::Cow;
use std::time::Duration;

use crate::list::prompt::Arm;

/// Number of equal buckets of users.
const BUCKETS: u64 = 10_000;

/// A user's bucket in the experiment `seed`: 0..10000, GrowthBook's number times 10000.
pub fn bucket(seed: &str, user: &str) -> u32 {
    let inner = fnv32a([seed, user].iter().flat_map(|part| part.bytes()));
    let outer = fnv32a(inner.to_string().bytes());
    outer % BUCKETS as u32
}

/// The user's arm: arms in their order have consecutive buckets in proportion to their shares. `None` only if no arm
/// has a share. Changing shares without changing the seed moves users between arms.
pub fn arm_of<'a>(user: &str, seed: &str, arms: &'a [Arm]) -> Option<&'a Arm> {
    let total: u64 = arms.iter().map(|arm| u64::from(arm.share)).sum();
    let point = u64::from(bucket(seed, user)) * total;
    let mut end = 0;
    arms.iter().find(|arm| {
        end += u64::from(arm.share) * BUCKETS;
        point < end
    })
}

/// The arms of a namespace: those that name it, else those that name none. So a new prompt can fill its own namespace
/// while the other namespaces keep their arms.
pub fn arms_for<'a>(ns: &str, arms: &'a [Arm]) -> Cow<'a, [Arm]> {
    if arms.iter().all(|arm| arm.namespaces.is_empty()) {
        return Cow::Borrowed(arms);
    }
    let names_it = |arm: &&Arm| arm.namespaces.iter().any(|name| name == ns);
    let own_arms: Vec<Arm> = arms.iter().filter(names_it).cloned().collect();
    if !own_arms.is_empty() {
        return Cow::Owned(own_arms);
    }
    let shared = arms.iter().filter(|arm| arm.namespaces.is_empty());
    Cow::Owned(shared.cloned().collect())
}

/// FNV-1a, 32 bits. Source: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv32a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Prefix of an arm's `model` that selects the table model: `table:200ms` answers each batch after 200 ms.
const PREFIX: &str = "table:";

/// The delay of a table model given in place of a model's path; `None` for a path.
///
/// Errors: a sentence with the text that is not a duration.
pub fn delay_of(model: &str) -> Option<Result<Duration, String>> {
    let delay = model.strip_prefix(PREFIX)?;
    Some(humantime::parse_duration(delay).map_err(|error| {
        format!("{model}: {error}; give a duration as in {PREFIX}200ms, or the path of a model")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_growthbooks_version_2() {
        // From packages/sdk-js/test/cases.json of growthbook/growthbook.
        for (seed, user, expected) in [
            ("seed", "a", 505),
            ("seed", "b", 2696),
            ("foo", "ab", 2575),
            ("foo", "def", 2019),
            ("89123klj", "8952klfjas09ujkasdf", 1240),
            ("90850943850283058242805", "123", 7516),
            ("()**(%$##$%#$#", "___)((*\":&", 128),
        ] {
            assert_eq!(bucket(seed, user), expected, "{seed} {user}");
        }
    }

    #[test]
    fn a_table_model_is_recognised_by_its_prefix_and_its_delay_is_parsed() {
        assert_eq!(
            delay_of("table:200ms"),
            Some(Ok(Duration::from_millis(200)))
        );
        assert_eq!(delay_of("models/table.gguf"), None);
        let wrong = delay_of("table:soon").expect("begins as a table");
        assert!(wrong.expect_err("no duration").contains("table:soon"));
    }

    #[test]
    fn buckets_beyond_ascii_equal_an_independent_implementation() {
        // Computed by an independent implementation in Python over UTF-8 bytes.
        for (seed, user, expected) in [
            ("", "1", 3263),
            ("baseline", "801", 232),
            ("baseline", "user-42", 7549),
            ("names-2025", "2375", 8446),
            ("names-2025", "a@b.example", 1596),
            ("names-2025", "ünïcode", 7674),
            ("names-2025", "日本", 8360),
        ] {
            assert_eq!(bucket(seed, user), expected, "{seed} {user}");
        }
    }

    fn arms(shares: &[u32]) -> Vec<Arm> {
        let arm = |(at, share): (usize, &u32)| {
            serde_json::from_value(serde_json::json!({
                "id": at.to_string(), "epoch": 1, "share": share, "template": "t", "model": "m"
            }))
            .expect("an arm")
        };
        shares.iter().enumerate().map(arm).collect()
    }

    #[test]
    fn users_spread_by_shares_and_an_arm_without_share_gets_no_user() {
        let arms = arms(&[3, 0, 1]);
        let mut counts = [0u32; 3];
        for user in 0..10_000 {
            let arm = arm_of(&format!("u{user}"), "spread", &arms).expect("shares");
            counts[arm.id.parse::<usize>().expect("a number")] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(counts[0].abs_diff(7_500) < 200, "{counts:?}");
    }

    #[test]
    fn a_bucket_on_the_border_belongs_to_the_later_arm() {
        // seed + a = bucket 505: the first 505 of 10000 do not hold it, the first 506 do.
        let id = |shares: &[u32]| {
            let arms = arms(shares);
            arm_of("a", "seed", &arms).map(|arm| arm.id.clone())
        };
        assert_eq!(id(&[505, 9495]).as_deref(), Some("1"));
        assert_eq!(id(&[506, 9494]).as_deref(), Some("0"));
    }

    #[test]
    fn without_shares_no_arm_is_chosen() {
        assert!(arm_of("a", "s", &arms(&[0, 0])).is_none());
        assert!(arm_of("a", "s", &[]).is_none());
    }
}
