//! The pure half of Nearshore, compiled by itself to be fuzzed: no Kafka, no Redis, no model.
//!
//! `targets` is shared with the ordinary test that replays the corpus, `tests/integration/fuzz.rs`.

#![allow(dead_code)]

#[path = "../../src/arms.rs"]
pub mod arms;
#[path = "../../src/best.rs"]
pub mod best;
#[path = "../../src/catalogue.rs"]
pub mod catalogue;
#[path = "../../src/compose.rs"]
pub mod compose;
#[path = "../../src/demand.rs"]
pub mod demand;
#[path = "../../src/event/mod.rs"]
pub mod event;
#[path = "../../src/fold.rs"]
pub mod fold;
#[path = "../../src/intake.rs"]
pub mod intake;
#[path = "../../src/lanes.rs"]
pub mod lanes;
#[path = "../../src/list/mod.rs"]
pub mod list;
#[path = "../../src/naming.rs"]
pub mod naming;
#[path = "../../src/prompt/mod.rs"]
pub mod prompt;
#[path = "../../src/record.rs"]
pub mod record;
#[path = "../../src/rules/mod.rs"]
pub mod rules;
#[path = "../../src/select.rs"]
pub mod select;
#[path = "../../src/shop.rs"]
pub mod shop;
#[path = "../../src/state/mod.rs"]
pub mod state;
#[path = "../../src/topics.rs"]
pub mod topics;
#[path = "../../src/trigger.rs"]
pub mod trigger;

#[path = "../../src/engine/gguf/header.rs"]
pub mod gguf_header;
#[path = "../../src/engine/folder/header.rs"]
pub mod safetensors_header;
#[path = "../../src/engine/load/kind.rs"]
pub mod tensor_kind;

/// Of the engine only the headers of model files, which are pure.
pub mod engine {
    pub mod load {
        pub use crate::tensor_kind as kind;
        pub use kind::Entry;
    }
    pub mod gguf {
        pub use crate::gguf_header as header;
    }
    pub mod folder {
        pub use crate::safetensors_header as header;
    }
}

/// What the targets call the house, wherever they are compiled.
pub mod house {
    pub use crate::{catalogue, engine, event, fold, list, prompt, record, state, trigger};
}

pub mod targets;
