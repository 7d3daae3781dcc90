//! The boards: everything in which they differ, as data.

use crate::Outcome;
use crate::layout::{Layout, Role, Table};

/// A board of the lab.
#[derive(Debug)]
pub struct Board {
    /// Its name on the command line.
    pub name: &'static str,
    /// What QEMU makes of it.
    pub machine: Machine,
    /// Who chooses the slot.
    pub bootloader: Bootloader,
    /// Its disk.
    pub layout: &'static Layout,
    /// What runs on it.
    pub system: System,
    /// The kernel's command line, besides `root=`.
    pub command_line: &'static str,
    /// As in `device-type.json` and in bundles.
    pub device_type: &'static str,
    /// The device type's name for people.
    pub title: &'static str,
    /// Whether a hang ends by a watchdog in QEMU as well.
    pub has_watchdog: bool,
    /// Whether a kernel that panics can leave its last words.
    pub has_pstore: bool,
    /// Whether another disk is in it that looks the same: it must stay as it is.
    pub has_second_disk: bool,
}

/// A machine of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// q35 with OVMF and an NVMe disk.
    Nuc,
    /// virt with U-Boot and a virtio disk.
    VirtUboot,
    /// virt with AAVMF, which is UEFI, and a virtio disk.
    VirtUefi,
    /// raspi3b with U-Boot and an SD card.
    Raspberry {
        /// The device tree of the board that it is, among those of the kernel.
        device_tree: &'static str,
    },
}

/// Who chooses the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootloader {
    /// GRUB with `boot/grub`.
    Grub,
    /// systemd-boot with counted entries.
    SystemdBoot,
    /// U-Boot with `boot/uboot`.
    UbootText,
    /// UEFI's own boot manager.
    Efi,
    /// The Raspberry Pi's firmware, for which `boot_rom` stands in.
    Tryboot,
}

/// What runs on a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Debian: systemd, the container engine, the supervisor.
    Debian {
        /// What PID 1 loads, separated by commas.
        modules: &'static str,
    },
    /// For arm64: busybox, and an init that does what systemd does with twinhull's units. No containers.
    Small {
        /// Where the bootloader looks for the kernel, in the words of `qemu/image/arm/root`.
        kernel: &'static str,
        /// What PID 1 loads, separated by commas.
        modules: &'static str,
    },
}

/// Sizes as on balenaOS, but for the data partition.
const NUC: Layout = Layout {
    table: Table::Gpt,
    disk_mib: 3072,
    partitions: &[
        (Role::Boot, 64),
        (Role::Root(0), 320),
        (Role::Root(1), 320),
        (Role::State, 32),
        (Role::Data, 160),
    ],
};

/// The same disk as it is written to a device: nothing behind the data partition but the copy of the table.
const NUC_IMAGE: Layout = Layout { disk_mib: 898, ..NUC };

/// An installer's medium, with room for the image of a whole disk.
const NUC_INSTALLER_DISK: Layout = Layout {
    table: Table::Gpt,
    disk_mib: 1058,
    partitions: &[
        (Role::Boot, 64),
        (Role::Root(0), 320),
        (Role::Root(1), 320),
        (Role::State, 32),
        (Role::Data, 320),
    ],
};

/// The nuc's disk as an installer has it.
pub const NUC_FLASHED: Board = Board { layout: &NUC_IMAGE, ..ALL[0] };

/// The nuc when it was started from an installer's medium.
pub const NUC_INSTALLER: Board = Board {
    layout: &NUC_INSTALLER_DISK,
    command_line: "TERM=dumb console=ttyS0,115200 lsm=capability audit=0 mitigations=off tsc=reliable \
                   no_timer_check flasher",
    ..ALL[0]
};

/// `panic=1`: the 5 s of the boot script are 5 s of a busy processor. `lsm=`: without SELinux and AppArmor.
const NUC_COMMAND_LINE: &str = "TERM=dumb console=ttyS0,115200 lsm=capability audit=0 mitigations=off \
                                tsc=reliable no_timer_check panic=1";

