//! What is stored of one user: load, fold, claim, peek, publish.
//!
//! Invariant: a state is read before its profile, and the tombstone last. A value that is newer than the state's
//! version then makes the next write stale, never wrong.

use redis::{Cmd, FromRedisValue, ParsingError, Value, cmd};

use super::RedisStore;
use super::scripts::{Effect, call};
use crate::corrupt;
use nearshore_core::list::document::Stage;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Claim, ClaimOutcome, Claimed, Error, FoldWrite, Folded, ListEdit, Peek, Publish, Published,
    Stored,
};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::{
    self, Activity, DecodeError, LoadedUser, Pending, Profiled, UserState,
};
use nearshore_core::user::trigger::ACTIVITY_AFTER_FIRST;

/// Fields of the state hash, in the order of [`StateRow`].
const STATE: [&str; 7] = [
    "blob",
    "ver",
    "claim",
    "erased_at",
    "pending",
    "activity",
    "claim_rate",
];

/// The state hash as read; a field is `None` where it is missing.
struct StateRow {
    blob: Option<Vec<u8>>,
    ver: Option<u64>,
    claim: Option<u64>,
    erased_at: Option<i64>,
    pending: Option<String>,
    activity: Option<u32>,
    claim_rate: Option<String>,
}

impl FromRedisValue for StateRow {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let fields = FromRedisValue::from_redis_value(value)?;
        let (blob, ver, claim, erased_at, pending, activity, claim_rate) = fields;
        Ok(Self {
            blob,
            ver,
            claim,
            erased_at,
            pending,
            activity,
            claim_rate,
        })
    }
}

/// Fields of the recall hash, in the order of [`ListRow`].
const LIST: [&str; 8] = [
    "doc",
    "claim",
    "seen",
    "epoch",
    "at",
    "audit",
    "erased_at",
    "stage",
];

/// The recall hash as read; a field is `None` where it is missing.
struct ListRow {
    doc: Option<String>,
    claim: Option<u64>,
    seen: Option<String>,
    epoch: Option<u64>,
    at: Option<i64>,
    audit: Option<Vec<u8>>,
    erased_at: Option<i64>,
    stage: Option<String>,
}

impl FromRedisValue for ListRow {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (doc, claim, seen, epoch, at, audit, erased_at, stage) =
            FromRedisValue::from_redis_value(value)?;
        Ok(Self {
            doc,
            claim,
            seen,
            epoch,
            at,
            audit,
            erased_at,
            stage,
        })
    }
}

/// What `claim.lua` returns: blob, erased_at, profile, tombstone, claim number, pending.
type ClaimRow = (Vec<u8>, i64, String, i64, u64, String);

