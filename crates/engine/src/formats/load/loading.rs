//! What loading a model took, in figures.
//!
//! Invariant: sizes are of what was read, not of what was promised. It does not know how to load.

/// What loading a model took, for people.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Loading {
    /// `llama`, `qwen2`, `qwen3`.
    pub family: String,
    /// `gguf` or `safetensors`.
    pub format: String,
    /// Types of tensors in the files and how many of each: `Q4_1 210, F32 61`.
    pub kinds: String,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// Bytes that the process grew by; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// Bytes of keys and values per token of a user's prompt.
    pub cache_bytes_per_token: u64,
    /// From opening the file to ready.
    pub seconds: f64,
}

impl std::fmt::Display for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mega = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "{} {}, {:.1} M parameters ({}), file {:.1} MB, memory {:.1} MB, loaded in {:.2} s",
            self.family,
            self.format,
            mega(self.parameters),
            self.kinds,
            mega(self.file_bytes),
            mega(self.memory_bytes),
            self.seconds
        )
    }
}