/// As the NUC's, without kernels on the boot partition.
const DEBIAN_GPT: Layout = Layout {
    table: Table::Gpt,
    disk_mib: 1536,
    partitions: &[
        (Role::Boot, 40),
        (Role::Root(0), 400),
        (Role::Root(1), 400),
        (Role::State, 32),
        (Role::Data, 160),
    ],
};

/// For systems of 80 MiB.
const SMALL_GPT: Layout = Layout {
    table: Table::Gpt,
    disk_mib: 512,
    partitions: &[
        (Role::Boot, 40),
        (Role::Root(0), 80),
        (Role::Root(1), 80),
        (Role::State, 16),
        (Role::Data, 32),
    ],
};

/// With room for two kernels and an update on the boot partition.
const SMALL_GPT_EFI: Layout = Layout {
    table: Table::Gpt,
    disk_mib: 512,
    partitions: &[
        (Role::Boot, 160),
        (Role::Root(0), 80),
        (Role::Root(1), 80),
        (Role::State, 16),
        (Role::Data, 32),
    ],
};

/// An SD card, with room for bundles on the data partition.
const SMALL_MBR: Layout = Layout {
    table: Table::Mbr,
    disk_mib: 512,
    partitions: &[
        (Role::Boot, 40),
        (Role::Root(0), 80),
        (Role::Root(1), 80),
        (Role::Extended, 82),
        (Role::State, 16),
        (Role::Data, 64),
    ],
};

/// An SD card with a boot partition for each slot, which must be primary ones.
const SMALL_MBR_TRYBOOT: Layout = Layout {
    table: Table::Mbr,
    disk_mib: 512,
    partitions: &[
        (Role::Boot, 40),
        (Role::SlotBoot(0), 60),
        (Role::SlotBoot(1), 60),
        (Role::Extended, 244),
        (Role::Root(0), 80),
        (Role::Root(1), 80),
        (Role::State, 16),
        (Role::Data, 64),
    ],
};

/// The boot partition's file system, and where the firmware keeps the last words of a kernel.
const NUC_MODULES: &str = "vfat,nls_cp437,nls_ascii,efi-pstore";

/// A watchdog that bites after 60 s: the machine that emulates may be busy.
const VIRT_MODULES: &str = "virtio_mmio,virtio_pci,virtio_blk,ext4,vfat,nls_cp437,nls_ascii,nls_utf8,virtio_net,\
                            virtio_console,virtio-rng,dm-verity,sha256_generic,i6300esb heartbeat=60";

const VIRT_EFI_MODULES: &str = "virtio_mmio,virtio_pci,virtio_blk,ext4,vfat,nls_cp437,nls_ascii,nls_utf8,e1000e,\
                                virtio_console,virtio-rng,i6300esb heartbeat=60,efivarfs,efi-pstore";

/// The watchdog is what restarts the machine.
const RASPBERRY_MODULES: &str =
    "bcm2835_wdt,bcm2835,sdhci-iproc,ext4,vfat,nls_cp437,nls_ascii,nls_utf8,bcm2835-rng";

const RASPBERRY_COMMAND_LINE: &str = "console=ttyS1,115200";

