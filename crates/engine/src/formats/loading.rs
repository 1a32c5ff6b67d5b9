//! Figures of a loaded model: sizes, memory, seconds.
//!
//! Invariant: sizes are of what was read, not of what the configuration says. It does not know how a model is loaded.

/// Figures of a loaded model, for logs and reports.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Loading {
    /// Name of the family: `llama`, `qwen2`, `gemma3`.
    pub family: String,
    /// `gguf` or `safetensors`.
    pub format: String,
    /// Types of tensors in the files and how many of each: `Q4_1 210, F32 61`.
    pub kinds: String,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// Bytes that the process grew by; 0 if the system does not report it.
    pub memory_bytes: u64,
    /// Bytes of keys and values per token of a user's prompt.
    pub cache_bytes_per_token: u64,
    /// Seconds from opening the file until the model is ready.
    pub seconds: f64,
    /// What may be wrong with the model although it can be run, and what to do.
    pub warnings: Vec<String>,
}

impl std::fmt::Display for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millions = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "{} {}, {:.1} M parameters ({}), file {:.1} MB, memory {:.1} MB, loaded in {:.2} s",
            self.family,
            self.format,
            millions(self.parameters),
            self.kinds,
            millions(self.file_bytes),
            millions(self.memory_bytes),
            self.seconds
        )
    }
}
