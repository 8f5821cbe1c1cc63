//! The end of the machine. PID 1 must never return: the kernel would panic.

use std::time::Duration;

use rustix::system::RebootCommand;

use crate::console;

/// Powers the machine off.
pub fn off() -> ! {
    end(RebootCommand::PowerOff)
}

/// Ends a machine on which something is badly wrong. Unlike powering off, a
/// reset needs no ACPI, and tells the host that this is no orderly end.
pub fn reset() -> ! {
    end(RebootCommand::Restart)
}

fn end(command: RebootCommand) -> ! {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(command) {
        console::say(&format!("cannot end the machine: {error}"));
    }
    // The host ends it then.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Turns a panic of the init into a message on the console and a reset.
pub fn reset_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("this is a bug in the init: {panic}"));
        reset()
    }));
}
