//! A device in a directory: what `twinhull --root DIR` needs to take it for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Size of each slot in bytes.
pub const SLOT: u64 = 4 << 20;
const SECTOR: u64 = 512;

/// A NUC that runs slot A, with an empty slot B, a boot partition and a journal-less state partition.
pub struct Device {
    dir: TempDir,
}

/// A key pair of the real minisign.
pub struct KeyPair {
    pub secret: PathBuf,
    pub public: PathBuf,
}

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs twinhull as it was built.
pub fn twinhull(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinhull")).args(args).output().unwrap()
}

/// The exit code and the error output.
pub fn outcome(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

impl KeyPair {
    /// Makes one with `minisign -G`, without a password.
    pub fn new(dir: &Path, name: &str) -> Self {
        let (secret, public) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
        let [s, p] = [&secret, &public].map(|p| p.to_str().unwrap());
        run("minisign", &["-G", "-W", "-f", "-s", s, "-p", p]);
        Self { secret, public }
    }
}

impl Device {
    /// Makes one that trusts `keys`.
    pub fn new(keys: &[&KeyPair]) -> Self {
        let device = Self { dir: tempfile::tempdir().unwrap() };
        device.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=PARTLABEL=resin-rootA ro\n");
        device.write("proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n");
        device.write("etc/os-release", "ID=balena-os\nVERSION_ID=\"1.0.0\"\n");
        device.write("mnt/boot/device-type.json", r#"{"slug":"intel-nuc","arch":"amd64"}"#);
        device.write("mnt/boot/config.json", r#"{"deviceType":"intel-nuc"}"#);
        device.write(
            "usr/lib/twinhull/10-test.toml",
            "[engine]\nenabled = false\n[supervisor]\nenabled = false\n",
        );
        fs::create_dir_all(device.path("mnt/state")).unwrap();
        fs::create_dir_all(device.path("mnt/boot/EFI/BOOT")).unwrap();
        let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/grub/seed.grubenv");
        fs::copy(seed, device.grubenv()).unwrap();
        fs::create_dir_all(device.path("usr/share/twinhull/keys.d")).unwrap();
        for (i, key) in keys.iter().enumerate() {
            fs::copy(&key.public, device.path(&format!("usr/share/twinhull/keys.d/{i}.pub"))).unwrap();
        }
        device.make_disk();
        device
    }

    fn make_disk(&self) {
        fs::create_dir_all(self.path("dev")).unwrap();
        let disk = self.path("dev/vda");
        fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let names = ["resin-boot", "resin-rootA", "resin-rootB", "resin-state", "resin-data"];
        let sectors = SLOT / SECTOR;
        let script: String = names.iter().map(|n| format!("size={sectors}, name={n}\n")).collect();
        let table = self.path("table.sfdisk");
        fs::write(&table, format!("label: gpt\n{script}")).unwrap();
        let command = format!("sfdisk -q {} < {}", disk.display(), table.display());
        run("sh", &["-c", &command]);
        self.write("sys/block/vda/size", &(64 << 20 >> 9).to_string());
        self.write("sys/block/vda/removable", "0");
        self.write("sys/block/vda/queue/logical_block_size", "512");
        for (i, _) in names.iter().enumerate() {
            let n = i + 1;
            let start = 2048 + sectors * i as u64;
            self.write(&format!("sys/block/vda/vda{n}/partition"), &n.to_string());
            self.write(&format!("sys/block/vda/vda{n}/start"), &start.to_string());
            self.write(&format!("sys/block/vda/vda{n}/size"), &sectors.to_string());
            let node = self.path(&format!("dev/vda{n}"));
            fs::write(node, pattern(SLOT, n as u64)).unwrap();
        }
    }

    /// The real path of a path on the device.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn grubenv(&self) -> PathBuf {
        self.path("mnt/boot/EFI/BOOT/grubenv")
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Slot A's and slot B's bytes.
    pub fn slots(&self) -> [Vec<u8>; 2] {
        ["dev/vda2", "dev/vda3"].map(|p| fs::read(self.path(p)).unwrap())
    }

    /// Runs `twinhull --root DEVICE …`.
    pub fn twinhull(&self, args: &[&str]) -> Output {
        let root = self.dir.path().to_str().unwrap();
        twinhull(&[&["--root", root], args].concat())
    }

    /// `status --json`, parsed.
    pub fn status(&self) -> serde_json::Value {
        let output = self.twinhull(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }
}

/// Bytes that look like a file system's: some blocks random, some zero; `seed` tells images apart.
pub fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            if i % 8 == 0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            if (i / 4096) % 5 == 0 { 0 } else { (state >> (8 * (i % 8))) as u8 }
        })
        .collect()
}
