//! Loss and gradients of a small random model against those of PyTorch, and an adapter that PEFT saved.
//!
//! The fixture is by `scripts/make-tune`; it computes the loss without a trie.

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::loss::{Drawn, TuneCase};
use super::network::Network;
use super::options::{Lora, Trained, TuneOptions};
use super::rows::Rows;
use super::tests::model;
use crate::cpu::extras::Extras;
use crate::formats::families::Family;
use crate::formats::rope::{Rope, Scaling};
use crate::formats::weights::{LayerWeights, Weights};
use nearshore_core::learn::bootstrap::Random;
use nearshore_core::names::search::{Question, Search};
use nearshore_core::names::trie::{Sequences, Trie};

const FIXTURE: &str = include_str!("../../tests/fixtures/models/tune.json");

fn fixture() -> Value {
    serde_json::from_str(FIXTURE).expect("a fixture")
}

fn floats(value: &Value) -> Vec<f32> {
    let all = value.as_array().expect("numbers").iter();
    all.map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let all = value.as_array().expect("ids").iter();
    all.map(|x| x.as_u64().expect("an id") as u32).collect()
}

fn tensor(of: &Value) -> Tensor {
    let shape: Vec<usize> = ids(&of["shape"]).iter().map(|x| *x as usize).collect();
    Tensor::from_vec(floats(&of["numbers"]), shape, &Device::Cpu).expect("a tensor")
}

fn weights(fixture: &Value) -> Weights {
    let base = |name: &str| tensor(&fixture["base"][name]);
    let layer = |nth: usize| {
        let of = |name: &str| base(&format!("model.layers.{nth}.{name}.weight"));
        let stacked = |names: &[&str]| {
            let all: Vec<Tensor> = names.iter().map(|name| of(name)).collect();
            Tensor::cat(&all, 0).expect("the same columns")
        };
        let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        LayerWeights {
            attention_norm: of("input_layernorm"),
            qkv: stacked(&qkv),
            output: of("self_attn.o_proj"),
            feed_norm: of("post_attention_layernorm"),
            gate_up: stacked(&["mlp.gate_proj", "mlp.up_proj"]),
            down: of("mlp.down_proj"),
            extras: Extras::default(),
        }
    };
    let config = &fixture["config"];
    let size = |key: &str| config[key].as_u64().expect("a size") as usize;
    let llama = Family::all()[0];
    assert_eq!(llama.name, "llama");
    let mut weights = model(llama, 1);
    let geometry = &mut weights.geometry;
    geometry.hidden = size("hidden_size");
    geometry.feed_forward = size("intermediate_size");
    geometry.vocabulary = size("vocab_size");
    geometry.head_dim = geometry.hidden / geometry.heads;
    geometry.rotated = geometry.head_dim;
    let rope = Rope::new(10_000.0, geometry.head_dim, &Scaling::None).expect("plain");
    geometry.ropes = vec![rope];
    geometry.views.iter_mut().for_each(|view| view.rope = 0);
    weights.embedding = base("model.embed_tokens.weight");
    weights.head = base("lm_head.weight");
    weights.norm = base("model.norm.weight");
    weights.layers = (0..2).map(layer).collect();
    weights
}

/// Compares path scores, loss and every number of the gradients with those of `expected`.
fn check(fixture: &Value, network: &Network, expected: &Value, gradients: &Value) {
    let mut names = Sequences::new(fixture["end"].as_u64().expect("an id") as u32);
    let listed = fixture["names"].as_array().expect("names");
    listed.iter().for_each(|name| names.push(&ids(name)));
    let trie = Trie::build(&names);
    let case = TuneCase {
        prompt: "p".into(),
        products: (0..listed.len() as u32).collect(),
        offset: floats(&fixture["offset"]),
        targets: ids(&fixture["targets"]),
        is_tune: false,
    };
    let drawn = Drawn::new(&case, &TuneOptions::default(), &mut Random::new(1));
    let search = Search::new(&trie, Question::default());
    let rows = Rows::new(&trie, &search, &ids(&fixture["prompt"]), &drawn.places);
    let paths = network.scores(&rows).expect("scores");
    let theirs = floats(&expected["paths"]);
    for (place, path) in drawn
        .places
        .iter()
        .zip(paths.to_vec1::<f32>().expect("numbers"))
    {
        let theirs = theirs[*place as usize];
        assert!(
            (path - theirs).abs() < 1e-4,
            "name {place}: {path} {theirs}"
        );
    }
    let weight = fixture["weight"].as_f64().expect("a number");
    let loss = drawn.loss(&paths, weight).expect("a loss");
    let number = f64::from(loss.to_scalar::<f32>().expect("a number"));
    let theirs = expected["loss"].as_f64().expect("a number");
    assert!((number - theirs).abs() < 1e-5, "loss {number} {theirs}");
    let found = loss.backward().expect("gradients");
    let parameters = network.parameters();
    assert_eq!(
        parameters.names.len(),
        gradients.as_object().expect("tensors").len()
    );
    let mut worst = 0f32;
    for (name, var) in parameters.names.iter().zip(&parameters.vars) {
        let ours = found
            .get(var)
            .expect("a gradient")
            .flatten_all()
            .expect("flat");
        let ours = ours.to_vec1::<f32>().expect("numbers");
        let theirs = floats(&gradients[name]["gradient"]);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        assert!(
            theirs.iter().any(|x| x.abs() > 1e-3),
            "{name} has no gradient"
        );
        for (ours, theirs) in ours.iter().zip(&theirs) {
            worst = worst.max((ours - theirs).abs());
            let limit = 2e-5 + 1e-5 * theirs.abs();
            assert!((ours - theirs).abs() < limit, "{name}: {ours} {theirs}");
        }
    }
    println!("greatest difference of a gradient {worst:e}");
}

fn network(weights: &Weights, trained: &Trained) -> Network {
    let mut network = Network::new(weights, trained, &Device::Cpu, 1).expect("a network");
    for layer in &weights.layers {
        network.push(layer).expect("a layer");
    }
    network
}

#[test]
fn loss_and_gradients_of_full_tuning_are_those_of_pytorch() {
    let fixture = fixture();
    let network = network(&weights(&fixture), &Trained::Full);
    check(&fixture, &network, &fixture["full"], &fixture["base"]);
}

#[test]
fn loss_and_gradients_of_an_adapter_are_those_of_pytorch() {
    let fixture = fixture();
    let lora = Lora {
        rank: 3,
        alpha: 6.0,
        ..Lora::default()
    };
    let network = network(&weights(&fixture), &Trained::Lora(lora));
    let adapter = &fixture["adapter"];
    let parameters = network.parameters();
    for (name, var) in parameters.names.iter().zip(&parameters.vars) {
        // A name that PEFT does not have would have no shape here.
        var.set(&tensor(&adapter["tensors"][name]))
            .expect("the same shape");
    }
    check(&fixture, &network, adapter, &adapter["tensors"]);
}