/// All boards.
pub const ALL: &[Board] = &[
    Board {
        name: "nuc",
        machine: Machine::Nuc,
        bootloader: Bootloader::Grub,
        layout: &NUC,
        system: System::Debian { modules: NUC_MODULES },
        command_line: NUC_COMMAND_LINE,
        device_type: "intel-nuc",
        title: "Intel NUC",
        has_watchdog: true,
        has_pstore: true,
        has_second_disk: false,
    },
    Board {
        name: "nuc-sdboot",
        machine: Machine::Nuc,
        bootloader: Bootloader::SystemdBoot,
        layout: &NUC,
        system: System::Debian { modules: NUC_MODULES },
        command_line: NUC_COMMAND_LINE,
        device_type: "intel-nuc",
        title: "Intel NUC",
        has_watchdog: true,
        has_pstore: true,
        has_second_disk: true,
    },
    Board {
        name: "raspberrypi3",
        machine: Machine::Raspberry { device_tree: "broadcom/bcm2837-rpi-3-b.dtb" },
        bootloader: Bootloader::UbootText,
        layout: &SMALL_MBR,
        system: System::Small { kernel: "image", modules: RASPBERRY_MODULES },
        command_line: RASPBERRY_COMMAND_LINE,
        device_type: "raspberrypi3",
        title: "Raspberry Pi 3",
        has_watchdog: false,
        has_pstore: false,
        has_second_disk: false,
    },
    Board {
        name: "fincm3",
        machine: Machine::Raspberry { device_tree: "broadcom/bcm2837-rpi-cm3-io3.dtb" },
        bootloader: Bootloader::UbootText,
        layout: &SMALL_MBR,
        system: System::Small { kernel: "image", modules: RASPBERRY_MODULES },
        command_line: RASPBERRY_COMMAND_LINE,
        device_type: "fincm3",
        title: "balenaFin",
        has_watchdog: false,
        has_pstore: false,
        has_second_disk: false,
    },
    Board {
        name: "raspberrypi4",
        machine: Machine::Raspberry { device_tree: "broadcom/bcm2837-rpi-3-b.dtb" },
        bootloader: Bootloader::Tryboot,
        layout: &SMALL_MBR_TRYBOOT,
        system: System::Small { kernel: "firmware", modules: RASPBERRY_MODULES },
        command_line: RASPBERRY_COMMAND_LINE,
        device_type: "raspberrypi4-64",
        title: "Raspberry Pi 4",
        has_watchdog: false,
        has_pstore: false,
        has_second_disk: false,
    },
    Board {
        name: "jetson-tx2",
        machine: Machine::VirtUboot,
        bootloader: Bootloader::UbootText,
        layout: &SMALL_GPT,
        system: System::Small { kernel: "extlinux", modules: VIRT_MODULES },
        command_line: "console=ttyAMA0",
        device_type: "jetson-tx2",
        title: "Nvidia Jetson TX2",
        has_watchdog: true,
        has_pstore: false,
        has_second_disk: false,
    },
    Board {
        name: "jetson-tx2-systemd",
        machine: Machine::VirtUboot,
        bootloader: Bootloader::UbootText,
        layout: &DEBIAN_GPT,
        system: System::Debian { modules: VIRT_MODULES },
        command_line: "TERM=dumb console=ttyAMA0 lsm=capability audit=0 mitigations=off",
        device_type: "jetson-tx2",
        title: "Nvidia Jetson TX2",
        has_watchdog: true,
        has_pstore: false,
        has_second_disk: false,
    },
    Board {
        name: "jetson-orin",
        machine: Machine::VirtUefi,
        bootloader: Bootloader::Efi,
        layout: &SMALL_GPT_EFI,
        system: System::Small { kernel: "fat", modules: VIRT_EFI_MODULES },
        command_line: "console=ttyAMA0",
        device_type: "jetson-agx-orin-devkit",
        title: "Nvidia Jetson AGX Orin",
        has_watchdog: true,
        has_pstore: true,
        has_second_disk: true,
    },
];

/// The board of that name. The error says which there are.
pub fn named(name: &str) -> Outcome<&'static Board> {
    ALL.iter().find(|b| b.name == name).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|b| b.name).collect();
        format!("no board {name:?}; there are: {}", names.join(", "))
    })
}

