//! What the tests of bundles need: a directory with keys, the built program, and a pair of scissors for archives.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use twinhull::bundle::sign::Signer;
use twinhull::bundle::{Keys, archive};
use twinhull::model::Manifest;

/// The program under test.
const TWINHULL: &str = env!("CARGO_BIN_EXE_twinhull");

/// A member of a bundle: name and content.
pub type Member = (String, Vec<u8>);

/// A directory with a key pair (`keys/a.pub`, `a.key`).
pub struct Lab {
    dir: tempfile::TempDir,
}

/// How a program ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["keys", "other"] {
            fs::create_dir(lab.path(dir)).unwrap();
        }
        let made = lab.run(&["bundle", "keygen", "--public", "keys/a.pub", "--secret", "a.key"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn keys(&self) -> Keys {
        Keys::load(&self.path("keys"), 1).unwrap()
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        self.outcome(Command::new(TWINHULL).args(args))
    }

    pub fn shell(&self, script: &str) -> Outcome {
        self.outcome(Command::new("sh").args(["-c", script]).env("TWINHULL", TWINHULL))
    }

    pub fn has_program(&self, name: &str) -> bool {
        self.shell(&format!("command -v {name}")).code == 0
    }

    fn outcome(&self, command: &mut Command) -> Outcome {
        let out = command.current_dir(self.dir.path()).stdin(Stdio::null()).output().unwrap();
        Outcome {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }

    /// The arguments that make the bundle `b` of `image`; those in `more` win.
    pub fn create<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        self.create_of("image", more)
    }

    pub fn create_of<'a>(&self, image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["bundle", "create", "--image", image, "--version", "2.1.0"];
        args.extend(["--compatible", "intel-nuc,other-type", "--arch", "amd64", "--level", "1", "-o", "b"]);
        args.extend(more);
        args
    }

    /// A signed bundle of `image`.
    pub fn bundle(&self, image: &[u8]) -> Vec<u8> {
        self.write("image", image);
        let out = self.run(&self.create(&["--prefix-size", "64", "--key", "a.key"]));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""));
        self.read("b")
    }

    /// Puts another manifest in front, signed by the key of this lab.
    pub fn sign_members(&self, members: &mut [Member], text: &str) {
        sign_with(&Signer::load(&self.path("a.key"), None).unwrap(), members, text);
    }
}

/// Puts another manifest in front, signed by `signer`.
pub fn sign_with(signer: &Signer, members: &mut [Member], text: &str) {
    let manifest = Manifest::parse(text).unwrap();
    let signature = signer.sign(&manifest, text.as_bytes()).unwrap();
    members[0].1 = text.as_bytes().to_vec();
    members[1].1 = signature.text().as_bytes().to_vec();
}

/// The manifest `text` with the sizes and the digest that `members` have now.
pub fn describe_again(text: &str, members: &[Member]) -> String {
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (digest, frames) = (hex(&members[2].1), hex(&members[3].1));
    let line = |l: &str| match l.split(" = ").next() {
        Some("index_sha256") => format!("index_sha256 = {digest:?}\n"),
        Some("index_size") => format!("index_size = {}\n", members[2].1.len()),
        Some("frames_sha256") => format!("frames_sha256 = {frames:?}\n"),
        Some("frames_size") => format!("frames_size = {}\n", members[3].1.len()),
        _ => format!("{l}\n"),
    };
    text.lines().map(line).collect()
}

/// Fails the test if `text` lacks `part`.
pub fn has(text: &str, part: &str) {
    assert!(text.contains(part), "no {part:?} in {text:?}");
}

/// Bytes that do not compress; the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// A small image with everything: noise, text, zero blocks at several places, a part of a block at the end.
pub fn image_with_holes() -> Vec<u8> {
    let mut image = noise(5000, 7);
    image.resize(4 * 4096, 0);
    image.extend(b"twinhull ".repeat(3000));
    image.resize(14 * 4096, 0);
    image.extend(noise(1234, 8));
    image
}

/// The members of a bundle that is known to be good.
pub fn split(bundle: &[u8]) -> Vec<Member> {
    let mut archive = tar::Archive::new(bundle);
    let member = |e: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut e = e.unwrap();
        let mut content = Vec::new();
        e.read_to_end(&mut content).unwrap();
        (e.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(member).collect()
}

/// An archive of these members in the form of a bundle, whatever their names.
pub fn join(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        let mut header = archive::header("x", content.len() as u64).unwrap();
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        let at = bytes.len();
        bytes.extend(header);
        fix_checksum(&mut bytes, at);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(archive::END);
    bytes
}

/// Makes the header at `at` one whose checksum is right.
pub fn fix_checksum(bytes: &mut [u8], at: usize) {
    let header = &mut bytes[at..at + 512];
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    // As the tar crate writes it: seven octal digits and a NUL.
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
}

/// Answers one request with these bytes, and closes. Gives the address.
pub fn serve_once(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            request.push(byte[0]);
        }
        // A client that had enough closes first, which is no error of the test.
        let _ = stream.write_all(&answer);
    });
    format!("http://127.0.0.1:{port}/os.bundle")
}

/// A web server of the real openssl that serves the lab's directory.
pub struct Tls {
    child: Child,
    pub port: u16,
}

impl Tls {
    pub fn start(lab: &Lab) -> Self {
        let made = lab.shell(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key -out cert.pem -days 9 -subj /CN=localhost \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2>&1",
        );
        assert_eq!(made.code, 0, "{}", made.stdout);
        // Nobody else can have this port between here and there but by bad luck.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("openssl")
            .args(["s_server", "-WWW", "-quiet", "-key", "tls.key", "-cert", "cert.pem", "-accept"])
            .arg(format!("127.0.0.1:{port}"))
            .current_dir(lab.path("."))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "openssl s_server does not listen");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
