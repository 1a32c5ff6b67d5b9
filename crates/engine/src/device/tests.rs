//! The path of a device compared with the CPU's own path on tiny random models; both run on the CPU.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::cpu::attention::{Sight, Span};
use crate::cpu::extras::HeadNorms;
use crate::cpu::forward::{self, Pass};
use crate::cpu::kv;
use crate::formats::families::Family;
use crate::formats::geometry::{Geometry, View};
use crate::formats::rope::{Rope, Scaling};
use crate::formats::weights::{LayerWeights, Weights};

/// Random numbers by seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let many = shape.iter().product();
        let value = |x: u64| (x as f32 / (1u64 << 30) as f32 - 1.0) * scale;
        let values: Vec<f32> = (0..many).map(|_| value(self.next())).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("shape fits")
    }
}

/// Heads of a model.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads {
        heads,
        kv_heads,
        head_dim,
    }
}

/// Widths of the residual stream and of the gated layer.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    feed_forward: usize,
}

/// Sizes of a model whose layers rotate in different ways.
fn geometry(noise: &mut Noise, heads: Heads, widths: Widths) -> Geometry {
    // Others have nothing more that a device computes: it refuses windows and norms of results.
    let families = &Family::all()[..3];
    let family = families[noise.below(families.len())];
    let view = |rope| View { window: None, rope };
    let head_dim = heads.head_dim;
    Geometry {
        family,
        hidden: widths.hidden,
        layers: 3,
        heads: heads.heads,
        kv_heads: heads.kv_heads,
        head_dim,
        feed_forward: widths.feed_forward,
        vocabulary: 97,
        context: 256,
        epsilon: 1e-5,
        rotated: head_dim,
        ropes: vec![
            Rope::new(10_000.0, head_dim, &Scaling::None).expect("plain"),
            Rope::new(1_000_000.0, head_dim, &Scaling::None).expect("plain"),
        ],
        views: vec![view(0), view(1), view(0)],
        query_scalar: head_dim as f64,
        logit_cap: None,
        qkv_bias: family.qkv_bias,
        output_bias: false,
        head_norms: family.head_norms,
        tied: false,
    }
}

fn weights(seed: u64, heads: Heads, widths: Widths) -> Weights {
    let mut noise = Noise(seed);
    let geometry = geometry(&mut noise, heads, widths);
    let Geometry {
        family,
        hidden,
        heads,
        kv_heads,
        head_dim,
        feed_forward,
        vocabulary,
        ..
    } = geometry;
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let row = |noise: &mut Noise, many: usize| {
        let row = noise.tensor(&[many], 1.0);
        row.to_vec1::<f32>().expect("a row")
    };
    let layer = |noise: &mut Noise| LayerWeights {
        attention_norm: noise.tensor(&[hidden], 2.0),
        qkv: noise.tensor(&[queries + 2 * keys, hidden], 0.5),
        output: noise.tensor(&[hidden, queries], 0.3),
        feed_norm: noise.tensor(&[hidden], 2.0),
        gate_up: noise.tensor(&[2 * feed_forward, hidden], 0.3),
        down: noise.tensor(&[hidden, feed_forward], 0.3),
        extras: Extras {
            bias: family.qkv_bias.then(|| row(noise, queries + 2 * keys)),
            output_bias: family.qkv_bias.then(|| row(noise, hidden)),
            norms: family.head_norms.then(|| HeadNorms {
                query: row(noise, head_dim),
                key: row(noise, head_dim),
                heads,
                kv_heads,
                epsilon: 1e-5,
            }),
            result_norms: None,
        },
    };
    Weights {
        embedding: noise.tensor(&[vocabulary, hidden], 1.0),
        head: noise.tensor(&[vocabulary, hidden], 1.0),
        norm: noise.tensor(&[hidden], 1.0),
        layers: (0..3).map(|_| layer(&mut noise)).collect(),
        geometry,
    }
}

/// Both paths, which compute the same passes.
struct Pair {
    host: forward::Network,
    device: Network,
    host_caches: Vec<kv::Cache>,
    device_caches: Vec<Cache>,
    noise: Noise,
    /// The most tokens of a tail.
    longest: usize,
    /// Per user: the slots of each node's path.
    paths: Vec<Vec<Vec<u32>>>,
}

