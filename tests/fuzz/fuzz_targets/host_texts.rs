//! Small texts of the host: the kernel's command line, os-release, supervisor.conf, versions, notes of failed boots.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::engine::supervisor::Conf;
use twinhull::model::{BootFailure, Cmdline, OsRelease, RootSpec, Version};

fuzz_target!(|text: &str| {
    let cmdline = Cmdline::parse(text);
    let _ = (cmdline.root(), cmdline.fsck(), cmdline.emergency(), cmdline.rootwait());
    let _ = (RootSpec::parse(text), BootFailure::parse(text), Conf::parse(text));
    let _ = OsRelease::parse(text).get("VERSION_ID").map(str::len);
    if let Ok(version) = text.parse::<Version>() {
        assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
    }
});
