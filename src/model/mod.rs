//! Pure values and the decisions between them: no I/O, no clock, nothing of this crate but [`crate::Error`].

pub mod boot_failure;
pub mod boot_id;
pub mod bootplan;
pub mod boots;
pub mod cmdline;
pub mod device;
pub mod digest;
pub mod kernel_log;
pub mod manifest;
pub mod os_release;
pub mod payload;
pub mod phase;
pub mod record;
pub mod reset;
pub mod slot;
pub mod toml_text;
pub mod verity;
pub mod version;

pub use boot_failure::{BOOT_FAILURE, BOOT_NOTES, BootFailure, LASTING_NOTES};
pub use boot_id::BootId;
pub use bootplan::{BootPlan, Trial};
pub use boots::{Boots, Evidence, GIVEN_BACK_MAX};
pub use cmdline::{Cmdline, Fsck, RootSpec};
pub use digest::Digest;
pub use kernel_log::last_words;
pub use manifest::Manifest;
pub use os_release::{OS_RELEASE, OsRelease};
pub use payload::{FileEntry, Payload, PayloadKind};
pub use reset::{KEPT_OF_DATA, KEPT_OF_STATE, RESET_REQUEST, ResetRequest};
pub use slot::Slot;
pub use toml_text::TomlText;
pub use verity::Verity;
pub use version::Version;
