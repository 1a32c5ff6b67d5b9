//! A small random model: the differentiable pass against the engine's own, and gradients against finite differences.

use super::network::Network;
use super::options::{Lora, Target, Trained, TuneOptions};
use super::rows::Rows;
use super::*;
use crate::cpu::extras::{Extras, HeadNorms};
use crate::cpu::forward::{self, Pass};
use crate::cpu::kv;
use crate::formats::families::Family;
use crate::formats::geometry::{Geometry, View};
use crate::formats::rope::{Rope, Scaling};
use crate::formats::weights::{LayerWeights, Weights};
use candle_core::Var;
use nearshore_core::names::trie::Sequences;

const VOCABULARY: usize = 31;
const WIDTHS: (usize, usize, usize) = (12, 20, 4);

/// A model of two layers with 4 query heads on 2 key heads.
pub(super) fn model(family: &'static Family, seed: u64) -> Weights {
    let mut random = Random::new(seed);
    let mut tensor = |sizes: &[usize], size: f64, middle: f64| {
        let all = (0..sizes.iter().product()).map(|_| (middle + size * random.normal()) as f32);
        Tensor::from_vec(all.collect::<Vec<f32>>(), sizes, &Device::Cpu).expect("a tensor")
    };
    let (hidden, feed, width) = WIDTHS;
    let row = |tensor: Tensor| tensor.to_vec1::<f32>().expect("a row");
    let layers = (0..2).map(|_| LayerWeights {
        attention_norm: tensor(&[hidden], 0.2, 1.0),
        qkv: tensor(&[8 * width, hidden], 0.4, 0.0),
        output: tensor(&[hidden, 4 * width], 0.3, 0.0),
        feed_norm: tensor(&[hidden], 0.2, 1.0),
        gate_up: tensor(&[2 * feed, hidden], 0.3, 0.0),
        down: tensor(&[hidden, feed], 0.3, 0.0),
        extras: Extras {
            bias: family.qkv_bias.then(|| row(tensor(&[8 * width], 0.3, 0.0))),
            output_bias: family.qkv_bias.then(|| row(tensor(&[hidden], 0.3, 0.0))),
            norms: family.head_norms.then(|| HeadNorms {
                query: row(tensor(&[width], 0.2, 1.0)),
                key: row(tensor(&[width], 0.2, 1.0)),
                heads: 4,
                kv_heads: 2,
                epsilon: 1e-5,
            }),
            result_norms: None,
        },
    });
    let layers = layers.collect();
    let rope = Rope::new(10_000.0, width, &Scaling::None).expect("plain");
    Weights {
        embedding: tensor(&[VOCABULARY, hidden], 1.0, 0.0),
        head: tensor(&[VOCABULARY, hidden], 0.5, 0.0),
        norm: tensor(&[hidden], 0.2, 1.0),
        layers,
        geometry: Geometry {
            family,
            hidden,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: width,
            feed_forward: feed,
            vocabulary: VOCABULARY,
            context: 64,
            epsilon: 1e-5,
            rotated: width,
            // The second layer has no positions, as some of SmolLM 3 have none.
            ropes: vec![rope, Rope::none(width)],
            views: [0, 1].map(|rope| View { window: None, rope }).to_vec(),
            query_scalar: width as f64,
            logit_cap: None,
            qkv_bias: family.qkv_bias,
            output_bias: family.qkv_bias,
            head_norms: family.head_norms,
            tied: false,
        },
    }
}

fn network(weights: &Weights, trained: &Trained) -> Network {
    let mut network = Network::new(weights, trained, &Device::Cpu, 3).expect("a network");
    for layer in &weights.layers {
        network.push(layer).expect("a layer");
    }
    network
}

/// Names of several lengths that share beginnings; two have the same tokens, and one is another's beginning.
fn trie() -> Trie {
    let mut names = Sequences::new(30);
    for name in [
        &[1u32, 2, 3][..],
        &[1, 2, 4],
        &[1, 2],
        &[5, 6, 7, 8],
        &[5, 6, 7, 9],
        &[5, 6, 7, 9],
        &[10],
        &[11, 12],
    ] {
        names.push(name);
    }
    Trie::build(&names)
}

const PROMPT: [u32; 5] = [20, 21, 22, 23, 5];

