//! The binary: runs the command line and returns its exit code.

/// Decoding and folding allocate many small values: `docs/decisions/0025-where-the-fold-s-time-goes.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    nearshore::cli::main()
}
