//! Sizes for people.

/// A size with two digits or more: `256 MiB`, `3.6 GiB`, `512 B`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = UNITS[0];
    let mut divisor: u64 = 1;
    for next in &UNITS[1..] {
        if bytes / divisor < 1024 {
            break;
        }
        divisor *= 1024;
        unit = next;
    }
    let whole = bytes / divisor;
    // Rounded down, so that nothing is claimed that is not there.
    let tenths = bytes % divisor / (divisor / 10).max(1);
    if whole < 10 && (1..10).contains(&tenths) {
        format!("{whole}.{tenths} {unit}")
    } else {
        format!("{whole} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes() {
        for (bytes, expected) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            ((256 << 20) - 1, "255 MiB"),
            (3_900_000_000, "3.6 GiB"),
            (64 << 30, "64 GiB"),
            (10 << 40, "10 TiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(human(bytes), expected, "{bytes}");
        }
    }
}
