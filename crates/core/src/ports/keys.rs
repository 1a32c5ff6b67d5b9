//! Names of the keys in Redis, and the published hash that spreads SKUs. Clients in other languages must compute both,
//! so both have test vectors.
//!
//! Invariant: all keys of one user lie in one slot of Redis Cluster, as do all keys of one shard of the counts and of
//! one stock set, because the text between the braces is encoded and never empty. This module does not know what is
//! stored under a key.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::user::event::UserId;

/// Number of shards of the counts.
const SHARDS: u32 = 256;
/// Number of sets of sold-out SKUs.
pub const SETS: u32 = 16;
/// The served namespace.
pub const ACTIVE: &str = "nearshore:active";
/// All namespaces: a hash of namespace -> JSON.
pub const NAMESPACES: &str = "nearshore:namespaces";
/// Number of the layout of everything that is stored: [`LAYOUT_VERSION`] of the build that filled this Redis first.
pub const LAYOUT: &str = "nearshore:layout";
/// The layout that this build reads and writes: names of keys and fields, and what they hold. Raise it with every
/// change of meaning, so that a Redis of another layout is refused and never misread.
pub const LAYOUT_VERSION: u32 = 2;
/// Id of the installation that this Redis belongs to: eight hexadecimal digits, made by the first process.
pub const INSTALLATION: &str = "nearshore:installation";
/// Exists while live is behind its objective in some process.
pub const LIVE_BEHIND: &str = "nearshore:live-behind";
/// Cost per user of each arm's model: a hash of arm -> JSON.
pub const COSTS: &str = "nearshore:costs";
/// Blocks in force, by `pu:<id>` or `sku:<id>`, as JSON.
pub const BLOCKS: &str = "nearshore:{blocks}";
/// Log of blocks and unblocks with the operator's name: a list of JSON, the last 10,000.
pub const BLOCKS_LOG: &str = "nearshore:{blocks}:log";

/// A name that cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not `[a-z0-9-]{1,32}`, or `nearshore`, the prefix of keys that all namespaces share.
    #[error(
        "{0:?} cannot be a namespace: use 1 to 32 of a-z, 0-9 and -, and not \"nearshore\", which all namespaces share"
    )]
    Namespace(String),
    /// An empty user id, segment or SKU id.
    #[error("an empty {0} has no key: give one of at least one character")]
    Empty(&'static str),
}

/// Checks that `ns` may prefix keys.
pub fn namespace(ns: &str) -> Result<(), Invalid> {
    if crate::user::namespace::is_namespace(ns) {
        Ok(())
    } else {
        Err(Invalid::Namespace(ns.into()))
    }
}

/// Percent-encodes `%`, `{`, `}` and the ASCII control characters (00-1F, 7F), upper-case hex. All other characters
/// stay as they are, so that a plain id is its own key.
pub fn encode(text: &str) -> Cow<'_, str> {
    encode_with(text, None)
}

/// Encodes as [`encode`] does, and `:` too: for a part of a field that is followed by another part.
fn encode_part(text: &str) -> Cow<'_, str> {
    encode_with(text, Some(':'))
}

fn encode_with(text: &str, extra: Option<char>) -> Cow<'_, str> {
    let special =
        |c: char| matches!(c, '%' | '{' | '}') || c.is_ascii_control() || Some(c) == extra;
    if !text.contains(special) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if special(c) {
            write!(encoded, "%{:02X}", c as u32).expect("writing to a String cannot fail");
        } else {
            encoded.push(c);
        }
    }
    Cow::Owned(encoded)
}

/// Undoes [`encode`]; `None` for text that `encode` never returns.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// FNV-1a, 32 bit, over the UTF-8 bytes of a SKU id: start 2166136261, then for each byte xor and multiply by 16777619.
/// Published: clients find a SKU's stock set with it.
pub fn hash(sku: &str) -> u32 {
    sku.bytes().fold(2_166_136_261, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
    })
}

/// Shard of a SKU's counts: [`hash`] modulo 256.
pub fn shard(sku: &str) -> u8 {
    u8::try_from(hash(sku) % SHARDS).expect("modulo 256")
}

/// Stock set of a SKU: [`hash`] modulo 16.
pub fn set(sku: &str) -> u8 {
    u8::try_from(hash(sku) % SETS).expect("modulo 16")
}

/// The four keys of a user, all in one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `ns:{user}:state`, a hash.
    pub state: String,
    /// `ns:{user}:profile`, a string.
    pub profile: String,
    /// `ns:{user}:recall`, a hash.
    pub recall: String,
    /// `nearshore:erased:{user}`, a string; the same for all namespaces.
    pub erased: String,
}