impl RedisStore {
    pub(super) async fn load_users(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> Result<Vec<LoadedUser>, Error> {
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
        let mut loaded = Vec::with_capacity(users.len());
        for keys in &all {
            let mut next = || answers.next().unwrap_or(Value::Nil);
            let row: StateRow = self.read_of(&keys.state, next())?;
            let profile: Option<String> = self.read_of(&keys.profile, next())?;
            let erased: Option<i64> = self.read_of(&keys.erased, next())?;
            loaded.push(user_of(
                keys,
                row,
                profile,
                Timestamp(erased.unwrap_or_default()),
            )?);
        }
        Ok(loaded)
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
                let (outcome, number): (String, Option<i64>) = self.read_pair(answer)?;
                let number = number.unwrap_or_default();
                match outcome.as_str() {
                    "stored" => Ok(Folded::Stored {
                        ver: number.unsigned_abs(),
                    }),
                    "stale" => Ok(Folded::Stale),
                    "erased" => Ok(Folded::Erased {
                        at: Timestamp(number),
                    }),
                    other => Err(self
                        .link()
                        .unexpected(format!("fold.lua returned {other:?}"))),
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
        let pending = write.activity.pending.as_ref().map(Pending::to_string);
        let mut fold = call(
            Effect::Fold,
            &[&keys.state, &keys.profile, &keys.erased, &keys.recall],
        );
        fold.arg(write.expected)
            .arg(state.erased_at.0)
            .arg(state::encode(state, self.inner.settings.write_version))
            .arg(pending.unwrap_or_default())
            .arg(write.activity.score)
            .arg(write.activity.claim_rate.to_string())
            .arg(change)
            .arg(text);
        match &write.list {
            ListEdit::Keep => fold.arg("keep").arg("").arg("").arg(""),
            ListEdit::Strip { claim, stage, doc } => {
                let edit = fold.arg("strip").arg(doc).arg(*claim);
                edit.arg(stage.number())
            }
        };
        fold.arg(self.inner.settings.state_ms());
        Ok(fold)
    }

    pub(super) async fn claim_users(
        &self,
        ns: &str,
        claims: &[Claim],
    ) -> Result<Vec<ClaimOutcome>, Error> {
        let mut cmds = Vec::with_capacity(claims.len());
        let mut all = Vec::with_capacity(claims.len());
        for claim in claims {
            let keys = keys::user(ns, &claim.user)?;
            let mut call = call(Effect::Claim, &[&keys.state, &keys.profile, &keys.erased]);
            call.arg(claim.due.0)
                .arg(self.inner.settings.state_ms())
                .arg(claim.expected)
                .arg(ACTIVITY_AFTER_FIRST);
            cmds.push(call);
            all.push(keys);
        }
        let answers = self.run(cmds, 1).await?;
        let claimed = |(keys, answer): (&keys::User, Value)| {
            match &answer {
                Value::Nil => return Ok(ClaimOutcome::NoState),
                Value::Array(fields) if fields.is_empty() => return Ok(ClaimOutcome::Stale),
                _ => {}
            }
            let (bytes, erased_at, profile, erased, claim, pending): ClaimRow =
                self.read_of(&keys.state, answer)?;
            let profile = profile_of(keys, Some(profile).filter(|text| !text.is_empty()))?;
            Ok(ClaimOutcome::Claimed(Box::new(Claimed {
                state: state_of(keys, &bytes, profile, Timestamp(erased_at.max(erased)))?,
                claim,
                pending: pending_of(keys, &pending)?,
            })))
        };
        all.iter().zip(answers).map(claimed).collect()
    }

    pub(super) async fn peek_users(&self, ns: &str, users: &[UserId]) -> Result<Vec<Peek>, Error> {
        let mut cmds = Vec::with_capacity(users.len() * 3);
        let mut all = Vec::with_capacity(users.len());
        for user in users {
            let keys = keys::user(ns, user)?;
            // The list first: a state that changes in between is not covered by the list, and the user is claimed.
            cmds.push(hmget(&keys.recall, &LIST));
            cmds.push(hmget(&keys.state, &STATE));
            cmds.push(get(&keys.erased));
            all.push(keys);
        }
        let mut answers = self.link().run(cmds, 3).await?.into_iter();
        let mut peeks = Vec::with_capacity(users.len());
        for keys in &all {
            let mut next = || answers.next().unwrap_or(Value::Nil);
            let list: ListRow = self.read_of(&keys.recall, next())?;
            let row: StateRow = self.read_of(&keys.state, next())?;
            let erased: Option<i64> = self.read_of(&keys.erased, next())?;
            let user = user_of(keys, row, None, Timestamp(0))?;
            // A list from before an erase that this namespace has not folded yet does not count.
            let list_erased_at = Timestamp(list.erased_at.unwrap_or_default());
            let known = user.state.erased_at.max(list_erased_at);
            let erased_since = Timestamp(erased.unwrap_or_default()) > known;
            peeks.push(Peek {
                list: list_of(keys, list)?.filter(|_| !erased_since),
                fences: user.state.fences,
                claim: user.claim,
                ver: user.ver,
                pending: user.activity.pending,
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
            call.arg(list.claim)
                .arg(publish.erased_at.0)
                .arg(list.epoch)
                .arg(u8::from(publish.force))
                .arg(u8::from(publish.only_if_absent))
                .arg(&list.doc)
                .arg(list.seen.to_string())
                .arg(list.at.0)
                .arg(list.audit.as_bytes())
                .arg(self.inner.settings.list_ms())
                .arg(self.inner.settings.state_ms())
                .arg(list.stage.number());
            cmds.push(call);
        }
        let answers = self.run(cmds, 1).await?;
        let published = |answer| {
            let outcome: String = self.read(answer)?;
            match outcome.as_str() {
                "stored" => Ok(Published::Stored),
                "older" => Ok(Published::Older),
                "erased" => Ok(Published::Erased),
                "nostate" => Ok(Published::NoState),
                "epoch" => Ok(Published::Epoch),
                "kept" => Ok(Published::Kept),
                other => Err(self
                    .link()
                    .unexpected(format!("publish.lua returned {other:?}"))),
            }
        };
        answers.into_iter().map(published).collect()
    }

    pub(super) async fn discard_user(
        &self,
        ns: &str,
        user: &UserId,
        at: Timestamp,
    ) -> Result<(), Error> {
        let keys = keys::user(ns, user)?;
        let mut discard = call(
            Effect::Discard,
            &[&keys.state, &keys.profile, &keys.erased, &keys.recall],
        );
        discard.arg(at.0);
        self.run(vec![discard], 1).await.map(drop)
    }

    /// Reads a word and, if there is one, the value behind it.
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

/// Decodes a state; `erased_at` is the later of the state's own and the tombstone.
fn state_of(
    keys: &keys::User,
    bytes: &[u8],
    profile: Option<Profiled>,
    erased_at: Timestamp,
) -> Result<UserState, Error> {
    state::decode(bytes, profile, erased_at).map_err(|error| {
        match (corrupt(&keys.state, &error), error) {
            // It is not one value that is damaged but this process that is too old, so it must stop before it sets aside
            // the records of all users.
            (Error::Corrupt { key, reason, .. }, DecodeError::Newer { .. }) => Error::Corrupt {
                key,
                user: None,
                reason,
            },
            (other, _) => other,
        }
    })
}

fn user_of(
    keys: &keys::User,
    row: StateRow,
    profile: Option<String>,
    erased: Timestamp,
) -> Result<LoadedUser, Error> {
    let profile = profile_of(keys, profile)?;
    let had_profile = profile.is_some();
    if row.blob.is_none() && row.ver.is_some() {
        // Read as no state, it would make every write stale.
        return Err(corrupt(&keys.state, "the field blob is missing"));
    }
    let Some(bytes) = row.blob else {
        let mut state = UserState {
            profile,
            ..UserState::default()
        };
        nearshore_core::user::fold::erase(&mut state, erased);
        return Ok(LoadedUser {
            // A profile has no TTL, so it may outlive its state.
            erased_elsewhere: had_profile && state.profile.is_none(),
            state,
            ..LoadedUser::default()
        });
    };
    let missing = || corrupt(&keys.state, "a field is missing");
    let claim_rate = row.claim_rate.ok_or_else(missing)?.parse();
    let activity = Activity {
        pending: pending_of(keys, &row.pending.ok_or_else(missing)?)?,
        score: row.activity.ok_or_else(missing)?,
        claim_rate: claim_rate.map_err(|error| corrupt(&keys.state, error))?,
    };
    let erased_at = Timestamp(row.erased_at.ok_or_else(missing)?);
    Ok(LoadedUser {
        erased_elsewhere: erased > erased_at,
        state: state_of(keys, &bytes, profile, erased_at.max(erased))?,
        activity,
        ver: row.ver.ok_or_else(missing)?,
        claim: row.claim.ok_or_else(missing)?,
    })
}

fn list_of(keys: &keys::User, row: ListRow) -> Result<Option<Stored>, Error> {
    let ListRow {
        doc: Some(doc),
        claim: Some(claim),
        seen: Some(seen),
        epoch: Some(epoch),
        at: Some(at),
        audit: Some(audit),
        erased_at: _,
        stage,
    } = row
    else {
        return Ok(None);
    };
    Ok(Some(Stored {
        doc,
        claim,
        stage: stage.as_deref().map(Stage::of_number).unwrap_or_default(),
        seen: seen.parse().map_err(|error| corrupt(&keys.recall, error))?,
        epoch,
        at: Timestamp(at),
        audit: audit.into(),
    }))
}
