//! Settings of texts, as configuration has them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[text]`: which texts of users are matched with products and need terms, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextSettings {
    /// Model of `nearshore match --fit`, relative to the configuration file; empty reads no text.
    pub matcher: String,
    /// Table of need terms, relative to the configuration file; empty is none.
    pub terms: String,
    /// Fields of the profile that are free text, by their paths. Searches are always read.
    pub profile_fields: Vec<String>,
    /// Users who must have typed a text before its reading is kept for all.
    pub users_min: usize,
    /// Most texts whose readings a process keeps, of each kind.
    pub cache_texts: usize,
    /// Time in which the interest of a search halves.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub half_life: Duration,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self {
            matcher: String::new(),
            terms: String::new(),
            profile_fields: Vec::new(),
            users_min: 5,
            cache_texts: 20_000,
            half_life: Duration::from_secs(14 * 86_400),
        }
    }
}