fn rows(trie: &Trie, permitted: Option<&[usize]>, names: &[u32]) -> Rows {
    let permitted = permitted.map(|pus| {
        let mut bits = FixedBitSet::with_capacity(8);
        bits.extend(pus.iter().copied());
        Arc::new(Permitted::new(trie, &bits))
    });
    let question = Question {
        permitted,
        ..Question::default()
    };
    Rows::new(trie, &Search::new(trie, question), &PROMPT, names)
}

/// The path scores by the engine's own pass: every name is computed alone.
fn reference(weights: &Weights, trie: &Trie, permitted: &[usize], names: &[u32]) -> Vec<f64> {
    let network = forward::Network::watched(weights).expect("a network");
    let logits = |path: &[u32], of: &[u32]| -> Vec<f64> {
        let mut caches = [kv::Cache::new(network.sizes())];
        let mut pass = Pass::default();
        pass.add_prompt(0, 0, &[&PROMPT[..], path].concat());
        let hidden = network.forward(&pass, &mut caches, 1).expect("a pass");
        let logits = network.logits(&hidden, of).expect("logits");
        logits.into_iter().map(f64::from).collect()
    };
    let mut bits = FixedBitSet::with_capacity(8);
    bits.extend(permitted.iter().copied());
    let question = Question {
        permitted: Some(Arc::new(Permitted::new(trie, &bits))),
        ..Question::default()
    };
    let search = Search::new(trie, question);
    let score = |pu: &u32| -> f64 {
        let forks = crate::search::explain::forks(trie, &search, *pu);
        let edge = |fork: &crate::search::explain::Fork| {
            let first = fork
                .children
                .iter()
                .filter_map(|child| trie.first_token(child));
            let mut values = logits(&fork.path, &first.collect::<Vec<_>>());
            nearshore_core::names::search::log_softmax(&mut values);
            values[fork.chosen]
        };
        forks.iter().map(edge).sum()
    };
    names.iter().map(score).collect()
}

