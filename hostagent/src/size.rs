//! Sizes as Docker's flags take them: `512m`, `1.5g`, `1073741824`.

/// Parses a size in bytes: a number, perhaps with a fraction, and perhaps one of
/// the units b, k, m, g and t, each 1024 of the one before, in either case and
/// with `b` or `ib` after it.
pub fn parse(text: &str) -> Result<u64, String> {
    let malformed =
        || format!("{text:?} is not a size; write a number and b, k, m or g, such as 512m");
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(malformed()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    let too_large = || format!("{text:?} is more than any machine has");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let bytes = whole
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(too_large)?;
    // Nine digits are finer than a byte of a gigabyte.
    let digits = &fraction[..fraction.len().min(9)];
    let scaled = match digits {
        "" => 0,
        digits => digits.parse::<u128>().map_err(|_| malformed())?,
    };
    let part = (scaled << shift) / 10u128.pow(digits.len() as u32);
    Ok(bytes + part as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("7b", 7),
            ("1k", 1 << 10),
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5g", 1536 << 20),
            ("2 GB", 2 << 30),
            ("0.25k", 256),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "m",
            "-1",
            "1x",
            "1.2.3m",
            ".5g",
            "one",
            "1 m m",
            "99999999999999999999",
            "9999999999t",
            "1e3",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
