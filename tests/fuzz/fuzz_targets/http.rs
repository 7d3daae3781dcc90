//! What a server answers, from the status line on: the same bytes to every request.
#![no_main]
mod lab;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use twinhull::bundle::source;

static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// The address of a server that answers with `ANSWER` and closes.
fn server() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/b", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 2048]);
                let answer = ANSWER.lock().unwrap().clone();
                let _ = stream.write_all(&answer);
            }
        });
        url
    })
}

fuzz_target!(|bytes: &[u8]| {
    // A redirect could lead anywhere in the world.
    if bytes.windows(8).any(|w| w.eq_ignore_ascii_case(b"location")) {
        return;
    }
    *ANSWER.lock().unwrap() = bytes.to_vec();
    let Ok(mut source) = source::open(server(), &lab::reach()) else { return };
    source.plan([0..300, 5000..6000]);
    let mut content = Vec::new();
    let _ = (&mut source).take(300).read_to_end(&mut content);
    if source.skip_to(5000..6000).is_ok() {
        let _ = (&mut source).take(1000).read_to_end(&mut content);
    }
});