/// The implementation of the steps of a device.
#[derive(Clone, Copy)]
enum By {
    /// Plain loops.
    Plain,
    /// kernels.cu.
    Kernels,
}

impl Pair {
    fn new(seed: u64, heads: Heads, dtype: DType, by: By) -> Self {
        // For kernels wide enough that several warps of a block and several blocks of a row have work.
        let widths = match by {
            By::Plain => Widths {
                hidden: 24,
                feed_forward: 40,
            },
            By::Kernels => Widths {
                hidden: 270,
                feed_forward: 600,
            },
        };
        let device = Network::new(weights(seed, heads, widths), &Device::Cpu, dtype);
        let mut device = device.expect("weights fit");
        let longest = match by {
            By::Plain => 20,
            By::Kernels => {
                let emulated = |definitions, _: &[&str]| {
                    let emulated = emulated::Emulated::new(definitions)?;
                    Ok(Box::new(emulated) as Box<dyn kernels::Launcher>)
                };
                let kernels = kernels::Kernels::compile(device.ops.shape, dtype, emulated);
                device.ops.kernels = Some(kernels.expect("a C++ compiler"));
                // Long enough for several tiles of queries and of keys.
                90
            }
        };
        Self {
            host: forward::Network::watched(&weights(seed, heads, widths)).expect("weights fit"),
            device,
            host_caches: Vec::new(),
            device_caches: Vec::new(),
            noise: Noise(!seed),
            longest,
            paths: Vec::new(),
        }
    }

    fn tokens(&mut self, many: usize) -> Vec<u32> {
        (0..many).map(|_| self.noise.below(97) as u32).collect()
    }

    /// A prefix of `many` positions on both paths.
    fn prefix(&mut self, many: usize) -> (kv::Prefix, Prefix) {
        let tokens = self.tokens(many);
        let sizes = self.device.sizes();
        let (mut host, mut device) = ([kv::Cache::new(sizes)], [Cache::default()]);
        let pass = prompt_pass(&[Tail {
            cache: 0,
            known: 0,
            tokens: tokens.clone(),
        }]);
        self.host.forward(&pass, &mut host, 1).expect("computes");
        self.device.forward(&pass, &mut device).expect("computes");
        let ([host], [device]) = (host, device);
        let prefix = device.into_prefix(tokens.clone());
        (host.into_prefix(), prefix)
    }

    fn join(&mut self, prefix: Option<(&(kv::Prefix, Prefix), usize)>) {
        let sizes = self.device.sizes();
        let (host, device) = match prefix {
            Some(((host, device), len)) => (
                kv::Cache::after(sizes, host, len),
                Cache::after(device, len),
            ),
            None => (kv::Cache::new(sizes), Cache::default()),
        };
        self.host_caches.push(host);
        self.device_caches.push(device);
        self.paths.push(Vec::new());
    }

    /// Computes tails of some users in one pass.
    fn prefill(&mut self, users: &[usize]) -> f32 {
        let tails: Vec<_> = users
            .iter()
            .map(|user| {
                let many = 1 + self.noise.below(self.longest);
                Tail {
                    cache: *user,
                    known: self.host_caches[*user].known(),
                    tokens: self.tokens(many),
                }
            })
            .collect();
        self.run(&prompt_pass(&tails))
    }

    /// Computes a wave of up to three chains for some users, each after a random node or the prompt.
    fn wave(&mut self, users: &[usize]) -> f32 {
        let mut pass = Pass {
            nodes: true,
            ..Pass::default()
        };
        for user in users {
            let from = pass.tokens.len();
            let known = self.host_caches[*user].known();
            let mut slot = self.host_caches[*user].slots() as u32;
            for _ in 0..1 + self.noise.below(3) {
                let paths = &self.paths[*user];
                let mut path = match self.noise.below(paths.len() + 1) {
                    0 => Vec::new(),
                    nth => paths[nth - 1].clone(),
                };
                for _ in 0..1 + self.noise.below(4) {
                    pass.tokens.push(self.noise.below(97) as u32);
                    pass.positions.push(known + path.len());
                    path.push(slot);
                    slot += 1;
                    pass.sights.push(Sight {
                        prompt: known,
                        slots: path.clone(),
                    });
                }
                pass.wanted.push(pass.tokens.len() - 1);
                self.paths[*user].push(path);
            }
            pass.spans.push(Span {
                cache: *user,
                rows: from..pass.tokens.len(),
            });
        }
        self.run(&pass)
    }

