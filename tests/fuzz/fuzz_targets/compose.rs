//! Compose files, and YAML below them.
#![no_main]
mod lab;

use libfuzzer_sys::fuzz_target;
use twinhull::compose::{Composition, Definition, Node};
use twinhull::feature::label;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(node) = Node::parse(text)
    {
        let _ = node.to_json();
    }
    let path = lab::scratch("docker-compose.yml", bytes);
    let Ok(composition) = Composition::load(&path) else { return };
    for service in composition.select(None).unwrap_or_default() {
        let _ = (label::features(&service.labels), label::unknown(&service.labels), service.contract());
        let _ = Definition::of(&service.node);
    }
});
