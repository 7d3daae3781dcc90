//! The board lab of twinhull: builds images, boots boards in QEMU, plays scenarios.

fn main() {}