    /// The difference between both paths' logits of all tokens, relative to the size of the logits.
    fn run(&mut self, pass: &Pass) -> f32 {
        let host = self.host.forward(pass, &mut self.host_caches, 1);
        let host = host.expect("computes");
        let device = self.device.forward(pass, &mut self.device_caches);
        let device = device.expect("computes");
        for (host, device) in self.host_caches.iter().zip(&self.device_caches) {
            assert_eq!(
                (host.known(), host.slots()),
                (device.known(), device.slots())
            );
        }
        let tokens: Vec<u32> = (0..97).collect();
        let mut expected = Vec::new();
        for row in host.chunks_exact(self.device.geometry().hidden) {
            expected.extend(self.host.logits(row, &tokens).expect("in the vocabulary"));
        }
        let rows = 0..pass.wanted.len() as u32;
        let few = rows
            .clone()
            .flat_map(|row| tokens.chunks(13).map(move |tokens| (row, tokens)));
        let wanted: Vec<Wanted> = few.map(|(row, tokens)| Wanted { row, tokens }).collect();
        let few = self
            .device
            .logits(&device, &wanted)
            .expect("in the vocabulary");
        let twice: Vec<u32> = tokens.iter().chain(&tokens).copied().collect();
        let wanted: Vec<Wanted> = rows
            .map(|row| Wanted {
                row,
                tokens: &twice,
            })
            .collect();
        let many = self
            .device
            .logits(&device, &wanted)
            .expect("in the vocabulary");
        assert_eq!(
            (few.len(), many.len()),
            (expected.len(), 2 * expected.len())
        );
        // Checked separately, because a maximum ignores NaN.
        assert!(few.iter().chain(&many).all(|logit| logit.is_finite()));
        let of_many = many.chunks(194).flat_map(|row| row[..97].iter().copied());
        let size = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let whole = size(&mut expected.iter().copied()).max(1e-6);
        let few = few.iter().zip(&expected).map(|(a, b)| a - b);
        let many = of_many.zip(&expected).map(|(a, b)| a - b);
        size(&mut { few }).max(size(&mut { many })) / whole
    }
}

/// Tokens of one prompt from position `known` on.
struct Tail {
    cache: usize,
    known: usize,
    tokens: Vec<u32>,
}

fn prompt_pass(tails: &[Tail]) -> Pass {
    let mut pass = Pass::default();
    for Tail {
        cache,
        known,
        tokens,
    } in tails
    {
        let from = pass.tokens.len();
        for (nth, token) in tokens.iter().enumerate() {
            pass.tokens.push(*token);
            pass.positions.push(known + nth);
            pass.sights.push(Sight {
                prompt: known + nth + 1,
                slots: Vec::new(),
            });
            // Also rows in the middle, so that an error in what they see is found.
            if nth % 8 == 3 || nth + 1 == tokens.len() {
                pass.wanted.push(pass.tokens.len() - 1);
            }
        }
        pass.spans.push(Span {
            cache: *cache,
            rows: from..pass.tokens.len(),
        });
    }
    pass
}

/// The largest difference over a whole batch: prefixes, tails, waves, a user that joins late.
fn difference(seed: u64, dtype: DType) -> f32 {
    let all = [
        heads(4, 2, 8),
        heads(6, 2, 4),
        heads(2, 2, 6),
        heads(3, 1, 8),
    ];
    difference_by(seed, all[seed as usize % 4], dtype, By::Plain)
}

