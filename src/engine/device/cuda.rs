//! The steps of [`Ops`](super::ops::Ops) on a CUDA device: kernels.cu, compiled when a model is loaded.
//!
//! Decides how a kernel is compiled and launched. Invariant: everything on a device is in the order of one stream, so
//! memory is free as soon as the host lets go of it, and nothing is tracked. It does not know what a step is for.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, DType, Device, Error, Result, Storage, Tensor, bail};

use super::cache::Chunk;
use super::ops::{Shape, Turning};
use super::plan::{Places, Plan, Side, Tiles};

const SOURCE: &str = concat!(include_str!("intrinsics.cu"), include_str!("kernels.cu"));

/// Threads of attention's and scores' blocks.
const THREADS: usize = 128;

/// Threads of the blocks of norms and gates.
const THREADS_WIDE: usize = 256;

/// A device by number.
pub fn device(number: usize) -> Result<Device> {
    // A stream of its own: that of candle's default is another one in each thread.
    let device = Device::new_cuda_with_stream(number)?;
    let Device::Cuda(cuda) = &device else {
        bail!("not a CUDA device")
    };
    // SAFETY: there is one stream, and all work on tensors is put on it.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda)?;
    Ok(device)
}

/// Freed memory stays with the process: given back at each wait, as is the default, it would have to be mapped
/// again for each pass.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    let mut all = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: both pointers outlive the calls; the attribute is 64 bits.
    unsafe {
        let found = sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device());
        found.result().map_err(Error::wrap)?;
        let set = sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast());
        set.result().map_err(Error::wrap)
    }
}

/// Kernels for one model.
pub struct Compiled {
    device: CudaDevice,
    shape: Shape,
    dtype: DType,
    module: String,
    ptx: String,
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug)]
enum Argument {
    At(u64),
    Number(i32),
    Float(f32),
    Places([i32; 6]),
}

/// Where a contiguous tensor begins; stays true while the tensor lives.
pub fn address(tensor: &Tensor) -> Result<u64> {
    fn start<T>(slice: &impl DevicePtr<T>, storage: &CudaStorage) -> u64 {
        slice.device_ptr(&storage.device().cuda_stream()).0
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((from, _))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("not a contiguous tensor on a CUDA device")
    };
    let start = match &storage.slice {
        CudaStorageSlice::BF16(slice) => start(slice, storage),
        CudaStorageSlice::F32(slice) => start(slice, storage),
        CudaStorageSlice::U32(slice) => start(slice, storage),
        _ => bail!("no kernel reads {:?}", tensor.dtype()),
    };
    Ok(start + (from * tensor.dtype().size_in_bytes()) as u64)
}

fn maybe(tensor: Option<&Tensor>) -> Result<Argument> {
    Ok(Argument::At(tensor.map_or(Ok(0), address)?))
}

