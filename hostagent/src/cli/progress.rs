//! Progress bars for work that takes more than a moment, for people only.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hostagent::image::progress::{Progress, Task};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt;

/// Work shorter than this shows no bar.
const QUIET: Duration = Duration::from_millis(700);

/// Shows a bar for each piece of work on standard error if that is a terminal, and stops
/// the work when the user interrupts it.
pub struct TerminalProgress {
    started: Instant,
    visible: AtomicBool,
    bars: MultiProgress,
}

impl TerminalProgress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            visible: AtomicBool::new(false),
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
        }
    }

    /// Nothing is ever shown but what must be said, if `quiet`.
    pub fn unless(quiet: bool) -> Self {
        let progress = Self::new();
        // What is said to be shown is not shown again.
        progress.visible.store(quiet, Ordering::Relaxed);
        progress
    }

    fn show_if_it_takes_long(&self) {
        let long = self.started.elapsed() >= QUIET && std::io::stderr().is_terminal();
        if long && !self.visible.swap(true, Ordering::Relaxed) {
            self.bars.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = self.bars.clear();
    }
}

impl Progress for TerminalProgress {
    fn begin(&self, what: &str, bytes: u64) -> Box<dyn Task + '_> {
        let (bar, template) = match bytes {
            0 => (
                ProgressBar::no_length(),
                "{prefix} {bytes}, {bytes_per_sec}",
            ),
            _ => (
                ProgressBar::new(bytes),
                "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            ),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_owned());
        Box::new(Bar {
            bar: self.bars.add(bar),
            progress: self,
        })
    }

    fn note(&self, message: &str) {
        self.bars.suspend(|| eprintln!("mote: {message}"));
    }

    fn cancelled(&self) -> bool {
        interrupt::arrived().is_some()
    }
}

struct Bar<'p> {
    bar: ProgressBar,
    progress: &'p TerminalProgress,
}

impl Task for Bar<'_> {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.progress.show_if_it_takes_long();
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.progress.bars.remove(&self.bar);
    }
}
