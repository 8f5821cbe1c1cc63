//! Says what is being done when it lasts.
//!
//! On a terminal a step is a spinner with the time it has taken; when it ends,
//! it stays as one line if it took long, and vanishes otherwise.
//! Without a terminal a step that lasts prints a plain line, and then one now and
//! then. Everything goes to standard error. Several steps may be under way.

use std::io::IsTerminal;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shorter steps are not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(100);
/// How often a step says without a terminal what it is at.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// The spinners on the terminal, one below the other.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A step under way. It ends when it is dropped.
#[must_use = "a step ends when it is dropped"]
pub struct Step {
    text: String,
    started: Instant,
    patience: Duration,
    display: Display,
}

enum Display {
    Spinner(ProgressBar),
    Plain {
        detail: Arc<Mutex<String>>,
        /// Dropped to end the thread.
        end: Option<Sender<()>>,
        thread: Option<JoinHandle<()>>,
    },
}

/// Starts a step such as "building mote".
pub fn step(text: impl Into<String>) -> Step {
    step_after(text, WORTH_A_LINE)
}

/// Starts a step that leaves no line if it ends before `patience` is over: for
/// steps whose usual duration is known and not worth a word among the output of
/// a command.
pub fn step_after(text: impl Into<String>, patience: Duration) -> Step {
    let text = text.into();
    let display = if std::io::stderr().is_terminal() {
        let spinner = SPINNERS.add(ProgressBar::new_spinner());
        // The template is a constant; a wrong one shows in any run.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.set_message(text.clone());
        spinner.enable_steady_tick(TICK);
        Display::Spinner(spinner)
    } else {
        let (end, ended) = mpsc::channel();
        let detail = Arc::new(Mutex::new(String::new()));
        let (line, shown) = (text.clone(), Arc::clone(&detail));
        let thread = thread::spawn(move || print_plain(&line, patience, &shown, &ended));
        Display::Plain {
            detail,
            end: Some(end),
            thread: Some(thread),
        }
    };
    Step {
        text,
        started: Instant::now(),
        patience,
        display,
    }
}

/// Prints a line above the steps under way.
pub fn say(line: &str) {
    SPINNERS.suspend(|| eprintln!("{line}"));
}

/// Prints `line` when `patience` is over, and then what `detail` is now and then,
/// until `ended`.
fn print_plain(line: &str, patience: Duration, detail: &Mutex<String>, ended: &Receiver<()>) {
    let started = Instant::now();
    if ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    eprintln!("{line} …");
    while ended.recv_timeout(PLAIN_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let detail = detail
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        eprintln!(
            "  {line}, {} s: {}",
            started.elapsed().as_secs(),
            detail.trim()
        );
    }
}

impl Step {
    /// Tells what the step is at: a count, the name of the current part.
    pub fn detail(&self, detail: &str) {
        match &self.display {
            Display::Spinner(spinner) => {
                spinner.set_message(format!("{}: {detail}", self.text));
            }
            Display::Plain { detail: shown, .. } => {
                let mut shown = shown
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                detail.clone_into(&mut shown);
            }
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        match &mut self.display {
            Display::Spinner(spinner) => {
                spinner.finish_and_clear();
                SPINNERS.remove(spinner);
                if elapsed >= self.patience {
                    say(&format!("{} ({} s)", self.text, elapsed.as_secs()));
                }
            }
            Display::Plain { end, thread, .. } => {
                end.take();
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}
