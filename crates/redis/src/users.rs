//! What is stored of one user: load, fold, take, peek, publish.
//!
//! Invariant: a state is read before its profile, and the tombstone last: what is newer than the
//! state's version then makes the next write stale, never wrong.

use redis::{Cmd, Value, cmd};

use super::RedisStore;
use super::scripts::{Effect, call};
use crate::corrupt;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Error, FoldWrite, Folded, ListEdit, Peek, Publish, Published, Stored, Take, Taken, Took,
};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::{self, Held, Mark, Pending, Profiled, UserState};

/// Fields of the state hash, in the order of [`Row`].
const STATE: [&str; 7] = ["blob", "ver", "ticket", "life", "pending", "moved", "pace"];
type Row = (
    Option<Vec<u8>>,
    Option<u64>,
    Option<u64>,
    Option<i64>,
    Option<String>,
    Option<u32>,
    Option<String>,
);

/// Fields of the recall hash, in the order of [`ListRow`].
const LIST: [&str; 7] = ["doc", "ticket", "covers", "epoch", "at", "audit", "life"];
type ListRow = (
    Option<String>,
    Option<u64>,
    Option<String>,
    Option<u64>,
    Option<i64>,
    Option<String>,
    Option<i64>,
);

/// What `take.lua` answers.
type TakeRow = (Vec<u8>, i64, String, i64, u64, String);

impl RedisStore {
    pub(super) async fn load_users(&self, ns: &str, users: &[UserId]) -> Result<Vec<Held>, Error> {
        let mut cmds = Vec::with_capacity(users.len() * 3);
        let mut all = Vec::with_capacity(users.len());
        for user in users {
            let keys = keys::user(ns, user)?;
            cmds.push(hmget(&keys.state, &STATE));
            cmds.push(get(&keys.profile));
            cmds.push(get(&keys.erased));
            all.push(keys);
        }
        let mut answers = self.link().run(cmds, 3).await?.into_iter();
        let mut held = Vec::with_capacity(users.len());
        for keys in &all {
            let mut next = || answers.next().unwrap_or(Value::Nil);
            let row: Row = self.read(next())?;
            let profile: Option<String> = self.read(next())?;
            let erased: Option<i64> = self.read(next())?;
            held.push(held_of(
                keys,
                row,
                profile,
                Timestamp(erased.unwrap_or_default()),
            )?);
        }
        Ok(held)
    }

    pub(super) async fn fold_users(
        &self,
        ns: &str,
        writes: &[FoldWrite],
    ) -> Result<Vec<Folded>, Error> {
        let cmds: Result<Vec<Cmd>, Error> = writes
            .iter()
            .map(|write| self.fold_call(ns, write))
            .collect();
        let answers = self.run(cmds?, 1).await?;
        answers
            .into_iter()
            .map(|answer| {
                let (what, number): (String, Option<i64>) = self.read_pair(answer)?;
                let number = number.unwrap_or_default();
                match what.as_str() {
                    "stored" => Ok(Folded::Stored {
                        ver: number.unsigned_abs(),
                    }),
                    "stale" => Ok(Folded::Stale),
                    "erased" => Ok(Folded::Erased {
                        at: Timestamp(number),
                    }),
                    other => Err(self.link().odd(format!("fold.lua said {other}"))),
                }
            })
            .collect()
    }

    fn fold_call(&self, ns: &str, write: &FoldWrite) -> Result<Cmd, Error> {
        let keys = keys::user(ns, &write.user)?;
        let state = &write.state;
        let profile = state.profile.as_ref();
        let (change, text) = match (write.profile_changed, profile) {
            (true, Some(profile)) => ("set", profile.to_text()),
            (true, None) => ("delete", String::new()),
            (false, Some(_)) => ("keep", String::new()),
            (false, None) => ("none", String::new()),
        };
        let pending = write.mark.pending.as_ref().map(Pending::to_string);
        let mut fold = call(
            Effect::Fold,
            &[&keys.state, &keys.profile, &keys.erased, &keys.recall],
        );
        fold.arg(write.expected)
            .arg(state.life.0)
            .arg(state::encode(state, self.inner.settings.write_version))
            .arg(pending.unwrap_or_default())
            .arg(write.mark.moved)
            .arg(write.mark.pace.to_string())
            .arg(change)
            .arg(text);
        match &write.list {
            ListEdit::Keep => fold.arg("keep").arg("").arg("").arg(""),
            ListEdit::First { doc, audit, at } => fold.arg("first").arg(doc).arg(audit).arg(at.0),
            ListEdit::Strip { ticket, doc } => fold.arg("strip").arg(doc).arg("").arg(*ticket),
        };
        fold.arg(self.inner.settings.state_ms())
            .arg(self.inner.settings.list_ms());
        Ok(fold)
    }

