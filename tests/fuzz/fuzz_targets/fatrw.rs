//! What a power cut, or balena's own fatrw, leaves beside a file: 4 files, each with a length of 2 bytes before it.
#![no_main]
mod lab;

use std::fs;

use libfuzzer_sys::fuzz_target;
use twinhull::sys::fatrw;

fuzz_target!(|bytes: &[u8]| {
    let dir = lab::scratch_dir().join("fat");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    let mut rest = bytes;
    // The second is a journal file with the right checksum of `right`, the third one by another name.
    for name in [
        "config.json",
        ".config.json.abcd.7c4f29407893c334a6cb7a87bf045c0d.md5sum",
        ".config.json.ef01.d41d8cd98f00b204e9800998ecf8427e.md5sum",
        ".config.json.abcd.7c4f29407893c334a6cb7a87bf045c0d.md5sum.tmp",
    ] {
        let Some((len, after)) = rest.split_first_chunk::<2>() else { break };
        let (content, after) = after.split_at(usize::from(u16::from_le_bytes(*len)).min(after.len()));
        fs::write(dir.join(name), content).unwrap();
        rest = after;
    }
    // And one of any name.
    if let Ok(name) = std::str::from_utf8(&rest[..rest.len().min(100)])
        && !name.is_empty()
        && !name.contains(['/', '\0'])
        && !matches!(name, "." | "..")
    {
        let _ = fs::write(dir.join(name), b"x");
    }
    let path = dir.join("config.json");
    let peeked = fatrw::peek(&path, 1 << 20);
    if let Ok(found) = fatrw::read(&path, 1 << 20) {
        // Who only looks sees what is then there, and finishing twice is finishing once.
        assert_eq!(peeked.unwrap(), found);
        assert_eq!(fatrw::read(&path, 1 << 20).unwrap(), found);
    }
});