/// Keys of a user.
pub fn user(ns: &str, user: &UserId) -> Result<User, Invalid> {
    namespace(ns)?;
    if user.0.is_empty() {
        return Err(Invalid::Empty("user id"));
    }
    let id = encode(&user.0);
    Ok(User {
        state: format!("{ns}:{{{id}}}:state"),
        profile: format!("{ns}:{{{id}}}:profile"),
        recall: format!("{ns}:{{{id}}}:recall"),
        erased: format!("nearshore:erased:{{{id}}}"),
    })
}

/// Pattern with which SCAN finds all tombstones.
pub const TOMBSTONES: &str = "nearshore:erased:{*}";

/// `nearshore:erased:{user}`.
pub fn tombstone(user: &UserId) -> Result<String, Invalid> {
    if user.0.is_empty() {
        return Err(Invalid::Empty("user id"));
    }
    Ok(format!("nearshore:erased:{{{}}}", encode(&user.0)))
}

/// The user of a tombstone's key; `None` if the key is no tombstone.
pub fn user_of_tombstone(key: &str) -> Option<UserId> {
    let id = key.strip_prefix("nearshore:erased:{")?.strip_suffix('}')?;
    Some(UserId(decode(id)?.into()))
}

/// Pattern with which SCAN finds every key of a user in any namespace.
pub fn of_user(user: &UserId) -> Result<String, Invalid> {
    let tag = tombstone(user)?;
    let mut pattern = String::from("*:");
    for c in tag["nearshore:erased:".len()..].chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    Ok(pattern)
}

/// Namespace and part (`state`, `profile`, `recall`) of a user's key; `None` for any other key.
pub fn part(key: &str) -> Option<(&str, &str)> {
    let (ns, rest) = key.split_once(":{")?;
    let (_, part) = rest.rsplit_once("}:")?;
    let known = namespace(ns).is_ok() && ["state", "profile", "recall"].contains(&part);
    known.then_some((ns, part))
}

/// The user of a key of one user: state, profile, list or tombstone; `None` for any other key.
pub fn owner(key: &str) -> Option<UserId> {
    if let Some(user) = user_of_tombstone(key) {
        return Some(user);
    }
    part(key)?;
    let (from, to) = (key.find('{')?, key.rfind('}')?);
    let id = decode(key.get(from + 1..to)?)?;
    (!id.is_empty()).then(|| UserId(id.into()))
}

/// The type that Redis gives for a key of this name, if Nearshore writes it by a script.
pub fn redis_type(key: &str) -> Option<&'static str> {
    if key.starts_with("nearshore:erased:{") {
        return Some("string");
    }
    let end = key.rsplit(':').next().unwrap_or_default();
    match end {
        "state" | "recall" | "fence" | "blocked" => Some("hash"),
        "profile" => Some("string"),
        "buckets" => Some("set"),
        "gone" => Some("zset"),
        _ if key.starts_with("nearshore:oos:{") && end.ends_with('}') => Some("set"),
        _ if key.contains(":counts:{") || key.contains(":checkpoint:{") => Some("hash"),
        _ => None,
    }
}

/// A key as it may be logged: the user's id is replaced by its hash, `main:{#1a2b3c4d}:state`.
pub fn masked(key: &str) -> String {
    let names_user = part(key).is_some() || user_of_tombstone(key).is_some();
    match (key.find('{'), key.rfind('}')) {
        (Some(from), Some(to)) if names_user => {
            let id = hash(&key[from + 1..to]);
            format!("{}{{#{id:08x}}}{}", &key[..from], &key[to + 1..])
        }
        _ => key.into(),
    }
}

/// Pattern with which SCAN finds the states of a namespace.
pub fn states(ns: &str) -> String {
    format!("{ns}:{{*}}:state")
}

/// The user of a state's key; `None` if the key is no state of this namespace.
pub fn user_of_state(ns: &str, key: &str) -> Option<UserId> {
    let id = key
        .strip_prefix(ns)?
        .strip_prefix(":{")?
        .strip_suffix("}:state")?;
    Some(UserId(decode(id)?.into()))
}

/// `ns:counts:{sNN}:fence`, a hash of source partition -> offset; NN is the shard in hex.
pub fn count_fence(ns: &str, shard: u8) -> String {
    format!("{ns}:counts:{{s{shard:02x}}}:fence")
}

/// `ns:counts:{sNN}:buckets`, a set of all buckets that were ever written.
pub fn count_buckets(ns: &str, shard: u8) -> String {
    format!("{ns}:counts:{{s{shard:02x}}}:buckets")
}

