//! kernels.cu on a CUDA device, compiled when a model is loaded.
//!
//! Decides how a kernel is compiled and launched. Invariant: all work on a device is in the order of one stream, so
//! memory can be reused as soon as the host frees it, without tracking events. It does not know what a kernel computes.

use std::collections::HashMap;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, DevicePtr, LaunchConfig, PushKernelArg, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, Device, Error, Result, Storage, Tensor, bail};

use super::kernels::{Argument, Grid, Launcher};

const SOURCE: &str = concat!(include_str!("intrinsics.cu"), include_str!("kernels.cu"));

/// Opens a device by its number.
pub(crate) fn device(number: usize) -> Result<Device> {
    // A new stream, because candle's default stream differs from thread to thread.
    let device = Device::new_cuda_with_stream(number)?;
    let Device::Cuda(cuda) = &device else {
        bail!("not a CUDA device")
    };
    // SAFETY: there is one stream, and all work on tensors is launched on it.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda)?;
    Ok(device)
}

/// Keeps freed memory in the process. By default it is returned at each wait and would be mapped again for each pass.
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

/// Kernels compiled for one model, on their device.
pub(crate) struct Compiled {
    place: Device,
    device: CudaDevice,
    /// The kernels by name, looked up once and not at each launch.
    functions: HashMap<&'static str, CudaFunction>,
}

impl Compiled {
    /// Compiles for `device`; see [`Kernels::compile`](super::kernels::Kernels::compile).
    pub(crate) fn new(
        device: &CudaDevice,
        definitions: Vec<String>,
        kernels: &[&'static str],
    ) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let (major, minor) = context.compute_capability().map_err(Error::wrap)?;
        let mut options = vec![format!("--gpu-architecture=compute_{major}{minor}")];
        options.extend(definitions);
        let options = CompileOptions {
            options,
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(SOURCE, options).map_err(Error::wrap)?;
        let module = context.load_module(ptx).map_err(Error::wrap)?;
        let function = |name: &&'static str| {
            let function = module.load_function(name).map_err(Error::wrap)?;
            Ok((*name, function))
        };
        Ok(Self {
            place: Device::Cuda(device.clone()),
            device: device.clone(),
            functions: kernels.iter().map(function).collect::<Result<_>>()?,
        })
    }
}

impl Launcher for Compiled {
    fn device(&self) -> &Device {
        &self.place
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        fn start<T>(slice: &impl DevicePtr<T>, storage: &CudaStorage) -> u64 {
            slice.device_ptr(&storage.device().cuda_stream()).0
        }
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Some((from, _))) = (&*storage, layout.contiguous_offsets())
        else {
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

    fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let Some(function) = self.functions.get(kernel) else {
            bail!("no kernel {kernel}")
        };
        let stream = self.device.cuda_stream();
        let mut launch = stream.launch_builder(function);
        for argument in arguments {
            match argument {
                Argument::At(address) => launch.arg(address),
                Argument::Number(number) => launch.arg(number),
                Argument::Float(float) => launch.arg(float),
                Argument::Places(places) => launch.arg(places),
            };
        }
        let shape = LaunchConfig {
            grid_dim: (grid.blocks.0 as u32, grid.blocks.1 as u32, 1),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: kernels.rs gives each kernel the arguments of its signature, and memory of the size that it writes.
        unsafe { launch.launch(shape) }.map_err(Error::wrap)?;
        Ok(())
    }
}
