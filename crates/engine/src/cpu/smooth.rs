//! Smoothing of weights for int8: large magnitudes move from inputs into weights (SmoothQuant).
//!
//! Decides a factor per input of each product, from magnitudes measured on a few fixed prompts. A column of weights is
//! multiplied by the factor, and what produces that input is divided by it: the norm before, the rows of `up`, the rows
//! of `v`. Magnitudes are measured layer by layer, as the layers are read, so that one layer is in memory at a time.
//! Invariant: the model computes the same function, up to rounding. It does not know how weights are rounded.

use candle_core::{Result, Tensor};

use super::beside::Smoothed;
use super::forward::{Ends, Layer, Pass, Step};
use super::kv::Cache;
use crate::Error;
use crate::formats::geometry::Geometry;
use crate::formats::text::Text;
use crate::formats::weights::LayerWeights;
use nearshore_core::names::scoring::Prompt;

/// Prompts on which magnitudes are measured: two like those of a shop, and plain text.
const PROMPTS: [(&str, &str); 3] = [
    (
        "You know how people shop. Household: age 45-54; income 50-74K; 2 adults, 1 child. Bought, newest \
         first: FLUID MILK WHITE ONLY, BANANAS, TOILET TISSUE (2 times), SHREDDED CHEESE, YOGURT NOT MULTI-PACKS, \
         SOFT DRINKS 12/18&15PK CAN CAR, EGGS - LARGE, HAIR CARE ACCESSORIES, CAT FOOD.",
        "The household will next buy: PAPER TOWELS & HOLDERS",
    ),
    (
        "Customer of a pharmacy, 62 years, diabetic. Put in the cart: Blood glucose test strips 50 pcs, Vitamin D3 \
         1000 IU, Hand cream 75 ml. Searched for: compression stockings, sugar-free cough drops.",
        "Next product: Omega-3 capsules",
    ),
    (
        "The market opened at eight. By noon the bread was gone, the fishmonger had lowered his prices twice, and \
         in the far corner someone sold clocks, garden chairs and a bicycle without wheels.",
        "",
    ),
];

/// How much of the magnitude moves into the weights: 0 none, 1 all.
const ALPHA: f32 = 0.5;

/// Token sequences on which magnitudes are measured.
pub(crate) fn samples(text: &Text) -> std::result::Result<Vec<Vec<u32>>, Error> {
    let prompt = |(user, assistant): &(&str, &str)| {
        text.prompt(&Prompt {
            user: (*user).into(),
            assistant: (*assistant).into(),
        })
    };
    PROMPTS.iter().map(prompt).collect()
}

/// The prompts on their way through the layers, whose weights are smoothed one after the other.
pub(crate) struct Smoothing<'a> {
    ends: &'a Ends,
    samples: Vec<Sample>,
}

struct Sample {
    pass: Pass,
    /// Before the next layer, as the weights of the file compute it: `[rows, hidden]`.
    hidden: Tensor,
}

impl<'a> Smoothing<'a> {
    /// Puts `samples` before the first layer.
    pub(crate) fn new(ends: &'a Ends, samples: &[Vec<u32>]) -> Result<Self> {
        let sample = |tokens: &Vec<u32>| {
            let mut pass = Pass::default();
            pass.add_prompt(0, 0, tokens);
            let hidden = ends.embedded(tokens)?;
            Ok(Sample { pass, hidden })
        };
        let samples = samples.iter().filter(|tokens| !tokens.is_empty());
        let samples = samples.map(sample).collect::<Result<_>>()?;
        Ok(Self { ends, samples })
    }

    /// Smooths the weights of the next layer, which is the `nth`; returns the factors.
    pub(crate) fn smooth(
        &mut self,
        nth: usize,
        weights: &mut LayerWeights,
        threads: usize,
    ) -> Result<Smoothed> {
        let layer = Layer::watched(weights)?;
        for sample in &mut self.samples {
            let step = Step::new(&self.ends.geometry, &sample.pass, threads);
            // Keys and values of a layer are needed in that layer alone.
            let mut caches = [Cache::new(self.ends.sizes(1))];
            sample.hidden = step.layer(nth, &layer, sample.hidden.clone(), &mut caches, 0)?;
        }
        let maxima = layer.maxima();
        drop(layer);
        balance(weights, &maxima, &self.ends.geometry)
    }
}

