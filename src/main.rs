//! The command line. A copy of this executable with a plan appended is a compiled trainer, and behaves as one.

fn main() -> std::process::ExitCode {
    mantissa::cli::main()
}
