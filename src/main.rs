//! Arguments -> cli -> exit code.

/// Decoding and folding are many small allocations: `docs/decisions/0025-where-the-fold-s-time-goes.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    nearshore::cli::main()
}