/// The largest magnitude of each input of one layer's products.
#[derive(Debug)]
pub(crate) struct Maxima {
    /// Inputs of q, k, v.
    pub qkv: Vec<f32>,
    /// Inputs of the output projection.
    pub output: Vec<f32>,
    /// Inputs of gate and up.
    pub gate_up: Vec<f32>,
    /// Inputs of down.
    pub down: Vec<f32>,
}

fn balance(layer: &mut LayerWeights, maxima: &Maxima, geometry: &Geometry) -> Result<Smoothed> {
    let qkv = factors_of(&maxima.qkv, &columns(&layer.qkv)?);
    layer.attention_norm = divided(&layer.attention_norm, &qkv)?;
    layer.qkv = columns_multiplied(&layer.qkv, &qkv)?;

    let gate_up = factors_of(&maxima.gate_up, &columns(&layer.gate_up)?);
    layer.feed_norm = divided(&layer.feed_norm, &gate_up)?;
    layer.gate_up = columns_multiplied(&layer.gate_up, &gate_up)?;

    let down = factors_of(&maxima.down, &columns(&layer.down)?);
    layer.gate_up = rows_divided(&layer.gate_up, geometry.feed_forward, &down)?;
    layer.down = columns_multiplied(&layer.down, &down)?;

    // All query heads of a group use the same value row, so they share one factor.
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
    let values = factors_of(&shared(&maxima.output), &shared(&columns(&layer.output)?));
    let first = (geometry.heads + geometry.kv_heads) * width;
    layer.qkv = rows_divided(&layer.qkv, first, &values)?;
    if let Some(bias) = &mut layer.extras.bias {
        let biases = bias.iter_mut().skip(first).zip(&values);
        biases.for_each(|(bias, factor)| *bias /= factor);
    }
    let output: Vec<f32> = (0..geometry.heads * width)
        .map(|column| values[column / width / group * width + column % width])
        .collect();
    layer.output = columns_multiplied(&layer.output, &output)?;
    Ok(Smoothed {
        qkv,
        values,
        output,
        gate_up,
        down,
    })
}

/// The factor of each input: magnitude^alpha / (magnitude of its weights)^(1 − alpha).
fn factors_of(inputs: &[f32], weights: &[f32]) -> Vec<f32> {
    let factor = |(input, weight): (&f32, &f32)| {
        let factor = input.powf(ALPHA) / weight.powf(1.0 - ALPHA);
        // An input that was always 0, or whose weights are 0, keeps the factor 1.
        if factor.is_finite() && factor > 1e-5 {
            factor.min(1e5)
        } else {
            1.0
        }
    };
    inputs.iter().zip(weights).map(factor).collect()
}

/// The largest magnitude of each column.
fn columns(weight: &Tensor) -> Result<Vec<f32>> {
    let mut maxima = vec![0f32; weight.dims2()?.1];
    for row in weight.to_vec2::<f32>()? {
        for (max, weight) in maxima.iter_mut().zip(row) {
            *max = max.max(weight.abs());
        }
    }
    Ok(maxima)
}

/// Multiplies columns by their factors.
fn columns_multiplied(weight: &Tensor, factors: &[f32]) -> Result<Tensor> {
    mapped(weight, |values, columns| {
        for row in values.chunks_exact_mut(columns) {
            row.iter_mut()
                .zip(factors)
                .for_each(|(value, factor)| *value *= factor);
        }
    })
}

/// Divides the rows from `first` on by their factors.
fn rows_divided(weight: &Tensor, first: usize, factors: &[f32]) -> Result<Tensor> {
    mapped(weight, |values, columns| {
        let rows = values.chunks_exact_mut(columns).skip(first);
        for (row, factor) in rows.zip(factors) {
            row.iter_mut().for_each(|value| *value /= factor);
        }
    })
}

/// Divides a vector element by element.
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
