//! Adapters beside weights that several models share.
//!
//! Decides what an adapter's matrices become where its base is packed, and smoothed for int8: A is multiplied by what
//! the base's inputs were divided by, B's rows are divided as the base's rows were. Invariant: a row's result does not
//! depend on the other rows, bit for bit; it is that of the merged weights but for rounding, which here leaves the
//! adapter's part in f32. It does not know files.

use std::sync::Arc;

use super::packed::Packed;
use crate::Options;
use crate::Precision;
use crate::formats::adapter::Adapter;
use crate::formats::geometry::{Geometry, Part};
use crate::formats::open::spread_rotated;

/// What smoothing multiplied the columns of a layer's products by; what produces these inputs was divided by the same.
#[derive(Clone, Debug)]
pub(crate) struct Smoothed {
    /// Inputs of q, k, v.
    pub qkv: Vec<f32>,
    /// Rows of v.
    pub values: Vec<f32>,
    /// Inputs of the output projection.
    pub output: Vec<f32>,
    /// Inputs of gate and up.
    pub gate_up: Vec<f32>,
    /// Inputs of down, which are rows of up.
    pub down: Vec<f32>,
}

/// The two small matrices of an adapter beside some outputs of a layer.
#[derive(Clone, Debug)]
pub(crate) struct LowRank {
    /// First output that it adds to.
    from: usize,
    /// `[rank, in]`.
    a: Arc<Packed>,
    /// `[out, rank]`, the adapter's factor included.
    b: Arc<Packed>,
}

impl LowRank {
    /// Adds its product to `y` `[rows, out]` of the inputs `x`.
    pub(super) fn add_to(&self, x: &[f32], y: &mut [f32], out: usize, threads: usize) {
        let (many, _) = self.b.sizes();
        let added = self.b.multiply(&self.a.multiply(x, threads), threads);
        for (y, added) in y.chunks_exact_mut(out).zip(added.chunks_exact(many)) {
            super::kernel::add(&mut y[self.from..self.from + many], added);
        }
    }

    /// Bytes of the matrices.
    pub(super) fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }
}

/// Four products of a layer, in the order of its pass, and what an adapter has beside each.
#[derive(Default)]
pub(crate) struct Beside {
    /// Beside q, k, v.
    pub qkv: Vec<LowRank>,
    /// Beside the output projection.
    pub output: Vec<LowRank>,
    /// Beside gate and up.
    pub gate_up: Vec<LowRank>,
    /// Beside down.
    pub down: Vec<LowRank>,
}

impl Beside {
    /// What `adapter`, which fits the model, has in a layer.
    pub(crate) fn new(
        adapter: &Adapter,
        layer: usize,
        geometry: &Geometry,
        smoothed: Option<&Smoothed>,
        options: Options,
    ) -> Self {
        let place = Place {
            adapter,
            geometry,
            options,
        };
        let width = geometry.head_dim;
        let (keys, values) = (
            geometry.heads * width,
            (geometry.heads + geometry.kv_heads) * width,
        );
        let feed = geometry.feed_forward;
        let of = |part: fn(&Smoothed) -> &Vec<f32>| smoothed.map(part).map(Vec::as_slice);
        let (qkv, gate_up) = (of(|it| &it.qkv), of(|it| &it.gate_up));
        let (value_rows, up_rows) = (of(|it| &it.values), of(|it| &it.down));
        // A part, its first output, the factors of its inputs, and those of its outputs with the first that has one.
        let make = |part: Part, from, columns, rows: Option<&[f32]>, first| {
            place.low_rank(part, from, columns, rows.map(|rows| (first, rows)))
        };
        let some = |found: [Option<LowRank>; 4]| found.into_iter().flatten().collect();
        Self {
            qkv: some([
                make(Part::Query(layer), 0, qkv, None, 0),
                make(Part::Key(layer), keys, qkv, None, 0),
                make(Part::Value(layer), values, qkv, value_rows, 0),
                make(Part::QueryKeyValue(layer), 0, qkv, value_rows, values),
            ]),
            output: some([
                make(Part::Output(layer), 0, of(|it| &it.output), None, 0),
                None,
                None,
                None,
            ]),
            gate_up: some([
                make(Part::Gate(layer), 0, gate_up, None, 0),
                make(Part::Up(layer), feed, gate_up, up_rows, 0),
                make(Part::GateUp(layer), 0, gate_up, up_rows, feed),
                None,
            ]),
            down: some([
                make(Part::Down(layer), 0, of(|it| &it.down), None, 0),
                None,
                None,
                None,
            ]),
        }
    }
}

struct Place<'a> {
    adapter: &'a Adapter,
    geometry: &'a Geometry,
    options: Options,
}

impl Place<'_> {
    fn low_rank(
        &self,
        part: Part,
        from: usize,
        columns: Option<&[f32]>,
        rows: Option<(usize, &[f32])>,
    ) -> Option<LowRank> {
        let (mut a, mut b, rank) = self.adapter.matrices(part)?;
        spread_rotated(&mut b, part, self.geometry);
        let inputs = a.len() / rank;
        if let Some(columns) = columns {
            for row in a.chunks_exact_mut(inputs) {
                (row.iter_mut().zip(columns)).for_each(|(number, factor)| *number *= factor);
            }
        }
        if let Some((first, factors)) = rows {
            for (row, factor) in b.chunks_exact_mut(rank).skip(first).zip(factors) {
                row.iter_mut().for_each(|number| *number /= factor);
            }
        }
        let packed = |numbers: &[f32], inner| {
            // The adapter is small: its part is not rounded.
            let packed = Packed::new(numbers, inner, Precision::F32, self.options.isa);
            Arc::new(packed)
        };
        Some(LowRank {
            from,
            a: packed(&a, inputs),
            b: packed(&b, rank),
        })
    }
}
