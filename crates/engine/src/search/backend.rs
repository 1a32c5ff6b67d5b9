//! The two backends of a model as one type each: the engine's own kernels on the CPU, and tensors on a device.
//!
//! Decides which backend a network, a cache, a prefix and a hidden state belong to. Invariant: a cache, prefix or
//! hidden state is only used with the network that made it. It does not know how a backend computes.

use candle_core::{DType, Result, Tensor};

use crate::cpu::forward::{self, Pass};
use crate::cpu::kv::{self, Sizes};
use crate::formats::adapter::Adapter;
use crate::formats::geometry::Geometry;
use crate::formats::open::Opened;
use crate::{Error, Options, Precision, device};

/// A loaded model.
pub(crate) enum Network {
    /// The engine's own kernels on the CPU.
    Host(forward::Network),
    /// Tensor operations of a device.
    Device(Box<device::Network>),
}

/// Keys and values of one user.
pub(crate) enum Cache {
    /// In the memory of the CPU.
    Host(kv::Cache),
    /// On a device.
    Device(device::Cache),
    /// Moved out during a pass, which puts it back.
    Lent,
}

/// The hidden state of one row before the head. It stays where it was computed: only its logits are needed.
#[derive(Clone, Debug)]
pub(crate) struct Row(State);

#[derive(Clone, Debug)]
enum State {
    Host(Vec<f32>),
    /// All rows of the pass, `[rows, hidden]`, and the number of this row.
    Device(Tensor, usize),
}

/// Keys and values of the beginning of prompts, read-only and shared.
pub(crate) struct Prefix {
    /// The tokens of the beginning.
    pub tokens: Vec<u32>,
    kept: Kept,
}

enum Kept {
    Host(kv::Prefix),
    Device(device::Prefix),
}

/// Why a match on the other backend is unreachable.
const FOREIGN: &str = "caches, prefixes and hidden states are used with the network that made them";

