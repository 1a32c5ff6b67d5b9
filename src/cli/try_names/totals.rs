//! Counts time, tokens and memory over all prompts of `nearshore try`.
//!
//! Invariant: rates are over the time of the searches alone, without loading, explaining or printing. It does not know
//! names.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use nearshore_core::names::scoring::ScoreResponse;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options};

/// Totals over all prompts.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(super) struct Totals {
    pub prompts: usize,
    pub users_per_second: f64,
    /// Computed prompt tokens and trie tokens per second.
    pub tokens_per_second: f64,
    pub prompt_tokens: u64,
    pub shared_tokens: u64,
    pub forwarded_tokens: u64,
    pub waves: u64,
    pub seconds: f64,
    pub load_seconds: f64,
    pub trie_seconds: f64,
    pub names: usize,
    pub threads: usize,
    pub device: String,
    pub precision: String,
    /// Memory of the layers' weights.
    pub weights_mib: f64,
    /// Peak memory of the process; none where the system does not report it.
    pub peak_mib: Option<f64>,
}

impl Totals {
    /// Totals of no prompts.
    pub(super) fn new(model: &Constrained, options: Options) -> Self {
        let info = model.info();
        Self {
            threads: options.threads,
            device: info.device,
            precision: info.dtype,
            weights_mib: model.bytes() as f64 / f64::from(1 << 20),
            ..Self::default()
        }
    }

    /// Counts one answer.
    pub(super) fn add(&mut self, response: &ScoreResponse) {
        self.prompts += 1;
        self.prompt_tokens += u64::from(response.prompt_tokens);
        self.shared_tokens += u64::from(response.shared_tokens);
        self.forwarded_tokens += u64::from(response.forwarded);
        self.waves += u64::from(response.waves);
    }

    /// Computes rates and memory after the last prompt.
    pub(super) fn finish(&mut self) {
        let seconds = self.seconds.max(1e-9);
        let computed = self.prompt_tokens - self.shared_tokens + self.forwarded_tokens;
        self.users_per_second = self.prompts as f64 / seconds;
        self.tokens_per_second = computed as f64 / seconds;
        self.peak_mib = peak_mib();
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            prompts,
            names,
            seconds,
            threads,
            device,
            precision,
            ..
        } = self;
        writeln!(
            f,
            "{prompts} prompts over {names} names in {seconds:.2} s on {device}, {precision}, \
             {threads} threads: {:.2} users/s, {:.0} tokens/s",
            self.users_per_second, self.tokens_per_second
        )?;
        writeln!(
            f,
            "{} prompt tokens, {} of them shared; {} trie tokens forwarded; {} passes, summed over prompts",
            self.prompt_tokens, self.shared_tokens, self.forwarded_tokens, self.waves
        )?;
        write!(
            f,
            "model loaded in {:.2} s, trie built in {:.2} s; layers {:.0} MiB",
            self.load_seconds, self.trie_seconds, self.weights_mib
        )?;
        match self.peak_mib {
            Some(peak) => write!(f, ", whole process {peak:.0} MiB at most"),
            None => Ok(()),
        }
    }
}

/// Peak resident memory of this process, from Linux.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
