//! What people and the cloud decide: settings of the image (TOML fragments) and the device's `config.json`.

pub mod apply;
mod config_json;
mod json_text;
pub mod keys;
mod last_good;
mod settings;

pub use config_json::{ConfigJson, Origin};
pub use last_good::damaged_texts;
pub use settings::{Boot, Bundle, Chooser, Engine, FlashEnd, Health, Init, Provision, Settings, Supervisor};
