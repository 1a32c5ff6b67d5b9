//! The Lua scripts: one `.lua` file per effect, called by its hash.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use redis::{Arg, Cmd, Script, ToRedisArgs};

use nearshore_core::ports::store::Lineage;

/// What a script does.
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
    Discard,
}

const SOURCES: [(Effect, &str); 12] = [
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
    (Effect::Discard, include_str!("lua/discard.lua")),
];

impl Effect {
    /// All effects.
    pub(super) const ALL: [Self; SOURCES.len()] = {
        let mut all = [Self::Fold; SOURCES.len()];
        let mut nth = 0;
        while nth < all.len() {
            all[nth] = SOURCES[nth].0;
            nth += 1;
        }
        all
    };
}

/// The commands that a script calls, in lower case.
pub(super) fn commands_of(effect: Effect) -> impl Iterator<Item = String> {
    let (_, source) = SOURCES[effect as usize];
    let calls = source.split("redis.call('").skip(1);
    calls.map(|rest| rest.split('\'').next().unwrap_or_default().to_lowercase())
}

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

/// The same scripts under hashes that only primaries of one lineage know.
///
/// Redis keeps scripts in the memory of its process and, since 7.0, does not replicate them. So a script whose text
/// names the lineage is unknown to primaries of any other lineage: they refuse a call by its hash before it does
/// anything, at no cost per call.
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

    /// Replaces each script's hash by its hash in this lineage.
    pub(super) fn apply(&self, cmds: Vec<Cmd>) -> Vec<Cmd> {
        let guarded = |cmd: Cmd| self.guarded(&cmd).unwrap_or(cmd);
        cmds.into_iter().map(guarded).collect()
    }

    /// The guarded call; `None` for a command that calls none of these scripts.
    fn guarded(&self, plain: &Cmd) -> Option<Cmd> {
        let mut words = plain.args_iter().map(|word| match word {
            Arg::Simple(bytes) => bytes,
            _ => &[],
        });
        if words.next()? != b"EVALSHA" {
            return None;
        }
        let hash = self.hashes.get(words.next()?)?;
        // Sized at once: growing with every word costs more than copying the words.
        let bytes = plain.args_iter().map(|word| match word {
            Arg::Simple(bytes) => bytes.len(),
            _ => 0,
        });
        let mut guarded = Cmd::with_capacity(plain.args_iter().count(), bytes.sum());
        guarded.arg("EVALSHA").arg(hash);
        words.for_each(|word| {
            guarded.arg(word);
        });
        Some(guarded)
    }
}

/// Starts a call by hash with its keys; the caller adds the arguments.
pub(super) fn call<K: ToRedisArgs>(effect: Effect, keys: &[K]) -> Cmd {
    debug_assert_eq!(
        SOURCES[effect as usize].0, effect,
        "SOURCES are in the order of Effect"
    );
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
    fn sources_are_in_the_order_of_the_effects() {
        for (nth, (effect, _)) in SOURCES.iter().enumerate() {
            assert_eq!(*effect as usize, nth);
        }
    }

    #[test]
    fn a_guarded_call_differs_only_in_its_scripts_hash() {
        let guard = Guard::new(&Lineage("abc".into()));
        let mut plain = call(Effect::Fold, &["k1", "k2"]);
        plain.arg(7).arg("x");
        let words = |cmd: &Cmd| String::from_utf8_lossy(&cmd.get_packed_command()).into_owned();
        let before = words(&plain);
        let guarded = guard.apply(vec![plain]).remove(0);
        let hash = Script::new(&guard.sources[0]).get_hash().to_owned();
        assert_eq!(words(&guarded), before.replace(&HASHES[0], &hash));
        assert_ne!(hash, HASHES[0]);
        let mut other = redis::cmd("GET");
        other.arg("k");
        let kept = guard.apply(vec![other.clone()]).remove(0);
        assert_eq!(words(&kept), words(&other));
    }

    #[test]
    fn every_script_documents_its_keys_arguments_and_invariant() {
        for (effect, source) in SOURCES {
            assert!(source.contains("-- KEYS"), "{effect:?}");
            assert!(source.contains("-- ARGV"), "{effect:?}");
            assert!(source.contains("-- Invariant:"), "{effect:?}");
        }
    }
}
