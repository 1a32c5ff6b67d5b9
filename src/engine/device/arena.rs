//! Keys and values on a device: of a prefix once, of a batch's users in one padded arena.
//!
//! Decides the layout: per layer `[kv heads, users, columns, width]`. Rows of one pass stand in the same
//! new columns for all users, so appending is one copy of the new rows, and nothing moves again but
//! when the arena grows. A user's positions and slots are numbers of its own; this file knows
//! the column of each. Invariant: a column is
//! not written again while a user's position or slot stands for it. It does not know what a row may see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

use super::super::kv::Sizes;

/// Columns that an arena has room for at first, beside its prompts': a usual search needs no more.
const ROOM: usize = 192;

/// A computed beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// Its tokens.
    pub tokens: Vec<u32>,
    layers: Arc<Vec<(Tensor, Tensor)>>,
}

/// Where a user's columns are.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The arena of the users that were first computed together.
    pub arena: Arc<Arena>,
    /// Which of them.
    pub place: usize,
}

/// One user's view of keys and values: which columns are whose.
#[derive(Clone, Debug)]
pub struct Cache {
    sizes: Sizes,
    /// The prefix, and how much of it.
    shared: Option<(Prefix, usize)>,
    seat: Option<Seat>,
    /// Column of each prompt position after the shared ones.
    prompt: Vec<u32>,
    /// Column of each node slot.
    nodes: Vec<u32>,
}

