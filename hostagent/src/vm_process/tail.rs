//! The end of what a process or a guest printed, for when something went wrong.

use std::collections::VecDeque;

/// How much is kept, in bytes. A kernel panic with its stack is about 4 KiB.
const MAX_BYTES: usize = 64 << 10;

/// The longest line that is shown, in characters.
const MAX_LINE: usize = 1000;

/// The last bytes of an unbounded stream.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Adds what was printed and forgets what no longer fits.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(MAX_BYTES)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(MAX_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// The last `count` lines that are not blank. A guest chose these bytes:
    /// what would move a terminal's cursor or change its state is left out.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text
            .lines()
            .rev()
            .map(printable)
            .filter(|line| !line.trim().is_empty())
            .take(count)
            .collect();
        lines.reverse();
        lines
    }
}

/// One line of a guest's text, without what a terminal would obey, and not
/// longer than a person reads.
pub fn printable(line: &str) -> String {
    line.chars()
        .filter(|c| (!c.is_control() || *c == '\t') && !changes_direction(*c))
        .take(MAX_LINE)
        .collect()
}

/// A message of several lines in which a guest or an image may have had a say,
/// each line as [`printable`] has it, and of them no more than a person reads.
pub fn printable_lines(text: &str) -> String {
    const MAX_LINES: usize = 200;
    let lines: Vec<_> = text.split('\n').take(MAX_LINES).map(printable).collect();
    lines.join("\n")
}

/// Marks of Unicode's bidirectional algorithm: they make a text look like another.
fn changes_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_however_much_is_printed() {
        let mut tail = Tail::default();
        for n in 0..50_000 {
            tail.push(format!("line {n}\r\n").as_bytes());
        }
        assert!(tail.bytes.len() <= MAX_BYTES);
        assert_eq!(tail.lines(2), ["line 49998", "line 49999"]);
        tail.push(&vec![b'x'; 10 * MAX_BYTES]);
        assert_eq!(tail.bytes.len(), MAX_BYTES);
        assert_eq!(tail.lines(9), ["x".repeat(MAX_LINE)]);
    }

    #[test]
    fn a_message_keeps_its_lines_and_loses_what_a_terminal_obeys() {
        assert_eq!(
            printable_lines("a \u{1b}[31mb\u{7}\n  c\u{202e}d\n"),
            "a [31mb\n  cd\n"
        );
        assert!(printable_lines(&"x\n".repeat(10_000)).len() < 1000);
        assert_eq!(printable_lines(&"x".repeat(9 << 20)).len(), MAX_LINE);
    }

    #[test]
    fn a_guest_cannot_speak_to_the_terminal() {
        let mut tail = Tail::default();
        tail.push(b"\x1b]0;title\x07\x1b[2Jtext\xff\n\n \n");
        assert_eq!(tail.lines(3), ["]0;title[2Jtext\u{fffd}"]);
    }
}
