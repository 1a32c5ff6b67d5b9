//! Writes the canonical dump of a namespace: a line per user, then a line per cell of the counts, and a digest of all
//! lines.
//!
//! Invariant: equal folds give equal bytes: users are sorted by id, cells by shard and cell, and nothing depends on
//! when or by which process something was written. It reads page by page, so the dump of a namespace that changes is no
//! snapshot.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

use nearshore_core::ports::store::{Cell, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::state::canonical;

/// Users loaded at once.
const PAGE: usize = 500;

/// What was dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// SHA-256 of all lines, their line ends included, in hex.
    pub digest: String,
    /// Users with a state.
    pub users: u64,
    /// Cells of the counts.
    pub cells: u64,
}

/// Writes the dump to `out`.
pub async fn dump<S: Store>(store: &S, ns: &str, out: &mut impl Write) -> anyhow::Result<Dump> {
    let mut hash = Sha256::new();
    let mut line = |text: String| {
        hash.update(text.as_bytes());
        hash.update(b"\n");
        writeln!(out, "{text}").context("writing the dump")
    };
    let users: Vec<UserId> = all_users(store, ns).await?.into_iter().collect();
    for page in users.chunks(PAGE) {
        for (user, loaded) in page.iter().zip(store.load(ns, page).await?) {
            let state = canonical(&loaded.state);
            line(format!(r#"{{"user":{},"state":{state}}}"#, json!(user)))?;
        }
    }
    let mut cells = 0;
    for shard in 0..=u8::MAX {
        for (cell, n) in store.counts(ns, shard, i64::MIN).await? {
            cells += 1;
            line(cell_line(&cell, n))?;
        }
    }
    Ok(Dump {
        digest: hex::encode(hash.finalize()),
        users: users.len() as u64,
        cells,
    })
}

fn cell_line(cell: &Cell, n: u64) -> String {
    let mut line = json!({
        "bucket": cell.bucket,
        "kind": cell.kind.as_str(),
        "n": n,
        "segment": cell.segment,
        "sku": cell.sku,
    });
    line.sort_all_objects();
    line.to_string()
}

/// All users with a state, sorted.
async fn all_users<S: Store>(store: &S, ns: &str) -> anyhow::Result<BTreeSet<UserId>> {
    let mut users = BTreeSet::new();
    let mut cursor = None;
    loop {
        let (page, next) = store.scan(ns, cursor).await?;
        users.extend(page);
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(users),
        }
    }
}
