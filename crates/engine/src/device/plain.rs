//! The steps of [`Ops`](super::ops::Ops) in plain loops on the CPU: what kernels.cu does, readable.
//!
//! Every change here or in kernels.cu is made in both. Invariant: a step reads tensors of the weights' type, computes
//! in f32 and rounds its result once. It is for tests of the path of a device; the CPU's own path is faster.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::cache::Chunk;
use super::ops::{Shape, Turning};
use super::plan::{Plan, Side};
use crate::cpu::kernel;

/// Queries of a tile; the results do not depend on it.
pub(crate) const TILE: usize = 32;

fn wide(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn narrow(values: Vec<f32>, shape: (usize, usize), like: DType) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(like)
}

/// See [`Ops::turn`](super::ops::Ops::turn).
pub(super) fn turn(
    shape: Shape,
    qkv: &Tensor,
    by: &Turning,
    chunk: &Chunk,
    layer: usize,
) -> Result<Tensor> {
    let (rows, all) = qkv.dims2()?;
    let (queries, keys) = (shape.heads * shape.width, shape.kv_heads * shape.width);
    let mut values = wide(qkv)?;
    let bias = by.bias.map(wide).transpose()?;
    let norms = by.norms.map(wide).transpose()?;
    let (cos, sin) = (wide(&by.angles.0)?, wide(&by.angles.1)?);
    let positions = by.positions.to_vec1::<u32>()?;
    let half = shape.width / 2;
    for (row, position) in values.chunks_exact_mut(all).zip(positions) {
        if let Some(bias) = &bias {
            kernel::add(row, bias);
        }
        let rotated = &mut row[..queries + keys];
        if let Some(norms) = &norms {
            let (of_queries, of_keys) = norms.split_at(shape.width);
            for (nth, head) in rotated.chunks_exact_mut(shape.width).enumerate() {
                let weight = if nth < shape.heads {
                    of_queries
                } else {
                    of_keys
                };
                let values = head.to_vec();
                kernel::rms_norm(&values, weight, shape.epsilon, head);
            }
        }
        let at = position as usize * half;
        kernel::rotate(rotated, &cos[at..][..half], &sin[at..][..half]);
    }
    let part = |from: usize, many: usize| -> Vec<f32> {
        let rows = values.chunks_exact(all);
        rows.flat_map(|row| &row[from..from + many])
            .copied()
            .collect()
    };
    for (nth, from) in [queries, queries + keys].into_iter().enumerate() {
        let new = narrow(part(from, keys), (rows, keys), qkv.dtype())?;
        let new = new.reshape((1, 1, rows, keys))?;
        chunk
            .layer(layer)?
            .narrow(1, nth, 1)?
            .slice_set(&new, 2, 0)?;
    }
    narrow(part(0, queries), (rows, queries), qkv.dtype())
}

/// Keys and values of a chunk's layer, f32.
struct Kept {
    numbers: Vec<f32>,
    rows: usize,
}

/// See [`Ops::attend`](super::ops::Ops::attend).
pub(super) fn attend(
    shape: Shape,
    queries: &Tensor,
    plan: &Plan,
    side: &Side,
    layer: usize,
) -> Result<Tensor> {
    let kept = |chunk: &std::sync::Arc<Chunk>| -> Result<Kept> {
        let (numbers, rows) = (wide(&chunk.layer(layer)?)?, chunk.rows);
        Ok(Kept { numbers, rows })
    };
    let kept: Vec<Kept> = plan.chunks.iter().map(kept).collect::<Result<_>>()?;
    let (values, wide_row) = (wide(queries)?, shape.heads * shape.width);
    let (sections, places) = (&plan.sections, side.places);
    let mut out = vec![0f32; values.len()];
    for span in sections[places.spans..][..4 * side.spans_len].chunks_exact(4) {
        let (first, count) = (span[0] as usize, span[1] as usize);
        let runs = &sections[places.runs..][4 * span[2] as usize..4 * span[3] as usize];
        let span_rows = first * wide_row..(first + count) * wide_row;
        let rows = out[span_rows.clone()].par_chunks_mut(wide_row);
        let queries = values[span_rows].par_chunks(wide_row);
        rows.zip(queries).enumerate().for_each(|(nth, (out, row))| {
            let row_number = first + nth;
            let sight = sections[places.sights + row_number];
            let ancestors = |end: usize| sections[places.starts + row_number + end] as usize;
            let ancestors = &sections[places.ancestors..][2 * ancestors(0)..2 * ancestors(1)];
            let mut seen: Vec<(u32, u32)> = Vec::new();
            for run in runs.chunks_exact(4) {
                let seen_rows = run[2].min(sight.saturating_sub(run[3]));
                seen.extend((run[1]..run[1] + seen_rows).map(|row| (run[0], row)));
            }
            seen.extend(ancestors.chunks_exact(2).map(|of| (of[0], of[1])));
            mix(shape, row, &kept, &seen, out);
        });
    }
    narrow(out, queries.dims2()?, queries.dtype())
}

