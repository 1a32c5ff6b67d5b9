//! The steps of [`Ops`](super::ops::Ops) by kernels.cu.
//!
//! Decides the arguments and the grid of each kernel. Invariant: arguments match the kernel's signature, and the memory
//! that a kernel writes has the size that it writes. It does not know where kernels run: on a CUDA device, or emulated
//! on the CPU by a test.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cache::Chunk;
use super::ops::{Shape, Turning};
use super::plan::{Places, Plan, Side, Tiles};

/// Threads of a block of `turn`, attention and `score`.
const THREADS: usize = 128;

/// Threads of a block of `add_norm` and `gate`.
const THREADS_WIDE: usize = 256;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// Address of numbers; 0 if there are none.
    At(u64),
    /// `int`.
    Number(i32),
    /// `float`.
    Float(f32),
    /// `struct Where`.
    Places([i32; 6]),
}

/// Blocks of a grid, and threads of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks in x and y.
    pub blocks: (usize, usize),
    /// Threads of a block.
    pub threads: usize,
}

/// Where the kernels run.
pub(crate) trait Launcher: Send + Sync {
    /// Device of the tensors.
    fn device(&self) -> &Device;

    /// Address of a contiguous tensor, valid while the tensor lives.
    fn address(&self, tensor: &Tensor) -> Result<u64>;

    /// Launches a kernel, which runs after all kernels launched before.
    fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()>;
}

/// Kernels for one model.
pub(crate) struct Kernels {
    launcher: Box<dyn Launcher>,
    shape: Shape,
    dtype: DType,
    /// Name of the attention kernel: with matrix units if type and head width allow it.
    attend: &'static str,
}

impl From<Places> for Argument {
    fn from(places: Places) -> Self {
        let Places {
            chunks,
            spans,
            runs,
            sights,
            starts,
            ancestors,
        } = places;
        Self::Places([chunks, spans, runs, sights, starts, ancestors].map(|at| at as i32))
    }
}