fn difference_by(seed: u64, heads: Heads, dtype: DType, by: By) -> f32 {
    let mut noise = Noise(seed ^ 0x5bd1_e995);
    let mut pair = Pair::new(seed, heads, dtype, by);
    let many = 3 + noise.below(60);
    let prefixes = [pair.prefix(many), pair.prefix(7)];
    let users = 1 + noise.below(5);
    for _ in 0..users {
        match noise.below(6) {
            0 => pair.join(None),
            1 => pair.join(Some((&prefixes[1], 5))),
            _ => pair.join(Some((&prefixes[0], many - 2))),
        }
    }
    let all: Vec<usize> = (0..users).collect();
    let (first, second) = all.split_at(noise.below(users + 1));
    let mut worst = 0f32;
    for part in [first, second] {
        if !part.is_empty() {
            worst = worst.max(pair.prefill(part));
        }
    }
    for wave in 0..5 {
        let some: Vec<usize> = all.iter().copied().filter(|_| noise.below(4) > 0).collect();
        if !some.is_empty() {
            worst = worst.max(pair.wave(&some));
        }
        if wave == 2 {
            pair.join(Some((&prefixes[0], many - 2)));
            worst = worst.max(pair.prefill(&[users]));
            worst = worst.max(pair.wave(&[0, users]));
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_device_computes_in_f32_what_the_cpu_computes(seed: u64) {
        let worst = difference(seed, DType::F32);
        prop_assert!(worst < 1e-5, "off by {worst} of the logits");
    }

    #[test]
    fn a_device_computes_in_bf16_what_the_cpu_computes_within_rounding(seed: u64) {
        let worst = difference(seed, DType::BF16);
        // bf16 has 8 bits of mantissa; differences of up to 0.107 were measured in layers as narrow as these.
        prop_assert!(worst < 0.2, "off by {worst} of the logits");
    }
}

/// Plain attention, at head widths that are and are not multiples of 4, and one over 64.
#[test]
fn kernels_compute_in_f32_what_the_cpu_computes() {
    let all = [
        heads(4, 2, 8),
        heads(6, 2, 4),
        heads(2, 2, 6),
        heads(3, 1, 66),
    ];
    for (seed, heads) in (1..).zip(all) {
        let worst = difference_by(seed, heads, DType::F32, By::Kernels);
        assert!(worst < 1e-5, "{heads:?}: off by {worst} of the logits");
    }
}

/// Attention by matrix units, and by plain products if the head width is not a multiple of 16.
#[test]
fn kernels_compute_in_bf16_what_the_cpu_computes_within_rounding() {
    let all = [
        heads(4, 2, 16),
        heads(3, 1, 32),
        heads(2, 2, 128),
        heads(6, 2, 4),
    ];
    for (seed, heads) in (1..).zip(all) {
        let worst = difference_by(seed, heads, DType::BF16, By::Kernels);
        assert!(worst < 0.04, "{heads:?}: off by {worst} of the logits");
    }
}

#[test]
fn counted_memory_is_allocated_memory() {
    for (dtype, bytes) in [(DType::F32, 4), (DType::BF16, 2)] {
        let mut pair = Pair::new(5, heads(4, 2, 8), dtype, By::Plain);
        pair.join(None);
        pair.prefill(&[0]);
        let cache = &pair.device_caches[0];
        let chunk = &cache.runs()[0].chunk.tensor;
        assert_eq!(chunk.dtype().size_in_bytes(), bytes);
        let position = pair.device.sizes().position();
        assert_eq!(cache.own_rows() * position, chunk.elem_count() * bytes);
    }
}

/// No row is kept for a user that left.
#[test]
fn a_chunk_is_freed_with_its_last_user_or_prefix() {
    let mut pair = Pair::new(3, heads(4, 2, 8), DType::F32, By::Plain);
    pair.join(None);
    pair.join(None);
    pair.prefill(&[0, 1]);
    pair.wave(&[0, 1]);
    let caches = std::mem::take(&mut pair.device_caches);
    let [mut first, second] = <[Cache; 2]>::try_from(caches).expect("two users");
    let weak = [
        std::sync::Arc::downgrade(&first.runs()[0].chunk),
        std::sync::Arc::downgrade(first.slot(0).0),
    ];
    let references = || weak.each_ref().map(|chunk| chunk.strong_count());
    assert_eq!(references(), [2, 2]);
    first.forget_nodes();
    assert_eq!(references(), [2, 1]);
    let known = first.known();
    let prefix = first.into_prefix(vec![0; known]);
    drop(second);
    assert_eq!(references(), [1, 0]);
    drop(prefix);
    assert_eq!(references(), [0, 0]);
}
