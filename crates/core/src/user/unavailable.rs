//! Fields of a profile that the source did not send because they had not changed: they keep what was known before.
//!
//! Invariant: such a field has the value of the greatest earlier record, by (time, position), that sent it or had no such
//! field, whatever the order in which the records are folded. `kept` names that record, and an erase at or after its
//! time takes the value away. A field of which nothing is known stays Debezium's placeholder.

use serde_json::Value;

use super::event::{Profile, UNAVAILABLE, is_unavailable};
use super::record::{Position, Timestamp};
use super::state::Profiled;

impl Profiled {
    /// The profile of a record, which is newer than `before`, the stored one.
    pub(super) fn after(
        before: Option<&Self>,
        time: Timestamp,
        position: &Position,
        profile: &Profile,
    ) -> Self {
        let mut new = Self {
            time,
            position: position.clone(),
            profile: profile.clone(),
            kept: Default::default(),
        };
        let Some(before) = before else { return new };
        for (field, value) in &mut new.profile.0 {
            if !is_unavailable(value) {
                continue;
            }
            let known = before.profile.0.get(field);
            let from = match before.kept.get(field) {
                Some(from) => from.clone(),
                None if known.is_some_and(is_unavailable) => continue,
                None => (before.time, before.position.clone()),
            };
            *value = known.cloned().unwrap_or_else(|| UNAVAILABLE.into());
            new.kept.insert(field.clone(), from);
        }
        new
    }

    /// Learns from an older record what a field was that this one's record did not send. Returns whether that changed
    /// the profile, or `None` if there was nothing to learn.
    pub(super) fn learn(
        &mut self,
        time: Timestamp,
        position: &Position,
        older: &Profile,
    ) -> Option<bool> {
        let mut changed = None;
        for (field, value) in &mut self.profile.0 {
            let from = self.kept.get(field);
            let at = (time, position.clone());
            if (from.is_none() && !is_unavailable(value)) || from >= Some(&at) {
                continue;
            }
            let known = older.0.get(field);
            if known.is_some_and(is_unavailable) {
                continue;
            }
            let known = known.cloned().unwrap_or_else(|| Value::from(UNAVAILABLE));
            changed = Some(changed.unwrap_or(false) || *value != known);
            *value = known;
            self.kept.insert(field.clone(), at);
        }
        changed
    }

    /// Forgets the values that are from records at or before an erase.
    pub(super) fn forget_kept(&mut self, erased_at: Timestamp) {
        let profile = &mut self.profile.0;
        self.kept.retain(|field, (time, _)| {
            let stays = *time > erased_at;
            if !stays && let Some(value) = profile.get_mut(field) {
                *value = UNAVAILABLE.into();
            }
            stays
        });
    }
}
