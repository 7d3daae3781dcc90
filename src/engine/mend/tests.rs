//! Damaged files in a directory; `tests/mend.rs` has the real engine.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::PathBuf;

use super::*;

struct Storage {
    dir: tempfile::TempDir,
}

impl Storage {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("docker").join(name)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn mend(&self) -> Vec<Result<Mended>> {
        mend(&["/docker".into(), "/none".into()], &Root::new(self.dir.path()))
    }

    fn kept(&self) -> Vec<PathBuf> {
        kept(&["/docker".into(), "/none".into()], &Root::new(self.dir.path())).unwrap()
    }
}

const BOLT: &[u8] = include_bytes!("../../../tests/fixtures/bolt/local-kv.db");

#[test]
fn sound_files_and_missing_ones_are_left_alone() {
    let storage = Storage::new();
    storage.put("image/overlay2/repositories.json", r#"{"Repositories":{}}"#);
    storage.put("image/aufs/repositories.json", "{}\0\0\0");
    storage.put("volumes/metadata.db", BOLT);
    storage.put("buildkit/cache.db", "");
    storage.put("io.containerd.grpc.v1.introspection/uuid", "1b4e28ba-2fa1-11d2-883f-0016d3cca427");
    storage.put("key.json", r#"{"kid":"x"}"#);
    assert_eq!(storage.mend(), []);
    assert_eq!(storage.kept(), [] as [PathBuf; 0]);
}

#[test]
fn each_known_file_is_kept_beside_itself_and_numbered() {
    for (name, damaged, expected) in [
        ("volumes/metadata.db", vec![0; 32768], "no valid head"),
        ("network/files/local-kv.db", BOLT[..4096].to_vec(), "4096 bytes, expected "),
        ("buildkit/snapshots.db", b"x".to_vec(), "no valid head"),
        ("containerd/daemon/io.containerd.metadata.v1.bolt/meta.db", vec![0; 100], "no valid head"),
        ("io.containerd.metadata.v1.bolt/meta.db", vec![0; 8192], "no valid head"),
        ("containerd/daemon/io.containerd.grpc.v1.introspection/uuid", vec![], "no UUID: 0 bytes"),
        ("io.containerd.grpc.v1.introspection/uuid", vec![0; 36], "no UUID: 36 bytes"),
        ("key.json", vec![], "0 bytes, no JSON"),
    ] {
        let storage = Storage::new();
        for n in 1..=2 {
            storage.put(name, &damaged);
            let outcome = storage.mend().into_iter().map(Result::unwrap).collect::<Vec<_>>();
            let [mended] = outcome.as_slice() else { panic!("{name}: {outcome:?}") };
            assert_eq!(mended.kept, storage.path(&format!("{name}.damaged-{n}")));
            assert!(mended.damage.starts_with(expected), "{name}: {}", mended.damage);
            assert_eq!(fs::read(&mended.kept).unwrap(), damaged);
            assert!(!storage.path(name).exists());
            assert_eq!(storage.kept().len(), n);
        }
        assert_eq!(storage.mend(), []);
    }
}

#[test]
fn a_database_that_somebody_has_open_is_left_alone() {
    let storage = Storage::new();
    storage.put("volumes/metadata.db", [0; 8192]);
    let held = fs::File::open(storage.path("volumes/metadata.db")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(storage.mend(), []);
    drop(held);
    assert_eq!(storage.mend().len(), 1);
}

#[test]
fn names_come_back_from_containers_whose_images_are_there() {
    let storage = Storage::new();
    let id = |n: u8| format!("{n:064x}");
    storage.put(&format!("image/overlay2/imagedb/content/sha256/{}", id(1)), "{}");
    for (container, image, name) in [
        ("a", 1, "lab/supervisor:1.0.0"),
        ("b", 1, "r.io/v2/x@sha256:77"),
        ("c", 2, "gone:1"),
        ("d", 1, "sha256:1"),
    ] {
        let text =
            format!(r#"{{"Image":"sha256:{}","Config":{{"Image":"{name}"}},"State":{{}}}}"#, id(image));
        storage.put(&format!("containers/{container}/config.v2.json"), text);
    }
    storage.put("containers/e/config.v2.json", "");
    storage.put("image/overlay2/repositories.json", r#"{"Repositories":{"lab/sup"#);
    let outcome = storage.mend().pop().unwrap().unwrap();
    assert_eq!(outcome.names, Some(2));
    assert_eq!(fs::read_to_string(outcome.kept).unwrap(), r#"{"Repositories":{"lab/sup"#);
    let text = fs::read_to_string(storage.path("image/overlay2/repositories.json")).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let image = format!("sha256:{}", id(1));
    assert_eq!(
        found,
        serde_json::json!({"Repositories": {
            "lab/supervisor": {"lab/supervisor:1.0.0": image},
            "r.io/v2/x": {"r.io/v2/x@sha256:77": image},
        }})
    );
}
