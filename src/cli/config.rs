//! `nearshore config`: prints the effective configuration. All other commands load theirs here, too.
//!
//! Invariant: all problems of a configuration go to standard error, one per line, before anything else happens, and the
//! exit code is 2.

use std::path::Path;

use crate::config::{Config, Problem};

/// Exit code for wrong arguments or configuration.
pub const WRONG: u8 = 2;

/// Loads the configuration from file and environment. Problems are printed to standard error; then the exit code is
/// [`WRONG`].
pub fn load(path: Option<&Path>) -> Result<Config, u8> {
    read(path).map_err(|problems| {
        for problem in &problems {
            note!("{problem}");
        }
        WRONG
    })
}

/// Reads the configuration, or returns what is wrong with it. Variables whose name is not Unicode are skipped:
/// Nearshore has none.
pub fn read(path: Option<&Path>) -> Result<Config, Vec<Problem>> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    };
    Config::load(path, std::env::vars_os().filter_map(text))
}

/// Prints the effective configuration with secrets masked, as TOML or JSON.
pub fn config(path: Option<&Path>, json: bool) -> u8 {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let effective = config.effective();
    if json {
        let table: toml::Table = effective.parse().unwrap_or_default();
        out!("{}", serde_json::json!(table));
    } else {
        out_part!("{effective}");
    }
    0
}
