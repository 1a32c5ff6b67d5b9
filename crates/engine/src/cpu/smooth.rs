//! Weights made fit for int8: what is hard in the inputs moves into the weights.
//!
//! Decides a factor per input of each product, from magnitudes seen on a few frozen prompts: a column of
//! weights is multiplied by it, and whatever produces that input is divided by it: the norm before, the
//! rows of `up`, the rows of `v`. Invariant: the model computes the same function, up to rounding.
//! It does not know how weights are rounded.

use candle_core::{Result, Tensor};

use super::forward::{Network, Pass};
use super::kv::Cache;
use crate::Error;
use crate::formats::geometry::Geometry;
use crate::formats::text::Text;
use crate::formats::weights::{LayerWeights, Weights};

/// What the magnitudes are taken from: shop talk as prompts have it, and plain text.
const FROZEN: [&str; 3] = [
    "You know how people shop. Household: age 45-54; income 50-74K; 2 adults, 1 child. Bought, newest \
     first: FLUID MILK WHITE ONLY, BANANAS, TOILET TISSUE (2 times), SHREDDED CHEESE, YOGURT NOT MULTI-PACKS, \
     SOFT DRINKS 12/18&15PK CAN CAR, EGGS - LARGE, HAIR CARE ACCESSORIES, CAT FOOD.\n---assistant---\n\
     The household will next buy: PAPER TOWELS & HOLDERS",
    "Customer of a pharmacy, 62 years, diabetic. Put in the cart: Blood glucose test strips 50 pcs, Vitamin D3 \
     1000 IU, Hand cream 75 ml. Searched for: compression stockings, sugar-free cough drops.\
     \n---assistant---\nNext product: Omega-3 capsules",
    "The market opened at eight. By noon the bread was gone, the fishmonger had lowered his prices twice, and \
     in the far corner someone sold clocks, garden chairs and a bicycle without wheels.",
];

/// How much of the difficulty moves: 0 leaves it in the inputs, 1 takes it all.
const ALPHA: f32 = 0.5;

/// Token sequences to calibrate on.
pub(crate) fn samples(text: &Text) -> std::result::Result<Vec<Vec<u32>>, Error> {
    FROZEN.iter().map(|said| text.prompt(said)).collect()
}

/// Balances all layers by what `samples` do in them.
pub(crate) fn smooth(weights: &mut Weights, samples: &[Vec<u32>], threads: usize) -> Result<()> {
    let network = Network::watched(weights)?;
    for sample in samples.iter().filter(|sample| !sample.is_empty()) {
        let mut pass = Pass::default();
        pass.add_prompt(0, 0, sample);
        network.forward(&pass, &mut [Cache::new(network.sizes())], threads)?;
    }
    let maxima = network.maxima();
    for (layer, maxima) in weights.layers.iter_mut().zip(maxima) {
        balance(layer, &maxima, &weights.geometry)?;
    }
    Ok(())
}

/// Greatest magnitude of each input of one layer's products.
#[derive(Debug)]
pub(crate) struct Maxima {
    /// Of q, k, v.
    pub qkv: Vec<f32>,
    /// Of the heads' projection.
    pub output: Vec<f32>,
    /// Of gate and up.
    pub gate_up: Vec<f32>,
    /// Of down.
    pub down: Vec<f32>,
}

fn balance(layer: &mut LayerWeights, maxima: &Maxima, geometry: &Geometry) -> Result<()> {
    let factors = each(&maxima.qkv, &columns(&layer.qkv)?);
    layer.attention_norm = divided(&layer.attention_norm, &factors)?;
    layer.qkv = widened(&layer.qkv, &factors)?;

    let factors = each(&maxima.gate_up, &columns(&layer.gate_up)?);
    layer.feed_norm = divided(&layer.feed_norm, &factors)?;
    layer.gate_up = widened(&layer.gate_up, &factors)?;

    let factors = each(&maxima.down, &columns(&layer.down)?);
    layer.gate_up = rows_divided(&layer.gate_up, geometry.feed_forward, &factors)?;
    layer.down = widened(&layer.down, &factors)?;

    // A value row serves all queries of its group: they get one factor.
    let (width, group) = (geometry.head_dim, geometry.heads / geometry.kv_heads);
    let shared = |each: &[f32]| -> Vec<f32> {
        let at = |head: usize, i: usize| each[head * width + i];
        (0..geometry.kv_heads * width)
            .map(|row| {
                let (key, i) = (row / width, row % width);
                (0..group).fold(0f32, |max, n| max.max(at(key * group + n, i)))
            })
            .collect()
    };
    let factors = each(&shared(&maxima.output), &shared(&columns(&layer.output)?));
    let values = (geometry.heads + geometry.kv_heads) * width;
    layer.qkv = rows_divided(&layer.qkv, values, &factors)?;
    if let Some(bias) = &mut layer.extras.bias {
        let values = bias.iter_mut().skip(values).zip(&factors);
        values.for_each(|(bias, factor)| *bias /= factor);
    }
    let repeated: Vec<f32> = (0..geometry.heads * width)
        .map(|column| factors[column / width / group * width + column % width])
        .collect();
    layer.output = widened(&layer.output, &repeated)?;
    Ok(())
}

/// The factor of each input: the square root of its magnitude against its weights' at the usual alpha.
fn each(inputs: &[f32], weights: &[f32]) -> Vec<f32> {
    let factor = |(input, weight): (&f32, &f32)| {
        let factor = input.powf(ALPHA) / weight.powf(1.0 - ALPHA);
        // An input that was never seen, or whose weights are 0, stays as it is.
        if factor.is_finite() && factor > 1e-5 {
            factor.min(1e5)
        } else {
            1.0
        }
    };
    inputs.iter().zip(weights).map(factor).collect()
}

/// Greatest magnitude of each column.
fn columns(weight: &Tensor) -> Result<Vec<f32>> {
    let mut maxima = vec![0f32; weight.dims2()?.1];
    for row in weight.to_vec2::<f32>()? {
        for (max, weight) in maxima.iter_mut().zip(row) {
            *max = max.max(weight.abs());
        }
    }
    Ok(maxima)
}

/// Columns multiplied by their factors.
fn widened(weight: &Tensor, factors: &[f32]) -> Result<Tensor> {
    mapped(weight, |values, columns| {
        for row in values.chunks_exact_mut(columns) {
            row.iter_mut()
                .zip(factors)
                .for_each(|(value, factor)| *value *= factor);
        }
    })
}

/// Rows from `first` on divided by their factors.
fn rows_divided(weight: &Tensor, first: usize, factors: &[f32]) -> Result<Tensor> {
    mapped(weight, |values, columns| {
        let rows = values.chunks_exact_mut(columns).skip(first);
        for (row, factor) in rows.zip(factors) {
            row.iter_mut().for_each(|value| *value /= factor);
        }
    })
}

/// A vector divided element by element.
fn divided(weight: &Tensor, factors: &[f32]) -> Result<Tensor> {
    let row = weight.unsqueeze(1)?;
    rows_divided(&row, 0, factors)?.squeeze(1)
}

fn mapped(weight: &Tensor, change: impl FnOnce(&mut [f32], usize)) -> Result<Tensor> {
    let sizes = weight.dims2()?;
    let mut values: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    change(&mut values, sizes.1);
    Tensor::from_vec(values, sizes, weight.device())
}
