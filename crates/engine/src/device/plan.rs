//! A pass of packed rows -> the numbers that attention on a device reads.
//!
//! Decides how a pass is encoded: one list of numbers with sections, sent once. Per user there is a span of rows and
//! the runs of its prompt; per row the number of positions that it sees, and its ancestors; a tile is the work of one
//! block of threads. Invariant: the numbers that kernels.cu reads are written here and nowhere else. It knows no
//! weights.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::cache::{Cache, Chunk};
use crate::cpu::forward::Pass;

/// Queries (rows times heads of a group) of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles(pub usize);

/// A pass, encoded for a device.
pub(super) struct Plan {
    /// Chunks that rows see, by number.
    pub chunks: Vec<Arc<Chunk>>,
    /// All sections, on the device.
    pub numbers: Tensor,
    /// All sections, in memory.
    pub sections: Vec<u32>,
    /// Position of each row, `[rows]`.
    pub positions: Tensor,
    /// The wanted rows among all, `[wanted]`; `None` if they are all.
    pub wanted: Option<Tensor>,
    /// All rows.
    pub all: Side,
    /// The wanted rows.
    pub few: Side,
}

/// Where the sections of some rows begin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    /// Where the tiles begin, `[span, first query]` each.
    pub tiles: usize,
    /// Number of tiles.
    pub tiles_len: usize,
    /// Where the other sections begin.
    pub places: Places,
    /// Number of spans.
    pub spans_len: usize,
}

/// Where sections begin: `struct Where` of kernels.cu.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    /// Per chunk: its address, low half first, and its number of rows.
    pub chunks: usize,
    /// Per user: `[first row, rows, first run, one past the last run]`.
    pub spans: usize,
    /// Per run: `[chunk, first row, rows, first position]`.
    pub runs: usize,
    /// Per row: the number of prompt positions that it sees.
    pub sights: usize,
    /// Per row: its first ancestor; at the end one past the last row's ancestors.
    pub starts: usize,
    /// Per ancestor: `[chunk, row]`; of a node's ancestors the node itself is the last.
    pub ancestors: usize,
}

/// The parameters of the encoding.
pub(crate) struct Layout<'a> {
    /// Device that gets the numbers.
    pub device: &'a Device,
    /// Query heads per key head.
    pub group: usize,
    /// Queries of a tile.
    pub tiles: Tiles,
    /// A chunk's address on the device.
    pub address: &'a dyn Fn(&Tensor) -> Result<u64>,
}

#[derive(Default)]
struct Chunks {
    found: Vec<Arc<Chunk>>,
    numbers: HashMap<*const Chunk, u32>,
}

impl Chunks {
    fn number(&mut self, chunk: &Arc<Chunk>) -> u32 {
        *(self.numbers.entry(Arc::as_ptr(chunk))).or_insert_with(|| {
            self.found.push(Arc::clone(chunk));
            self.found.len() as u32 - 1
        })
    }
}

/// The sections of some rows before they are joined.
#[derive(Default)]
struct Draft {
    tiles: Vec<u32>,
    spans: Vec<u32>,
    sights: Vec<u32>,
    starts: Vec<u32>,
    ancestors: Vec<u32>,
}

/// Encodes `pass`, whose rows are [appended](Cache::append) to `caches`.
pub(super) fn plan(pass: &Pass, caches: &[Cache], layout: &Layout) -> Result<Plan> {
    let mut chunks = Chunks::default();
    let mut runs = Vec::new();
    let mut of_span = Vec::with_capacity(pass.spans.len());
    for span in &pass.spans {
        let from = runs.len() as u32 / 4;
        let mut position = 0;
        for run in caches[span.cache].runs() {
            let chunk = chunks.number(&run.chunk);
            runs.extend([chunk, run.first as u32, run.len as u32, position]);
            position += run.len as u32;
        }
        of_span.push(from..runs.len() as u32 / 4);
    }
    let every: Vec<usize> = (0..pass.tokens.len()).collect();
    let side = |rows: &[usize], chunks: &mut Chunks| {
        let mut draft = Draft::default();
        draft.starts.push(0);
        for (span, runs) in pass.spans.iter().zip(&of_span) {
            let of = within(rows, &span.rows);
            draft.add(pass, &rows[of.clone()], &caches[span.cache], chunks);
            draft.close(of, runs, layout);
        }
        draft
    };
    let all = side(&every, &mut chunks);
    let is_all = pass.wanted.len() == pass.tokens.len();
    let few = (!is_all).then(|| side(&pass.wanted, &mut chunks));
    let mut sections = Vec::new();
    for chunk in &chunks.found {
        let address = (layout.address)(&chunk.tensor)?;
        sections.extend([address as u32, (address >> 32) as u32, chunk.rows as u32]);
    }
    let runs = put(&mut sections, &runs);
    let all = all.put(&mut sections, runs);
    let few = few.map_or(all, |few| few.put(&mut sections, runs));
    let ids = |rows: &mut dyn Iterator<Item = usize>| -> Result<Tensor> {
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        Tensor::new(rows, layout.device)
    };
    Ok(Plan {
        chunks: chunks.found,
        numbers: Tensor::new(sections.as_slice(), layout.device)?,
        sections,
        positions: ids(&mut pass.positions.iter().copied())?,
        wanted: match is_all {
            true => None,
            false => Some(ids(&mut pass.wanted.iter().copied())?),
        },
        all,
        few,
    })
}

/// The range of `rows`, which are ascending, within `span`.
fn within(rows: &[usize], span: &Range<usize>) -> Range<usize> {
    let place = |limit: usize| rows.partition_point(|row| *row < limit);
    place(span.start)..place(span.end)
}

/// Appends a section; returns where it begins.
fn put(sections: &mut Vec<u32>, section: &[u32]) -> usize {
    let at = sections.len();
    sections.extend_from_slice(section);
    at
}

impl Draft {
    /// Adds the sights and ancestors of a user's rows.
    fn add(&mut self, pass: &Pass, rows: &[usize], cache: &Cache, chunks: &mut Chunks) {
        for row in rows {
            let sight = &pass.sights[*row];
            self.sights.push(sight.prompt as u32);
            for slot in &sight.slots {
                let (chunk, row) = cache.slot(*slot);
                self.ancestors.extend([chunks.number(chunk), row]);
            }
            self.starts.push(self.ancestors.len() as u32 / 2);
        }
    }

    /// Ends a user's rows: adds their span and cuts it into tiles.
    fn close(&mut self, rows: Range<usize>, runs: &Range<u32>, layout: &Layout) {
        let span = self.spans.len() as u32 / 4;
        let (first, many) = (rows.start as u32, rows.len() as u32);
        self.spans.extend([first, many, runs.start, runs.end]);
        for query in (0..rows.len() * layout.group).step_by(layout.tiles.0) {
            self.tiles.extend([span, query as u32]);
        }
    }

    fn put(&self, sections: &mut Vec<u32>, runs: usize) -> Side {
        Side {
            tiles: put(sections, &self.tiles),
            tiles_len: self.tiles.len() / 2,
            spans_len: self.spans.len() / 4,
            places: Places {
                chunks: 0,
                spans: put(sections, &self.spans),
                runs,
                sights: put(sections, &self.sights),
                starts: put(sections, &self.starts),
                ancestors: put(sections, &self.ancestors),
            },
        }
    }
}
