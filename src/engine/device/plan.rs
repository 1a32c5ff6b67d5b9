//! A pass of packed rows -> what attention on a device needs: padded rows, masks, places.
//!
//! Decides which users go through attention together (a family: one arena, one prefix), which columns
//! their new rows get, and what each row sees. Invariant: a padded row that stands for none is
//! finite and never read back. It knows no weights.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::super::attention::Span;
use super::super::forward::Pass;
use super::arena::{Arena, Cache};

/// Users whose attention is computed together.
pub struct Family {
    /// Their arena.
    pub arena: Arc<Arena>,
    /// Which users of it; some between may have no rows.
    pub places: Range<usize>,
    /// Index of a cache with their prefix.
    pub lead: usize,
    /// Where the new rows go.
    pub first: usize,
    /// Columns that attention looks at.
    pub columns: usize,
    /// All rows of the pass: their keys and values are new.
    pub rows: Rows,
    /// The wanted rows.
    pub wanted: Rows,
}

/// Padded rows `[places, most rows of one]`.
pub struct Rows {
    /// Rows per user.
    pub most: usize,
    /// Packed row of each padded one.
    pub index: Tensor,
    /// Position of each padded row.
    pub positions: Tensor,
    /// What is not seen: `[1, places, most, 1, columns]`, 0 or a large negative number.
    pub unseen: Tensor,
}

/// The families of a pass.
pub struct Plan {
    /// In the order of the pass.
    pub families: Vec<Family>,
    /// Of all rows: where each stands among the families' padded rows, one family after the other.
    pub back: Tensor,
    /// The same of the wanted rows.
    pub wanted_back: Tensor,
    /// The wanted rows among the packed ones.
    pub wanted: Tensor,
}

/// Added to scores of what is not seen; not infinity, for a padded row may see nothing.
const UNSEEN: f64 = -1e30;

/// Plans `pass`, takes its columns, and notes them in `caches`, which are all seated.
pub fn plan(pass: &Pass, caches: &mut [Cache], to: (&Device, DType)) -> Result<Plan> {
    let mut drafts: Vec<Draft> = Vec::new();
    for span in &pass.spans {
        let fits = |draft: &&mut Draft| draft.takes(span, caches);
        match drafts.last_mut().filter(fits) {
            Some(draft) => draft.spans.push(span.clone()),
            None => drafts.push(Draft {
                spans: vec![span.clone()],
            }),
        }
    }
    let mut plan = Gathered::default();
    let mut families = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        families.push(draft.family(pass, caches, (&mut plan, to))?);
    }
    let wanted: Vec<u32> = pass.wanted.iter().map(|row| *row as u32).collect();
    let device = to.0;
    Ok(Plan {
        families,
        back: Tensor::new(plan.back, device)?,
        wanted_back: Tensor::new(plan.wanted_back, device)?,
        wanted: Tensor::new(wanted, device)?,
    })
}

/// Where packed rows come back from, and how many padded rows there are so far.
#[derive(Default)]
struct Gathered {
    back: Vec<u32>,
    padded: usize,
    wanted_back: Vec<u32>,
    wanted_padded: usize,
}

struct Draft {
    spans: Vec<Span>,
}

fn place(cache: &Cache) -> usize {
    cache.seat().expect("caches are seated before a pass").place
}

impl Draft {
    /// Whether the rows of `span` may go with these.
    fn takes(&self, span: &Span, caches: &[Cache]) -> bool {
        let last = self.spans.last().expect("a draft starts with a span");
        let (own, new) = (&caches[last.cache], &caches[span.cache]);
        match (own.seat(), new.seat()) {
            (Some(a), Some(b)) => {
                Arc::ptr_eq(&a.arena, &b.arena) && a.place < b.place && own.shares_with(new)
            }
            _ => false,
        }
    }

