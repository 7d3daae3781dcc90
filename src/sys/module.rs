//! Kernel modules.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use crate::{Doing, Error, Result};

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel decompresses, if it was built so.
const COMPRESSED: i32 = 4;

/// Loads a module file with its parameters. One that is already there is fine.
///
/// # Errors
/// `Failed`, naming the file.
pub fn load(file: &Path, parameters: &str) -> Result<()> {
    let doing = || format!("load module {}", file.display());
    let parameters =
        CString::new(parameters).map_err(|_| Error::failed("NUL in a parameter")).doing(doing)?;
    let flags = if file.extension().is_some_and(|e| e == "ko") { 0 } else { COMPRESSED };
    match rustix::system::finit_module(File::open(file).doing(doing)?, &parameters, flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e).doing(doing),
    }
}
