//! What a container sees of its host, one `KEY VALUE` per line. Built by itself, without any crate.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn main() {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_else(|e| format!("none: {e}"));
    let writes = |path: &str| match fs::OpenOptions::new().append(true).open(path) {
        Ok(_) => "writable".to_owned(),
        Err(e) => e.to_string(),
    };
    let device = |path: &str| fs::metadata(path).map_or(0, |m| m.dev()).to_string();
    let marker = "/run/log/journal/marker";
    for (key, value) in [
        ("dbus", ask("/host/run/dbus/system_bus_socket", "\0AUTH EXTERNAL 30\r\n")),
        ("engine", ask(docker_host().as_deref().unwrap_or("/none"), VERSION)),
        ("old-socket", ask("/var/run/balena-engine.sock", VERSION)),
        ("oldest-socket", ask("/var/run/balena.sock", VERSION)),
        ("modules", text("/lib/modules/marker")),
        ("firmware", text("/lib/firmware/marker")),
        ("machine-id", text("/etc/machine-id")),
        ("machine-id-write", writes("/etc/machine-id")),
        ("journal", text(marker)),
        ("journal-write", writes(marker)),
        ("journal-flash", text("/var/log/journal/marker")),
        ("sys-device", device("/sys")),
        ("proc-device", device("/proc")),
        ("first-process", text("/proc/1/cmdline").replace('\0', " ")),
        ("extra-firmware", fs::metadata("/extra-firmware").is_ok_and(|m| m.is_dir()).to_string()),
    ] {
        println!("{key} {}", value.lines().next().unwrap_or(""));
    }
    for (key, value) in std::env::vars().filter(|(k, _)| k.starts_with("BALENA") || k.starts_with("RESIN") || k == "DOCKER_HOST") {
        println!("{key} {value}");
    }
}

const VERSION: &str = "GET /version HTTP/1.0\r\n\r\n";

fn docker_host() -> Option<String> {
    Some(std::env::var("DOCKER_HOST").ok()?.strip_prefix("unix://")?.to_owned())
}

/// The first line that the listener at `path` says to `words`; of HTTP, the body's `ApiVersion`.
fn ask(path: &str, words: &str) -> String {
    let said = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(words.as_bytes())?;
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let n = stream.read(&mut piece)?;
            all.extend_from_slice(&piece[..n]);
            let text = String::from_utf8_lossy(&all).into_owned();
            if n == 0 || text.contains("ApiVersion") || text.starts_with("OK ") {
                let version = text.split("\"ApiVersion\":\"").nth(1).and_then(|t| t.split('"').next());
                return Ok(version.map_or(text.clone(), |v| format!("API {v}")));
            }
        }
    };
    said().unwrap_or_else(|e| format!("none: {e}"))
}
