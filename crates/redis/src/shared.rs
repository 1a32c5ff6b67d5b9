//! What all users share: counts, stock, blocks, fallbacks, the served namespace.
//!
//! Invariant: a block is written to the register of blocks before it is applied to the sets, and is removed from the
//! register last. So an interrupted call shows in [`nearshore_core::ports::store::Stock::blocks`], and calling it again
//! completes it.

use std::collections::BTreeMap;

use redis::{Cmd, Value, cmd};

use super::RedisStore;
use super::scripts::{Effect, call};
use crate::corrupt;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Added, Availability, Block, Cell, Delta, Error, StockRecord};
use nearshore_core::user::record::{Offset, Partition, Timestamp};

impl RedisStore {
    pub(super) async fn add_deltas(&self, ns: &str, deltas: &[Delta]) -> Result<Vec<Added>, Error> {
        keys::namespace(ns)?;
        let ttl = self.inner.settings.counts_ms();
        let cmds = deltas.iter().map(|delta| delta_call(ns, delta, ttl));
        let answers = self.run(cmds.collect(), 1).await?;
        let added = |(answer, delta): (Value, &Delta)| {
            let (outcome, fence): (String, Option<String>) = self.read_pair(answer)?;
            match (outcome.as_str(), fence.as_deref()) {
                ("stored", left_out) => {
                    if left_out.is_some_and(|cells| cells != "0") {
                        let shard = keys::count_fence(ns, delta.shard);
                        tracing::error!(
                            fence = shard,
                            cells = left_out,
                            "cells of counts hold no integer; their events were not counted; delete these fields"
                        );
                    }
                    Ok(Added::Stored)
                }
                ("fence", Some("")) => Ok(Added::Fence(None)),
                ("fence", Some(text)) => match text.parse() {
                    Ok(offset) => Ok(Added::Fence(Some(Offset(offset)))),
                    Err(_) => {
                        let key = keys::count_fence(ns, delta.shard);
                        Err(corrupt(&key, format!("the fence {text:?} is no number")))
                    }
                },
                (other, _) => Err(self
                    .link()
                    .unexpected(format!("delta.lua returned {other:?}"))),
            }
        };
        let answers = answers.into_iter().zip(deltas);
        answers.map(added).collect()
    }

