//! Mistral: a Llama whose layers all have a window, if the model has one. Its GGUF files say `llama`.

use super::{Family, PLAIN, Windowed};

pub(super) const MISTRAL: Family = Family {
    name: "mistral",
    model_type: "mistral",
    windowed: Windowed::All,
    ..PLAIN
};