impl Board {
    /// The architecture, in twinhull's words.
    pub const fn arch(&self) -> &'static str {
        if self.is_arm() { "aarch64" } else { "amd64" }
    }

    /// Whether its processor is an ARM.
    pub const fn is_arm(&self) -> bool {
        !matches!(self.machine, Machine::Nuc)
    }

    /// Whether it has a network in QEMU. Linux and QEMU's USB of the Raspberry Pi do not understand each other.
    pub const fn has_network(&self) -> bool {
        !matches!(self.machine, Machine::Raspberry { .. })
    }

    /// What must be there to build and run it, in words that `qemu/run` knows.
    pub fn needs(&self) -> [&'static str; 2] {
        let machine = if self.is_arm() { "arm" } else { "x86" };
        let bootloader = match self.bootloader {
            Bootloader::Grub => "grub",
            Bootloader::SystemdBoot => "systemd-boot",
            Bootloader::UbootText => "u-boot",
            Bootloader::Efi => "efi",
            Bootloader::Tryboot => "tryboot",
        };
        [bootloader, machine]
    }

    /// Machine, bootloader and disk for people.
    pub const fn words(&self) -> [&'static str; 3] {
        let machine = match self.machine {
            Machine::Nuc => "x86_64, q35 + OVMF",
            Machine::VirtUboot => "arm64, virt",
            Machine::VirtUefi => "arm64, virt + AAVMF",
            Machine::Raspberry { .. } => "arm64, raspi3b",
        };
        let disk = match self.machine {
            Machine::Nuc => "NVMe, GPT",
            Machine::VirtUboot | Machine::VirtUefi => "virtio, GPT",
            Machine::Raspberry { .. } => "SD, MBR",
        };
        [machine, self.bootloader.words(), disk]
    }
}

impl System {
    /// Whether it runs containers.
    pub const fn has_engine(self) -> bool {
        match self {
            Self::Debian { .. } => true,
            Self::Small { .. } => false,
        }
    }

    /// What its console shows when it hangs.
    pub const fn sign_of_hang(self) -> &'static str {
        match self {
            // systemd that freezes lets go of everything; the kernel says this of the watchdog.
            Self::Debian { .. } => "watchdog did not stop!",
            Self::Small { .. } => "lab: all stands still",
        }
    }
}

impl Bootloader {
    /// Its name for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::UbootText => "U-Boot",
            Self::Efi => "UEFI variables",
            Self::Tryboot => "tryboot, simulated",
        }
    }

    /// Its name in twinhull's words.
    pub const fn chooser(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::SystemdBoot => "systemd-boot",
            Self::UbootText => "uboot-text",
            Self::Efi => "efi",
            Self::Tryboot => "tryboot",
        }
    }

    /// Whether kernel and initramfs of each slot are on FAT, so that bundles must bring them.
    pub const fn boots_from_fat(self) -> bool {
        match self {
            Self::Grub | Self::UbootText => false,
            Self::SystemdBoot | Self::Efi | Self::Tryboot => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disk_holds_its_partitions() {
        for board in ALL {
            let places = board.layout.places();
            let end = places.iter().map(|p| p.start_mib + p.len_mib).max();
            // A GPT has a copy of itself at the end.
            assert!(end < Some(board.layout.disk_mib), "{}", board.name);
            for role in [Role::Boot, Role::Root(0), Role::Root(1), Role::State, Role::Data] {
                assert!(board.layout.place(role).is_some(), "{}", board.name);
            }
            // What grows is the last one, and an extended partition ends with it.
            assert_eq!(places.last().map(|p| p.role), Some(Role::Data));
            let extended = places.iter().find(|p| p.role == Role::Extended);
            assert!(extended.is_none_or(|p| Some(p.start_mib + p.len_mib) == end), "{}", board.name);
        }
    }

    #[test]
    fn sd_cards_have_the_size_that_qemu_takes() {
        let cards = ALL.iter().filter(|b| matches!(b.machine, Machine::Raspberry { .. }));
        assert!(cards.map(|b| b.layout.disk_mib).all(u64::is_power_of_two));
    }
}
