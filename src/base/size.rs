//! How sizes are written for people, everywhere.

/// A size in units of 1024 under the labels KB, MB, GB: `812 B`, `37.0 MB`, `13.5 GB`, `478 MB`.
#[must_use]
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.5 would be printed as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 99.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_as_in_the_contract() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KB"),
            (1024 * 1024 - 1, "1.0 MB"),
            (14_495_514_624, "13.5 GB"),
            (501_219_328, "478 MB"),
            (104_810_000, "100 MB"),
            (104_700_000, "99.8 MB"),
            (1_073_741_823, "1.0 GB"),
            (u64::MAX, "16384 PB"),
        ] {
            assert_eq!(human_bytes(bytes), text, "{bytes}");
        }
    }
}
