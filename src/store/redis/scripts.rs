//! The scripts: one `.lua` per effect, known to Redis by its hash.

use std::sync::LazyLock;

use redis::{Cmd, Script, ToRedisArgs};

/// The effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Fold,
    Take,
    Publish,
    Delta,
    Stock,
    Block,
    Unblock,
    Register,
    Active,
    Erase,
}

const SOURCES: [(Effect, &str); 10] = [
    (Effect::Fold, include_str!("../lua/fold.lua")),
    (Effect::Take, include_str!("../lua/take.lua")),
    (Effect::Publish, include_str!("../lua/publish.lua")),
    (Effect::Delta, include_str!("../lua/delta.lua")),
    (Effect::Stock, include_str!("../lua/stock.lua")),
    (Effect::Block, include_str!("../lua/block.lua")),
    (Effect::Unblock, include_str!("../lua/unblock.lua")),
    (Effect::Register, include_str!("../lua/register.lua")),
    (Effect::Active, include_str!("../lua/active.lua")),
    (Effect::Erase, include_str!("../lua/erase.lua")),
];

static HASHES: LazyLock<[String; SOURCES.len()]> =
    LazyLock::new(|| SOURCES.map(|(_, source)| Script::new(source).get_hash().into()));

/// `SCRIPT LOAD` of every script.
pub(super) fn loads() -> impl Iterator<Item = Cmd> {
    SOURCES.iter().map(|(_, source)| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(*source);
        load
    })
}

/// A call by hash; arguments follow.
pub(super) fn call<K: ToRedisArgs>(effect: Effect, keys: &[K]) -> Cmd {
    debug_assert_eq!(SOURCES[effect as usize].0, effect, "in the enum's order");
    let mut call = redis::cmd("EVALSHA");
    call.arg(&HASHES[effect as usize]).arg(keys.len());
    for key in keys {
        call.arg(key);
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_stand_in_the_order_of_the_effects() {
        for (nth, (effect, _)) in SOURCES.iter().enumerate() {
            assert_eq!(*effect as usize, nth);
        }
    }

    #[test]
    fn every_script_says_its_keys_and_its_invariant() {
        for (effect, source) in SOURCES {
            assert!(source.contains("-- KEYS"), "{effect:?}");
            assert!(source.contains("-- ARGV"), "{effect:?}");
            assert!(source.contains("-- Invariant:"), "{effect:?}");
        }
    }
}
