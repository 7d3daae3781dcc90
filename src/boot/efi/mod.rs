//! UEFI's own boot manager, through its variables: `BootOrder` names the primary's entry, `BootNext` starts the trial's once.
//! UEFI does not count, so the tries are counted here, in a variable of our own.

mod chooser;
mod device_path;
mod efivarfs;
mod load_option;
mod template;
mod trial;

pub use chooser::{BOOT_NEXT, BOOT_ORDER, EfiBoot, VariableStore, entry_file};
pub use device_path::Volume;
pub use efivarfs::Efivarfs;
pub use load_option::LoadOption;
pub use template::{Template, Where, template_name};
pub use trial::TRIAL;