/// Attention of all heads of one row over the rows that it sees.
fn mix(shape: Shape, row: &[f32], kept: &[Kept], seen: &[(u32, u32)], out: &mut [f32]) {
    let (group, width) = (shape.heads / shape.kv_heads, shape.width);
    let scale = 1.0 / (width as f32).sqrt();
    let number = |(chunk, row): &(u32, u32), part: usize, head: usize| -> &[f32] {
        let Kept { numbers, rows } = &kept[*chunk as usize];
        let at = (part * rows + *row as usize) * shape.kv_heads + head;
        &numbers[at * width..][..width]
    };
    let heads = row.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for (head, (query, out)) in heads.enumerate() {
        let head = head / group;
        let scores = seen
            .iter()
            .map(|of| kernel::dot(query, number(of, 0, head)) * scale);
        let scores: Vec<f32> = scores.collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
        let total: f32 = weights.iter().sum();
        for (of, weight) in seen.iter().zip(weights) {
            let value = number(of, 1, head).iter().zip(&mut *out);
            value.for_each(|(value, out)| *out += weight / total * value);
        }
    }
}

/// See [`Ops::add_norm`](super::ops::Ops::add_norm).
pub(crate) fn add_norm(
    shape: Shape,
    x: &Tensor,
    y: &Tensor,
    bias: Option<&Tensor>,
    weight: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut sums = wide(x)?;
    kernel::add(&mut sums, &wide(y)?);
    if let Some(bias) = bias.map(wide).transpose()? {
        let rows = sums.chunks_exact_mut(bias.len());
        rows.for_each(|row| kernel::add(row, &bias));
    }
    let sums = narrow(sums, x.dims2()?, x.dtype())?;
    let mut normed = vec![0f32; sums.elem_count()];
    kernel::rms_norm(&wide(&sums)?, &wide(weight)?, shape.epsilon, &mut normed);
    let normed = narrow(normed, x.dims2()?, x.dtype())?;
    Ok((sums, normed))
}

/// See [`Ops::gate`](super::ops::Ops::gate).
pub(super) fn gate(x: &Tensor) -> Result<Tensor> {
    let (rows, both) = x.dims2()?;
    let mut out = vec![0f32; rows * both / 2];
    let values = wide(x)?;
    for (row, out) in values
        .chunks_exact(both)
        .zip(out.chunks_exact_mut(both / 2))
    {
        let (gate, up) = row.split_at(both / 2);
        kernel::swiglu(gate, up, out);
    }
    narrow(out, (rows, both / 2), x.dtype())
}

/// See [`Ops::score`](super::ops::Ops::score).
pub(super) fn score(
    hidden: &Tensor,
    head: &Tensor,
    lists: &[[u32; 3]],
    tokens: &[u32],
) -> Result<Vec<f32>> {
    let width = head.dim(1)?;
    let rows = wide(hidden)?;
    let weights = wide(&head.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?)?;
    let mut out = vec![0f32; tokens.len()];
    for [row, from, to] in lists.iter().map(|list| list.map(|x| x as usize)) {
        let row = &rows[row * width..][..width];
        for nth in from..to {
            out[nth] = kernel::dot(row, &weights[nth * width..][..width]);
        }
    }
    Ok(out)
}
