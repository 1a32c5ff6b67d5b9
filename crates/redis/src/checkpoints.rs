//! Checkpoints: how far each reader's records are written, stored under many hash tags so that every primary has one.
//!
//! Invariant: in the replication stream of its primary a checkpoint comes behind the writes that it stands for, so a
//! primary that has the checkpoint has the writes. Checkpoints move with their slots, so a new primary knows as much
//! as the one that gave it the slots. This module does not know what readers are.

use std::collections::{BTreeMap, BTreeSet};

use redis::cmd;

use super::RedisStore;
use super::scripts::{Effect, call};
use crate::corrupt;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;
use nearshore_core::user::record::{Partition, Resume};

/// Fixed tags in a cluster; a primary that has the slot of none of them gets one more.
const TAGS: u32 = 64;

impl RedisStore {
    pub(super) async fn put_checkpoint(
        &self,
        reader: &str,
        done: &[(Partition, Resume)],
    ) -> Result<(), Error> {
        if done.is_empty() {
            return Ok(());
        }
        let write = |tag: &String| {
            let mut write = call(Effect::Checkpoint, &[keys::checkpoint(reader, tag)]);
            for (partition, resume) in done {
                write.arg(partition.to_string()).arg(resume.0);
            }
            write
        };
        let writes = self.tags().await?.iter().map(write).collect();
        self.run(writes, 1).await.map(drop)
    }

    pub(super) async fn get_checkpoints(
        &self,
        reader: &str,
    ) -> Result<BTreeMap<Partition, Resume>, Error> {
        let tags = self.tags().await?;
        let all = |tag: &String| {
            let mut all = cmd("HGETALL");
            all.arg(keys::checkpoint(reader, tag));
            all
        };
        let answers = self.link().run(tags.iter().map(all).collect(), 1).await?;
        let mut least: Option<BTreeMap<Partition, Resume>> = None;
        for (tag, answer) in tags.iter().zip(answers) {
            let key = keys::checkpoint(reader, tag);
            let rows: BTreeMap<String, i64> = self.read_of(&key, answer)?;
            let mut stored = BTreeMap::new();
            for (text, resume) in rows {
                let partition: Partition = text.parse().map_err(|error| corrupt(&key, error))?;
                stored.insert(partition, Resume(resume));
            }
            least = Some(match least {
                None => stored,
                Some(others) => least_of(&others, &stored),
            });
        }
        Ok(least.unwrap_or_default())
    }

    async fn tags(&self) -> Result<BTreeSet<String>, Error> {
        let mut tags: BTreeSet<String> = self
            .primaries()
            .await?
            .into_iter()
            .map(|primary| primary.tag)
            .collect();
        if self.link().is_cluster() {
            tags.extend((0..TAGS).map(|tag| tag.to_string()));
        }
        Ok(tags)
    }
}

/// The lower position of each partition that both know.
fn least_of(
    one: &BTreeMap<Partition, Resume>,
    other: &BTreeMap<Partition, Resume>,
) -> BTreeMap<Partition, Resume> {
    let both = one
        .iter()
        .filter_map(|(partition, at)| Some((partition.clone(), *other.get(partition)?.min(at))));
    both.collect()
}
