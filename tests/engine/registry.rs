//! A registry on this machine that wants a login and has one image: enough of the distribution API for a pull.
//!
//! Source: OCI distribution specification v1.1, "Pull"; checked with dockerd 20.10.24.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const USER: &str = "device";
pub const PASSWORD: &str = "let:me in";

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Serves the image of a `docker save` archive that `make` writes, given the registry's address; for as long as the test's
/// process lives. Gives the address.
pub fn serve(make: impl FnOnce(&str) -> std::path::PathBuf) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let image = Arc::new(Image::of(&make(&address)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let image = image.clone();
            std::thread::spawn(move || image.answer(&stream.unwrap()));
        }
    });
    address
}

/// What can be asked for: the last part of an address, its type and its bytes.
struct Image(Vec<(String, &'static str, Vec<u8>)>);

impl Image {
    fn of(archive: &Path) -> Self {
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        let told: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let file = |value: &Value| files[value.as_str().unwrap()].clone();
        let (config, layer) = (file(&told[0]["Config"]), file(&told[0]["Layers"][0]));
        let part = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "size": bytes.len(), "digest": digest(bytes) });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": part("application/vnd.docker.container.image.v1+json", &config),
            "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let tag = told[0]["RepoTags"][0].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        Self(vec![
            (tag, MANIFEST, manifest.clone()),
            (digest(&manifest), MANIFEST, manifest),
            (digest(&config), "application/octet-stream", config),
            (digest(&layer), "application/octet-stream", layer),
        ])
    }

    fn answer(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let login = format!("authorization: basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        let knows = lines.take_while(|l| !l.is_empty()).fold(false, |knows, line| {
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            knows || format!("{}: {}", name.to_lowercase(), value.replacen("Basic", "basic", 1)) == login
        });
        let (method, path) = first.split_once(' ').unwrap();
        let last = path.split(' ').next().unwrap().rsplit('/').next().unwrap();
        let found = self.0.iter().find(|(name, ..)| name == last);
        let (status, kind, body) = match (knows, found) {
            (false, _) => {
                ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"lab\"", "text/plain", &[][..])
            }
            (true, Some((_, kind, bytes))) => ("200 OK", *kind, bytes.as_slice()),
            (true, None) if last.is_empty() => ("200 OK", "text/plain", &[][..]),
            (true, None) => ("404 Not Found", "text/plain", &[][..]),
        };
        let mut out = stream;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
             Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
            body.len(),
            digest(body)
        );
        // An engine that has heard enough hangs up.
        let _ = out.write_all(head.as_bytes());
        if method != "HEAD" {
            let _ = out.write_all(body);
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
}
