//! Which ranges of a file are asked for: as few requests as time asks, and as few bytes as that leaves.

use std::ops::Range;

/// A gap up to this is always read over: a request and its answer have about as many bytes.
const GAP_BYTES: u64 = 1024;

/// Joins what is wanted where a request more would cost more than the bytes between, as long as all together takes no
/// longer than one whole download of `total` bytes. `wanted` is in ascending order; a request costs as much time as
/// `per_request` bytes.
pub fn merge(wanted: &[Range<u64>], per_request: u64, total: u64) -> Vec<Range<u64>> {
    let mut gap = GAP_BYTES;
    loop {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in wanted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(gap) => {
                    last.end = last.end.max(range.end)
                }
                _ => merged.push(range.clone()),
            }
        }
        let bytes: u64 = merged.iter().map(|r| r.end - r.start).sum();
        let cost = (merged.len() as u64).saturating_mul(per_request).saturating_add(bytes);
        if merged.len() <= 1 || cost <= total.saturating_add(per_request) {
            return merged;
        }
        gap = gap.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_only_as_far_as_time_asks() {
        let wanted: Vec<_> = (0..100).map(|i| i * 100_000..i * 100_000 + 1000).collect();
        let total = 10_000_000;
        // A quick server: each range is asked for by itself.
        assert_eq!(merge(&wanted, 0, total), wanted);
        assert_eq!(merge(&wanted, 1000, total), wanted);
        // A slow one: few requests, and in all never longer than the whole would take.
        for per_request in [100_000, 1_000_000, 50_000_000] {
            let merged = merge(&wanted, per_request, total);
            let bytes: u64 = merged.iter().map(|r| r.end - r.start).sum();
            assert!(merged.len() as u64 * per_request + bytes <= total + per_request, "{per_request}");
            assert!(wanted.iter().all(|w| merged.iter().any(|m| m.start <= w.start && w.end <= m.end)));
        }
        assert_eq!(merge(&[], 10, total), []);
    }
}
