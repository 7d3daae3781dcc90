//! U-Boot's environment, single and redundant, and fw_env.config.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::uboot_env::{decode, parse_config};

fuzz_target!(|bytes: &[u8]| {
    for redundant in [false, true] {
        let _ = decode(bytes, redundant);
        // The checksum is no secret: with the right one, the rest is looked at.
        let header = if redundant { 5 } else { 4 };
        if let Some(data) = bytes.get(header..) {
            let mut bytes = bytes.to_vec();
            bytes[..4].copy_from_slice(&crc32(data).to_le_bytes());
            if let Ok(copy) = decode(&bytes, redundant) {
                let _ = format!("{copy:?}");
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = parse_config(text);
    }
});

/// As zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
