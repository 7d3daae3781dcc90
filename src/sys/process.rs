//! This process.

/// Whether we were started as the first program of the machine.
pub fn is_pid1() -> bool {
    std::process::id() == 1
}

/// Gives the running kernel this host name.
///
/// # Errors
/// `Failed` without the right to set it.
pub fn set_host_name(name: &str) -> crate::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}
