//! A progress bar for work that takes more than a moment, for people only.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hostagent::image::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt;

/// Work shorter than this shows no bar.
const QUIET: Duration = Duration::from_millis(700);

/// Shows progress on standard error if that is a terminal, and stops the work
/// when the user interrupts it.
pub struct TerminalProgress {
    started: Instant,
    visible: Cell<bool>,
    bar: RefCell<ProgressBar>,
}

impl TerminalProgress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            visible: Cell::new(false),
            bar: RefCell::new(ProgressBar::hidden()),
        }
    }

    fn show_if_it_takes_long(&self) {
        if !self.visible.get() && self.started.elapsed() >= QUIET && std::io::stderr().is_terminal()
        {
            self.visible.set(true);
            self.bar
                .borrow()
                .set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        self.bar.borrow().finish_and_clear();
    }
}

impl Progress for TerminalProgress {
    fn layer(&self, number: usize, count: usize, bytes: u64) {
        self.bar.borrow().finish_and_clear();
        let target = if self.visible.get() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let template = "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("layer {number} of {count}"));
        *self.bar.borrow_mut() = bar;
    }

    fn advance(&self, bytes: u64) {
        self.bar.borrow().inc(bytes);
        self.show_if_it_takes_long();
    }

    fn note(&self, message: &str) {
        let bar = self.bar.borrow();
        bar.suspend(|| eprintln!("mote: {message}"));
    }

    fn cancelled(&self) -> bool {
        interrupt::arrived().is_some()
    }
}
