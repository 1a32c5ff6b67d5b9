//! Measurements of the shipped binary with a real Kafka and a real Redis. `scripts/bench` starts what they need.
//!
//! Compare rates within one run only: machines and their load differ.

#![allow(unreachable_pub)] // Nothing can import a test binary.
#![allow(dead_code)] // The harness of the tests has more than the benches use.

mod bare;
mod flat;
mod fold;
#[path = "../../tests/integration/harness.rs"]
mod harness;
mod load;
#[path = "../../tests/integration/process.rs"]
mod process;
mod pure;
mod rebalance;
mod recorder;
mod recovery;
mod sizing;
mod store_faults;
mod two_speeds;
mod worth;

use std::collections::BTreeMap;

/// The allocator of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `--name value` pairs.
pub struct Options(BTreeMap<String, String>);

impl Options {
    fn read(words: impl Iterator<Item = String>) -> Self {
        let mut options = BTreeMap::new();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            if let Some(name) = word.strip_prefix("--") {
                let value = words.next_if(|next| !next.starts_with("--"));
                options.insert(name.to_owned(), value.unwrap_or_default());
            }
        }
        Self(options)
    }

    /// The text behind `--name`.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The number behind `--name`, or the default.
    pub fn number(&self, name: &str, default: usize) -> usize {
        let text = self.0.get(name);
        text.map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("--{name} {text}: not a number"))
        })
    }
}

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let what = words.next().unwrap_or_default();
    let options = Options::read(words);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    match what.as_str() {
        "pure" => pure::run(&options),
        "fold" => {
            pure::run(&options);
            runtime.block_on(fold::run(&options));
        }
        "flat" => runtime.block_on(flat::run(&options)),
        "rebalance" => runtime.block_on(rebalance::run(&options)),
        "member" => rebalance::member(&options),
        "recovery" => runtime.block_on(recovery::run(&options)),
        "sizing" => runtime.block_on(sizing::run(&options)),
        "two-speeds" => runtime.block_on(two_speeds::run(&options)),
        "worth" => runtime.block_on(worth::run(&options)),
        other => {
            eprintln!("unknown measurement {other:?}; see scripts/bench");
            #[expect(clippy::disallowed_methods, reason = "wrong usage ends a benchmark")]
            std::process::exit(2);
        }
    }
}

/// Number of cores and load average of the machine.
pub fn machine() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, load {}", load.join(" "))
}

/// Median of some numbers.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