#[test]
fn path_scores_are_those_of_the_engine() {
    let trie = trie();
    for (nth, family) in Family::all().into_iter().enumerate() {
        if family.fused || family.result_norms {
            continue;
        }
        let weights = model(family, nth as u64);
        for trained in [Trained::Full, Trained::Lora(Lora::default())] {
            let network = network(&weights, &trained);
            for permitted in [
                &[0usize, 1, 2, 3, 4, 5, 6, 7][..],
                &[0, 1, 4, 5, 7],
                &[3, 4],
                &[6],
            ] {
                let names: Vec<u32> = permitted.iter().map(|pu| *pu as u32).collect();
                let rows = rows(&trie, Some(permitted), &names);
                let found = network.scores(&rows).expect("scores");
                let found = found.to_vec1::<f32>().expect("numbers");
                let expected = reference(&weights, &trie, permitted, &names);
                for (found, expected) in found.iter().zip(&expected) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(
                        off < 1e-5,
                        "{} {permitted:?}: {found} {expected}",
                        family.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_beginning_that_names_share_is_one_row_and_what_follows_the_last_choice_none() {
    let trie = trie();
    let rows = rows(&trie, None, &[0, 1, 2, 3, 4, 5, 6, 7]);
    // 1 2 and 5 6 7; after them, and after the prompt, there is a choice.
    assert_eq!(rows.tokens, [&PROMPT[..], &[1, 2, 5, 6, 7]].concat());
    assert_eq!(rows.positions, [0, 1, 2, 3, 4, 5, 6, 5, 6, 7]);
    assert_eq!(rows.choices, [4, 6, 9]);
    let mask = rows
        .mask(&Device::Cpu)
        .expect("a mask")
        .to_vec2::<f32>()
        .expect("numbers");
    let seen = |row: usize| {
        (0..10)
            .filter(|column| mask[row][*column] == 0.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(3), [0, 1, 2, 3]);
    assert_eq!(seen(6), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(seen(9), [0, 1, 2, 3, 4, 7, 8, 9]);
}

/// The loss of one case whose names are all scored.
fn loss(network: &Network, rows: &Rows) -> Tensor {
    let case = TuneCase {
        prompt: "p".into(),
        products: (0..8).collect(),
        offset: vec![0.3, -0.7, 0.1, 1.2, -0.4, 0.0, 0.9, -1.1],
        targets: vec![1, 4],
        is_tune: false,
    };
    let drawn = Drawn::new(&case, &TuneOptions::default(), &mut Random::new(1));
    let order: Vec<u32> = drawn.places.clone();
    assert_eq!(rows.names, order.len());
    let scores = network.scores(rows).expect("scores");
    drawn.loss(&scores, 0.8).expect("a loss")
}

fn number(loss: &Tensor) -> f64 {
    f64::from(loss.to_scalar::<f32>().expect("a number"))
}

/// Compares the gradient along a random direction of each tensor with the difference of two losses.
fn check_gradients(network: &Network, rows: &Rows, what: &str) {
    let parameters = network.parameters();
    let gradients = loss(network, rows).backward().expect("gradients");
    let mut random = Random::new(17);
    let mut checked = 0;
    for (name, var) in parameters.names.iter().zip(&parameters.vars) {
        let first = var.as_tensor().copy().expect("a copy");
        let direction: Vec<f32> = (0..var.elem_count())
            .map(|_| random.normal() as f32)
            .collect();
        let direction = Tensor::from_vec(direction, var.dims(), &Device::Cpu).expect("a tensor");
        let length = 1e-2 / (var.elem_count() as f64).sqrt();
        let at = |by: f64| {
            let moved = (&first + (&direction * by).expect("a product")).expect("a sum");
            var.set(&moved).expect("set");
            number(&loss(network, rows))
        };
        let expected = (at(length) - at(-length)) / (2.0 * length);
        var.set(&first).expect("set");
        let gradient = gradients.get(var).expect("a gradient");
        let along = (gradient * &direction)
            .and_then(|x| x.sum_all())
            .expect("a sum");
        let found = number(&along);
        let off = (found - expected).abs();
        assert!(
            off < 2e-3 + 0.02 * expected.abs(),
            "{what}, {name}: {found} along the gradient, {expected} by differences"
        );
        checked += usize::from(expected.abs() > 5e-3);
    }
    // A test of numbers that are all 0 would be none.
    assert!(
        checked * 2 > parameters.vars.len(),
        "{what}: only {checked} are not 0"
    );
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let trie = trie();
    let names: Vec<u32> = vec![1, 4, 0, 2, 3, 5, 6, 7];
    let rows = rows(&trie, None, &names);
    for (nth, family) in Family::all().into_iter().enumerate() {
        if family.fused || family.result_norms {
            continue;
        }
        let weights = model(family, 40 + nth as u64);
        let full = network(&weights, &Trained::Full);
        check_gradients(&full, &rows, family.name);
        let lora = Lora {
            rank: 3,
            alpha: 6.0,
            ..Lora::default()
        };
        let lora = network(&weights, &Trained::Lora(lora));
        // B begins at 0, where A has no gradient.
        for (name, var) in lora.parameters().names.iter().zip(&lora.parameters().vars) {
            if name.contains("lora_B") {
                set_random(var, 0.3, nth as u64 + name.len() as u64);
            }
        }
        check_gradients(&lora, &rows, &format!("{}, LoRA", family.name));
    }
}

fn set_random(var: &Var, size: f64, seed: u64) {
    let mut random = Random::new(seed);
    let all: Vec<f32> = (0..var.elem_count())
        .map(|_| (size * random.normal()) as f32)
        .collect();
    let all = Tensor::from_vec(all, var.dims(), &Device::Cpu).expect("a tensor");
    var.set(&all).expect("set");
}

#[test]
fn an_adapter_begins_without_an_effect_and_is_of_the_layers_and_products_asked_for() {
    let weights = model(Family::all()[0], 7);
    let lora = Lora {
        rank: 2,
        targets: vec![Target::Query, Target::Down],
        first_layer: 1,
        ..Lora::default()
    };
    let network = network(&weights, &Trained::Lora(lora));
    let names = &network.parameters().names;
    let layers = "base_model.model.model.layers.1";
    let expected = [
        "self_attn.q_proj.lora_A",
        "self_attn.q_proj.lora_B",
        "mlp.down_proj.lora_A",
        "mlp.down_proj.lora_B",
    ];
    assert_eq!(
        *names,
        expected.map(|name| format!("{layers}.{name}.weight"))
    );
}

#[test]
fn each_pass_has_every_case_once_and_can_be_entered_anywhere() {
    let mut order = Order::new(7, 3);
    let all: Vec<usize> = (0..21).map(|at| order.case(at)).collect();
    for pass in all.chunks(7) {
        let mut sorted = pass.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
    }
    assert_ne!(all[..7], all[7..14]);
    let mut late = Order::new(7, 3);
    let rest: Vec<usize> = (10..21).map(|at| late.case(at)).collect();
    assert_eq!(rest, all[10..]);
}
