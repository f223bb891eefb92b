//! Sizes in bytes, as people write and read them.

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Parses `4096`, `512MiB`, `1.5GiB`, or `2G` for `2GiB`. Units are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = (&text[..split], text[split..].trim());
    let shift = match suffix {
        "" | "B" => 0,
        _ => UNITS
            .iter()
            .find(|(unit, _)| suffix.eq_ignore_ascii_case(unit) || suffix.eq_ignore_ascii_case(&unit[..1]))
            .map(|&(_, shift)| shift)
            .ok_or_else(|| format!("{text:?} is not a size such as 512MiB or 2GiB"))?,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(|| format!("{text} is more than 64 bits hold"));
    }
    let fraction: f64 =
        number.parse().map_err(|_| format!("{text:?} is not a size such as 512MiB or 2GiB"))?;
    let bytes = fraction * (1u64 << shift) as f64;
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text} is more than 64 bits hold"));
    }
    Ok(bytes as u64)
}

/// `1.46 GiB`: three significant digits and a binary unit.
pub fn format_bytes(bytes: u64) -> String {
    for (unit, shift) in UNITS {
        let value = bytes as f64 / (1u64 << shift) as f64;
        if value >= 1.0 {
            let decimals = if value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
            return format!("{value:.decimals$} {unit}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        assert_eq!(parse_bytes("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["", "MiB", "-1", "1e3", "5 apples", "1.2.3", "99999999999TiB", "16777216TiB", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1024), "1.00 KiB");
        assert_eq!(format_bytes(98_362_432), "93.8 MiB");
        assert_eq!(format_bytes(269 << 20), "269 MiB");
        assert_eq!(format_bytes(3 << 29), "1.50 GiB");
    }
}
