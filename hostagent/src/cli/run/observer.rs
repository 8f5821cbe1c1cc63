//! What `mote run` does with what it hears of its microVM.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use hostagent::guest::{DeviceEvent, Observer};
use hostagent::running::Registration;
use vmm::confinement::Landlock;

/// The most lines about devices in one run: a guest can make a device fault as often
/// as it resets it.
const MAX_LINES: usize = 16;
/// How long the last of them may take to be written when the run has ended.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// Keeps the record of the microVM, and tells the user what becomes of its devices.
pub struct RunObserver {
    registration: Registration,
    told: usize,
    /// From the first line on.
    printer: Option<Printer>,
}

impl RunObserver {
    /// For the microVM of `registration`.
    pub fn new(registration: Registration) -> Self {
        Self {
            registration,
            told: 0,
            printer: None,
        }
    }
}

impl Observer for RunObserver {
    fn vmm_started(&mut self, pid: u32, metrics: &Path) {
        self.registration.vmm_started(pid, metrics);
    }

    fn vmm_confined(&mut self, landlock: Landlock) {
        self.registration.vmm_confined(landlock);
    }

    fn device_event(&mut self, event: &DeviceEvent) {
        let Some(line) = next_line(&mut self.told, event) else {
            return;
        };
        let printer = self
            .printer
            .get_or_insert_with(|| Printer::start(io::stderr()));
        // There is room for all of them.
        let _ = printer.lines.try_send(line);
    }
}

/// What to say of `event`, the last line being that there will be none any more.
fn next_line(told: &mut usize, event: &DeviceEvent) -> Option<String> {
    *told = told.saturating_add(1);
    match *told {
        1..MAX_LINES => Some(event.to_string()),
        MAX_LINES => Some("further messages about the guest's devices are not shown".to_owned()),
        _ => None,
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
    use hostagent::guest::DeviceEventKind;

    use super::*;

    #[test]
    fn a_guest_that_makes_devices_fault_without_end_fills_no_terminal() {
        let event = DeviceEvent {
            device: "blk0".to_owned(),
            kind: DeviceEventKind::DiskFull,
        };
        let mut told = 0;
        let lines: Vec<String> = (0..1000)
            .filter_map(|_| next_line(&mut told, &event))
            .collect();
        assert_eq!(lines.len(), MAX_LINES);
        let (last, others) = lines.split_last().unwrap();
        assert!(others.iter().all(|line| line.contains("blk0")));
        assert!(last.contains("not shown"), "{last}");
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
