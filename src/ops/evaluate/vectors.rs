//! Vectors of the texts of a log: of the catalogue's names, and of profile values.
//!
//! Invariant: equal logs and encoders give equal vectors, and a profile value that fewer than so many users had has none.
//! It does not know what vectors are used for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use nearshore_core::list::terms::profile_texts;
use nearshore_core::text::vectors::Vectors;
use nearshore_core::user::event::Change;
use nearshore_engine::encoder::Encoder;

use super::History;

/// Texts that are encoded at once.
const BATCH: usize = 256;

/// Loads an encoder from its folder.
pub(crate) fn load(folder: &Path) -> anyhow::Result<Encoder> {
    Encoder::load(folder).context("the encoder")
}

/// The vectors of all names, and of profile values that at least `users_min` users had at any time.
pub(crate) fn vectors(
    history: &History,
    encoder: &Encoder,
    users_min: usize,
) -> anyhow::Result<Vectors> {
    let pus = history.catalogue.pus().iter();
    let mut texts: BTreeSet<String> = pus.map(|pu| pu.name.clone()).collect();
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for user in &history.users {
        let records = user.records.read(&user.id).into_iter();
        let profiles = records.filter_map(|record| match record.change {
            Change::Profile(profile) => Some(profile),
            Change::Event(_) | Change::Erase => None,
        });
        let values: BTreeSet<String> = profiles
            .flat_map(|profile| profile_texts(&profile))
            .collect();
        for value in values {
            *users.entry(value).or_default() += 1;
        }
    }
    let several = users.into_iter().filter(|(_, users)| *users >= users_min);
    texts.extend(several.map(|(value, _)| value));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut vectors = Vectors::new(encoder.hash(), encoder.width());
    for batch in texts.chunks(BATCH) {
        for (text, numbers) in batch.iter().zip(encoder.encode(batch)?) {
            vectors.insert(text, &numbers).context(text.to_string())?;
        }
    }
    Ok(vectors)
}
