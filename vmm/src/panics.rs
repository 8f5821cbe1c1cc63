//! What becomes of a panic, which is a defect of this program.
//!
//! In a call to a device it stops that device, in the thread of a vCPU the microVM:
//! such code runs in [`contain`]. Anywhere else it ends the process at once, by the
//! hook, since the filters do not allow what unwinding that thread would need.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Arc;

use crate::event::{EventKind, EventSink};

/// The exit code after a panic that nothing contains: that of a failure of the host.
const EXIT_CODE: i32 = 1;
/// The longest description of a panic. What a guest did may be in its message.
const MAX_BYTES: usize = 256;

thread_local! {
    /// How many calls of [`contain`] this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the hook saw, for the innermost of them.
    static SEEN: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// A panic that was caught: where it was, if the hook is installed, and its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic(String);

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Panic {
    fn seen(info: &PanicHookInfo<'_>) -> Self {
        let mut text = Bounded(String::with_capacity(MAX_BYTES));
        if let Some(location) = info.location() {
            let _ = write!(text, "{}:{}: ", location.file(), location.line());
        }
        let _ = text.write_str(info.payload_as_str().unwrap_or(NO_MESSAGE));
        Self(text.0)
    }
}

const NO_MESSAGE: &str = "it has no message";

/// A text that is cut where it would grow too long.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX_BYTES - self.0.len();
        let fitting = more.floor_char_boundary(room);
        self.0.push_str(&more[..fitting]);
        Ok(())
    }
}

/// Runs `act`. What it leaves half done is for the caller to bear: nothing that `act`
/// has changed may be relied on after a panic.
pub fn contain<R>(act: impl FnOnce() -> R) -> Result<R, Panic> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(act));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| {
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref().map(String::as_str));
        SEEN.take().unwrap_or_else(|| {
            let mut text = Bounded(String::new());
            let _ = text.write_str(message.unwrap_or(NO_MESSAGE));
            Panic(text.0)
        })
    })
}

/// From now on a contained panic prints nothing, and any other is told on standard
/// error and in an event, in one line each, and ends the process with exit code 1. No
/// panic looks for a backtrace, which would take opening files.
pub fn install_hook(events: Arc<EventSink>) {
    std::panic::set_hook(Box::new(move |info| {
        let panic = Panic::seen(info);
        if DEPTH.get() > 0 {
            SEEN.set(Some(panic));
            return;
        }
        let reason = format!("mote-vmm panicked, which is a defect of it, at {panic}");
        // Whoever reads it may be gone.
        let _ = writeln!(std::io::stderr(), "mote-vmm: {reason}");
        events.send(EventKind::HostFailure { reason });
        // SAFETY: ends the process at once, whatever the threads hold.
        unsafe { libc::_exit(EXIT_CODE) };
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_panic_is_returned() {
        assert_eq!(contain(|| 7), Ok(7));
    }

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let panic = contain(|| panic!("of {}", 7)).unwrap_err();
        assert_eq!(panic.to_string(), "of 7");
        let panic = contain(|| panic!("plain")).unwrap_err();
        assert_eq!(panic.to_string(), "plain");
        let panic = contain(|| std::panic::panic_any(7)).unwrap_err();
        assert_eq!(panic.to_string(), NO_MESSAGE);
    }

    #[test]
    fn a_message_without_end_is_cut_between_characters() {
        let panic = contain(|| panic!("x{}", "é".repeat(1 << 20))).unwrap_err();
        assert_eq!(panic.to_string().len(), MAX_BYTES - 1);
    }

    #[test]
    fn an_inner_panic_is_not_taken_for_an_outer_one() {
        let panic = contain(|| {
            contain(|| panic!("inner")).unwrap_err();
            panic!("outer")
        });
        assert_eq!(panic.unwrap_err().to_string(), "outer");
        assert_eq!(contain(|| 7), Ok(7));
    }
}
