//! What the user is told while a microVM runs, on standard error.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

/// The most lines about one matter in one run: a guest can make a device fault as
/// often as it resets it.
const MAX_LINES: usize = 16;
/// How long the last of them may take to be written when the run has ended.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages about one matter. Dropping it waits a moment for the last to be written.
pub struct Messages {
    matter: &'static str,
    told: usize,
    /// From the first line on.
    printer: Option<Printer>,
}

impl Messages {
    /// None yet. `matter`: what they will be about, in a sentence.
    pub fn about(matter: &'static str) -> Self {
        Self {
            matter,
            told: 0,
            printer: None,
        }
    }

    /// Tells the user; waits for nobody.
    pub fn tell(&mut self, message: impl Display) {
        let Some(line) = self.next_line(message) else {
            return;
        };
        let printer = self
            .printer
            .get_or_insert_with(|| Printer::start(io::stderr()));
        // There is room for all of them.
        let _ = printer.lines.try_send(line);
    }

    /// What to say, the last line being that there will be none any more.
    fn next_line(&mut self, message: impl Display) -> Option<String> {
        self.told = self.told.saturating_add(1);
        match self.told {
            1..MAX_LINES => Some(message.to_string()),
            MAX_LINES => Some(format!(
                "further messages about {} are not shown",
                self.matter
            )),
            _ => None,
        }
    }
}

/// A thread that writes, so that nobody waits for a reader of standard error who
/// does not read.
struct Printer {
    lines: SyncSender<String>,
    /// Closed when all is written.
    done: Receiver<()>,
}

impl Printer {
    fn start(mut output: impl Write + Send + 'static) -> Self {
        let (lines, to_print) = sync_channel::<String>(MAX_LINES);
        let (end, done) = channel::<()>();
        // Without a thread the lines are lost, and the run goes on.
        let _ = thread::Builder::new().spawn(move || {
            let _end = end;
            for line in to_print {
                // A closed output is no reason to end.
                let _ = writeln!(output, "mote: {line}");
            }
        });
        Self { lines, done }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        // With its other end gone the thread ends once it has written all.
        self.lines = sync_channel(0).0;
        let _ = self.done.recv_timeout(LAST_LINES_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use hostagent::guest::{DeviceEvent, DeviceEventKind};

    use super::*;

    #[test]
    fn a_guest_that_makes_devices_fault_without_end_fills_no_terminal() {
        let event = DeviceEvent {
            device: "blk0".to_owned(),
            kind: DeviceEventKind::DiskFull,
        };
        let mut messages = Messages::about("disks");
        let lines: Vec<String> = (0..1000)
            .filter_map(|_| messages.next_line(&event))
            .collect();
        assert_eq!(lines.len(), MAX_LINES);
        let (last, others) = lines.split_last().unwrap();
        assert!(others.iter().all(|line| line.contains("blk0")));
        assert!(last.contains("disks are not shown"), "{last}");
    }

    #[test]
    fn all_lines_are_written_before_the_run_is_over() {
        let (mut reader, writer) = io::pipe().unwrap();
        let printer = Printer::start(writer);
        for line in ["one", "two"] {
            printer.lines.try_send(line.to_owned()).unwrap();
        }
        drop(printer);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "mote: one\nmote: two\n");
    }
}
