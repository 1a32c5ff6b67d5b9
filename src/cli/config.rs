//! `nearshore config`: the configuration in force, and loading it for every other command.
//!
//! Invariant: what is wrong with a configuration goes to standard error, one line each, before anything
//! else happens, and the exit code is 2.

use std::path::Path;

use crate::config::{Config, Problem};

/// Exit code of wrong usage or configuration.
pub const WRONG: u8 = 2;

/// The configuration of this process: file and environment. On problems they are printed to standard
/// error, and the exit code is [`WRONG`].
pub fn load(path: Option<&Path>) -> Result<Config, u8> {
    read(path).map_err(|problems| {
        for problem in &problems {
            eprintln!("{problem}");
        }
        WRONG
    })
}

/// The configuration of this process, or what is wrong with it. Variables whose name is no text are
/// passed over: none of ours is.
pub fn read(path: Option<&Path>) -> Result<Config, Vec<Problem>> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    };
    Config::load(path, std::env::vars_os().filter_map(text))
}

/// `nearshore config`: prints what is in force, secrets masked; as JSON if asked.
pub fn config(path: Option<&Path>, json: bool) -> u8 {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let effective = config.effective();
    if json {
        let table: toml::Table = effective.parse().unwrap_or_default();
        println!("{}", serde_json::json!(table));
    } else {
        print!("{effective}");
    }
    0
}
