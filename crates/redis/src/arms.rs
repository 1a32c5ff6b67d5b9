//! What lists are shown, and what they earned.
//!
//! Invariant: nothing here is fenced, and no decision about a user reads it. A list or a count that cannot be read is
//! left out, because a measurement must not stop what it measures.

use std::collections::BTreeMap;

use redis::{Cmd, Value, cmd};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as NoSource;

use super::RedisStore;
use nearshore_core::list::document::Source;
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Arms, Error, ShownDoc};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

/// Fields of the recall hash, in the order of [`Row`].
const LIST: [&str; 4] = ["doc", "epoch", "stored_at", "erased_at"];

/// The fields as read; `None` where one is missing.
type Row = (Option<String>, Option<u64>, Option<i64>, Option<i64>);

impl Arms for RedisStore {
    async fn shown(&self, ns: &str, users: &[UserId]) -> Result<Vec<Option<ShownDoc>>, Error> {
        let mut cmds = Vec::with_capacity(users.len() * 2);
        for user in users {
            let keys = keys::user(ns, user)?;
            let mut hmget = cmd("HMGET");
            hmget.arg(keys.recall).arg(LIST.as_slice());
            let mut get = cmd("GET");
            get.arg(keys.erased);
            cmds.extend([hmget, get]);
        }
        let answers = self.link().run(cmds, 2).await?;
        Ok(answers.chunks_exact(2).map(shown).collect())
    }

    async fn add_earned(&self, ns: &str, earned: &BTreeMap<ListKind, Earned>) -> Result<(), Error> {
        let key = keys::arms(ns)?;
        let add = |(kind, earned): (&ListKind, &Earned)| -> Vec<Cmd> {
            let counts = counts(earned).into_iter().filter(|(_, n)| *n > 0);
            let add = counts.map(|(what, n)| {
                let mut add = cmd("HINCRBY");
                add.arg(&key).arg(field(kind, what)).arg(n);
                add
            });
            add.collect()
        };
        let cmds: Vec<Cmd> = earned.iter().flat_map(add).collect();
        if cmds.is_empty() {
            return Ok(());
        }
        self.link().run(cmds, 1).await.map(drop)
    }

    async fn earned(&self, ns: &str) -> Result<BTreeMap<ListKind, Earned>, Error> {
        let key = keys::arms(ns)?;
        let mut all = cmd("HGETALL");
        all.arg(&key);
        let fields: BTreeMap<String, String> = self.read_of(&key, self.link().one(all).await?)?;
        let mut earned: BTreeMap<ListKind, Earned> = BTreeMap::new();
        for (field, n) in fields {
            // A newer version may count more.
            if let (Some((kind, what)), Ok(n)) = (parts(&field), n.parse()) {
                set(earned.entry(kind).or_default(), what, n);
            }
        }
        Ok(earned)
    }
}

/// The list of one user, from the answers to HMGET and GET.
fn shown(answers: &[Value]) -> Option<ShownDoc> {
    let (doc, epoch, stored_at, erased_at): Row =
        redis::from_redis_value_ref(answers.first()?).ok()?;
    let erased: Option<i64> = redis::from_redis_value_ref(answers.get(1)?).ok()?;
    // A list from before an erase that this namespace has not folded yet does not count.
    let is_current = erased.unwrap_or_default() <= erased_at.unwrap_or_default();
    Some(ShownDoc {
        doc: doc.filter(|_| is_current)?,
        epoch: epoch?,
        stored_at: stored_at.map(Timestamp),
    })
}

/// `arm:epoch:source:what`; the arm is empty in lists that no arm made, of earlier releases.
fn field(kind: &ListKind, what: &str) -> String {
    let source: &str = kind.source.into();
    format!("{}:{}:{source}:{what}", kind.arm, kind.epoch)
}

fn parts(field: &str) -> Option<(ListKind, &str)> {
    let mut parts = field.rsplitn(4, ':');
    let (what, source) = (parts.next()?, parts.next()?);
    let (epoch, arm) = (parts.next()?, parts.next()?);
    let source: Result<Source, NoSource> = Source::deserialize(source.into_deserializer());
    let kind = ListKind {
        arm: arm.to_owned(),
        epoch: epoch.parse().ok()?,
        source: source.ok()?,
    };
    Some((kind, what))
}

fn counts(earned: &Earned) -> [(&'static str, u64); 4] {
    [
        ("lists", earned.lists),
        ("purchases", earned.purchases),
        ("hits", earned.hits),
        ("fallback_hits", earned.fallback_hits),
    ]
}

fn set(earned: &mut Earned, what: &str, n: u64) {
    match what {
        "lists" => earned.lists = n,
        "purchases" => earned.purchases = n,
        "hits" => earned.hits = n,
        "fallback_hits" => earned.fallback_hits = n,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_from_the_field_that_it_is_written_to() {
        for arm in ["", "a", "basket-135m"] {
            let kind = ListKind {
                arm: arm.into(),
                epoch: 3,
                source: Source::Fallback,
            };
            let written = Earned {
                lists: 1,
                purchases: 2,
                hits: 3,
                fallback_hits: 4,
            };
            let mut read = Earned::default();
            for (what, n) in counts(&written) {
                let field = field(&kind, what);
                let (found, what) = parts(&field).expect("it parses");
                assert_eq!(found, kind, "{field}");
                set(&mut read, what, n);
            }
            assert_eq!(read, written);
        }
        assert_eq!(parts("a:3:magic:hits"), None);
        assert_eq!(parts("a:fallback:hits"), None);
    }
}
