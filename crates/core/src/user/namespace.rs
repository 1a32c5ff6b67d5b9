//! Names of namespaces: which texts are allowed.
//!
//! Invariant: a namespace is a prefix of Redis keys and part of a consumer group's name, so it has none of their
//! separators. What a namespace holds is the store's concern.

/// Whether `ns` may be a namespace: `[a-z0-9-]{1,32}`, and not `nearshore`, which is the prefix of the keys that
/// all namespaces share.
pub fn is_namespace(ns: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&ns.len()) && ns.bytes().all(allowed) && ns != "nearshore"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_lower_case_names_are_namespaces() {
        for good in ["live", "a", "9-b", &"x".repeat(32)] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", "Live", "a_b", "a:b", "ü", "nearshore", &"x".repeat(33)] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
