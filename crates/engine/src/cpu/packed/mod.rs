//! Weights packed for the CPU, and their product with rows of `f32`.
//!
//! Decides the layout of weights in memory and how the work is divided: panels of columns, each read once for all rows,
//! and rows in tiles that fit into registers. Arithmetic and instructions are chosen once, when the weights are packed.
//! Invariant: an output is one chain of operations over `k`; it is equal with any other rows in the call, in any
//! division into tiles and on any number of threads. It knows neither tensors nor layers.

use std::fmt;
use std::sync::LazyLock;

use crate::precision::{Isa, Precision};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "x86_64")]
mod halves;
mod portable;
mod round;

use round::GROUP;

/// The most rows of a tile of any kernel.
const ROWS_MAX: usize = 6;

/// The most columns of a panel of any kernel.
const COLUMNS_MAX: usize = 64;

/// `STEP` consecutive weights or inputs, which one instruction multiplies.
trait Unit: Copy + Default + Send + Sync + 'static {}
impl<T: Copy + Default + Send + Sync + 'static> Unit for T {}

/// Which values of a row share a scale. Without scales, `scales` is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scales {
    None,
    Row,
    /// Each [`GROUP`] of values along `k`.
    Groups,
}

/// A precision on one set of instructions.
trait Kernel: Send + Sync + 'static {
    /// `STEP` consecutive weights of one column.
    type Weight: Unit;
    /// `STEP` consecutive inputs of one row.
    type Input: Unit;
    /// Number of values in a unit.
    const STEP: usize;
    /// Number of columns of a panel.
    const COLUMNS: usize;
    /// The most rows of a tile.
    const ROWS: usize;
    /// What has a scale, for weights and inputs.
    const SCALES: Scales;
    /// Type of the numbers, for reports.
    const NAME: &'static str;

    /// Whether inputs are shifted, so that sums start at an [`offset`](Self::offset).
    const SHIFTED: bool = false;

    /// Packs one row of `k` weights into units, which are padded with zeros.
    fn pack(row: &[f32], units: &mut [Self::Weight], scales: &mut [f32]);

    /// The start value of a column's integer sum, which corrects for shifted inputs.
    fn offset(_units: &[Self::Weight]) -> i32 {
        0
    }

    /// Packs one row of inputs.
    fn convert(row: &[f32], units: &mut [Self::Input], scales: &mut [f32]);

    /// Computes `M` rows of a panel.
    ///
    /// # Safety
    /// The machine has the kernel's instructions; `tile.out` may be written for `COLUMNS` values in each of `M` rows,
    /// which are `tile.stride` values apart.
    unsafe fn multiply<const M: usize>(tile: Tile<Self>);
}

/// Some rows and one panel.
struct Tile<'a, K: Kernel + ?Sized> {
    /// `[M][k / STEP]`.
    inputs: &'a [K::Input],
    /// `[M][groups]`.
    input_scales: &'a [f32],
    /// `[k / STEP][COLUMNS]`.
    weights: &'a [K::Weight],
    /// `[groups][COLUMNS]`.
    weight_scales: &'a [f32],
    /// `[groups][COLUMNS]`; empty unless inputs are [`SHIFTED`](Kernel::SHIFTED).
    offsets: &'a [i32],
    out: *mut f32,
    stride: usize,
}

/// Adds the products of each row's inputs and the weights to the row's sums, over ascending `k`: the loop of every
/// tile.
///
/// Row `m` starts at `m · stride` of `inputs`; `weights` yields the weights of one `k` after the other; `add(sum,
/// input, weight)` is one step of a chain. It is inlined so that the sums stay in registers and the closures are
/// compiled for the kernel's instructions.
#[inline(always)]
pub(super) fn accumulate<X: Copy, V: Copy, S: Copy, const M: usize, const C: usize>(
    sums: &mut [[S; C]; M],
    inputs: &[X],
    stride: usize,
    weights: impl ExactSizeIterator<Item = [V; C]>,
    add: impl Fn(S, X, V) -> S,
) {
    let depth = weights.len();
    assert!((M - 1) * stride + depth <= inputs.len(), "rows within");
    for (k, w) in weights.take(depth).enumerate() {
        for (m, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `m` is below `M` and `k` below `depth`, so the index is within `inputs` by the assertion above.
            let x = unsafe { *inputs.get_unchecked(m * stride + k) };
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = add(*sum, x, w);
            }
        }
    }
}

