//! The guest's console, for what cannot be told to the host any other way.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static KERNEL_LOG: OnceLock<File> = OnceLock::new();

/// The level "error" of `printk`, which also a `quiet` kernel shows.
const LEVEL: &str = "<3>";

/// From now on, lines go to the console through the kernel's log, which, unlike
/// a terminal, has written a line when it has taken it. Needs `/dev/kmsg`.
pub fn use_kernel_log() {
    if let Ok(log) = File::options().write(true).open("/dev/kmsg") {
        let _ = KERNEL_LOG.set(log);
    }
}

/// Says one line. A console that does not work is no reason to fail.
pub fn say(line: &str) {
    let _ = match KERNEL_LOG.get() {
        Some(mut log) => log.write_all(format!("{LEVEL}init: {line}\n").as_bytes()),
        // The kernel opens /dev/console as PID 1's standard error.
        None => std::io::stderr().write_all(format!("init: {line}\n").as_bytes()),
    };
}
