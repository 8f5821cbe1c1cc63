//! The guest's console, for what cannot be told to the host any other way.

use std::io::Write;

/// Writes one line to the console. The kernel opens `/dev/console` as PID 1's
/// standard error. A console that does not work is no reason to fail.
pub fn say(line: &str) {
    let mut console = std::io::stderr();
    let _ = console.write_all(format!("init: {line}\n").as_bytes());
}

/// Waits until what was said has left the serial port.
pub fn flush() {
    let _ = rustix::termios::tcdrain(std::io::stderr());
}
