//! Who was erased, as arguments of commands that learn from a log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

use super::block_on;
use super::logs::LogArgs;
use super::users::store;
use crate::config::Config;
use crate::ops::evaluate::Problem;
use crate::ops::forget;

/// Where it is said who was erased.
#[derive(Clone, Copy)]
pub(super) struct Erases<'a> {
    /// A file of `nearshore forget --export`.
    pub(super) file: Option<&'a Path>,
    /// Nobody was.
    pub(super) none: bool,
}

impl Erases<'_> {
    /// Erased users with the times of their erases: from the file, or Redis if the log is on topics.
    pub(super) fn read(
        &self,
        logs: &LogArgs,
        config: &Config,
    ) -> anyhow::Result<BTreeMap<UserId, Timestamp>> {
        if self.none {
            return Ok(BTreeMap::new());
        }
        if let Some(path) = self.file {
            let file =
                File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut all = BTreeMap::new();
            for line in forget::erased_in(BufReader::new(file), path) {
                let (user, at) = line?;
                let latest = all.entry(user).or_insert(at);
                *latest = at.max(*latest);
            }
            return Ok(all);
        }
        if logs.are_files() {
            return Err(Problem::Erased.into());
        }
        let store = store(config)?;
        let all = block_on(forget::erased(&store));
        all.context(
            "who was erased cannot be read from redis.url; give --erased FILE, which `nearshore forget --export FILE` writes",
        )
    }
}
