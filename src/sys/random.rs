//! Random bytes from the kernel.

use crate::{Doing, Result};

/// `n` random bytes as lower-case hex.
///
/// # Errors
/// `Failed` if the kernel refuses.
pub fn hex(n: usize) -> Result<String> {
    let mut bytes = vec![0; n];
    // Blocks until the kernel's pool is seeded: a uuid must be unique on the first boot of many equal boards.
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .doing(|| "get random bytes")?;
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