impl Network {
    /// Loads the weights to the place and in the precision of `options`; `samples` as in [`forward::Network::new`].
    pub(crate) fn new(
        model: &Opened,
        options: Options,
        samples: &[Vec<u32>],
    ) -> std::result::Result<Self, Error> {
        let wrong = |source| Error::Compute {
            what: format!("model on {}", options.place),
            source,
        };
        let failed = |source: candle_core::Error| wrong(Box::new(source));
        if let Some(why) = options.place.refuses(options.precision) {
            return Err(wrong(why.into()));
        }
        let Some(device) = options.place.device().map_err(wrong)? else {
            return forward::Network::new(model, options, samples).map(Self::Host);
        };
        if let Some(what) = model.geometry().needs_cpu() {
            let family = model.geometry().family.name;
            let why = format!("this {family} has {what}, which the CPU alone computes");
            return Err(wrong(why.into()));
        }
        let dtype = match options.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 | Precision::Int8 => DType::BF16,
        };
        let mut network =
            device::Network::new(model.without_layers()?, &device, dtype).map_err(failed)?;
        // Layer by layer, so that never all layers are in memory twice.
        for nth in 0..model.geometry().layers {
            network.push(&model.layer(nth)?).map_err(failed)?;
        }
        Ok(Self::Device(Box::new(network)))
    }

    /// The network with an adapter that fits it beside its weights, which both share; `None` on a device.
    pub(crate) fn beside(&self, adapter: Option<&Adapter>, options: Options) -> Option<Self> {
        match (self, adapter) {
            (Self::Host(network), Some(adapter)) => {
                Some(Self::Host(network.beside(adapter, options)))
            }
            (Self::Host(network), None) => Some(Self::Host(network.clone())),
            (Self::Device(_), _) => None,
        }
    }

    /// Sizes and constants.
    pub(crate) fn geometry(&self) -> &Geometry {
        match self {
            Self::Host(network) => network.geometry(),
            Self::Device(network) => network.geometry(),
        }
    }

    /// Sizes of keys and values.
    pub(crate) fn sizes(&self) -> Sizes {
        match self {
            Self::Host(network) => network.sizes(),
            Self::Device(network) => network.sizes(),
        }
    }

    /// Bytes of the layers' weights.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Host(network) => network.bytes(),
            Self::Device(network) => network.bytes(),
        }
    }

    /// How weights are stored and multiplied, for reports.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::Host(network) => network.dtype(),
            Self::Device(network) => network.dtype().as_str(),
        }
    }

    /// Creates an empty cache.
    pub(crate) fn cache(&self) -> Cache {
        match self {
            Self::Host(network) => Cache::Host(kv::Cache::new(network.sizes())),
            Self::Device(_) => Cache::Device(device::Cache::default()),
        }
    }

    /// Creates a cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn cache_after(&self, prefix: &Prefix, len: usize) -> Cache {
        match &prefix.kept {
            Kept::Host(prefix) => Cache::Host(kv::Cache::after(self.sizes(), prefix, len)),
            Kept::Device(prefix) => Cache::Device(device::Cache::after(prefix, len)),
        }
    }

    /// Computes the rows of `pass`, adds their keys and values to `caches`, and returns the hidden state before the
    /// head of each wanted row.
    pub(crate) fn forward(
        &self,
        pass: &Pass,
        caches: &mut [Cache],
        threads: usize,
    ) -> Result<Vec<Row>> {
        match self {
            Self::Host(network) => with_inner(caches, Cache::host, Cache::Host, |caches| {
                let hidden = network.forward(pass, caches, threads)?;
                let rows = hidden.chunks_exact(network.geometry().hidden);
                Ok(rows.map(|row| Row(State::Host(row.to_vec()))).collect())
            }),
            Self::Device(network) => with_inner(caches, Cache::device, Cache::Device, |caches| {
                let hidden = network.forward(pass, caches)?;
                let rows = 0..pass.wanted.len();
                Ok(rows
                    .map(|nth| Row(State::Device(hidden.clone(), nth)))
                    .collect())
            }),
        }
    }

    /// Waits until all launched work is done.
    pub(crate) fn wait(&self) -> Result<()> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Device(network) => network.wait(),
        }
    }

    /// Logits of some tokens after each hidden state: the lists one after the other.
    pub(crate) fn logits(&self, wanted: &[(&Row, &[u32])]) -> Result<Vec<f32>> {
        match self {
            Self::Host(network) => {
                let mut logits = Vec::new();
                for (hidden, tokens) in wanted {
                    logits.extend(network.logits(hidden.host(), tokens)?);
                }
                Ok(logits)
            }
            Self::Device(_) if wanted.is_empty() => Ok(Vec::new()),
            Self::Device(network) => {
                // Rows come from few passes, mostly from one; those of several passes are concatenated.
                let mut passes: Vec<(&Tensor, usize)> = Vec::new();
                let mut rows = 0;
                let mut lists = Vec::with_capacity(wanted.len());
                for (row, tokens) in wanted {
                    let (hidden, nth) = row.device();
                    let found = passes.iter().find(|(other, _)| other.id() == hidden.id());
                    let from = match found {
                        Some((_, from)) => *from,
                        None => {
                            passes.push((hidden, rows));
                            rows += hidden.dim(0)?;
                            passes[passes.len() - 1].1
                        }
                    };
                    let row = (from + nth) as u32;
                    lists.push(device::Wanted { row, tokens });
                }
                let passes: Vec<&Tensor> = passes.into_iter().map(|(hidden, _)| hidden).collect();
                match passes[..] {
                    [hidden] => network.logits(hidden, &lists),
                    _ => network.logits(&Tensor::cat(&passes, 0)?, &lists),
                }
            }
        }
    }
}

impl Network {
    /// Logits of the whole vocabulary after each hidden state.
    pub(crate) fn all_logits(&self, rows: &[&Row], threads: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Host(network) => {
                let states: Vec<&[f32]> = rows.iter().map(|row| row.host()).collect();
                network.all_logits(&states, threads)
            }
            Self::Device(_) => {
                let tokens: Vec<u32> = (0..self.geometry().vocabulary as u32).collect();
                let wanted: Vec<(&Row, &[u32])> =
                    rows.iter().map(|row| (*row, &tokens[..])).collect();
                let logits = self.logits(&wanted)?;
                let each = logits.chunks_exact(tokens.len());
                Ok(each.map(<[f32]>::to_vec).collect())
            }
        }
    }
}

