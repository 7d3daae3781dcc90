//! Which boot of the kernel this is.

/// The kernel's random id of one boot (`/proc/sys/kernel/random/boot_id`): equal ids, same boot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BootId(pub String);
