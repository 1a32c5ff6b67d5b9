//! Memory while a model is loaded.

use std::process::Command;

use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Options, Precision};
use peak_alloc::PeakAlloc;

use super::model_path;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Set where the test runs alone in a process, to the precision that it loads.
const ALONE: &str = "NEARSHORE_TEST_MEMORY_OF";

#[test]
fn loading_takes_at_most_three_tenths_more_memory_than_what_stays() {
    let Ok(precision) = std::env::var(ALONE) else {
        // Other tests of this process allocate, too.
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let alone = Command::new(std::env::current_exe().expect("a path"))
                .args([
                    "--exact",
                    "memory::loading_takes_at_most_three_tenths_more_memory_than_what_stays",
                ])
                .args(["--nocapture", "--test-threads=1"])
                .env(ALONE, precision.to_string())
                .output()
                .expect("started");
            let said = String::from_utf8_lossy(&alone.stderr);
            assert!(alone.status.success(), "{precision}: {said}");
            assert!(said.contains("stay"), "the test did not run: {said}");
        }
        return;
    };
    let options = Options {
        precision: precision.parse().expect("one of ours"),
        ..Options::default()
    };
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let model = Constrained::load(&model_path(), options).expect("loads");
    let (stays, peak) = (
        ALLOCATED.current_usage() - before,
        ALLOCATED.peak_usage() - before,
    );
    let mb = |bytes: usize| bytes as f64 / 1e6;
    eprintln!(
        "{options:?}: {:.1} MB stay, {:.1} at the peak",
        mb(stays),
        mb(peak)
    );
    assert!(stays > model.bytes(), "the weights are counted");
    assert!(
        peak as f64 <= 1.3 * stays as f64,
        "{:.1} MB stay, {:.1} at the peak",
        mb(stays),
        mb(peak)
    );
}
