//! What several targets need: a key, a good bundle, and files for what only reads files. `tests/fuzz/run` makes the first
//! two in `target/fuzz/lab`.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use twinhull::bundle::sign::Signer;
use twinhull::bundle::{Bundle, Index, Keys, Limits, Reach, archive};
use twinhull::model::{Digest, Manifest};
use twinhull::sys::http::HttpSettings;

/// The image that deltas are made against.
pub static OLD: [u8; 65536] = {
    let mut old = [0; 65536];
    let mut i = 0;
    while i < old.len() {
        old[i] = (i / 7 % 251) as u8;
        i += 1;
    }
    old
};

pub struct Lab {
    signer: Signer,
    pub keys: Keys,
    manifest: Manifest,
    /// The index of the good bundle.
    pub index: Index,
    pub index_sha256: Digest,
}

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/lab")
}

impl Lab {
    /// The one of this process.
    pub fn open() -> &'static Self {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| {
            let bytes = fs::read(dir().join("bundle"))
                .expect("run tests/fuzz/run once: it makes the key and the bundle");
            let keys = Keys::load(&dir().join("keys"), 1).unwrap();
            let manifest = Bundle::open(&bytes[..], &keys).unwrap().manifest().clone();
            let index = members(&bytes).into_iter().find(|(name, _)| name == "root.index").unwrap().1;
            Lab {
                signer: Signer::load(&dir().join("key"), None).unwrap(),
                keys,
                index_sha256: manifest.root.index_sha256,
                index: Index::parse(index, &manifest.root).unwrap(),
                manifest,
            }
        })
    }

    /// A bundle of any index and any frames, properly signed.
    pub fn forged(&self, index: &[u8], frames: &[u8]) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        manifest.root.index_sha256 = Digest(Sha256::digest(index).into());
        manifest.root.index_size = index.len() as u64;
        manifest.root.frames_size = frames.len() as u64;
        manifest.root.frames_sha256 = Digest(Sha256::digest(frames).into());
        let text = manifest.to_text().unwrap();
        let signature = self.signer.sign(&manifest, text.as_bytes()).unwrap();
        let name = format!("manifest.toml.{}.minisig", signature.id());
        let mut bundle = Vec::new();
        for (name, content) in [
            ("manifest.toml", text.as_bytes()),
            (&name, signature.text().as_bytes()),
            ("root.index", index),
            ("root.frames", frames),
        ] {
            bundle.extend(archive::header(name, content.len() as u64).unwrap());
            bundle.extend(content);
            bundle.resize(bundle.len().next_multiple_of(512), 0);
        }
        bundle.extend(archive::END);
        bundle
    }

    /// How files are read here; servers, with little patience.
    pub fn reach(&self) -> Reach {
        reach()
    }
}

pub fn reach() -> Reach {
    let http = HttpSettings {
        ca_bundle: "/nonexistent".into(),
        extra_ca_pem: None,
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        client: None,
    };
    let limits = Limits { stall: Duration::from_millis(20), max_bytes: Some(1 << 20) };
    Reach { http, token: None, limits }
}

/// The members of a bundle that is known to be good.
pub fn members(bundle: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut reader = archive::Reader::new(bundle);
    let mut members = Vec::new();
    while let Some(member) = reader.advance().unwrap() {
        members.push((member.name, reader.content(u64::MAX).unwrap()));
    }
    members
}

/// A directory in memory for this process, and a file in it.
pub fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch_dir().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

pub fn scratch_dir() -> PathBuf {
    let dir = Path::new("/dev/shm").join(format!("twinhull-fuzz-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}
