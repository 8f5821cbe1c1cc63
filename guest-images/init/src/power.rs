//! The end of the machine. PID 1 must never return: the kernel would panic.

use std::time::Duration;

use rustix::system::RebootCommand;

use crate::console;

/// Powers the machine off.
pub fn off() -> ! {
    console::flush();
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        console::say(&format!("cannot power off: {error}"));
    }
    // A machine that cannot power off is stopped by its host.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Turns a panic of the init into a message on the console and a power-off.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("this is a bug in the init: {panic}"));
        off()
    }));
}