/// `ns:counts:{sNN}:bB`, a hash of cell -> integer; B is the bucket, `time / 7 d`.
pub fn count_bucket(ns: &str, shard: u8, bucket: i64) -> String {
    format!("{ns}:counts:{{s{shard:02x}}}:b{bucket}")
}

/// Field of a cell within its bucket: `kind:segment:sku`, with `:` of the segment encoded.
pub fn cell(kind: &str, segment: &str, sku: &str) -> String {
    format!("{kind}:{}:{sku}", encode_part(segment))
}

/// Undoes [`cell`]: returns kind, segment, SKU.
pub fn cell_parts(field: &str) -> Option<(&str, String, &str)> {
    let (kind, rest) = field.split_once(':')?;
    let (segment, sku) = rest.split_once(':')?;
    Some((kind, decode(segment)?, sku))
}

/// `reader:checkpoint:{tag}`, a hash of source partition -> offset where reading may resume; one tag per primary.
pub fn checkpoint(reader: &str, tag: &str) -> String {
    format!("{reader}:checkpoint:{{{tag}}}")
}

/// `ns:fallback:<segment>`, a string.
pub fn fallback(ns: &str, segment: &str) -> Result<String, Invalid> {
    namespace(ns)?;
    if segment.is_empty() {
        return Err(Invalid::Empty("segment"));
    }
    Ok(format!("{ns}:fallback:{}", encode(segment)))
}

/// `ns:plan`, a string: the plan of the namespace's backfill, JSON.
pub fn plan(ns: &str) -> Result<String, Invalid> {
    namespace(ns)?;
    Ok(format!("{ns}:plan"))
}

/// `ns:arms`, a hash of `arm:epoch:source:what` -> integer: what the namespace's lists earned.
pub fn arms(ns: &str) -> Result<String, Invalid> {
    namespace(ns)?;
    Ok(format!("{ns}:arms"))
}

/// `ns:neighbours:{sku}`, a string: the neighbours of a SKU, JSON.
pub fn neighbours(ns: &str, sku: &str) -> Result<String, Invalid> {
    namespace(ns)?;
    if sku.is_empty() {
        return Err(Invalid::Empty("SKU id"));
    }
    Ok(format!("{ns}:neighbours:{{{}}}", encode(sku)))
}

/// `ns:history`, a string: exists while some process folds history of the namespace.
pub fn history(ns: &str) -> Result<String, Invalid> {
    namespace(ns)?;
    Ok(format!("{ns}:history"))
}

/// `nearshore:oos:{N}`, a set of SKUs that are out of stock, delisted or blocked.
pub fn sold_out(set: u8) -> String {
    format!("nearshore:oos:{{{set}}}")
}

/// `nearshore:oos:{N}:fence`, a hash of source partition -> offset.
pub fn sold_out_fence(set: u8) -> String {
    format!("nearshore:oos:{{{set}}}:fence")
}

/// `nearshore:oos:{N}:gone`, a sorted set of SKUs that left the catalogue, by record time.
pub fn sold_out_gone(set: u8) -> String {
    format!("nearshore:oos:{{{set}}}:gone")
}

/// `nearshore:oos:{N}:blocked`, a hash of SKU -> JSON: its blocks, and whether it is out of stock too.
pub fn sold_out_blocked(set: u8) -> String {
    format!("nearshore:oos:{{{set}}}:blocked")
}

/// Name of a block, in [`BLOCKS`] and in the sets.
pub fn block(id: &str, pu: bool) -> String {
    format!("{}:{id}", if pu { "pu" } else { "sku" })
}

