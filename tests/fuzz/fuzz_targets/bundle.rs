//! Index and frames of a maker who has the key and signs nonsense: 4 bytes say how long the index is.
#![no_main]
mod lab;

use lab::Lab;
use libfuzzer_sys::fuzz_target;
use twinhull::bundle::Bundle;

fuzz_target!(|bytes: &[u8]| {
    let lab = Lab::open();
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return };
    let (index, frames) = rest.split_at((u32::from_le_bytes(*len) as usize).min(rest.len()));
    let forged = lab.forged(index, frames);
    let Ok(mut bundle) = Bundle::open(&forged[..], &lab.keys) else { return };
    let (mut at, size) = (0, bundle.manifest().root.size);
    let _ = bundle.write_root(
        &mut |offset, bytes| {
            assert_eq!(offset, at, "out of order");
            at += bytes.len() as u64;
            assert!(at <= size, "more than the image");
            Ok(())
        },
        &mut |_| (),
    );
});
