//! Installing from servers, good and bad: what is fetched, what is reused, and that no wrong byte is ever written.
#![cfg(feature = "build-host")]
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::cast_possible_truncation)]

#[path = "../support/bundle.rs"]
mod bundle;
mod https;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

use server::{Server, Vice};
use support::{Device, KeyPair, SLOT, outcome, pattern, twinhull};

struct Bench {
    dir: tempfile::TempDir,
    key: KeyPair,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        Self { dir, key }
    }

    /// A device that gives up after a second of silence.
    fn device(&self) -> Device {
        let device = Device::new(&[&self.key]);
        device.write("etc/twinhull/stall.toml", "[bundle]\nstall_s = 1\n");
        device
    }

    fn bundle(&self, image: &[u8]) -> Vec<u8> {
        let options = ["--prefix-size", "64"];
        let out = bundle::bundle(self.dir.path(), "os", image, &[&self.key], &options);
        fs::read(&out).unwrap()
    }
}

impl Bench {
    /// The delta from `old` to the bundle that was made last.
    fn delta(&self, old: &[u8]) -> Vec<u8> {
        let old = self.file("old", old);
        let [to, out] = ["os.bundle", "delta"].map(|n| self.dir.path().join(n).to_str().unwrap().to_owned());
        let made = twinhull(&["bundle", "delta", "--from", &old, "--to", &to, "--level", "9", "-o", &out]);
        assert!(made.status.success(), "{}", outcome(&made).1);
        fs::read(&out).unwrap()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn install(device: &Device, url: &str, more: &[&str]) -> Output {
    device.twinhull(&[&["install", "--json", url], more].concat())
}

/// The events that an install told.
fn events(output: &Output) -> Vec<serde_json::Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
}

fn event(output: &Output, name: &str) -> serde_json::Value {
    let found = events(output).into_iter().rfind(|e| e["event"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {output:?}"))
}

fn assert_installed(device: &Device, output: &Output, image: &[u8]) {
    assert_eq!(outcome(output).0, 0, "{}", outcome(output).1);
    assert_eq!(device.status()["phase"], "ready-to-reboot");
    assert!(device.slots()[1][..image.len()] == *image, "the slot does not hold the image");
}

/// Every block of the slot is the image's or what was there before.
fn assert_no_wrong_byte(device: &Device, before: &[u8], image: &[u8]) {
    let slot = &device.slots()[1];
    for (at, now) in (0..slot.len()).step_by(4096).zip(slot.chunks(4096)) {
        let new = image.get(at..(at + 4096).min(image.len()));
        let is_new = new.is_some_and(|new| now[..new.len()] == *new);
        assert!(is_new || now == &before[at..at + now.len()], "wrong bytes in the block at {at}");
    }
}

#[test]
fn servers_of_every_kind_give_the_image_or_a_clear_refusal() {
    let bench = Bench::new();
    // Not a multiple of a block, with holes.
    let image = pattern((3 << 20) + 1234, 99);
    let bundle = bench.bundle(&image);
    let mut clean = 0;
    for (vice, says) in [
        (Vice::None, None),
        (Vice::Closes(100 * 1024), None),
        (Vice::Closes(5000), None),
        (Vice::NoParts, None),
        (Vice::NoPartsClosesOnce, None),
        (Vice::ForgetsParts, None),
        (Vice::Overflows, None),
        (Vice::Promises, None),
        (Vice::Busy, None),
        (Vice::Changes, Some("another one than when the download began")),
        (Vice::ChangesSilently, Some("another one than when the download began")),
        (Vice::Shifts, Some("get it again")),
        (Vice::Lies, Some("the server answers with \"bytes")),
        (Vice::Wordless, Some("the server answers with \"\"")),
        (Vice::Grows, Some("another one than when the download began")),
        (Vice::Corrupts, Some("get it again")),
        (Vice::Stalls(500_000), Some("nothing came for 1 s")),
        (Vice::Goes(500_000), Some("the download stopped after")),
        (Vice::Vanishes(500_000), Some("the download stopped after")),
    ] {
        let device = bench.device();
        let [slot_a, slot_b] = device.slots();
        let server = Server::start(bundle.clone(), vice);
        let with_secrets = server.url.replace("http://", "http://user:s3cret@") + "?token=s3cret";
        let output = install(&device, &with_secrets, &[]);
        let (code, text) = outcome(&output);
        assert!(!text.contains("panicked") && !text.contains("s3cret"), "{vice:?}: {text}");
        assert!(device.slots()[0] == slot_a, "{vice:?}: the active slot changed");
        assert_no_wrong_byte(&device, &slot_b, &image);
        match says {
            None => {
                assert_eq!(code, 0, "{vice:?}: {text}");
                assert_installed(&device, &output, &image);
                match vice {
                    Vice::None => clean = server.sent(),
                    // It goes on where it was: nothing is asked for twice.
                    Vice::Closes(_) => {
                        assert!(server.sent() <= clean + clean / 50, "{} {clean}", server.sent())
                    }
                    _ => {}
                }
            }
            Some(says) => {
                assert_eq!(code, 1, "{vice:?}: {text}");
                let last = text.lines().last().unwrap_or("");
                assert!(last.contains(says) && last.contains(&server.url), "{vice:?}: {last}");
                assert_eq!(device.status()["phase"], "steady", "{vice:?}");
                // What was written is right, and the next attempt goes on from there.
                let good = Server::start(bundle.clone(), Vice::None);
                let output = install(&device, &good.url, &[]);
                assert_installed(&device, &output, &image);
            }
        }
    }
}

#[test]
fn blocks_of_the_running_slot_are_reused_wherever_they_are() {
    let bench = Bench::new();
    let device = bench.device();
    let [slot_a, _] = device.slots();
    // The running system, moved by eight blocks, with a few blocks changed.
    let mut image = pattern(8 * 4096, 1);
    image.extend(&slot_a[..3 << 20]);
    for block in [20, 300, 301, 700] {
        image[block * 4096..block * 4096 + 100].fill(7);
    }
    let server = Server::start(bench.bundle(&image), Vice::None);
    let explained = install(&device, &server.url, &["--explain"]);
    let told = event(&explained, "explain");
    let fetch = told["fetch_bytes"].as_u64().unwrap();
    assert!(fetch < 250_000, "{told}");
    let copied = told["copied_bytes"].as_u64().unwrap();
    assert!(copied > 2_400_000 && copied <= image.len() as u64, "{told}");
    assert_eq!(
        (device.status()["phase"].as_str(), device.path("mnt/state/twinhull").exists()),
        (Some("steady"), false)
    );

    // One byte less than needed is refused before anything is written; enough is enough.
    let before = device.slots();
    let sent = server.sent();
    let refused = install(&device, &server.url, &["--max-download", &(fetch - 1).to_string()]);
    assert_eq!(outcome(&refused).0, 3, "{}", outcome(&refused).1);
    assert!(outcome(&refused).1.contains("--max-download"), "{}", outcome(&refused).1);
    assert!(device.slots() == before && server.sent() - sent < 100_000);
    assert_eq!(device.status()["update"]["state"], "idle");

    let sent = server.sent();
    let output = install(&device, &server.url, &["--max-download", &fetch.to_string()]);
    assert_installed(&device, &output, &image);
    assert!(server.sent() - sent <= fetch);
    assert!(device.slots()[0] == slot_a, "the active slot changed");
}

#[test]
fn pieces_that_repeat_are_found_for_every_place_of_theirs() {
    let bench = Bench::new();
    let device = bench.device();
    // No two blocks are the same, and none is where the other image has it; but their pieces are.
    let image = pattern(10_007, 5).repeat(200);
    let old = [b"abc", &image[..]].concat();
    fs::write(device.path("dev/vda2"), &old).unwrap();
    let server = Server::start(bench.bundle(&image), Vice::None);
    let output = install(&device, &server.url, &[]);
    assert_installed(&device, &output, &image);
    let copied = event(&output, "plan")["copied_bytes"].as_u64().unwrap();
    assert!(copied > image.len() as u64 * 99 / 100, "{copied} of {}", image.len());
}

/// An image that is `old` with small changes everywhere in every `every`th block, so that no block of those is found.
fn edited(old: &[u8], every: usize) -> Vec<u8> {
    let mut image = old.to_vec();
    for (number, block) in image.chunks_mut(4096).enumerate().filter(|(n, _)| n % every == 0) {
        let at = 100 + number % 3000;
        block[at..at + 8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    image
}

#[test]
fn a_delta_brings_what_the_old_image_lacks_and_the_bundle_the_rest() {
    let bench = Bench::new();
    let device = bench.device();
    let old = device.slots()[0].clone();
    let image = edited(&old, 3);
    let bundle = bench.bundle(&image);
    let delta = bench.delta(&old);
    assert!(delta.len() < bundle.len() / 10, "{} of {}", delta.len(), bundle.len());
    let [server, other] = [&bundle, &delta].map(|file| Server::start(file.clone(), Vice::None));
    let told = event(&install(&device, &server.url, &["--explain", "--delta", &other.url]), "explain");
    let fetch = told["fetch_bytes"].as_u64().unwrap();
    assert!(fetch < 200_000, "{told}");
    let (before, without) = (server.sent() + other.sent(), install(&device, &server.url, &["--explain"]));
    assert!(event(&without, "explain")["fetch_bytes"].as_u64().unwrap() > 1_000_000);
    let before = before.max(server.sent() + other.sent());
    let limit = fetch.to_string();
    let output = install(&device, &server.url, &["--delta", &other.url, "--max-download", &limit]);
    assert_installed(&device, &output, &image);
    assert!(server.sent() + other.sent() - before <= fetch);
    assert!(!outcome(&output).1.contains("delta:"), "{}", outcome(&output).1);

    // The bundle in a file, the delta too: the same.
    let device = bench.device();
    let [file, other] = [("b", &bundle), ("d", &delta)].map(|(name, bytes)| bench.file(name, bytes));
    let output = install(&device, &file, &["--delta", &other]);
    assert_installed(&device, &output, &image);
}

#[test]
fn where_the_running_slot_differs_from_the_old_image_the_bundle_steps_in() {
    let bench = Bench::new();
    let device = bench.device();
    let mut old = device.slots()[0].clone();
    let image = edited(&old, 3);
    let [bundle, delta] = [bench.bundle(&image), bench.delta(&old)];
    // Somebody wrote to the running root since.
    for block in [10, 11, 831, 951] {
        old[block * 4096..(block + 1) * 4096].fill(9);
    }
    fs::write(device.path("dev/vda2"), &old).unwrap();
    let [server, other] = [&bundle, &delta].map(|file| Server::start(file.clone(), Vice::None));
    let output = install(&device, &server.url, &["--delta", &other.url]);
    assert_installed(&device, &output, &image);
    assert!(outcome(&output).1.contains("they come from the bundle"), "{}", outcome(&output).1);
    assert!(server.sent() < bundle.len() as u64 / 2, "{} of {}", server.sent(), bundle.len());
    // With a limit, only what is sure to fit is counted on.
    let device = bench.device();
    fs::write(device.path("dev/vda2"), &old).unwrap();
    let before = device.slots();
    let output = install(&device, &server.url, &["--delta", &other.url, "--max-download", "300K"]);
    assert_eq!(outcome(&output).0, 3, "{}", outcome(&output).1);
    assert!(device.slots() == before);
}

#[test]
fn damaged_deltas_cost_only_the_bundle() {
    let bench = Bench::new();
    let device = bench.device();
    let old = device.slots()[0].clone();
    let image = edited(&old, 3);
    let [bundle, delta] = [bench.bundle(&image), bench.delta(&old)];
    let server = Server::start(bundle, Vice::None);
    let table = u64::from_le_bytes(delta[88..96].try_into().unwrap()) as usize;
    let flipped = |at: usize| {
        let mut bad = delta.clone();
        bad[at] ^= 0x11;
        bad
    };
    let other_bundle = {
        bench.bundle(&pattern(1 << 20, 77));
        bench.delta(&old)
    };
    let cases = [
        ("nothing", Vec::new()),
        ("no delta", b"<html>".repeat(100)),
        ("for another bundle", other_bundle),
        ("magic", flipped(0)),
        ("old image", flipped(60)),
        ("table", flipped(96 + 4)),
        ("a run", flipped(96 + 12)),
        ("last of the table", flipped(96 + table - 1)),
        ("frame", flipped(96 + table + 30)),
        ("cut in the header", delta[..50].to_vec()),
        ("cut in the table", delta[..100].to_vec()),
        ("cut in the frames", delta[..delta.len() - 10].to_vec()),
    ];
    for (name, bad) in cases {
        let device = bench.device();
        let output = install(&device, &server.url, &["--delta", &bench.file("bad", &bad)]);
        assert!(!outcome(&output).1.contains("panicked"), "{name}: {}", outcome(&output).1);
        assert_installed(&device, &output, &image);
    }
    for vice in [Vice::Corrupts, Vice::Stalls(6000), Vice::Lies, Vice::NoParts] {
        let device = bench.device();
        let other = Server::start(delta.clone(), vice);
        assert_installed(&device, &install(&device, &server.url, &["--delta", &other.url]), &image);
    }
}

#[test]
fn a_server_without_parts_is_refused_when_the_budget_is_less_than_the_whole() {
    let bench = Bench::new();
    let image = pattern(1 << 20, 4);
    let bundle = bench.bundle(&image);
    let device = bench.device();
    let slot_b = device.slots()[1].clone();
    for vice in [Vice::NoParts, Vice::ForgetsParts] {
        let server = Server::start(bundle.clone(), vice);
        let output = install(&device, &server.url, &["--max-download", &(bundle.len() - 1).to_string()]);
        assert_eq!(outcome(&output).0, 3, "{vice:?}: {}", outcome(&output).1);
        assert!(device.slots()[1] == slot_b, "{vice:?}: something was written");
    }
}

#[test]
fn an_image_that_is_in_place_costs_almost_nothing() {
    let bench = Bench::new();
    let device = bench.device();
    let image = pattern(SLOT, 6);
    let bundle = bench.bundle(&image);
    fs::write(device.path("dev/vda3"), &image).unwrap();
    let server = Server::start(bundle, Vice::None);
    let output = install(&device, &server.url, &[]);
    assert_installed(&device, &output, &image);
    assert!(server.sent() < 40_000, "{}", server.sent());
}

#[test]
fn an_index_that_cannot_be_kept_or_removed_is_no_failure() {
    let bench = Bench::new();
    let device = bench.device();
    let image = pattern(SLOT, 6);
    fs::create_dir_all(device.path("mnt/state/twinhull/bundle.index/x")).unwrap();
    let server = Server::start(bench.bundle(&image), Vice::None);
    let output = install(&device, &server.url, &[]);
    assert_installed(&device, &output, &image);
    event(&output, "armed");
    assert!(outcome(&output).1.contains("bundle.index"), "{}", outcome(&output).1);
}

#[test]
fn an_install_that_is_killed_goes_on_where_it_was() {
    let bench = Bench::new();
    let image = pattern(SLOT, 11);
    let bundle = bench.bundle(&image);
    let whole = {
        let (device, server) = (bench.device(), Server::start(bundle.clone(), Vice::None));
        assert_installed(&device, &install(&device, &server.url, &[]), &image);
        assert!(!device.path("mnt/state/twinhull/bundle.index").exists(), "the index is kept for nothing");
        server.sent()
    };
    let device = bench.device();
    let server = Server::start(bundle, Vice::None);
    let mut kills = 0;
    for part in 1..12 {
        let done = install_until(&device, &server, whole * part / 12);
        kills += u32::from(!done);
        assert_eq!(device.status()["boot"]["trial"].is_null(), !done, "{}", device.status());
    }
    assert!(kills > 3, "only {kills} kills");
    let output = install(&device, &server.url, &[]);
    let (code, text) = outcome(&output);
    assert_eq!(code, 0, "{text}");
    assert!(device.slots()[1] == image);
    // What a kill loses is what was asked for last, which is more where answers take long, and the beginning of the bundle.
    let asked = server.asked();
    let len = |range: &str| {
        let (first, last) = range.split_once('-')?;
        Some(last.parse::<u64>().ok()? - first.parse::<u64>().ok()? + 1)
    };
    let longest = asked.iter().filter_map(|r| len(r)).max().unwrap();
    let most = whole + u64::from(kills) * (longest + 18_000);
    assert!(server.sent() <= most, "{} of {most} after {kills} kills", server.sent());
    // The index was fetched once: it lies behind what every process asks for first.
    assert_eq!(server.asked().iter().filter(|r| r.starts_with("4096-")).count(), 1, "{:?}", server.asked());
}

/// Runs an install and kills it as soon as the server has sent `bytes`.
fn install_until(device: &Device, server: &Server, bytes: u64) -> bool {
    let root = device.path("");
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinhull"))
        .args(["--root", root.to_str().unwrap(), "install", &server.url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        if server.sent() >= bytes {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::yield_now();
    }
}
