//! Labels: their names, old and new, and what counts as true.

use std::collections::BTreeMap;

/// Labels of a container, a service or an image.
pub type Labels = BTreeMap<String, String>;

/// Before the name of each feature.
pub const PREFIX: &str = "io.balena.features.";
/// A service with this label may be left out where its requirements are not met.
pub const OPTIONAL: &str = "io.balena.features.optional";
/// Before the name of each requirement; see `contract`.
pub const REQUIRES: &str = "io.balena.features.requires.";

/// What a container can be given of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// The host's journal, read-only.
    JournalLogs,
    /// The system's D-Bus.
    Dbus,
    /// The kernel's modules.
    KernelModules,
    /// The firmware files.
    Firmware,
    /// The container engine's socket.
    BalenaSocket,
    /// The host's `/sys`.
    Sysfs,
    /// The host's `/proc`.
    Procfs,
    /// One GPU.
    Gpu,
    /// A volume where the kernel looks for more firmware.
    ExtraFirmware,
    /// Address and key of the supervisor's API.
    SupervisorApi,
    /// Address and key of the cloud API.
    BalenaApi,
    /// The revision of the board that the OS was built for.
    BoardRev,
}

impl Feature {
    /// All of them, in the order in which they are granted.
    pub const ALL: [Self; 12] = [
        Self::JournalLogs,
        Self::Dbus,
        Self::KernelModules,
        Self::Firmware,
        Self::BalenaSocket,
        Self::Sysfs,
        Self::Procfs,
        Self::Gpu,
        Self::ExtraFirmware,
        Self::SupervisorApi,
        Self::BalenaApi,
        Self::BoardRev,
    ];

    /// The label without its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JournalLogs => "journal-logs",
            Self::Dbus => "dbus",
            Self::KernelModules => "kernel-modules",
            Self::Firmware => "firmware",
            Self::BalenaSocket => "balena-socket",
            Self::Sysfs => "sysfs",
            Self::Procfs => "procfs",
            Self::Gpu => "gpu",
            Self::ExtraFirmware => "extra-firmware",
            Self::SupervisorApi => "supervisor-api",
            Self::BalenaApi => "balena-api",
            Self::BoardRev => "host-os.board-rev",
        }
    }

    /// The whole label.
    pub fn label(self) -> String {
        format!("{PREFIX}{}", self.name())
    }

    /// What a container gets, for people.
    pub const fn gives(self) -> &'static str {
        match self {
            Self::JournalLogs => "the host's journal and machine id, read-only, at their own paths",
            Self::Dbus => "the system D-Bus in /host/run/dbus",
            Self::KernelModules => "/lib/modules",
            Self::Firmware => "/lib/firmware",
            Self::BalenaSocket => "the engine's socket in /host/run/balena-engine.sock, and DOCKER_HOST",
            Self::Sysfs => "the host's /sys",
            Self::Procfs => "the host's /proc",
            Self::Gpu => "one GPU, as docker's --gpus 1",
            Self::ExtraFirmware => "a volume in /extra-firmware where the kernel looks for firmware",
            Self::SupervisorApi => "address and key of the supervisor's API in BALENA_SUPERVISOR_*",
            Self::BalenaApi => "address and key of the cloud API in BALENA_API_URL and BALENA_API_KEY",
            Self::BoardRev => "the board revision in BALENA_HOST_OS_BOARD_REV",
        }
    }
}

/// Labels that decide how a release is installed, and what they do: they give a container nothing.
pub const OTHERS: [(&str, &str); 5] = [
    (OPTIONAL, "the service is left out where its requirements are not met"),
    ("io.balena.features.requires.*", "what the service requires of the device: `twinhull contracts --help`"),
    (
        "io.balena.update.strategy",
        "download-then-kill, kill-then-download, delete-then-download or hand-over",
    ),
    ("io.balena.update.handover-timeout", "ms that a hand-over may take; 60000 unless given"),
    ("io.balena.update.requires-reboot", "the new container is started after a reboot"),
];

