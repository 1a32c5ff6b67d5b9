//! The scripts: one `.lua` per effect, known to Redis by its hash.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use redis::{Arg, Cmd, Script, ToRedisArgs};

use nearshore_core::ports::store::Lineage;

/// The effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Fold,
    Claim,
    Publish,
    Delta,
    Stock,
    Block,
    Unblock,
    Register,
    Active,
    Checkpoint,
    Erase,
}

const SOURCES: [(Effect, &str); 11] = [
    (Effect::Fold, include_str!("lua/fold.lua")),
    (Effect::Claim, include_str!("lua/claim.lua")),
    (Effect::Publish, include_str!("lua/publish.lua")),
    (Effect::Delta, include_str!("lua/delta.lua")),
    (Effect::Stock, include_str!("lua/stock.lua")),
    (Effect::Block, include_str!("lua/block.lua")),
    (Effect::Unblock, include_str!("lua/unblock.lua")),
    (Effect::Register, include_str!("lua/register.lua")),
    (Effect::Active, include_str!("lua/active.lua")),
    (Effect::Checkpoint, include_str!("lua/checkpoint.lua")),
    (Effect::Erase, include_str!("lua/erase.lua")),
];

static HASHES: LazyLock<[String; SOURCES.len()]> =
    LazyLock::new(|| SOURCES.map(|(_, source)| Script::new(source).get_hash().into()));

/// `SCRIPT LOAD` of every script.
pub(super) fn loads() -> impl Iterator<Item = Cmd> {
    SOURCES.iter().map(|(_, source)| load(source))
}

fn load(source: &str) -> Cmd {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(source);
    load
}

/// The same scripts under names that only primaries of one lineage know.
///
/// Redis keeps scripts in the memory of its process and, since 7.0, hands them to no replica. So a script whose text
/// names the lineage is unknown wherever that lineage does not rule: a call by its hash is refused
/// there before it does anything, at no cost per call.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) lineage: Lineage,
    sources: [String; SOURCES.len()],
    /// From the plain hash to the lineage's.
    hashes: BTreeMap<&'static [u8], String>,
}

impl Guard {
    pub(super) fn new(lineage: &Lineage) -> Self {
        let sources = SOURCES.map(|(_, source)| format!("-- lineage {}\n{source}", lineage.0));
        let hashes = HASHES.iter().zip(&sources).map(|(plain, source)| {
            let hash = Script::new(source).get_hash().into();
            (plain.as_bytes(), hash)
        });
        Self {
            hashes: hashes.collect(),
            lineage: lineage.clone(),
            sources,
        }
    }

    /// `SCRIPT LOAD` of every script; only where the lineage was seen to rule.
    pub(super) fn loads(&self) -> impl Iterator<Item = Cmd> {
        self.sources.iter().map(|source| load(source))
    }

    /// The same calls, of this lineage's scripts.
    pub(super) fn dress(&self, cmds: Vec<Cmd>) -> Vec<Cmd> {
        let dressed = |cmd: Cmd| self.dressed(&cmd).unwrap_or(cmd);
        cmds.into_iter().map(dressed).collect()
    }

    /// None of a command that calls no script of ours.
    fn dressed(&self, plain: &Cmd) -> Option<Cmd> {
        let mut words = plain.args_iter().map(|word| match word {
            Arg::Simple(bytes) => bytes,
            _ => &[],
        });
        if words.next()? != b"EVALSHA" {
            return None;
        }
        let hash = self.hashes.get(words.next()?)?;
        // Sized at once: growing by every word costs more than the words.
        let bytes = plain.args_iter().map(|word| match word {
            Arg::Simple(bytes) => bytes.len(),
            _ => 0,
        });
        let mut dressed = Cmd::with_capacity(plain.args_iter().count(), bytes.sum());
        dressed.arg("EVALSHA").arg(hash);
        words.for_each(|word| {
            dressed.arg(word);
        });
        Some(dressed)
    }
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
    fn a_guarded_call_differs_in_the_name_of_its_script_only() {
        let guard = Guard::new(&Lineage("abc".into()));
        let mut plain = call(Effect::Fold, &["k1", "k2"]);
        plain.arg(7).arg("x");
        let words = |cmd: &Cmd| String::from_utf8_lossy(&cmd.get_packed_command()).into_owned();
        let before = words(&plain);
        let dressed = guard.dress(vec![plain]).remove(0);
        let hash = Script::new(&guard.sources[0]).get_hash().to_owned();
        assert_eq!(words(&dressed), before.replace(&HASHES[0], &hash));
        assert_ne!(hash, HASHES[0]);
        let mut other = redis::cmd("GET");
        other.arg("k");
        let kept = guard.dress(vec![other.clone()]).remove(0);
        assert_eq!(words(&kept), words(&other));
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