impl Row {
    /// Its numbers.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>> {
        match &self.0 {
            State::Host(row) => Ok(row.clone()),
            State::Device(hidden, nth) => hidden.get(*nth)?.to_dtype(DType::F32)?.to_vec1(),
        }
    }

    fn host(&self) -> &[f32] {
        match &self.0 {
            State::Host(row) => row,
            State::Device(..) => unreachable!("{FOREIGN}"),
        }
    }

    fn device(&self) -> (&Tensor, usize) {
        match &self.0 {
            State::Device(hidden, nth) => (hidden, *nth),
            State::Host(_) => unreachable!("{FOREIGN}"),
        }
    }
}

/// Calls `pass` with the contents of the caches, and puts them back.
fn with_inner<C>(
    caches: &mut [Cache],
    unwrap: fn(Cache) -> C,
    wrap: fn(C) -> Cache,
    pass: impl FnOnce(&mut [C]) -> Result<Vec<Row>>,
) -> Result<Vec<Row>> {
    let mut out: Vec<C> = (caches.iter_mut())
        .map(|cache| unwrap(std::mem::replace(cache, Cache::Lent)))
        .collect();
    let result = pass(&mut out);
    for (cache, out) in caches.iter_mut().zip(out) {
        *cache = wrap(out);
    }
    result
}

impl Cache {
    fn host(self) -> kv::Cache {
        match self {
            Self::Host(cache) => cache,
            Self::Device(_) | Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    fn device(self) -> device::Cache {
        match self {
            Self::Device(cache) => cache,
            Self::Host(_) | Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    /// Number of prompt positions that are computed.
    pub(crate) fn known(&self) -> usize {
        match self {
            Self::Host(cache) => cache.known(),
            Self::Device(cache) => cache.known(),
            Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    /// Number of node slots in use, which is the slot of the next node token.
    pub(crate) fn slots(&self) -> usize {
        match self {
            Self::Host(cache) => cache.slots(),
            Self::Device(cache) => cache.slots(),
            Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    /// Bytes of its own keys and values, without those of a shared prefix.
    pub(crate) fn bytes(&self, sizes: Sizes) -> usize {
        match self {
            Self::Host(cache) => cache.bytes(sizes),
            Self::Device(cache) => cache.own_rows() * sizes.position(),
            Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    /// Frees all node slots.
    pub(crate) fn forget_nodes(&mut self) {
        match self {
            Self::Host(cache) => cache.forget_nodes(),
            Self::Device(cache) => cache.forget_nodes(),
            Self::Lent => unreachable!("{FOREIGN}"),
        }
    }

    /// Turns the cache of a whole prompt, whose tokens are `tokens`, into a prefix for other prompts.
    pub(crate) fn into_prefix(self, tokens: Vec<u32>) -> Prefix {
        let kept = match self {
            Self::Host(cache) => Kept::Host(cache.into_prefix()),
            Self::Device(cache) => Kept::Device(cache.into_prefix(tokens.clone())),
            Self::Lent => unreachable!("{FOREIGN}"),
        };
        Prefix { tokens, kept }
    }
}

impl Prefix {
    /// What tells its blocks of positions from those of others; `None` on a device, which has none.
    pub(crate) fn blocks(&self) -> Option<Vec<usize>> {
        match &self.kept {
            Kept::Host(prefix) => Some(prefix.blocks().collect()),
            Kept::Device(_) => None,
        }
    }

    /// A prefix on the CPU.
    #[cfg(test)]
    pub(super) fn of_host(cache: kv::Cache, tokens: Vec<u32>) -> Self {
        Cache::Host(cache).into_prefix(tokens)
    }

    /// A cache that starts with `len` positions of a prefix on the CPU.
    #[cfg(test)]
    pub(super) fn host_cache(&self, sizes: Sizes, len: usize) -> kv::Cache {
        match &self.kept {
            Kept::Host(prefix) => kv::Cache::after(sizes, prefix, len),
            Kept::Device(_) => unreachable!("{FOREIGN}"),
        }
    }
}
