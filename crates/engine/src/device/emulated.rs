//! kernels.cu on the CPU, for tests without a device: emulate.cc, compiled by the system's C++ compiler.
//!
//! Decides how the emulation is built, loaded and called. Invariant: it gets the same arguments as a CUDA device, from
//! the same code; each set of definitions is compiled once. It does not know what a kernel computes.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::{CpuStorage, Device, Error, Result, Storage, Tensor, bail};
use libloading::Library;

use super::kernels::{Argument, Grid, Launcher};

type Play = unsafe extern "C" fn(*const c_char, u32, u32, u32, *mut *const c_void) -> *const c_char;

/// An emulation. Its state is global, so one kernel runs at a time.
type Shared = Arc<Mutex<Library>>;

/// Emulations by their definitions.
static BUILT: LazyLock<Mutex<HashMap<Vec<String>, Shared>>> = LazyLock::new(Mutex::default);

/// An emulated device.
pub(crate) struct Emulated {
    library: Shared,
}

impl Emulated {
    /// Builds the kernels with the definitions that a device gets.
    pub(crate) fn new(definitions: Vec<String>) -> Result<Self> {
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = built.get(&definitions) {
            let library = Arc::clone(library);
            return Ok(Self { library });
        }
        let library = Arc::new(Mutex::new(build(&definitions)?));
        built.insert(definitions, Arc::clone(&library));
        Ok(Self { library })
    }
}

fn build(definitions: &[String]) -> Result<Library> {
    let folder = tempfile::tempdir()?;
    let to = folder.path().join("kernels.so");
    let here: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src", "device"]
        .iter()
        .collect();
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    // The fortified longjmp reports a change of stacks as an attack.
    command.args(["-std=c++20", "-O2", "-w", "-fPIC", "-shared"]);
    command.args(["-U_FORTIFY_SOURCE", "-o"]).arg(&to);
    command.args(definitions).arg(here.join("emulate.cc"));
    let done = command.output()?;
    if !done.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    open(&to)
}

fn open(path: &Path) -> Result<Library> {
    // SAFETY: the library was just built from emulate.cc, which runs no code when it is loaded.
    unsafe { Library::new(path) }.map_err(Error::wrap)
}

impl Launcher for Emulated {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((from, _))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("not a contiguous tensor in memory")
        };
        let start = match storage {
            CpuStorage::BF16(numbers) => numbers.as_ptr() as u64,
            CpuStorage::F32(numbers) => numbers.as_ptr() as u64,
            CpuStorage::U32(numbers) => numbers.as_ptr() as u64,
            _ => bail!("no kernel reads {:?}", tensor.dtype()),
        };
        Ok(start + (from * tensor.dtype().size_in_bytes()) as u64)
    }

    fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let name = CString::new(kernel).map_err(Error::wrap)?;
        let at = |argument: &Argument| -> *const c_void {
            match argument {
                Argument::At(address) => std::ptr::from_ref(address).cast(),
                Argument::Number(number) => std::ptr::from_ref(number).cast(),
                Argument::Float(float) => std::ptr::from_ref(float).cast(),
                Argument::Places(places) => std::ptr::from_ref(places).cast(),
            }
        };
        let mut given: Vec<*const c_void> = arguments.iter().map(at).collect();
        let library = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `play` of emulate.cc has this type; the arguments are those of the kernel and outlive the call; the
        // memory that a kernel writes was allocated for it, and no other thread reads it during the call. The returned
        // text is valid until the next call, which the lock prevents.
        let wrong = unsafe {
            let play = library.get::<Play>(b"play").map_err(Error::wrap)?;
            let (wide, high) = (grid.blocks.0 as u32, grid.blocks.1 as u32);
            let wrong = play(
                name.as_ptr(),
                wide,
                high,
                grid.threads as u32,
                given.as_mut_ptr(),
            );
            (!wrong.is_null()).then(|| CStr::from_ptr(wrong).to_string_lossy().into_owned())
        };
        match wrong {
            Some(wrong) => bail!("{kernel}: {wrong}"),
            None => Ok(()),
        }
    }
}