/// Whether a label's value switches it on: `1`, `true` or `on`, the words in any case. Nothing else does.
pub fn is_true(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("on")
}

/// The labels under today's names: each `io.resin.*` becomes `io.balena.*`, with every `resin` in it; a label that
/// has today's name already wins.
pub fn normalize(labels: &Labels) -> Labels {
    let legacy = |name: &str| name.starts_with("io.resin.");
    let renamed =
        labels.iter().filter(|(k, _)| legacy(k)).map(|(k, v)| (k.replace("resin", "balena"), v.clone()));
    let mut all: Labels = renamed.collect();
    all.extend(labels.iter().filter(|(k, _)| !legacy(k)).map(|(k, v)| (k.clone(), v.clone())));
    all
}

/// The labels of a container: those of its service, under them those of its image, with today's names.
///
/// The two are put together first and renamed then, as the supervisor does: an image's `io.balena.*` label wins over a
/// service's `io.resin.*` one.
pub fn of_container(service: &Labels, image: &Labels) -> Labels {
    let mut all = image.clone();
    all.extend(service.iter().map(|(k, v)| (k.clone(), v.clone())));
    normalize(&all)
}

/// The features that are switched on by labels with today's names.
pub fn features(labels: &Labels) -> Vec<Feature> {
    let on = |f: &Feature| labels.get(&f.label()).is_some_and(|v| is_true(v));
    Feature::ALL.into_iter().filter(on).collect()
}

/// Labels that begin like a feature's and are none: most often a typing error. They give nothing.
pub fn unknown(labels: &Labels) -> Vec<String> {
    let known = |name: &str| {
        name == OPTIONAL || name.starts_with(REQUIRES) || Feature::ALL.iter().any(|f| f.label() == name)
    };
    labels.keys().filter(|k| k.starts_with(PREFIX) && !known(k)).cloned().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// Values and verdicts of `checkTruthy` in the supervisor's test/unit/lib/validation.spec.ts, and near misses.
    #[test]
    fn exactly_one_true_and_on_are_true() {
        for value in ["1", "true", "TRUE", "True", "on", "ON", "oN"] {
            assert!(is_true(value), "{value:?}");
        }
        for value in
            ["0", "", "false", "off", "yes", "y", "TRUE ", " 1", "1 ", "01", "2", "enabled", "tru", "null"]
        {
            assert!(!is_true(value), "{value:?}");
        }
    }

    #[test]
    fn old_names_are_renamed_and_todays_win() {
        let given = labels(&[
            ("io.resin.features.resin-api", "1"),
            ("io.resin.features.dbus", "1"),
            ("io.balena.features.dbus", "0"),
            ("com.resin.features.sysfs", "1"),
            ("io.resinous", "1"),
        ]);
        let expected = labels(&[
            ("io.balena.features.balena-api", "1"),
            ("io.balena.features.dbus", "0"),
            ("com.resin.features.sysfs", "1"),
            ("io.resinous", "1"),
        ]);
        assert_eq!(normalize(&given), expected);
    }

    #[test]
    fn image_labels_lie_under_those_of_the_service() {
        let image = labels(&[("io.balena.features.dbus", "1"), ("io.balena.features.sysfs", "1")]);
        let service = labels(&[("io.balena.features.dbus", "0"), ("io.resin.features.sysfs", "0")]);
        let all = of_container(&service, &image);
        // sysfs: the image's own name is today's, so it wins, as on balenaOS.
        assert_eq!(features(&all), [Feature::Sysfs]);
        assert_eq!(features(&of_container(&Labels::new(), &image)), [Feature::Dbus, Feature::Sysfs]);
    }

    #[test]
    fn a_label_that_is_no_feature_is_noticed() {
        let given = labels(&[
            ("io.balena.features.d-bus", "1"),
            ("io.balena.features.optional", "1"),
            ("io.balena.features.requires.sw.l4t", "32"),
            ("io.balena.features.gpu", "1"),
            ("other", "1"),
        ]);
        assert_eq!(unknown(&given), ["io.balena.features.d-bus"]);
    }
}