    pub(super) async fn fences_of(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> Result<BTreeMap<u8, Offset>, Error> {
        keys::namespace(ns)?;
        let cmds = (0..=u8::MAX).map(|shard| {
            let mut hget = cmd("HGET");
            hget.arg(keys::count_fence(ns, shard))
                .arg(partition.to_string());
            hget
        });
        let answers = self.link().run(cmds.collect(), 1).await?;
        let mut fences = BTreeMap::new();
        for (shard, answer) in (0..=u8::MAX).zip(answers) {
            if let Some(offset) = self.read_of(&keys::count_fence(ns, shard), answer)? {
                fences.insert(shard, Offset(offset));
            }
        }
        Ok(fences)
    }

    pub(super) async fn versions(&self, ns: &str) -> Result<BTreeMap<u8, u64>, Error> {
        keys::namespace(ns)?;
        let cmds = (0..=u8::MAX).map(|shard| hgetall(&keys::count_fence(ns, shard)));
        let answers = self.link().run(cmds.collect(), 1).await?;
        let mut versions = BTreeMap::new();
        for (shard, answer) in (0..=u8::MAX).zip(answers) {
            let fences: BTreeMap<String, i64> =
                self.read_of(&keys::count_fence(ns, shard), answer)?;
            if !fences.is_empty() {
                let texts = fences.iter().map(|(text, offset)| (text.as_str(), *offset));
                versions.insert(shard, keys::digest(texts));
            }
        }
        Ok(versions)
    }

    pub(super) async fn cells(
        &self,
        ns: &str,
        shard: u8,
        since: i64,
    ) -> Result<BTreeMap<Cell, u64>, Error> {
        keys::namespace(ns)?;
        let mut members = cmd("SMEMBERS");
        members.arg(keys::count_buckets(ns, shard));
        let buckets: Vec<i64> = self.read(self.link().one(members).await?)?;
        let recent: Vec<i64> = buckets.into_iter().filter(|b| *b >= since).collect();
        let names = recent.iter().map(|b| keys::count_bucket(ns, shard, *b));
        let cmds = names.map(|key| hgetall(&key)).collect();
        let answers = self.link().run(cmds, 1).await?;
        let mut cells = BTreeMap::new();
        for (&bucket, answer) in recent.iter().zip(answers) {
            let key = keys::count_bucket(ns, shard, bucket);
            let fields: Vec<(Vec<u8>, Vec<u8>)> = self.read_of(&key, answer)?;
            for (field, n) in fields {
                // One cell that cannot be read must not cost all lists the demand.
                match cell_and_count(&field, &n, bucket) {
                    Some((cell, n)) => drop(cells.insert(cell, n)),
                    None => tracing::error!(
                        shard = format!("{shard:02x}"),
                        bucket,
                        field = %String::from_utf8_lossy(&field),
                        "a cell of counts cannot be read and is left out; delete the field"
                    ),
                }
            }
        }
        Ok(cells)
    }

    pub(super) async fn stock_ops(&self, ops: &[StockRecord]) -> Result<(), Error> {
        let mut by_set: BTreeMap<u8, Cmd> = BTreeMap::new();
        let list_ms = self.inner.settings.list_ms();
        for op in ops {
            let set = keys::set(&op.sku);
            let stock = by_set.entry(set).or_insert_with(|| {
                let keys = [
                    keys::sold_out(set),
                    keys::sold_out_fence(set),
                    keys::sold_out_blocked(set),
                    keys::sold_out_gone(set),
                ];
                let mut stock = call(Effect::Stock, &keys);
                stock.arg(list_ms);
                stock
            });
            stock
                .arg(&op.sku)
                .arg(op.partition.to_string())
                .arg(op.offset.0)
                .arg(match op.availability {
                    Availability::InStock => 0,
                    Availability::SoldOut => 1,
                    Availability::Delisted => 2,
                })
                .arg(op.time.0);
        }
        let cmds = by_set.into_values().collect();
        self.run(cmds, 1).await.map(drop)
    }

    pub(super) async fn which_sold_out(&self, skus: &[String]) -> Result<Vec<bool>, Error> {
        let mut by_set: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for (nth, sku) in skus.iter().enumerate() {
            by_set.entry(keys::set(sku)).or_default().push(nth);
        }
        let cmds = by_set.iter().map(|(set, members)| {
            let mut is_member = cmd("SMISMEMBER");
            is_member.arg(keys::sold_out(*set));
            members.iter().for_each(|&nth| {
                is_member.arg(&skus[nth]);
            });
            is_member
        });
        let answers = self.link().run(cmds.collect(), 1).await?;
        let mut out = vec![false; skus.len()];
        for (members, answer) in by_set.values().zip(answers) {
            let found: Vec<bool> = self.read(answer)?;
            for (&nth, found) in members.iter().zip(found) {
                out[nth] = found;
            }
        }
        Ok(out)
    }

    pub(super) async fn add_block(&self, block: &Block) -> Result<(), Error> {
        let name = keys::block(&block.id, block.pu);
        let json = serde_json::to_string(block).expect("a block is JSON");
        let line = serde_json::json!({
            "action": "block", "id": block.id, "pu": block.pu, "skus": block.skus.len(),
            "reason": block.reason, "by": block.by, "at": block.at,
        });
        self.register_block(&name, &json, &line).await?;
        let mut by_set: BTreeMap<u8, Cmd> = BTreeMap::new();
        for sku in &block.skus {
            let set = keys::set(sku);
            let call = by_set
                .entry(set)
                .or_insert_with(|| block_call(Effect::Block, set, &name));
            call.arg(sku);
        }
        let cmds = by_set.into_values().collect();
        self.link().run(cmds, 1).await.map(drop)
    }

    pub(super) async fn lift_blocks(
        &self,
        id: &str,
        by: &str,
        at: Timestamp,
    ) -> Result<bool, Error> {
        let mut lifted = false;
        for pu in [true, false] {
            let name = keys::block(id, pu);
            let sets = 0..u8::try_from(keys::SETS).expect("16");
            let cmds = sets.map(|set| block_call(Effect::Unblock, set, &name));
            self.link().run(cmds.collect(), 1).await?;
            let line = serde_json::json!({
                "action": "unblock", "id": id, "pu": pu, "by": by, "at": at,
            });
            lifted |= self.register_block(&name, "", &line).await?;
        }
        Ok(lifted)
    }

    /// Writes a block into the register, or removes it if `json` is empty; false if nothing changed.
    async fn register_block(
        &self,
        name: &str,
        json: &str,
        line: &serde_json::Value,
    ) -> Result<bool, Error> {
        let mut register = call(Effect::Register, &[keys::BLOCKS, keys::BLOCKS_LOG]);
        register.arg(name).arg(json).arg(line.to_string());
        self.read(self.link().one(register).await?)
    }

    pub(super) async fn all_blocks(&self) -> Result<Vec<Block>, Error> {
        let register: BTreeMap<String, String> =
            self.read(self.link().one(hgetall(keys::BLOCKS)).await?)?;
        let block = |json: &String| {
            serde_json::from_str(json).map_err(|error| corrupt(keys::BLOCKS, error))
        };
        register.values().map(block).collect()
    }

    pub(super) async fn put_fallback(
        &self,
        ns: &str,
        segment: &str,
        doc: &str,
    ) -> Result<(), Error> {
        let mut set = cmd("SET");
        set.arg(keys::fallback(ns, segment)?).arg(doc);
        self.link().one(set).await.map(drop)
    }

    pub(super) async fn get_fallback(
        &self,
        ns: &str,
        segment: &str,
    ) -> Result<Option<String>, Error> {
        let mut get = cmd("GET");
        get.arg(keys::fallback(ns, segment)?);
        self.read(self.link().one(get).await?)
    }

    pub(super) async fn get_active(&self) -> Result<Option<String>, Error> {
        let mut get = cmd("GET");
        get.arg(keys::ACTIVE);
        self.read(self.link().one(get).await?)
    }

    pub(super) async fn put_active(&self, ns: &str, expected: Option<&str>) -> Result<bool, Error> {
        keys::namespace(ns)?;
        let mut active = call(Effect::Active, &[keys::ACTIVE]);
        active.arg(expected.unwrap_or_default()).arg(ns);
        self.read(self.link().one(active).await?)
    }
}

fn hgetall(key: &str) -> Cmd {
    let mut hgetall = cmd("HGETALL");
    hgetall.arg(key);
    hgetall
}

fn block_call(effect: Effect, set: u8, name: &str) -> Cmd {
    let keys = [keys::sold_out(set), keys::sold_out_blocked(set)];
    let mut call = call(effect, &keys);
    call.arg(name);
    call
}

fn delta_call(ns: &str, delta: &Delta, ttl: u64) -> Cmd {
    let mut buckets: BTreeMap<i64, Vec<(String, u64)>> = BTreeMap::new();
    for (cell, n) in &delta.cells {
        let field = keys::cell(cell.kind.as_str(), &cell.segment, &cell.sku);
        buckets.entry(cell.bucket).or_default().push((field, *n));
    }
    let mut names = vec![
        keys::count_fence(ns, delta.shard),
        keys::count_buckets(ns, delta.shard),
    ];
    names.extend(
        buckets
            .keys()
            .map(|bucket| keys::count_bucket(ns, delta.shard, *bucket)),
    );
    let mut add = call(Effect::Delta, &names);
    let prev = delta.prev.map(|offset| offset.0.to_string());
    add.arg(delta.partition.to_string())
        .arg(prev.unwrap_or_default())
        .arg(delta.last.0)
        .arg(ttl);
    for (bucket, cells) in buckets {
        add.arg(bucket).arg(cells.len());
        for (field, n) in cells {
            add.arg(field).arg(n);
        }
    }
    add
}

fn cell_and_count(field: &[u8], n: &[u8], bucket: i64) -> Option<(Cell, u64)> {
    let cell = cell_of(std::str::from_utf8(field).ok()?, bucket)?;
    Some((cell, std::str::from_utf8(n).ok()?.parse().ok()?))
}

fn cell_of(field: &str, bucket: i64) -> Option<Cell> {
    let (kind, segment, sku) = keys::cell_parts(field)?;
    Some(Cell {
        sku: sku.into(),
        kind: kind.parse().ok()?,
        segment,
        bucket,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::shop::count_kind::CountKind;

    #[test]
    fn a_kind_decodes_from_its_text() {
        for kind in CountKind::ALL {
            let field = keys::cell(kind.as_str(), "a:b", "s:1");
            let cell = cell_of(&field, 7).expect("decodes");
            assert_eq!(
                (cell.kind, cell.segment.as_str(), cell.sku.as_str()),
                (kind, "a:b", "s:1")
            );
        }
        assert_eq!(cell_of("buy:a:b", 7), None);
    }
}