/// Weights of one layer, `[out, inner]`, for [`multiply`](Packed::multiply).
pub struct Packed(Box<dyn Multiply>);

impl Packed {
    /// Packs `weights`, row-major `[out, inner]`, for instructions up to `isa`; for all of the machine if `None`.
    pub fn new(weights: &[f32], inner: usize, precision: Precision, isa: Option<Isa>) -> Self {
        assert!(inner > 0, "a layer has inputs");
        assert_eq!(weights.len() % inner, 0, "whole rows");
        Self(pick(weights, inner, precision, tier(precision, isa)))
    }

    /// `[rows, inner]` -> `[rows, out]`, on at most `threads` threads of the current pool.
    pub fn multiply(&self, x: &[f32], threads: usize) -> Vec<f32> {
        self.0.multiply(x, threads)
    }

    /// Number of outputs and of inputs of a row.
    pub fn sizes(&self) -> (usize, usize) {
        self.0.sizes()
    }

    /// Type of the numbers, for reports: `bf16`, or `bf16 weights, f32 products`.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (out, inner) = self.sizes();
        write!(f, "Packed({out} x {inner}, {})", self.name())
    }
}

/// The richest instructions for `precision` that the machine has, up to `isa_max` and the cap of the process.
pub fn tier(precision: Precision, isa_max: Option<Isa>) -> Isa {
    // A value that names none was refused when the process started.
    static CAP: LazyLock<Isa> = LazyLock::new(|| Isa::cap().unwrap_or(Isa::Avx512));
    up_to(precision, isa_max.unwrap_or(Isa::Avx512).min(*CAP))
}

/// The richest instructions for `precision` that the machine has, whatever the cap.
pub(crate) fn tier_of_the_machine(precision: Precision) -> Isa {
    up_to(precision, Isa::Avx512)
}

/// Whether halves multiply faster than bf16 here.
pub(crate) fn has_fast_halves() -> bool {
    #[cfg(target_arch = "x86_64")]
    return halves::is_faster();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn up_to(precision: Precision, isa_max: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && match precision {
                Precision::F32 => true,
                Precision::Bf16 => {
                    halves::is_faster() || std::arch::is_x86_feature_detected!("avx512bf16")
                }
                Precision::Int8 => std::arch::is_x86_feature_detected!("avx512vnni"),
            };
        if wide && isa_max >= Isa::Avx512 {
            return Isa::Avx512;
        }
        let is_avx2 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma");
        // Its instructions are of integers.
        if is_avx2
            && precision != Precision::F32
            && std::arch::is_x86_feature_detected!("avxvnni")
            && isa_max >= Isa::AvxVnni
        {
            return Isa::AvxVnni;
        }
        if is_avx2 && isa_max >= Isa::Avx2 {
            return Isa::Avx2;
        }
    }
    let _ = (precision, isa_max);
    Isa::Plain
}