impl Cache {
    /// An empty cache.
    pub fn new(sizes: Sizes) -> Self {
        Self {
            sizes,
            shared: None,
            seat: None,
            prompt: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// A cache that starts with the first `len` positions of `prefix`.
    pub fn after(sizes: Sizes, prefix: &Prefix, len: usize) -> Self {
        assert!(
            len <= prefix.tokens.len(),
            "a prefix is shared as far as it goes"
        );
        Self {
            shared: (len > 0).then(|| (prefix.clone(), len)),
            ..Self::new(sizes)
        }
    }

    /// Prompt positions known.
    pub fn known(&self) -> usize {
        self.shared_len() + self.prompt.len()
    }

    /// Node slots in use.
    pub fn slots(&self) -> usize {
        self.nodes.len()
    }

    /// Columns of its own in use.
    pub fn own(&self) -> usize {
        self.prompt.len() + self.nodes.len()
    }

    /// Lets all node slots go; their columns are used again.
    pub fn forget_nodes(&mut self) {
        self.nodes.clear();
        if let Some(Seat { arena, place }) = &self.seat {
            let prompt = self.prompt.iter().max().map_or(0, |last| last + 1);
            arena.lock().used[*place] = prompt as usize;
        }
    }

    /// Positions taken from a prefix.
    pub fn shared_len(&self) -> usize {
        self.shared.as_ref().map_or(0, |(_, len)| *len)
    }

    /// Columns of the prompt's own positions, then those of slots.
    pub fn columns(&self) -> (&[u32], &[u32]) {
        (&self.prompt, &self.nodes)
    }

    /// Notes the columns of rows that a pass has written.
    pub fn note(&mut self, columns: impl Iterator<Item = u32>, nodes: bool) {
        let list = if nodes {
            &mut self.nodes
        } else {
            &mut self.prompt
        };
        list.extend(columns);
    }

    /// Where this user's columns are; `None` before the first pass.
    pub fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// Gives the user a place.
    pub fn sit(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }

    /// Keys and values of the shared positions of one layer, `[kv heads, positions, width]`.
    pub fn shared(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let Some((prefix, len)) = &self.shared else {
            return Ok(None);
        };
        let (keys, values) = &prefix.layers[layer];
        Ok(Some((keys.narrow(1, 0, *len)?, values.narrow(1, 0, *len)?)))
    }

    /// Whether attention over the shared positions may be one product for both.
    pub fn shares_with(&self, other: &Self) -> bool {
        match (&self.shared, &other.shared) {
            (None, None) => true,
            (Some((a, len)), Some((b, other))) => len == other && Arc::ptr_eq(&a.layers, &b.layers),
            _ => false,
        }
    }

    /// The whole prompt as a prefix for others; `tokens` are its tokens.
    pub fn into_prefix(self, tokens: Vec<u32>) -> Result<Prefix> {
        assert_eq!(self.known(), tokens.len(), "every position was computed");
        let layer = |layer: usize| -> Result<(Tensor, Tensor)> {
            let mut parts = (Vec::new(), Vec::new());
            if let Some((keys, values)) = self.shared(layer)? {
                parts.0.push(keys);
                parts.1.push(values);
            }
            if let Some(Seat { arena, place }) = &self.seat {
                let columns = Tensor::new(self.prompt.as_slice(), arena.device())?;
                let (keys, values) = arena.read(layer, *place..*place + 1, arena.columns())?;
                let own = |x: Tensor| x.squeeze(1)?.contiguous()?.index_select(&columns, 1);
                parts.0.push(own(keys)?);
                parts.1.push(own(values)?);
            }
            let join = |parts: Vec<Tensor>| Tensor::cat(&parts, 1)?.contiguous();
            Ok((join(parts.0)?, join(parts.1)?))
        };
        let layers: Result<Vec<_>> = (0..self.sizes.layers).map(layer).collect();
        Ok(Prefix {
            tokens,
            layers: Arc::new(layers?),
        })
    }
}

/// Keys and values of users that were first computed together.
#[derive(Debug)]
pub struct Arena {
    device: Device,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Per layer keys and values, `[kv heads, users, columns, width]`.
    layers: Vec<(Tensor, Tensor)>,
    /// Columns in use, per user.
    used: Vec<usize>,
    columns: usize,
}

impl Arena {
    /// Room for `users` with prompts of up to `prompt` own positions.
    pub fn new(sizes: Sizes, users: usize, prompt: usize, like: &Tensor) -> Result<Self> {
        let columns = prompt + ROOM;
        let (dtype, device) = (like.dtype(), like.device());
        let make = || empty(sizes, users, columns, (dtype, device));
        let layers = (0..sizes.layers).map(|_| Ok((make()?, make()?)));
        Ok(Self {
            device: device.clone(),
            inner: Mutex::new(Inner {
                layers: layers.collect::<Result<_>>()?,
                used: vec![0; users],
                columns,
            }),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Columns there are.
    pub fn columns(&self) -> usize {
        self.lock().columns
    }

    /// Takes `rows` new columns for the users of `places`: the first of them. Grows if it must.
    pub fn take(&self, places: std::ops::Range<usize>, rows: usize) -> Result<usize> {
        let mut inner = self.lock();
        let used = inner.used[places.clone()].iter().copied();
        let first = used.max().unwrap_or(0);
        if first + rows > inner.columns {
            let half_more = inner.columns + inner.columns / 2;
            inner.grow(half_more.max(first + rows))?;
        }
        inner.used[places].fill(first + rows);
        Ok(first)
    }

    /// Writes `[kv heads, places, rows, width]` from column `first` on.
    pub fn write(
        &self,
        layer: usize,
        (place, first): (usize, usize),
        (keys, values): (&Tensor, &Tensor),
    ) -> Result<()> {
        let inner = self.lock();
        let (all_keys, all_values) = &inner.layers[layer];
        for (all, new) in [(all_keys, keys), (all_values, values)] {
            let (heads, users, ..) = new.dims4()?;
            if users == inner.used.len() {
                all.slice_set(new, 2, first)?;
                continue;
            }
            // Some users of one head lie together, those of all heads do not.
            for head in 0..heads {
                let part = all.narrow(0, head, 1)?.narrow(1, place, users)?;
                part.slice_set(&new.narrow(0, head, 1)?, 2, first)?;
            }
        }
        Ok(())
    }

    /// The first `columns` columns of some users, `[kv heads, places, columns, width]`: a view of the
    /// arena where these are all users.
    pub fn read(
        &self,
        layer: usize,
        places: std::ops::Range<usize>,
        columns: usize,
    ) -> Result<(Tensor, Tensor)> {
        let inner = self.lock();
        let whole = places.len() == inner.used.len();
        let part = |all: &Tensor| -> Result<Tensor> {
            let part = all.narrow(2, 0, columns)?;
            if whole {
                return Ok(part);
            }
            part.narrow(1, places.start, places.len())?.contiguous()
        };
        let (keys, values) = &inner.layers[layer];
        Ok((part(keys)?, part(values)?))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves tensors whole: each is replaced or written by one call.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn grow(&mut self, columns: usize) -> Result<()> {
        for (keys, values) in &mut self.layers {
            for tensor in [keys, values] {
                let more = tensor.narrow(2, 0, 1)?.zeros_like()?;
                let (heads, users, _, width) = tensor.dims4()?;
                let more = more.broadcast_as((heads, users, columns - self.columns, width))?;
                *tensor = Tensor::cat(&[&*tensor, &more], 2)?.contiguous()?;
            }
        }
        self.columns = columns;
        Ok(())
    }
}

/// Zeros: what a masked column holds is multiplied by 0, which must not be 0 · NaN.
fn empty(
    sizes: Sizes,
    users: usize,
    columns: usize,
    (dtype, device): (DType, &Device),
) -> Result<Tensor> {
    Tensor::zeros((sizes.heads, users, columns, sizes.width), dtype, device)
}
