//! A delta, which nobody signs, for a good bundle, on a device that has the old image or not quite.
#![no_main]
mod lab;

use lab::{Lab, OLD, scratch};
use libfuzzer_sys::fuzz_target;
use twinhull::bundle::{Buffers, Delta, source};

fuzz_target!(|bytes: &[u8]| {
    let lab = Lab::open();
    let mut bytes = bytes.to_vec();
    // The digest of the bundle's index is known to everybody; nobody needs to guess it.
    if let Some(field) = bytes.get_mut(16..48) {
        field.copy_from_slice(&lab.index_sha256.0);
    }
    let path = scratch("delta", &bytes);
    let Ok(source) = source::open(path.to_str().unwrap(), &lab.reach()) else { return };
    let Ok(mut delta) = Delta::open(source, &lab.index, &lab.index_sha256) else { return };
    let all: Vec<usize> = (0..delta.frames.len()).collect();
    delta.plan(&all);
    let mut buffers = Buffers::new().unwrap();
    for number in all.into_iter().take(16) {
        let mut old = |block: u64, bytes: &mut [u8]| {
            bytes.fill(0);
            let from = (block as usize * 4096).min(OLD.len());
            let n = bytes.len().min(OLD.len() - from);
            bytes[..n].copy_from_slice(&OLD[from..from + n]);
            Ok(())
        };
        let mut new = |_, bytes: &mut [u8]| {
            bytes.fill(7);
            Ok(())
        };
        // What it gives was compared with the signed hashes, inside.
        if delta.decode(&mut buffers, &lab.index, number, &mut old, &mut new).is_err() {
            break;
        }
    }
});