    pub(super) async fn take_users(&self, ns: &str, takes: &[Take]) -> Result<Vec<Took>, Error> {
        let mut cmds = Vec::with_capacity(takes.len());
        let mut all = Vec::with_capacity(takes.len());
        for take in takes {
            let keys = keys::user(ns, &take.user)?;
            let mut call = call(Effect::Take, &[&keys.state, &keys.profile, &keys.erased]);
            call.arg(take.due.0)
                .arg(self.inner.settings.state_ms())
                .arg(take.expected);
            cmds.push(call);
            all.push(keys);
        }
        let answers = self.run(cmds, 1).await?;
        let taken = |(keys, answer): (&keys::User, Value)| {
            match &answer {
                Value::Nil => return Ok(Took::NoState),
                Value::Array(none) if none.is_empty() => return Ok(Took::Stale),
                _ => {}
            }
            let (bytes, life, profile, erased, ticket, pending): TakeRow = self.read(answer)?;
            let profile = profile_of(keys, Some(profile).filter(|text| !text.is_empty()))?;
            Ok(Took::Taken(Box::new(Taken {
                state: state_of(keys, &bytes, profile, Timestamp(life.max(erased)))?,
                ticket,
                pending: pending_of(keys, &pending)?,
            })))
        };
        all.iter().zip(answers).map(taken).collect()
    }

    pub(super) async fn peek_users(&self, ns: &str, users: &[UserId]) -> Result<Vec<Peek>, Error> {
        let mut cmds = Vec::with_capacity(users.len() * 3);
        let mut all = Vec::with_capacity(users.len());
        for user in users {
            let keys = keys::user(ns, user)?;
            // The list first: a state that moves on meanwhile is not covered, and is taken.
            cmds.push(hmget(&keys.recall, &LIST));
            cmds.push(hmget(&keys.state, &STATE));
            cmds.push(get(&keys.erased));
            all.push(keys);
        }
        let mut answers = self.link().run(cmds, 3).await?.into_iter();
        let mut peeks = Vec::with_capacity(users.len());
        for keys in &all {
            let mut next = || answers.next().unwrap_or(Value::Nil);
            let list: ListRow = self.read(next())?;
            let row: Row = self.read(next())?;
            let erased: Option<i64> = self.read(next())?;
            let held = held_of(keys, row, None, Timestamp(0))?;
            // A list of before an erase that this namespace has not folded yet is none.
            let made = held.state.life.max(Timestamp(list.6.unwrap_or_default()));
            let reborn = Timestamp(erased.unwrap_or_default()) > made;
            peeks.push(Peek {
                list: list_of(keys, list)?.filter(|_| !reborn),
                fences: held.state.fences,
                ticket: held.ticket,
                ver: held.ver,
                pending: held.mark.pending,
            });
        }
        Ok(peeks)
    }

