//! Linear layers: every precision on every set of instructions, compared with candle's gemm.
//!
//! Run with `cargo bench --bench linear`. An element of Criterion's throughput is one multiplication or addition, so
//! Gelem/s is GFLOP/s. Shapes are those of a layer of SmolLM2-135M; the parameter is the number of rows.

#![allow(missing_docs)] // criterion_group! makes a public function without one.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nearshore_engine::cpu::packed::{Packed, tier};
use nearshore_engine::{Isa, Precision};

const SHAPES: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const ROWS: [usize; 4] = [1, 8, 32, 512];

fn noise(len: usize) -> Vec<f32> {
    (0..len)
        .map(|nth| ((nth * 2_654_435_761) % 1_000) as f32 / 500.0 - 1.0)
        .collect()
}

/// `x · wᵀ` as candle computes it.
fn candle(x: &[f32], w: &[f32], rows: usize, out: usize, inner: usize) -> Vec<f32> {
    let mut y = vec![0f32; rows * out];
    let (wide, long) = (inner as isize, out as isize);
    // SAFETY: sizes and strides are those of the three slices.
    unsafe {
        gemm::gemm(
            rows,
            out,
            inner,
            y.as_mut_ptr(),
            1,
            long,
            false,
            x.as_ptr(),
            1,
            wide,
            w.as_ptr(),
            wide,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    y
}

fn linear(c: &mut Criterion) {
    for (out, inner) in SHAPES {
        let mut group = c.benchmark_group(format!("linear {out}x{inner}"));
        let w = noise(out * inner);
        let mut kinds = Vec::new();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for isa in [Isa::Plain, Isa::Avx2, Isa::AvxVnni, Isa::Avx512] {
                // Instructions that the machine lacks would measure the next poorer ones again.
                if tier(precision, Some(isa)) == isa {
                    let packed = Packed::new(&w, inner, precision, Some(isa));
                    kinds.push((format!("{precision} {isa}"), packed));
                }
            }
        }
        for rows in ROWS {
            let x = noise(rows * inner);
            group.throughput(Throughput::Elements(2 * (rows * out * inner) as u64));
            group.bench_function(BenchmarkId::new("candle", rows), |b| {
                b.iter(|| candle(&x, &w, rows, out, inner));
            });
            for (name, packed) in &kinds {
                group.bench_function(BenchmarkId::new(name, rows), |b| {
                    b.iter(|| packed.multiply(&x, 1));
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_millis(500))
        .warm_up_time(std::time::Duration::from_millis(100));
    targets = linear
}
criterion_main!(benches);
