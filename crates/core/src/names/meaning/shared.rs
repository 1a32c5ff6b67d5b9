//! Readings that users share, kept by the hash of their text: [`SharedReadings`].
//!
//! Decides which readings are kept, and for which users. A reading is at first kept for the user who typed the text;
//! once as many users as configured have typed it, it is kept for all. Invariant: no text and no user's id is kept,
//! only hashes that are keyed by this process; memory is bounded; what is kept changes no reading, only how often one
//! is made. It does not know how texts are read.

// Hash maps are for lookup only: their order never reaches an output.
#[expect(clippy::disallowed_types, reason = "lookup only")]
use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Reading;

/// A hash of a text, or of a text and its user.
type Key = [u8; 16];

/// Readings by text.
#[expect(clippy::disallowed_types, reason = "lookup only")]
pub struct SharedReadings {
    /// Known to this process alone, so that a hash does not tell a text.
    secret: [u8; 32],
    /// Most entries of each map.
    most: usize,
    users_min: usize,
    /// Readings of texts that enough users typed.
    shared: HashMap<Key, Arc<Reading>>,
    /// Readings of texts of one user.
    own: HashMap<Key, Arc<Reading>>,
    /// Hashes of the users who typed a text that is not shared yet.
    typed: HashMap<Key, Vec<Key>>,
}

impl SharedReadings {
    /// Nothing is kept yet. A text is shared once `users_min` users typed it; `most` is the most texts kept of each
    /// kind.
    pub fn new(secret: [u8; 32], users_min: usize, most: usize) -> Self {
        Self {
            secret,
            most: most.max(1),
            users_min: users_min.max(1),
            shared: Default::default(),
            own: Default::default(),
            typed: Default::default(),
        }
    }

    /// Forgets all readings: they were made by other names. Who typed what is kept.
    pub fn clear(&mut self) {
        self.shared.clear();
        self.own.clear();
    }

    /// The reading of a user's text; `read` makes it if it is not kept.
    pub fn get(
        &mut self,
        (user, text): (&str, &str),
        read: impl FnOnce() -> Reading,
    ) -> Arc<Reading> {
        let key = self.key(&[text]);
        if let Some(known) = self.shared.get(&key) {
            return Arc::clone(known);
        }
        let own = self.key(&[text, user]);
        let reading = match self.own.get(&own) {
            Some(known) => Arc::clone(known),
            None => Arc::new(read()),
        };
        if self.is_typed_enough(key, self.key(&["", user])) {
            self.own.remove(&own);
            bound(&mut self.shared, self.most);
            self.shared.insert(key, Arc::clone(&reading));
        } else {
            bound(&mut self.own, self.most);
            self.own.insert(own, Arc::clone(&reading));
        }
        reading
    }

    /// Number of texts that are kept for all, and for their users.
    pub fn len(&self) -> (usize, usize) {
        (self.shared.len(), self.own.len())
    }

    /// Whether enough users typed a text, this one included. Then the users are forgotten.
    fn is_typed_enough(&mut self, text: Key, user: Key) -> bool {
        if !self.typed.contains_key(&text) {
            bound(&mut self.typed, self.most);
        }
        let users = self.typed.entry(text).or_default();
        if !users.contains(&user) {
            users.push(user);
        }
        let enough = users.len() >= self.users_min;
        if enough {
            self.typed.remove(&text);
        }
        enough
    }

    fn key(&self, parts: &[&str]) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let mut key = Key::default();
        key.copy_from_slice(&hash.finalize()[..16]);
        key
    }
}

/// Makes room for one more entry: a full map is emptied, which costs readings that are made again, and no more.
#[expect(clippy::disallowed_types, reason = "lookup only")]
fn bound<T>(map: &mut HashMap<Key, T>, most: usize) {
    if map.len() >= most {
        map.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Said, Slots};
    use super::*;

    fn reading(n: usize) -> Reading {
        let said = Said {
            slots: Slots::default(),
            meant: None,
        };
        Reading {
            said: vec![said; n],
        }
    }

    /// How many readings are made when these users type these texts.
    fn made(kept: &mut SharedReadings, typed: &[(&str, &str)]) -> usize {
        let mut made = 0;
        for (user, text) in typed {
            let read = || {
                made += 1;
                reading(text.len())
            };
            let got = kept.get((user, text), read);
            assert_eq!(*got, reading(text.len()), "{user} {text}");
        }
        made
    }

    #[test]
    fn a_text_is_shared_once_enough_users_typed_it() {
        let mut kept = SharedReadings::new([7; 32], 3, 100);
        // One user may type it as often as they like.
        assert_eq!(
            made(&mut kept, &[("ann", "tea"), ("ann", "tea"), ("ann", "tea")]),
            1
        );
        assert_eq!(kept.len(), (0, 1));
        assert_eq!(made(&mut kept, &[("bob", "tea"), ("bob", "soap")]), 2);
        assert_eq!(kept.len().0, 0);
        assert_eq!(
            made(&mut kept, &[("eve", "tea"), ("joe", "tea"), ("ann", "tea")]),
            1
        );
        assert_eq!(kept.len().0, 1);
        assert!(
            kept.typed.len() == 1,
            "who typed a shared text is forgotten"
        );
        kept.clear();
        assert_eq!(
            (kept.len(), made(&mut kept, &[("bob", "soap")])),
            ((0, 0), 1)
        );
    }

    #[test]
    fn neither_a_text_nor_a_user_can_be_told_from_what_is_kept() {
        let mut kept = SharedReadings::new([7; 32], 2, 100);
        made(&mut kept, &[("ann", "tea")]);
        let mut other = SharedReadings::new([8; 32], 2, 100);
        made(&mut other, &[("ann", "tea")]);
        assert!(kept.typed.keys().all(|key| !other.typed.contains_key(key)));
        assert!(kept.own.keys().all(|key| !other.own.contains_key(key)));
        // The border between text and user counts.
        assert_ne!(kept.key(&["te", "aann"]), kept.key(&["tea", "ann"]));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = SharedReadings::new([7; 32], 2, 10);
        let users: Vec<String> = (0..1_000).map(|nth| format!("u{nth}")).collect();
        for user in &users {
            made(&mut kept, &[(user.as_str(), user.as_str()), (user, "tea")]);
            assert!(kept.own.len() <= 10 && kept.shared.len() <= 10 && kept.typed.len() <= 10);
        }
    }
}
