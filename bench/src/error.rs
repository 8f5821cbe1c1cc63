//! Why a measurement could not be made.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// What is measured could not be prepared.
    #[error("cannot prepare what is measured: {0}")]
    Prepare(String),
    /// The machine lacks KVM, or it is not for us.
    #[error("cannot open /dev/kvm; these benchmarks need it, software KVM will do")]
    Kvm(#[source] io::Error),
    /// A monitor could not be started.
    #[error("cannot start {}", .path.display())]
    Start {
        /// Its program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mote's own could not be confined.
    #[error("cannot start mote-vmm in its jail")]
    Jail(#[from] jail::JailError),
    /// A monitor's guest ended before it was asked to.
    #[error(
        "{name} ended before its guest was done, {ending}; it says: {errors}; the guest last: {console}"
    )]
    TooEarly {
        /// The monitor.
        name: String,
        /// How it ended.
        ending: String,
        /// Its standard error.
        errors: String,
        /// The end of what the guest printed.
        console: String,
    },
    /// A monitor did not end well.
    #[error("{name} ended with {status} instead of success; it says: {errors}")]
    Ended {
        /// The monitor.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its standard error.
        errors: String,
    },
    /// The guest has no device that it needs, or says something nobody expects.
    #[error("the guest of {name} wrote {found:?} where {expected:?} was expected")]
    Unexpected {
        /// The monitor.
        name: String,
        /// What it wrote.
        found: String,
        /// What it should have written.
        expected: String,
    },
    /// A monitor hangs.
    #[error("{name} neither went on nor ended within {seconds} s")]
    Hangs {
        /// The monitor.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The guest's memory was not found among a monitor's mappings.
    #[error("{name} has {found} mappings of the guest's size, not one")]
    GuestMapping {
        /// The monitor.
        name: String,
        /// How many there are.
        found: usize,
    },
    /// A signal came.
    #[error("interrupted; what was started is ended")]
    Interrupted,
    /// A program that is needed failed.
    #[error("`{command}` failed: {errors}")]
    Program {
        /// What was run.
        command: String,
        /// What it said.
        errors: String,
    },
    /// Turns that cannot be added up.
    #[error("turns that measured different things, or different monitors, cannot be added up")]
    Mixed,
    /// No run was asked for.
    #[error("nothing was measured")]
    NoRuns,
    /// The host failed.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The plot could not be drawn.
    #[error("cannot draw the plot {}: {reason}", .path.display())]
    Plot {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// For `map_err`.
pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> BenchError {
    move |source| BenchError::Host {
        action,
        source: source.into(),
    }
}