/// Digest of a shard's fences, independent of their order and of the store: FNV-1a, 64 bit, over `partition=offset;`
/// sorted by text.
pub fn digest<'a>(fences: impl IntoIterator<Item = (&'a str, i64)>) -> u64 {
    let sorted: std::collections::BTreeMap<&str, i64> = fences.into_iter().collect();
    let mut text = String::new();
    for (partition, offset) in sorted {
        write!(text, "{partition}={offset};").expect("writing to a String cannot fail");
    }
    let mut hash = fnv::FnvHasher::default();
    std::hash::Hasher::write(&mut hash, text.as_bytes());
    std::hash::Hasher::finish(&hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> UserId {
        UserId(text.into())
    }

    #[test]
    fn the_published_hash_gives_the_published_vectors() {
        // docs/contract.md has the same table.
        for (sku, hash_expected, set_expected, shard_expected) in [
            ("", 0x811c_9dc5, 5, 0xc5),
            ("a", 0xe40c_292c, 12, 0x2c),
            ("foobar", 0xbf9c_f968, 8, 0x68),
            ("1069102", 0x0482_e8aa, 10, 0xaa),
            ("SKU-0001", 0x8b5a_7e32, 2, 0x32),
            ("vitamín C", 0xf990_9ae9, 9, 0xe9),
        ] {
            assert_eq!(
                (hash(sku), set(sku), shard(sku)),
                (hash_expected, set_expected, shard_expected),
                "{sku:?}: {:08x}",
                hash(sku)
            );
        }
    }

    #[test]
    fn keys_have_their_documented_names() {
        let keys = user("live", &id("u-1")).expect("fits");
        assert_eq!(keys.state, "live:{u-1}:state");
        assert_eq!(keys.profile, "live:{u-1}:profile");
        assert_eq!(keys.recall, "live:{u-1}:recall");
        assert_eq!(keys.erased, "nearshore:erased:{u-1}");
        assert_eq!(count_fence("live", 10), "live:counts:{s0a}:fence");
        assert_eq!(count_bucket("live", 255, 2810), "live:counts:{sff}:b2810");
        assert_eq!(
            fallback("live", "60+ {x}").expect("fits"),
            "live:fallback:60+ %7Bx%7D"
        );
        assert_eq!(sold_out(7), "nearshore:oos:{7}");
        let key = neighbours("live", "s{1").expect("fits");
        assert_eq!(key, "live:neighbours:{s%7B1}");
        assert_eq!((owner(&key), part(&key)), (None, None));
    }

    #[test]
    fn encode_changes_only_characters_that_would_break_a_key() {
        for (plain, encoded) in [
            ("u-1", "u-1"),
            ("a b:c*ü", "a b:c*ü"),
            ("100%", "100%25"),
            ("}:state", "%7D:state"),
            ("a\nb\u{7f}", "a%0Ab%7F"),
        ] {
            assert_eq!(encode(plain), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(plain));
        }
        assert_eq!(decode("%7"), None);
        assert_eq!(decode("%zz"), None);
    }

    #[test]
    fn a_masked_key_hides_the_id_and_differs_between_users() {
        let of = |user: &str| masked(&super::user("live", &id(user)).expect("fits").state);
        assert_eq!(of("u-1"), format!("live:{{#{:08x}}}:state", hash("u-1")));
        assert_ne!(of("u-1"), of("u-2"));
        assert!(!masked(&tombstone(&id("ann")).expect("fits")).contains("ann"));
        for plain in [
            "live:counts:{s0a}:fence",
            "nearshore:oos:{7}",
            "live:fallback:x",
        ] {
            assert_eq!(masked(plain), plain);
        }
    }

    #[test]
    fn a_pattern_for_one_user_matches_no_other_id() {
        assert_eq!(of_user(&id("a*b?[c]")).expect("fits"), r"*:{a\*b\?\[c\]}*");
        assert_eq!(of_user(&id("{")).expect("fits"), "*:{%7B}*");
        assert_eq!(part("live:{a}:state:{b}:recall"), Some(("live", "recall")));
        assert_eq!(part("nearshore:{a}:state"), None);
        assert_eq!(part("live:counts:{s0a}:fence"), None);
    }

    #[test]
    fn an_empty_id_and_an_invalid_namespace_are_refused() {
        assert_eq!(user("live", &id("")), Err(Invalid::Empty("user id")));
        assert_eq!(fallback("live", ""), Err(Invalid::Empty("segment")));
        let long = "x".repeat(33);
        for bad in ["", "Live", "a:b", "a{b", "nearshore", long.as_str()] {
            assert!(namespace(bad).is_err(), "{bad:?}");
        }
        for good in ["live", "2024-06", "x"] {
            assert!(namespace(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_decodes_to_its_user_and_has_one_hash_tag(text in "\\PC{1,12}|[\\x00-\\x7f]{1,12}") {
            let keys = user("live", &id(&text)).expect("fits");
            prop_assert_eq!(keys.state.matches('{').count(), 1);
            prop_assert_eq!(keys.state.matches('}').count(), 1);
            prop_assert_eq!(user_of_state("live", &keys.state), Some(id(&text)));
            prop_assert_eq!(user_of_tombstone(&keys.erased), Some(id(&text)));
            prop_assert_eq!(part(&keys.recall), Some(("live", "recall")));
        }

        #[test]
        fn a_field_decodes_to_its_cell(segment in "\\PC{0,8}", sku in "\\PC{0,8}") {
            let field = cell("view", &segment, &sku);
            prop_assert_eq!(cell_parts(&field), Some(("view", segment, sku.as_str())));
        }
    }
}
