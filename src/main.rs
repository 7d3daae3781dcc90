//! The `twinhull` program: see the library for everything it does.

fn main() -> std::process::ExitCode {
    twinhull::cli::main(std::env::args_os())
}