#[cfg(target_arch = "x86_64")]
fn pick(w: &[f32], inner: usize, precision: Precision, tier: Isa) -> Box<dyn Multiply> {
    match (precision, tier) {
        (Precision::F32, Isa::Avx512) => Panels::<avx512::F32>::boxed(w, inner),
        (Precision::F32, Isa::Avx2 | Isa::AvxVnni) => Panels::<avx2::F32>::boxed(w, inner),
        (Precision::F32, Isa::Plain) => Panels::<portable::F32>::boxed(w, inner),
        (Precision::Bf16, Isa::Avx512) if halves::is_faster() => {
            Panels::<halves::Half>::boxed(w, inner)
        }
        (Precision::Bf16, Isa::Avx512) => Panels::<avx512::Bf16>::boxed(w, inner),
        (Precision::Bf16, Isa::AvxVnni) => Panels::<avxvnni::Int16>::boxed(w, inner),
        (Precision::Bf16, Isa::Avx2) => Panels::<avx2::Int16>::boxed(w, inner),
        (Precision::Bf16, Isa::Plain) => Panels::<portable::Bf16>::boxed(w, inner),
        (Precision::Int8, Isa::Avx512) => Panels::<avx512::Int8>::boxed(w, inner),
        (Precision::Int8, Isa::AvxVnni) => Panels::<avxvnni::Int8>::boxed(w, inner),
        (Precision::Int8, Isa::Avx2) => Panels::<avx2::Int8>::boxed(w, inner),
        (Precision::Int8, Isa::Plain) => Panels::<portable::Int8>::boxed(w, inner),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn pick(w: &[f32], inner: usize, precision: Precision, _tier: Isa) -> Box<dyn Multiply> {
    match precision {
        Precision::F32 => Panels::<portable::F32>::boxed(w, inner),
        Precision::Bf16 => Panels::<portable::Bf16>::boxed(w, inner),
        Precision::Int8 => Panels::<portable::Int8>::boxed(w, inner),
    }
}

/// [`Panels`] of any kernel.
trait Multiply: Send + Sync {
    fn multiply(&self, x: &[f32], threads: usize) -> Vec<f32>;
    fn sizes(&self) -> (usize, usize);
    fn name(&self) -> &'static str;
    fn bytes(&self) -> usize;
}

/// Weights packed for one kernel.
struct Panels<K: Kernel> {
    out: usize,
    inner: usize,
    /// `[panels][units][COLUMNS]`.
    weights: Vec<K::Weight>,
    /// `[panels][groups][COLUMNS]`.
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

impl<K: Kernel> Panels<K> {
    fn boxed(w: &[f32], inner: usize) -> Box<dyn Multiply> {
        let out = w.len() / inner;
        let mut panels = Self {
            out,
            inner,
            weights: Vec::new(),
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        let (units, groups) = (panels.units(), panels.groups());
        let columns = out.div_ceil(K::COLUMNS) * K::COLUMNS;
        panels.weights.resize(units * columns, K::Weight::default());
        panels.scales.resize(groups * columns, 0.0);
        panels.offsets.resize(panels.offset_groups() * columns, 0);
        let mut row_units = vec![K::Weight::default(); units];
        let mut row_scales = vec![0f32; groups];
        for (nth, row) in w.chunks_exact(inner).enumerate() {
            K::pack(row, &mut row_units, &mut row_scales);
            let (panel, column) = (nth / K::COLUMNS, nth % K::COLUMNS);
            for (k, unit) in row_units.iter().enumerate() {
                panels.weights[(panel * units + k) * K::COLUMNS + column] = *unit;
            }
            for (group, scale) in row_scales.iter().enumerate() {
                let at = (panel * groups + group) * K::COLUMNS + column;
                let per = units / groups;
                panels.scales[at] = *scale;
                if K::SHIFTED {
                    panels.offsets[at] = K::offset(&row_units[group * per..][..per]);
                }
            }
        }
        Box::new(panels)
    }

    fn units(&self) -> usize {
        let step = match K::SCALES {
            Scales::Groups => GROUP,
            Scales::None | Scales::Row => K::STEP,
        };
        self.inner.div_ceil(step) * step / K::STEP
    }

    fn groups(&self) -> usize {
        match K::SCALES {
            Scales::None => 0,
            Scales::Row => 1,
            Scales::Groups => self.inner.div_ceil(GROUP),
        }
    }

    /// Groups of a column that have an offset.
    fn offset_groups(&self) -> usize {
        if K::SHIFTED { self.groups() } else { 0 }
    }

    /// Packs rows: `[rows][units]`, and `[rows][groups]`.
    fn convert(&self, x: &[f32], rows: usize) -> (Vec<K::Input>, Vec<f32>) {
        let (units, groups) = (self.units(), self.groups());
        let mut inputs = vec![K::Input::default(); units * rows];
        let mut scales = vec![0f32; groups * rows];
        for (nth, row) in x.chunks_exact(self.inner).enumerate() {
            let scales = &mut scales[nth * groups..][..groups];
            K::convert(row, &mut inputs[nth * units..][..units], scales);
        }
        (inputs, scales)
    }

    /// Multiplies all tiles with some panels.
    ///
    /// # Safety
    /// `work.y` may be written for `[rows, out]` values, and no other thread writes the columns of these panels.
    unsafe fn panels(&self, panels: std::ops::Range<usize>, work: &Work<K>) {
        let (units, groups) = (self.units(), self.groups());
        let starts = self.offset_groups() * K::COLUMNS;
        let mut rest = [0f32; ROWS_MAX * COLUMNS_MAX];
        for panel in panels {
            let column = panel * K::COLUMNS;
            let columns = (self.out - column).min(K::COLUMNS);
            for (from, many) in work.tiles.iter() {
                // SAFETY: `from` is a row of `y`, and `column` is a column.
                let out = unsafe { work.y.0.add(from * self.out + column) };
                let whole = columns == K::COLUMNS;
                let tile = Tile::<K> {
                    inputs: &work.inputs[from * units..][..many * units],
                    input_scales: &work.scales[from * groups..][..many * groups],
                    weights: &self.weights[panel * units * K::COLUMNS..][..units * K::COLUMNS],
                    weight_scales: &self.scales[panel * groups * K::COLUMNS..]
                        [..groups * K::COLUMNS],
                    offsets: &self.offsets[panel * starts..][..starts],
                    out: if whole { out } else { rest.as_mut_ptr() },
                    stride: if whole { self.out } else { K::COLUMNS },
                };
                // SAFETY: `tier` detected the instructions before this kernel was chosen. The columns of a whole panel
                // are within `y`; otherwise the buffer has room for the largest tile of any kernel.
                unsafe { run::<K>(tile, many) };
                if !whole {
                    for (row, rest) in rest.chunks_exact(K::COLUMNS).take(many).enumerate() {
                        // SAFETY: the `columns` values from `column` on are within the row.
                        unsafe {
                            let out = out.add(row * self.out);
                            out.copy_from_nonoverlapping(rest.as_ptr(), columns);
                        }
                    }
                }
            }
        }
    }
}

/// Rows cut into tiles of nearly equal height.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    tiles: usize,
}

impl Tiles {
    fn of(rows: usize, rows_max: usize) -> Self {
        Self {
            rows,
            tiles: rows.div_ceil(rows_max),
        }
    }

    /// First row and number of rows of each tile.
    fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        let (small, larger) = match self.tiles {
            0 => (0, 0),
            tiles => (self.rows / tiles, self.rows % tiles),
        };
        (0..self.tiles).map(move |tile| {
            let from = tile * small + tile.min(larger);
            (from, small + usize::from(tile < larger))
        })
    }
}

/// The output; panels write disjoint columns of it.
struct Out(*mut f32);

// SAFETY: threads only write through it, to disjoint elements.
unsafe impl Sync for Out {}
// SAFETY: threads only write through it, to disjoint elements.
unsafe impl Send for Out {}

struct Work<K: Kernel> {
    tiles: Tiles,
    inputs: Vec<K::Input>,
    scales: Vec<f32>,
    y: Out,
}

impl<K: Kernel> Multiply for Panels<K> {
    fn multiply(&self, x: &[f32], threads: usize) -> Vec<f32> {
        let rows = x.len() / self.inner;
        assert_eq!(rows * self.inner, x.len(), "whole rows");
        let tiles = Tiles::of(rows, K::ROWS);
        let (inputs, scales) = self.convert(x, rows);
        let mut y = Vec::with_capacity(rows * self.out);
        let work = Work::<K> {
            tiles,
            inputs,
            scales,
            y: Out(y.as_mut_ptr()),
        };
        let panels = self.out.div_ceil(K::COLUMNS);
        let parts = threads.clamp(1, panels.max(1));
        let part = |nth: usize| nth * panels / parts..(nth + 1) * panels / parts;
        if parts == 1 {
            // SAFETY: `y` has room for `[rows, out]`, and no other thread has its address.
            unsafe { self.panels(part(0), &work) };
        } else {
            rayon::scope(|scope| {
                for nth in 1..parts {
                    let work = &work;
                    // SAFETY: `y` has room for `[rows, out]`, and the panels of the parts are disjoint.
                    scope.spawn(move |_| unsafe { self.panels(part(nth), work) });
                }
                // SAFETY: `y` has room for `[rows, out]`, and the panels of the parts are disjoint.
                unsafe { self.panels(part(0), &work) };
            });
        }
        // SAFETY: every column belongs to a panel and every row to a tile, so all values are written.
        unsafe { y.set_len(rows * self.out) };
        y
    }

    fn sizes(&self) -> (usize, usize) {
        (self.out, self.inner)
    }

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.weights[..])
            + size_of_val(&self.scales[..])
            + size_of_val(&self.offsets[..])
    }
}

/// # Safety
/// The contract of [`Kernel::multiply`], for `count` rows.
unsafe fn run<K: Kernel>(tile: Tile<K>, count: usize) {
    // SAFETY: the caller keeps the contract of this function.
    unsafe {
        match count {
            1 => K::multiply::<1>(tile),
            2 => K::multiply::<2>(tile),
            3 => K::multiply::<3>(tile),
            4 => K::multiply::<4>(tile),
            5 => K::multiply::<5>(tile),
            _ => K::multiply::<ROWS_MAX>(tile),
        }
    }
}

#[cfg(test)]
mod tests;