    pub(super) async fn publish_lists(
        &self,
        ns: &str,
        lists: &[Publish],
    ) -> Result<Vec<Published>, Error> {
        let mut cmds = Vec::with_capacity(lists.len());
        for publish in lists {
            let keys = keys::user(ns, &publish.user)?;
            let list = &publish.list;
            let mut call = call(Effect::Publish, &[&keys.state, &keys.erased, &keys.recall]);
            call.arg(list.ticket)
                .arg(publish.life.0)
                .arg(list.epoch)
                .arg(u8::from(publish.force))
                .arg(u8::from(publish.only_if_absent))
                .arg(&list.doc)
                .arg(list.covers.to_string())
                .arg(list.at.0)
                .arg(&list.audit)
                .arg(self.inner.settings.list_ms())
                .arg(self.inner.settings.state_ms());
            cmds.push(call);
        }
        let answers = self.run(cmds, 1).await?;
        let published = |answer| {
            let what: String = self.read(answer)?;
            match what.as_str() {
                "stored" => Ok(Published::Stored),
                "older" => Ok(Published::Older),
                "erased" => Ok(Published::Erased),
                "nostate" => Ok(Published::NoState),
                "epoch" => Ok(Published::Epoch),
                "kept" => Ok(Published::Kept),
                other => Err(self.link().odd(format!("publish.lua said {other}"))),
            }
        };
        answers.into_iter().map(published).collect()
    }

    /// A word and, where there is one, what follows it.
    pub(super) fn read_pair<T: redis::FromRedisValue>(
        &self,
        answer: Value,
    ) -> Result<(String, Option<T>), Error> {
        let mut parts = self.read::<Vec<Value>>(answer)?.into_iter();
        let word = self.read(parts.next().unwrap_or(Value::Nil))?;
        let rest = parts.next().map(|value| self.read(value)).transpose()?;
        Ok((word, rest))
    }
}

fn hmget(key: &str, fields: &[&str]) -> Cmd {
    let mut hmget = cmd("HMGET");
    hmget.arg(key).arg(fields);
    hmget
}

fn get(key: &str) -> Cmd {
    let mut get = cmd("GET");
    get.arg(key);
    get
}

fn profile_of(keys: &keys::User, text: Option<String>) -> Result<Option<Profiled>, Error> {
    let read = |text: String| Profiled::from_text(&text);
    let profile = text.map(read).transpose();
    profile.map_err(|error| corrupt(&keys.profile, error))
}

fn pending_of(keys: &keys::User, text: &str) -> Result<Option<Pending>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let pending = text.parse();
    pending
        .map(Some)
        .map_err(|error| corrupt(&keys.state, error))
}

/// `life`: the later of the state's own and the tombstone.
fn state_of(
    keys: &keys::User,
    bytes: &[u8],
    profile: Option<Profiled>,
    life: Timestamp,
) -> Result<UserState, Error> {
    state::decode(bytes, profile, life).map_err(|error| corrupt(&keys.state, error))
}

fn held_of(
    keys: &keys::User,
    row: Row,
    profile: Option<String>,
    erased: Timestamp,
) -> Result<Held, Error> {
    let profile = profile_of(keys, profile)?;
    let known = profile.is_some();
    let (bytes, ver, ticket, life, pending, moved, pace) = row;
    let Some(bytes) = bytes else {
        let mut state = UserState {
            profile,
            ..UserState::default()
        };
        nearshore_core::user::fold::erase(&mut state, erased);
        return Ok(Held {
            // A profile has no TTL: it may be there without a state.
            reborn: known && state.profile.is_none(),
            state,
            ..Held::default()
        });
    };
    let missing = || corrupt(&keys.state, "a field is missing");
    let pace = pace.ok_or_else(missing)?.parse();
    let mark = Mark {
        pending: pending_of(keys, &pending.ok_or_else(missing)?)?,
        moved: moved.ok_or_else(missing)?,
        pace: pace.map_err(|error| corrupt(&keys.state, error))?,
    };
    let life = Timestamp(life.ok_or_else(missing)?);
    Ok(Held {
        reborn: erased > life,
        state: state_of(keys, &bytes, profile, life.max(erased))?,
        mark,
        ver: ver.ok_or_else(missing)?,
        ticket: ticket.ok_or_else(missing)?,
    })
}

fn list_of(keys: &keys::User, row: ListRow) -> Result<Option<Stored>, Error> {
    let (Some(doc), Some(ticket), Some(covers), Some(epoch), Some(at), Some(audit), _) = row else {
        return Ok(None);
    };
    Ok(Some(Stored {
        doc,
        ticket,
        covers: covers
            .parse()
            .map_err(|error| corrupt(&keys.recall, error))?,
        epoch,
        at: Timestamp(at),
        audit,
    }))
}
