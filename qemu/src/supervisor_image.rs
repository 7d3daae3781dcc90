//! The lab's supervisor as an image archive that `docker load` takes: one layer with one static program.
//!
//! Written by hand so that the lab needs no engine to build its image. The same program gives the same bytes: no
//! time, owner or order comes from the machine that builds.
//!
//! Format: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format"; checked with
//! `docker load` of 20.10.24.
// A build tool: the durability rules of the device's program do not hold here.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SECOND_NS: u64 = 1_000_000_000;
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes to `out` an archive of an image called `image_name` (`lab/supervisor:1.0.0`; without a tag `:latest` is
/// added) that runs `program`, a static ELF file, as `/lab-supervisor`.
///
/// With `look_every` the image has the program's own `healthcheck` as its HEALTHCHECK, that often: 5 s to answer, 3 failures in a
/// row, 10 s to start.
///
/// # Errors
/// If `program` cannot be read or is no ELF file, or `out` cannot be written.
pub fn write_archive(
    program: &Path,
    image_name: &str,
    out: &Path,
    look_every: Option<Duration>,
) -> io::Result<()> {
    let name = with_tag(image_name);
    let bytes = std::fs::read(program)?;
    let arch = architecture(&bytes)
        .ok_or_else(|| io::Error::other(format!("{}: no ELF file of a known machine", program.display())))?;
    let layer = layer(&bytes)?;
    let layer_id = hex(&layer);
    let config = config(arch, &name, &layer_id, look_every).to_string().into_bytes();
    let config_file = format!("{}.json", hex(&config));
    let layer_file = format!("{layer_id}/layer.tar");
    let manifest = json!([{ "Config": config_file, "RepoTags": [name], "Layers": [layer_file] }])
        .to_string()
        .into_bytes();

    let mut tar = tar::Builder::new(BufWriter::new(File::create(out)?));
    add_file(&mut tar, &config_file, 0o644, &config)?;
    add_directory(&mut tar, &format!("{layer_id}/"))?;
    add_file(&mut tar, &layer_file, 0o644, &layer)?;
    add_file(&mut tar, "manifest.json", 0o644, &manifest)?;
    let mut file = tar.into_inner()?;
    file.flush()
}

fn config(arch: &str, name: &str, layer_id: &str, look_every: Option<Duration>) -> Value {
    // The tag is the version that the program reports.
    let version = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    json!({
        "architecture": arch,
        "os": "linux",
        "created": CREATED,
        "config": {
            "Env": ["PATH=/", format!("LAB_SUPERVISOR_VERSION={version}")],
            "Entrypoint": ["/lab-supervisor"],
            "WorkingDir": "/",
            "Labels": { "io.balena.features.supervisor": "lab" },
            "Healthcheck": look_every.map(|interval| json!({
                "Test": ["CMD", "/lab-supervisor", "healthcheck"],
                "Interval": interval.as_secs() * SECOND_NS,
                "Timeout": 5 * SECOND_NS,
                "StartPeriod": 10 * SECOND_NS,
                "Retries": 3,
            })),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        "history": [{ "created": CREATED, "created_by": "supervisor_image" }],
    })
}

fn layer(program: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["data/", "mnt/", "mnt/root/", "var/", "var/log/", "var/run/"] {
        add_directory(&mut tar, directory)?;
    }
    add_file(&mut tar, "lab-supervisor", 0o755, program)?;
    tar.into_inner()
}

fn add_file(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, path, bytes)
}

fn add_directory(tar: &mut tar::Builder<impl Write>, path: &str) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    header.set_mtime(0);
    tar.append_data(&mut header, path, io::empty())
}

fn with_tag(name: &str) -> String {
    // A colon before the last slash belongs to a registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

/// Docker's name of the machine that an ELF file is for (`e_machine`, bytes 18 and 19; little-endian files only).
fn architecture(elf: &[u8]) -> Option<&'static str> {
    if !elf.starts_with(b"\x7fELF") {
        return None;
    }
    match u16::from_le_bytes([*elf.get(18)?, *elf.get(19)?]) {
        3 => Some("386"),
        40 => Some("arm"),
        62 => Some("amd64"),
        183 => Some("arm64"),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
