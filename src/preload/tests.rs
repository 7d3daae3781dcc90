//! Packed, unpacked, cut at every step, damaged, and led astray.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::pack::{self, Recipe};
use super::{Archive, End, State, Step, look, unpack, verify};
use crate::bundle::Keys;
use crate::bundle::sign::{Signer, keygen};
use crate::model::device::DeviceType;
use crate::sys::beneath::{Beneath, Facts, NodeKind};
use crate::{Error, Kind, Result, sys};

struct Lab {
    dir: tempfile::TempDir,
}

/// What a file is, for comparison.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    rdev: u64,
    links: u64,
    link: Option<PathBuf>,
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(lab.path("keys")).unwrap();
        fs::create_dir_all(lab.path("data")).unwrap();
        keygen(&lab.path("keys/a.pub"), &lab.path("a.key")).unwrap();
        lab.make_tree();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An engine's storage in small: all that a file system can hold.
    fn make_tree(&self) {
        let tree = self.path("engine");
        fs::create_dir_all(tree.join("overlay2/layer/diff/etc")).unwrap();
        fs::create_dir_all(tree.join("image/overlay2")).unwrap();
        fs::create_dir_all(tree.join("empty")).unwrap();
        let name = "n".repeat(140);
        for (path, content) in [
            ("overlay2/layer/diff/etc/passwd", b"root:x:0:0".to_vec()),
            ("overlay2/layer/diff/big", (0..200_000_u32).flat_map(u32::to_le_bytes).collect()),
            ("overlay2/layer/diff/suid", b"#!".to_vec()),
            ("overlay2/layer/diff/empty", Vec::new()),
            (&format!("overlay2/layer/diff/{name}"), b"long".to_vec()),
            ("image/overlay2/repositories.json", b"{}".to_vec()),
            ("engine-id", b"mine".to_vec()),
        ] {
            fs::write(tree.join(path), content).unwrap();
        }
        symlink("../../nowhere", tree.join("overlay2/layer/diff/link")).unwrap();
        symlink("x".repeat(200), tree.join("overlay2/layer/diff/longlink")).unwrap();
        fs::hard_link(tree.join("overlay2/layer/diff/big"), tree.join("overlay2/layer/diff/same")).unwrap();
        let sparse = fs::File::create(tree.join("sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (8 << 20) - 3).unwrap();
        let top = Beneath::open(&tree).unwrap();
        top.make_node(Path::new("overlay2/layer/diff/fifo"), NodeKind::Fifo, (0, 0)).unwrap();
        if rustix::process::geteuid().is_root() {
            top.make_node(Path::new("overlay2/layer/diff/whiteout"), NodeKind::Char, (0, 0)).unwrap();
            top.make_node(Path::new("overlay2/layer/diff/disk"), NodeKind::Block, (259, 70_000)).unwrap();
            let facts = Facts {
                mode: 0o4755,
                uid: 1000,
                gid: 3_000_000_000,
                mtime_s: 1_000_000_000,
                xattrs: Vec::new(),
            };
            top.set_facts(Path::new("overlay2/layer/diff/suid"), &facts, false).unwrap();
            let opaque = vec![(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
            let facts = Facts { mode: 0o1777, xattrs: opaque, ..facts };
            let _ = top.set_facts(Path::new("overlay2/layer/diff/etc"), &facts, false);
            let odd = vec![(b"user.odd".to_vec(), b"a\nb\0=c".to_vec())];
            let facts = Facts { mode: 0o600, xattrs: odd, ..facts };
            let _ = top.set_facts(Path::new("image/overlay2/repositories.json"), &facts, false);
        }
        fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::write(self.path("apps.json"), "{\"apps\":{}}").unwrap();
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            compatible: vec![DeviceType("intel-nuc".into())],
            arch: "amd64".into(),
            trees: vec![("docker".into(), self.path("engine")), ("apps.json".into(), self.path("apps.json"))],
            level: 1,
            segment_bytes: 4096,
        }
    }

    fn pack(&self) -> pack::Made {
        let signer = Signer::load(&self.path("a.key"), None).unwrap();
        pack::create(&self.recipe(), &[signer], &self.path("a.preload"), &mut |_| ()).unwrap()
    }

    fn archive(&self) -> Result<Archive> {
        Archive::open(&self.path("a.preload"), &Keys::load(&self.path("keys"), 1)?)
    }

    fn unpack(&self, observer: &super::Observer) -> Result<End> {
        unpack(&self.archive()?, &self.path("data"), observer, &mut |_| ())
    }

    fn expected(&self) -> BTreeMap<PathBuf, Seen> {
        let mut all = seen(&self.path("engine"), Path::new("docker"));
        all.remove(Path::new("docker/engine-id")).unwrap();
        all.extend(seen(&self.path("apps.json"), Path::new("apps.json")));
        all
    }

    #[track_caller]
    fn assert_whole(&self) {
        let mut found = seen(&self.path("data/docker"), Path::new("docker"));
        found.extend(seen(&self.path("data/apps.json"), Path::new("apps.json")));
        let expected = self.expected();
        for (path, seen) in &expected {
            assert!(found.get(path) == Some(seen), "{}", path.display());
        }
        assert_eq!(found.len(), expected.len());
        let left: Vec<_> = fs::read_dir(self.path("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        let sparse = fs::metadata(self.path("data/docker/sparse")).unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    }
}

fn seen(path: &Path, name: &Path) -> BTreeMap<PathBuf, Seen> {
    let m = fs::symlink_metadata(path).unwrap();
    let mut all = BTreeMap::new();
    if m.is_dir() {
        for entry in sys::file::list(path).unwrap() {
            all.extend(seen(&entry, &name.join(entry.file_name().unwrap())));
        }
    }
    let seen = Seen {
        mode: m.mode(),
        owner: (m.uid(), m.gid()),
        mtime: m.mtime(),
        rdev: m.rdev(),
        links: if m.is_dir() { 0 } else { m.nlink() },
        link: fs::read_link(path).ok(),
        content: if m.is_file() { fs::read(path).unwrap() } else { Vec::new() },
        xattrs: sys::tree::xattrs(path).unwrap(),
    };
    all.insert(name.to_owned(), seen);
    all
}

#[test]
fn everything_comes_back_as_it_was() {
    let lab = Lab::new();
    let made = lab.pack();
    assert_eq!(made.left_out, [lab.path("engine/engine-id")]);
    assert!(made.manifest.segment.len() > 3, "{:?}", made.manifest.segment);
    let again = fs::read(lab.path("a.preload")).unwrap();
    verify(&lab.archive().unwrap(), &mut |_| ()).unwrap();
    let before = lab.expected();
    let look = || look(&lab.archive().unwrap(), &lab.path("data")).unwrap();
    assert_eq!(look(), State::Waiting { segments: 0, of: made.manifest.segment.len() });
    assert_eq!(lab.unpack(&|_| Ok(())).unwrap(), End::Unpacked);
    lab.assert_whole();
    assert_eq!(look(), State::Unpacked);
    assert_eq!(lab.unpack(&|_| panic!("done already")).unwrap(), End::Before);
    assert_eq!(lab.expected(), before);
    // But for the signature, which is random, the same trees give the same bytes.
    lab.pack();
    let other = fs::read(lab.path("a.preload")).unwrap();
    let differing = again.iter().zip(&other).filter(|(a, b)| a != b).count();
    assert!(again.len() == other.len() && differing < 512, "{differing}");
}

#[test]
fn a_cut_at_any_step_is_gone_on_from() {
    let lab = Lab::new();
    lab.pack();
    let steps = RefCell::new(Vec::new());
    lab.unpack(&|s| {
        steps.borrow_mut().push(s.clone());
        Ok(())
    })
    .unwrap();
    let steps = steps.into_inner();
    assert!(steps.len() > 30, "{}", steps.len());
    for (cut, step_cut) in steps.iter().enumerate() {
        fs::remove_dir_all(lab.path("data")).unwrap();
        fs::create_dir_all(lab.path("data")).unwrap();
        let (at, unkept) = (Cell::new(0), RefCell::new(Vec::new()));
        let e = lab.unpack(&|step| {
            match step {
                Step::Made(path) => unkept.borrow_mut().push(path.clone()),
                Step::Kept(_) => unkept.borrow_mut().clear(),
                _ => {}
            }
            at.set(at.get() + 1);
            if at.get() > cut { Err(Error::new(Kind::PowerCut, "cut")) } else { Ok(()) }
        });
        assert_eq!(e.unwrap_err().kind(), Kind::PowerCut, "{cut}");
        // What was not flushed may be lost, in part or whole.
        for (i, path) in unkept.into_inner().iter().enumerate() {
            let path = lab.path("data/.twinhull-preload/tree").join(path);
            match fs::symlink_metadata(&path) {
                // A second name of a file that is kept is no content.
                Ok(m) if m.is_file() && m.nlink() == 1 && i % 2 == 0 => fs::write(&path, "zeros").unwrap(),
                Ok(m) if !m.is_dir() => fs::remove_file(&path).unwrap(),
                _ => {}
            }
        }
        let outcome = lab.unpack(&|_| Ok(())).unwrap();
        assert!(matches!(outcome, End::Unpacked | End::Before), "{cut}: {step_cut:?}");
        lab.assert_whole();
    }
}

#[test]
fn a_run_goes_on_where_it_was() {
    let lab = Lab::new();
    lab.pack();
    let e = lab.unpack(&|s| if *s == Step::Kept(3) { Err(Error::failed("cut")) } else { Ok(()) });
    e.unwrap_err();
    let made = Cell::new(0);
    lab.unpack(&|s| {
        made.set(made.get() + usize::from(matches!(s, Step::Made(_))));
        Ok(())
    })
    .unwrap();
    let all = verify(&lab.archive().unwrap(), &mut |_| ()).unwrap();
    assert!(made.get() as u64 + 3 <= all, "{} of {all}", made.get());
    lab.assert_whole();
}

#[test]
fn no_damage_goes_unseen_and_nothing_of_it_counts() {
    let lab = Lab::new();
    lab.pack();
    let good = fs::read(lab.path("a.preload")).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(good.len() / 97) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(lab.path("a.preload"), &bad).unwrap();
        refused += usize::from(lab.unpack(&|_| Ok(())).is_err());
        assert!(!lab.path("data/docker").exists(), "byte {at}");
    }
    assert!(refused >= 97, "{refused}");
    for len in [0, 1, 511, 512, 1024, good.len() / 2, good.len() - 1] {
        fs::write(lab.path("a.preload"), &good[..len]).unwrap();
        assert!(lab.unpack(&|_| Ok(())).is_err(), "{len}");
    }
    super::give_up(&lab.path("data")).unwrap();
    assert_eq!(fs::read_dir(lab.path("data")).unwrap().count(), 0);
    fs::write(lab.path("a.preload"), &good).unwrap();
    // What is moved to its place is not given up.
    lab.unpack(&|s| if *s == Step::Whole { Err(Error::failed("cut")) } else { Ok(()) }).unwrap_err();
    super::give_up(&lab.path("data")).unwrap();
    lab.unpack(&|s| if matches!(s, Step::Made(_)) { panic!("anew") } else { Ok(()) }).unwrap();
    lab.assert_whole();
}

#[test]
fn what_is_there_is_passed_over() {
    let lab = Lab::new();
    lab.pack();
    fs::create_dir_all(lab.path("data/docker/overlay2")).unwrap();
    fs::write(lab.path("data/docker/overlay2/mine"), "x").unwrap();
    let taken = look(&lab.archive().unwrap(), &lab.path("data")).unwrap();
    assert_eq!(taken, State::Taken(lab.path("data/docker")));
    assert_eq!(lab.unpack(&|_| panic!("touched")).unwrap(), End::Taken(lab.path("data/docker")));
    assert!(lab.path("data/docker/overlay2/mine").exists() && !lab.path("data/apps.json").exists());
    // An empty directory is no content: it is filled, and stays the one that may be bound elsewhere.
    fs::remove_dir_all(lab.path("data/docker/overlay2")).unwrap();
    let inode = fs::metadata(lab.path("data/docker")).unwrap().ino();
    assert_eq!(lab.unpack(&|_| Ok(())).unwrap(), End::Unpacked);
    assert_eq!(fs::metadata(lab.path("data/docker")).unwrap().ino(), inode);
    assert!(lab.path("data/docker/overlay2/layer/diff/big").exists() && lab.path("data/apps.json").exists());
}

#[test]
fn another_signer_is_refused() {
    let lab = Lab::new();
    lab.pack();
    fs::remove_file(lab.path("keys/a.pub")).unwrap();
    keygen(&lab.path("keys/b.pub"), &lab.path("b.key")).unwrap();
    assert_eq!(lab.archive().unwrap_err().kind(), Kind::Refused);
}

#[test]
fn bad_recipes_are_told() {
    let lab = Lab::new();
    let signer = || [Signer::load(&lab.path("a.key"), None).unwrap()];
    for (names, level) in [(["a", "a"], 3), ([".hidden", "b"], 3), (["a/b", "b"], 3), (["a", "b"], 20)] {
        let trees = names.map(|n| (n.to_owned(), lab.path("apps.json"))).into();
        let recipe = Recipe { trees, level, ..lab.recipe() };
        let e = pack::create(&recipe, &signer(), &lab.path("x"), &mut |_| ()).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage, "{e}");
    }
    let recipe = Recipe { trees: vec![("a".into(), lab.path("none"))], ..lab.recipe() };
    assert!(pack::create(&recipe, &signer(), &lab.path("x"), &mut |_| ()).is_err());
    assert!(!lab.path("x").exists());
}
