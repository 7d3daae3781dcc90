//! config.json, as balena's tools, a person with an editor, or a power cut leave it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::config::ConfigJson;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut config) = ConfigJson::parse("config.json".into(), bytes) else { return };
    let _ = (
        config.uuid(),
        config.api_endpoint(),
        config.device_id(),
        config.root_ca_pem(),
        config.development_mode(),
    );
    let keys: Vec<String> = config.keys().map(str::to_owned).collect();
    if config.set("uuid", "0123").is_ok() {
        let again = ConfigJson::parse("config.json".into(), config.text().as_bytes()).unwrap();
        assert_eq!(again.value("uuid"), Some("0123".into()));
        // Keys that are not ours stay.
        assert!(keys.iter().all(|key| again.keys().any(|k| k == key)));
    }
    if let Some(key) = keys.first()
        && config.remove(key).is_ok()
    {
        ConfigJson::parse("config.json".into(), config.text().as_bytes()).unwrap();
    }
});
