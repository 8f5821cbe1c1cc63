//! Numeric header fields.

/// Reads a numeric field: octal digits framed by spaces or NULs, or GNU's
/// base-256, a big-endian two's complement number whose topmost bit is the
/// marker and not part of it. `None` if it is neither or does not fit.
pub(super) fn parse(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => parse_base_256(field),
        _ => parse_octal(field),
    }
}

fn parse_base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = (value << 8) | i128::from(byte);
        // Fields are up to 12 bytes: 95 bits, no overflow on the way.
        debug_assert!(index < 12);
    }
    i64::try_from(value).ok()
}

fn parse_octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|b| !is_padding(b));
    let Some(start) = start else {
        return Some(0);
    };
    let digits = &field[start..];
    let length = digits.iter().position(is_padding).unwrap_or(digits.len());
    digits[..length].iter().try_fold(0_i64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(i64::from(digit))
    })
}

/// Reads decimal digits and nothing else.
pub(super) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_is_read_in_every_padding_in_use() {
        for field in [
            &b"0000644\0"[..],
            b"000644 \0",
            b"   644 \0",
            b"644\0\0\0\0\0",
            b"644",
            b"\0\x00644 ",
        ] {
            assert_eq!(parse(field), Some(0o644), "{field:?}");
        }
        assert_eq!(parse(b"77777777777\0"), Some(0o77777777777));
        assert_eq!(parse(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(parse(b""), Some(0));
    }

    #[test]
    fn what_is_no_octal_number_is_refused() {
        for field in [&b"0000648\0"[..], b"-1", b"0x12", b"12a4"] {
            assert_eq!(parse(field), None, "{field:?}");
        }
    }

    #[test]
    fn base_256_reaches_the_ends_of_64_bits_and_not_beyond() {
        let field = |value: i128| {
            let mut bytes: [u8; 12] = value.to_be_bytes()[4..].try_into().unwrap();
            bytes[0] = if value < 0 { 0xff } else { 0x80 };
            bytes
        };
        for value in [0, 1, -1, 1 << 33, i64::MIN as i128, i64::MAX as i128] {
            assert_eq!(parse(&field(value)).map(i128::from), Some(value));
        }
        assert_eq!(parse(&field(i128::from(i64::MAX) + 1)), None);
        assert_eq!(parse(&field(i128::from(i64::MIN) - 1)), None);
        // 8-byte fields, as GNU tar writes a uid of 2,100,000.
        assert_eq!(
            parse(&[0x80, 0, 0, 0, 0, 0x20, 0x0b, 0x20]),
            Some(2_100_000)
        );
    }

    #[test]
    fn decimal_takes_digits_only() {
        assert_eq!(parse_decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in [
            &b""[..],
            b"18446744073709551616",
            b"+1",
            b" 1",
            b"1 ",
            b"1a",
        ] {
            assert_eq!(parse_decimal(bad), None, "{bad:?}");
        }
    }
}