    fn family(
        &self,
        pass: &Pass,
        caches: &mut [Cache],
        (gathered, to): (&mut Gathered, (&Device, DType)),
    ) -> Result<Family> {
        let lead = self.spans[0].cache;
        let seat = caches[lead]
            .seat()
            .expect("caches are seated before a pass");
        let arena = Arc::clone(&seat.arena);
        let last = self.spans.last().expect("a draft starts with a span").cache;
        let places = place(&caches[lead])..place(&caches[last]) + 1;
        let most = self.spans.iter().map(|span| span.rows.len()).max();
        let first = arena.take(places.clone(), most.unwrap_or(0))?;
        let columns = first + most.unwrap_or(0);
        for span in &self.spans {
            let new = (first..first + span.rows.len()).map(|column| column as u32);
            caches[span.cache].note(new, pass.nodes);
        }
        let side = Side {
            pass,
            caches,
            first_place: places.start,
            places: places.len(),
            columns,
            to,
        };
        let all: Vec<(usize, Vec<usize>)> = (self.spans.iter())
            .map(|span| (span.cache, span.rows.clone().collect()))
            .collect();
        let wanted: Vec<(usize, Vec<usize>)> = (self.spans.iter())
            .map(|span| {
                let from = pass.wanted.partition_point(|row| *row < span.rows.start);
                let to = pass.wanted.partition_point(|row| *row < span.rows.end);
                (span.cache, pass.wanted[from..to].to_vec())
            })
            .collect();
        let rows = side.rows(&all, (&mut gathered.back, &mut gathered.padded))?;
        let back = (&mut gathered.wanted_back, &mut gathered.wanted_padded);
        let wanted = side.rows(&wanted, back)?;
        Ok(Family {
            arena,
            places,
            lead,
            first,
            columns,
            rows,
            wanted,
        })
    }
}

/// What the rows of one family have in common.
struct Side<'a> {
    pass: &'a Pass,
    caches: &'a [Cache],
    first_place: usize,
    places: usize,
    columns: usize,
    to: (&'a Device, DType),
}

impl Side<'_> {
    /// Pads the packed rows of each cache; appends to `back` where each is among all padded rows.
    fn rows(
        &self,
        of: &[(usize, Vec<usize>)],
        (back, padded): (&mut Vec<u32>, &mut usize),
    ) -> Result<Rows> {
        let most = of.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0);
        let (device, dtype) = self.to;
        let all = self.places * most;
        // Padding stands for the pass's first row: finite, and never read back.
        let mut index = vec![0u32; all];
        let mut positions = vec![0u32; all];
        let mut unseen = vec![1u8; all * self.columns];
        for (cache, rows) in of {
            let cache = &self.caches[*cache];
            let from = (place(cache) - self.first_place) * most;
            for (nth, row) in rows.iter().enumerate() {
                let at = from + nth;
                index[at] = *row as u32;
                positions[at] = self.pass.positions[*row] as u32;
                back.push((*padded + at) as u32);
                let unseen = &mut unseen[at * self.columns..][..self.columns];
                self.see(cache, *row, unseen);
            }
        }
        *padded += all;
        let shape = (1, self.places, most, 1, self.columns);
        let unseen = Tensor::from_vec(unseen, shape, device)?;
        Ok(Rows {
            most,
            index: Tensor::new(index, device)?,
            positions: Tensor::new(positions, device)?,
            unseen: (unseen.to_dtype(DType::F32)?.affine(UNSEEN, 0.0)?).to_dtype(dtype)?,
        })
    }

    fn see(&self, cache: &Cache, row: usize, unseen: &mut [u8]) {
        let sight = &self.pass.sights[row];
        let (prompt, nodes) = cache.columns();
        let own = sight.prompt - cache.shared_len();
        for column in &prompt[..own] {
            unseen[*column as usize] = 0;
        }
        for slot in &sight.slots {
            unseen[nodes[*slot as usize] as usize] = 0;
        }
    }
}
