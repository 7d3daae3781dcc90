//! systemd-boot: an entry per slot in `loader/entries`, with the tries left in its file name (`+LEFT-DONE`), which
//! systemd-boot counts down by renaming.

mod chooser;
mod entry;

pub use chooser::SystemdBoot;
pub use entry::{Entry, EntryName, template_name};
