//! Arguments -> cli -> exit code.

fn main() -> std::process::ExitCode {
    nearshore::cli::main()
}