fn at(tensor: &Tensor) -> Result<Argument> {
    address(tensor).map(Argument::At)
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

impl Compiled {
    /// Compiles for a model and the device at hand.
    pub fn new(device: &CudaDevice, shape: Shape, dtype: DType) -> Result<Self> {
        if shape.hidden % 2 == 1 {
            bail!("a residual stream of odd width {} on CUDA", shape.hidden);
        }
        let (major, minor) = (device.cuda_stream().context())
            .compute_capability()
            .map_err(Error::wrap)?;
        let mut options = vec![
            format!("--gpu-architecture=compute_{major}{minor}"),
            format!("-DWIDTH={}", shape.width),
            format!("-DHEADS={}", shape.heads),
            format!("-DKV_HEADS={}", shape.kv_heads),
            format!("-DHIDDEN={}", shape.hidden),
        ];
        match dtype {
            DType::BF16 => options.push("-DREAL_IS_BF16".into()),
            DType::F32 => {}
            other => bail!("no kernels for {other:?}"),
        }
        let module = format!("nearshore {}", options.join(" "));
        let options = CompileOptions {
            options,
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(SOURCE, options).map_err(Error::wrap)?;
        Ok(Self {
            device: device.clone(),
            shape,
            dtype,
            module,
            ptx: ptx.to_src(),
        })
    }

    /// Whether attention may use matrix units.
    fn has_matrices(&self) -> bool {
        self.dtype == DType::BF16 && self.shape.width.is_multiple_of(16)
    }

    /// Queries of a block: `QUERIES` and `QUERIES_PLAIN` of kernels.cu.
    pub fn tiles(&self) -> Tiles {
        Tiles(if self.has_matrices() { 64 } else { 32 })
    }

    fn launch(
        &self,
        name: &str,
        (grid, threads): ((usize, usize), usize),
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let kernel = (self.device).get_or_load_custom_func(name, &self.module, &self.ptx)?;
        let mut launch = kernel.builder();
        for argument in arguments {
            match argument {
                Argument::At(address) => launch.arg(address),
                Argument::Number(number) => launch.arg(number),
                Argument::Float(float) => launch.arg(float),
                Argument::Places(places) => launch.arg(places),
            };
        }
        let shape = LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the kernel's signature in kernels.cu is that of the arguments; whoever calls sees to sizes.
        unsafe { launch.launch(shape) }.map_err(Error::wrap)?;
        Ok(())
    }

    /// Memory for a kernel that writes all of it.
    fn room(&self, shape: (usize, usize), dtype: DType) -> Result<Tensor> {
        // SAFETY: every number is written by the kernel that comes next on the stream.
        unsafe { Tensor::empty(shape, dtype, &Device::Cuda(self.device.clone())) }
    }

    /// See [`Ops::turn`](super::ops::Ops::turn).
    pub fn turn(
        &self,
        qkv: &Tensor,
        by: &Turning,
        (chunk, layer): (&Chunk, usize),
    ) -> Result<Tensor> {
        let (rows, shape) = (qkv.dim(0)?, self.shape);
        let queries = self.room((rows, shape.heads * shape.width), self.dtype)?;
        let chunk = chunk.layer(layer)?;
        let (keys, values) = (chunk.narrow(1, 0, 1)?, chunk.narrow(1, 1, 1)?);
        let warps = rows * (shape.heads + 2 * shape.kv_heads);
        let arguments = [
            at(qkv)?,
            maybe(by.bias)?,
            maybe(by.norms)?,
            at(&by.angles.0)?,
            at(&by.angles.1)?,
            at(by.positions)?,
            at(&queries)?,
            at(&keys)?,
            at(&values)?,
            Argument::Number(rows as i32),
            Argument::Float(shape.epsilon),
        ];
        let blocks = (warps * 32).div_ceil(THREADS);
        self.launch("turn", ((blocks, 1), THREADS), &arguments)?;
        Ok(queries)
    }

    /// See [`Ops::attend`](super::ops::Ops::attend).
    pub fn attend(
        &self,
        queries: &Tensor,
        (plan, side): (&Plan, &Side),
        layer: usize,
    ) -> Result<Tensor> {
        let out = self.room(queries.dims2()?, self.dtype)?;
        let scale = 1.0 / (self.shape.width as f32).sqrt();
        let arguments = [
            at(queries)?,
            at(&out)?,
            at(&plan.numbers)?,
            Argument::Number(side.tiles as i32),
            side.places.into(),
            Argument::Number(layer as i32),
            Argument::Float(scale),
        ];
        let name = if self.has_matrices() {
            "attend"
        } else {
            "attend_plain"
        };
        let grid = (side.tiles_len, self.shape.kv_heads);
        self.launch(name, (grid, THREADS), &arguments)?;
        Ok(out)
    }

    /// See [`Ops::add_norm`](super::ops::Ops::add_norm).
    pub fn add_norm(
        &self,
        (x, y): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
        weight: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, hidden) = x.dims2()?;
        let out = self.room((2 * rows, hidden), self.dtype)?;
        let arguments = [
            at(x)?,
            at(y)?,
            maybe(bias)?,
            at(weight)?,
            at(&out)?,
            Argument::Number(rows as i32),
            Argument::Float(self.shape.epsilon),
        ];
        self.launch("add_norm", ((rows, 1), THREADS_WIDE), &arguments)?;
        Ok((out.narrow(0, 0, rows)?, out.narrow(0, rows, rows)?))
    }

    /// See [`Ops::gate`](super::ops::Ops::gate).
    pub fn gate(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, both) = x.dims2()?;
        let width = both / 2;
        let out = self.room((rows, width), self.dtype)?;
        let arguments = [at(x)?, at(&out)?, Argument::Number(width as i32)];
        let grid = (rows, width.div_ceil(THREADS_WIDE));
        self.launch("gate", (grid, THREADS_WIDE), &arguments)?;
        Ok(out)
    }

    /// See [`Ops::score`](super::ops::Ops::score).
    pub fn score(
        &self,
        (hidden, head): (&Tensor, &Tensor),
        lists: &[[u32; 3]],
        tokens: &[u32],
    ) -> Result<Vec<f32>> {
        // One transfer for both.
        let numbers = [lists.as_flattened(), tokens].concat();
        let numbers = Tensor::new(numbers, &Device::Cuda(self.device.clone()))?;
        let out = self.room((1, tokens.len()), DType::F32)?;
        let from_tokens = numbers.narrow(0, 3 * lists.len(), tokens.len())?;
        let arguments = [
            at(hidden)?,
            at(head)?,
            at(&numbers)?,
            at(&from_tokens)?,
            at(&out)?,
        ];
        self.launch("score", ((lists.len(), 1), THREADS), &arguments)?;
        out.flatten_all()?.to_vec1()
    }
}