impl Kernels {
    /// Compiles kernels for a model whose weights and activations are `dtype`. `compile` gets the compiler's
    /// definitions and the names of the kernels.
    pub(super) fn compile(
        shape: Shape,
        dtype: DType,
        compile: impl FnOnce(Vec<String>, &[&'static str]) -> Result<Box<dyn Launcher>>,
    ) -> Result<Self> {
        if shape.hidden % 2 == 1 {
            bail!(
                "a residual stream of odd width {} is not supported on CUDA",
                shape.hidden
            );
        }
        let mut definitions = vec![
            format!("-DWIDTH={}", shape.width),
            format!("-DHEADS={}", shape.heads),
            format!("-DKV_HEADS={}", shape.kv_heads),
            format!("-DHIDDEN={}", shape.hidden),
        ];
        match dtype {
            DType::BF16 => definitions.push("-DREAL_IS_BF16".into()),
            DType::F32 => {}
            other => bail!("kernels for {other:?} are not supported; f32 and bf16 are"),
        }
        let has_matrices = dtype == DType::BF16 && shape.width.is_multiple_of(16);
        let attend = if has_matrices {
            "attend"
        } else {
            "attend_plain"
        };
        let names = ["turn", attend, "add_norm", "gate", "score"];
        Ok(Self {
            launcher: compile(definitions, &names)?,
            shape,
            dtype,
            attend,
        })
    }

    /// Address of a contiguous tensor, valid while the tensor lives.
    pub(super) fn address(&self, tensor: &Tensor) -> Result<u64> {
        self.launcher.address(tensor)
    }

    fn at(&self, tensor: &Tensor) -> Result<Argument> {
        self.address(tensor).map(Argument::At)
    }

    fn at_or_0(&self, tensor: Option<&Tensor>) -> Result<Argument> {
        Ok(Argument::At(tensor.map_or(Ok(0), |t| self.address(t))?))
    }

    fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        self.launcher.launch(kernel, grid, arguments)
    }

    /// Allocates memory for a kernel that writes all of it.
    fn allocate(&self, shape: (usize, usize), dtype: DType) -> Result<Tensor> {
        // SAFETY: every number is written by the kernel that is launched next.
        unsafe { Tensor::empty(shape, dtype, self.launcher.device()) }
    }

    /// Queries of a tile: `QUERIES` and `QUERIES_PLAIN` of kernels.cu.
    pub(crate) fn tiles(&self) -> Tiles {
        Tiles(if self.attend == "attend" { 64 } else { 32 })
    }

    /// See [`Ops::turn`](super::ops::Ops::turn).
    pub(super) fn turn(
        &self,
        qkv: &Tensor,
        by: &Turning,
        chunk: &Chunk,
        layer: usize,
    ) -> Result<Tensor> {
        let (rows, shape) = (qkv.dim(0)?, self.shape);
        let queries = self.allocate((rows, shape.heads * shape.width), self.dtype)?;
        let chunk = chunk.layer(layer)?;
        let (keys, values) = (chunk.narrow(1, 0, 1)?, chunk.narrow(1, 1, 1)?);
        let warps = rows * (shape.heads + 2 * shape.kv_heads);
        let arguments = [
            self.at(qkv)?,
            self.at_or_0(by.bias)?,
            self.at_or_0(by.norms)?,
            self.at(&by.angles.0)?,
            self.at(&by.angles.1)?,
            self.at(by.positions)?,
            self.at(&queries)?,
            self.at(&keys)?,
            self.at(&values)?,
            Argument::Number(rows as i32),
            Argument::Float(shape.epsilon),
        ];
        let grid = Grid {
            blocks: ((warps * 32).div_ceil(THREADS), 1),
            threads: THREADS,
        };
        self.launch("turn", grid, &arguments)?;
        Ok(queries)
    }

    /// See [`Ops::attend`](super::ops::Ops::attend).
    pub(super) fn attend(
        &self,
        queries: &Tensor,
        plan: &Plan,
        side: &Side,
        layer: usize,
    ) -> Result<Tensor> {
        let out = self.allocate(queries.dims2()?, self.dtype)?;
        let scale = 1.0 / (self.shape.width as f32).sqrt();
        let arguments = [
            self.at(queries)?,
            self.at(&out)?,
            self.at(&plan.numbers)?,
            Argument::Number(side.tiles as i32),
            side.places.into(),
            Argument::Number(layer as i32),
            Argument::Float(scale),
        ];
        let grid = Grid {
            blocks: (side.tiles_len, self.shape.kv_heads),
            threads: THREADS,
        };
        self.launch(self.attend, grid, &arguments)?;
        Ok(out)
    }

    /// See [`Ops::add_norm`](super::ops::Ops::add_norm).
    pub(crate) fn add_norm(
        &self,
        x: &Tensor,
        y: &Tensor,
        bias: Option<&Tensor>,
        weight: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, hidden) = x.dims2()?;
        let out = self.allocate((2 * rows, hidden), self.dtype)?;
        let arguments = [
            self.at(x)?,
            self.at(y)?,
            self.at_or_0(bias)?,
            self.at(weight)?,
            self.at(&out)?,
            Argument::Number(rows as i32),
            Argument::Float(self.shape.epsilon),
        ];
        let grid = Grid {
            blocks: (rows, 1),
            threads: THREADS_WIDE,
        };
        self.launch("add_norm", grid, &arguments)?;
        Ok((out.narrow(0, 0, rows)?, out.narrow(0, rows, rows)?))
    }

    /// See [`Ops::gate`](super::ops::Ops::gate).
    pub(super) fn gate(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, both) = x.dims2()?;
        let width = both / 2;
        let out = self.allocate((rows, width), self.dtype)?;
        let arguments = [self.at(x)?, self.at(&out)?, Argument::Number(width as i32)];
        let grid = Grid {
            blocks: (rows, width.div_ceil(THREADS_WIDE)),
            threads: THREADS_WIDE,
        };
        self.launch("gate", grid, &arguments)?;
        Ok(out)
    }

    /// See [`Ops::score`](super::ops::Ops::score).
    pub(super) fn score(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        lists: &[[u32; 3]],
        tokens: &[u32],
    ) -> Result<Vec<f32>> {
        // One transfer for lists and tokens.
        let numbers = [lists.as_flattened(), tokens].concat();
        let numbers = Tensor::new(numbers, self.launcher.device())?;
        let out = self.allocate((1, tokens.len()), DType::F32)?;
        let from_tokens = numbers.narrow(0, 3 * lists.len(), tokens.len())?;
        let arguments = [
            self.at(hidden)?,
            self.at(head)?,
            self.at(&numbers)?,
            self.at(&from_tokens)?,
            self.at(&out)?,
        ];
        let grid = Grid {
            blocks: (lists.len(), 1),
            threads: THREADS,
        };
        self.launch("score", grid, &arguments)?;
        out.flatten_all()?.to_vec1()
    }
}
