//! What commands print.

use std::io::{self, Write};

use anyhow::Context;
use hostagent::vm_process::printable;
use jiff::Timestamp;

/// Writes to standard output. A reader that went away, such as `head`, is not a
/// failure.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to standard output"),
    }
}

/// Writes one JSON document and a line feed.
pub fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(document).context("cannot write JSON")?;
    text.push('\n');
    print(&text)
}

/// Rows under headings, in columns as wide as their widest cell. Users and images chose
/// some of the cells: what a terminal would obey is left out.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut all = vec![headings.map(str::to_owned).to_vec()];
    let cells = |row: &[String; N]| row.iter().map(|cell| one_line(cell)).collect();
    all.extend(rows.iter().map(cells));
    columns(&all)
}

/// Rows of cells, in columns as wide as their widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text for one place on one line of a terminal.
pub fn one_line(text: &str) -> String {
    printable(text).replace('\t', " ")
}

/// A number of bytes with three digits and a decimal unit, as Docker shows
/// sizes: `202MB`, `1.05GB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", UNITS[unit])
}

/// How long ago, in the largest unit that fits twice.
fn ago(then: Timestamp, now: Timestamp) -> String {
    const UNITS: [(&str, i64); 6] = [
        ("years", 365 * 86_400),
        ("months", 30 * 86_400),
        ("weeks", 7 * 86_400),
        ("days", 86_400),
        ("hours", 3_600),
        ("minutes", 60),
    ];
    let seconds = (now.as_second() - then.as_second()).max(0);
    UNITS
        .iter()
        .find(|(_, length)| seconds >= 2 * length)
        .map_or_else(
            || format!("{seconds} seconds ago"),
            |(unit, length)| format!("{} {unit} ago", seconds / length),
        )
}

/// How long ago an image says something was made, if it says so in RFC 3339's way.
pub fn since(then: Option<&str>, now: Timestamp) -> String {
    let then = then.and_then(|text| text.parse().ok());
    then.map_or_else(|| "N/A".to_owned(), |then| ago(then, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.00kB"),
            (12_345, "12.3kB"),
            (202_000_000, "202MB"),
            (999_600, "1.00MB"),
            (1_050_000_000, "1.05GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["long cell".to_owned(), "x".to_owned()]];
        assert_eq!(table(["A", "B"], &rows), "A           B\nlong cell   x\n");
    }

    #[test]
    fn no_cell_speaks_to_the_terminal() {
        let rows = [["a\u{1b}[2J\nb\tc\u{202e}".to_owned(), "x".to_owned()]];
        assert_eq!(table(["A", "B"], &rows), "A         B\na[2Jb c   x\n");
    }

    #[test]
    fn ages_are_shown_in_the_largest_unit_that_fits_twice() {
        let then: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (now, text) in [
            ("2026-01-01T00:00:05Z", "5 seconds ago"),
            ("2026-01-01T00:01:59Z", "119 seconds ago"),
            ("2026-01-01T00:02:00Z", "2 minutes ago"),
            ("2026-01-03T01:00:00Z", "2 days ago"),
            ("2028-06-01T00:00:00Z", "2 years ago"),
            ("2025-01-01T00:00:00Z", "0 seconds ago"),
        ] {
            assert_eq!(ago(then, now.parse().unwrap()), text);
        }
        for text in [None, Some("yesterday")] {
            assert_eq!(since(text, then), "N/A");
        }
    }
}
