//! What people and the cloud decide: settings of the image (TOML fragments) and the device's `config.json`.

mod config_json;
mod settings;

pub use config_json::ConfigJson;
pub use settings::{Boot, Bundle, Chooser, Engine, Health, Init, Provision, Settings, Supervisor};
