//! How a board's disk is divided: kinds, sizes and ids of its partitions.

/// The id that the disk's own and its partitions' ids begin with: command lines are written before there is a disk.
const ID: &str = "74776e68";
const MIB_SECTORS: u64 = 2048;

/// The kind of partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// With names.
    Gpt,
    /// Without; partitions from 5 on are logical.
    Mbr,
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// FAT: the bootloader, its environment, `config.json`.
    Boot,
    /// FAT: kernel and initramfs of slot A (0) or B (1), where each has a partition for them.
    SlotBoot(usize),
    /// The root of slot A (0) or B (1).
    Root(usize),
    /// What the logical partitions of an MBR are in.
    Extended,
    /// What survives updates.
    State,
    /// Containers; the last one, grown on first boot.
    Data,
}

/// A disk: its table, its whole size, and its partitions one after the other from 1 MiB on.
#[derive(Debug)]
pub struct Layout {
    /// The kind of table.
    pub table: Table,
    /// The whole disk, in MiB. SD cards in QEMU must be a power of two.
    pub disk_mib: u64,
    /// Roles and sizes in MiB, by number. An extended partition's size is that of all after it.
    pub partitions: &'static [(Role, u64)],
}

/// Where a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it is for.
    pub role: Role,
    /// Its number in the table, from 1.
    pub number: usize,
    /// Its first byte, in MiB.
    pub start_mib: u64,
    /// Its length in MiB.
    pub len_mib: u64,
}

impl Layout {
    /// Where each partition is.
    pub fn places(&self) -> Vec<Place> {
        let mut next = 1;
        let mut places = Vec::new();
        for (n, (role, mib)) in self.partitions.iter().enumerate() {
            // A logical partition has its own record before it.
            let logical = self.table == Table::Mbr && n >= 4;
            let start_mib = next + u64::from(logical);
            let (number, len_mib) = (n + 1, *mib);
            places.push(Place { role: *role, number, start_mib, len_mib });
            next = if *role == Role::Extended { start_mib } else { start_mib + len_mib };
        }
        places
    }

    /// Where the partition of a role is.
    pub fn place(&self, role: Role) -> Option<Place> {
        self.places().into_iter().find(|p| p.role == role)
    }

    /// `PARTUUID` of the partition of a role, as the kernel writes it.
    pub fn partuuid(&self, role: Role) -> String {
        self.place(role).map_or_else(String::new, |p| self.id(p.number))
    }

    fn id(&self, number: usize) -> String {
        match self.table {
            Table::Gpt => format!("{ID}-756c-4c00-8000-0000000000{number:02x}"),
            Table::Mbr => format!("{ID}-{number:02x}"),
        }
    }

    /// The table in the words of sfdisk(8).
    pub fn script(&self) -> String {
        let mut script = match self.table {
            Table::Gpt => "label: gpt\n".to_owned(),
            Table::Mbr => format!("label: dos\nlabel-id: 0x{ID}\n"),
        };
        for p in self.places() {
            let (start, size) = (p.start_mib * MIB_SECTORS, p.len_mib * MIB_SECTORS);
            script.push_str(&format!("{}: start={start}, size={size}, ", p.number));
            script.push_str(&match self.table {
                Table::Gpt => {
                    let kind = if matches!(p.role, Role::Boot | Role::SlotBoot(_)) { "U" } else { "L" };
                    format!("type={kind}, name={}, uuid={}\n", label(p.role), self.id(p.number))
                }
                Table::Mbr => match p.role {
                    Role::Boot | Role::SlotBoot(_) => "type=c, bootable\n".to_owned(),
                    Role::Extended => "type=5\n".to_owned(),
                    Role::Root(_) | Role::State | Role::Data => "type=83\n".to_owned(),
                },
            });
        }
        script
    }
}

/// The label of a partition's file system, and its name in a GPT.
pub const fn label(role: Role) -> &'static str {
    match role {
        Role::Boot => "resin-boot",
        Role::SlotBoot(0) => "boot-a",
        Role::SlotBoot(_) => "boot-b",
        Role::Root(0) => "resin-rootA",
        Role::Root(_) => "resin-rootB",
        Role::Extended => "",
        Role::State => "resin-state",
        Role::Data => "resin-data",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT: Layout = Layout {
        table: Table::Gpt,
        disk_mib: 512,
        partitions: &[(Role::Boot, 64), (Role::Root(0), 100), (Role::Root(1), 100)],
    };
    const MBR: Layout = Layout {
        table: Table::Mbr,
        disk_mib: 512,
        partitions: &[
            (Role::Boot, 64),
            (Role::Root(0), 100),
            (Role::Root(1), 100),
            (Role::Extended, 50),
            (Role::State, 16),
            (Role::Data, 32),
        ],
    };

    #[test]
    fn partitions_follow_one_another() {
        let starts: Vec<_> = GPT.places().iter().map(|p| p.start_mib).collect();
        assert_eq!(starts, [1, 65, 165]);
        // The record of each logical partition takes the space before it; the extended partition holds them all.
        let places = MBR.places();
        assert_eq!(places[3].start_mib, 265);
        assert_eq!((places[4].start_mib, places[5].start_mib), (266, 283));
        assert_eq!(places[3].start_mib + places[3].len_mib, places[5].start_mib + places[5].len_mib);
    }

    #[test]
    fn ids_are_those_of_the_table() {
        assert_eq!(MBR.partuuid(Role::Root(1)), "74776e68-03");
        let id = GPT.partuuid(Role::Root(0));
        assert!(GPT.script().contains(&format!("name=resin-rootA, uuid={id}\n")));
        assert!(MBR.script().contains("5: start=544768, size=32768, type=83\n"));
    }
}
