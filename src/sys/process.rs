//! This process.

/// Whether we were started as the first program of the machine.
pub fn is_pid1() -> bool {
    std::process::id() == 1
}
