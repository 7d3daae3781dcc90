//! What is recorded: the words that the lab on the host and its program in the guest share.

/// What is done to each environment, one after the other, from a device that is settled on slot A.
pub const STEPS: [Step; 7] = [
    Step { action: Action::Disarm, slot: 'A' },
    Step { action: Action::Arm, slot: 'B' },
    Step { action: Action::Disarm, slot: 'A' },
    Step { action: Action::Arm, slot: 'B' },
    Step { action: Action::Commit, slot: 'B' },
    Step { action: Action::Arm, slot: 'A' },
    Step { action: Action::Disarm, slot: 'B' },
];

/// The tries of each trial.
#[allow(dead_code)] // of the guest alone
pub const TRIES: u8 = 3;

/// How a mark in the log begins; a mark is a write to a partition of its own.
pub const MARK: &str = "twinhull-lab mark: ";

/// What the guest says when all is recorded.
pub const RECORDED: &str = "lab: recorded";

/// One change of the boot plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To which slot.
    pub slot: char,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let action = match self.action {
            Action::Arm => "arm",
            Action::Commit => "commit",
            Action::Disarm => "disarm",
        };
        write!(f, "{action} {}", self.slot)
    }
}

/// A change of the boot plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A trial of the slot begins.
    Arm,
    /// The slot becomes the primary.
    Commit,
    /// The trial ends, and the slot stays the primary.
    Disarm,
}

/// What is recorded on one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// twinhull, with GRUB's block.
    Grub,
    /// twinhull, with balena-bootloader's block.
    Bootenv,
    /// twinhull, with U-Boot's text files.
    UbootText,
    /// twinhull, with a single environment of U-Boot.
    UbootEnv,
    /// twinhull, with a redundant one.
    UbootEnvRedundant,
    /// twinhull, with PID 1's own counter.
    Initramfs,
    /// twinhull, with systemd-boot's entries.
    SystemdBoot,
    /// twinhull, with the Raspberry Pi's `autoboot.txt`.
    Tryboot,
    /// twinhull, with a file that no bootloader reads: `config.json`, as balena's fatrw writes it.
    Fatrw,
    /// `grub-editenv`, with GRUB's block.
    GrubEditenv,
    /// `fw_setenv`, with a single environment.
    FwSetenv,
    /// `fw_setenv`, with a redundant one.
    FwSetenvRedundant,
}

impl Writer {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Grub,
        Self::UbootText,
        Self::SystemdBoot,
        Self::Tryboot,
        Self::UbootEnv,
        Self::UbootEnvRedundant,
        Self::Initramfs,
        Self::Bootenv,
        Self::Fatrw,
        Self::GrubEditenv,
        Self::FwSetenv,
        Self::FwSetenvRedundant,
    ];

    /// Its name on the command line; twinhull's are those of `boot.chooser`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::Bootenv => "balena-bootloader",
            Self::UbootText => "uboot-text",
            Self::UbootEnv => "uboot-env",
            Self::UbootEnvRedundant => "uboot-env-redundant",
            Self::Initramfs => "initramfs",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "tryboot",
            Self::Fatrw => "fatrw",
            Self::GrubEditenv => "grub-editenv",
            Self::FwSetenv => "fw_setenv",
            Self::FwSetenvRedundant => "fw_setenv-redundant",
        }
    }

    /// The writer of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|w| w.name() == name)
    }
}

/// The file that is written with fatrw.
pub const CONFIG_FILE: &str = "config.json";

/// What stands in it after a step: of several lengths, most of them longer than a cluster.
pub fn config_content(step: Step) -> Vec<u8> {
    let lines = match step.action {
        Action::Arm => 90,
        Action::Commit => 20,
        Action::Disarm => 55,
    };
    format!("{{\"step\":\"{step}\",\"note\":\"nothing of this may change\"}}\n").repeat(lines).into_bytes()
}

/// The size of a copy of U-Boot's environment: what Debian's U-Boot for the Raspberry Pi 3 has on FAT.
pub const ENVIRONMENT_BYTES: usize = 0x4000;
/// The files of U-Boot's environment on FAT, by U-Boot's own names.
pub const ENVIRONMENT_FILES: [&str; 2] = ["uboot.env", "uboot-redund.env"];
