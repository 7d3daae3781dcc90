//! What runs in the services of the tests: says who it is, counts its starts in /data, looks for a peer by its name.
//! Built by itself, without any crate.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::ToSocketAddrs;
use std::time::Duration;

fn main() {
    // Also the HEALTHCHECK of the image.
    if std::env::args().nth(1).as_deref() == Some("healthcheck") {
        return;
    }
    end_on_sigterm();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (name, version) = (variable("BALENA_SERVICE_NAME"), variable("LAB_SUPERVISOR_VERSION"));
    if let Ok(mut starts) = OpenOptions::new().create(true).append(true).open("/data/starts") {
        writeln!(starts, "{name} {version}").unwrap();
    }
    let starts = fs::read_to_string("/data/starts").unwrap_or_default();
    println!("{name} {version}, starts: {}", starts.lines().count());
    let peer = variable("PEER");
    if !peer.is_empty() {
        let found = (peer.as_str(), 80).to_socket_addrs().ok().and_then(|mut all| all.next());
        println!("peer {peer}: {}", found.map_or("none".into(), |a| a.ip().to_string()));
    }
    eprintln!("{name} waits");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// The first process of a container has no default action for SIGTERM: without a handler `stop` would have to kill.
fn end_on_sigterm() {
    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn _exit(code: i32) -> !;
    }
    extern "C" fn end(number: i32) {
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { _exit(128 + number) }
    }
    // SAFETY: `end` has the signature that signal(2) wants and calls nothing that a handler may not.
    unsafe { signal(15, end) };
}
