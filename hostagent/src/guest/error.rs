//! What can go wrong with a run, and what the user is told.

use std::fmt;
use std::io;
use std::time::Duration;

use guest_protocol::{StartFailure, StartFailureKind, WireError};

use super::streams::OutputFailure;
use crate::vm_process::{Ending, SpawnError, Tail, VmProcess, WatchError};

/// How many of the last lines of the guest's console are shown.
const CONSOLE_LINES: usize = 20;
/// Among so many of them the reason of a kernel panic is looked for.
const LINES_OF_A_PANIC: usize = 200;

/// How many of the last lines of the VMM's standard error are shown.
const VMM_LINES: usize = 10;

/// How far a run had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The VMM was starting.
    VmmStart,
    /// The guest's kernel was booting.
    KernelBoot,
    /// The guest's init was preparing the workload.
    Setup,
    /// The workload was running.
    Running,
    /// The workload had ended and its output was being collected.
    Ended,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VmmStart => "while the VM was being built",
            Self::KernelBoot => "while the guest kernel was booting, before its init reported",
            Self::Setup => "while the guest's init was preparing the workload",
            Self::Running => "while the workload was running",
            Self::Ended => "after the workload had ended, before all output had arrived",
        })
    }
}

/// What the VMM and the guest printed last, for a person to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// From the VMM's standard error.
    pub vmm: Vec<String>,
    /// From the guest's console.
    pub console: Vec<String>,
}

impl Diagnostics {
    pub(super) fn of(vm: &VmProcess) -> Self {
        Self {
            vmm: vm.stderr().lines(VMM_LINES),
            console: last_words(vm.console()),
        }
    }
}

/// The last lines of a console; before them, if its kernel has panicked, why it has. Its
/// stack may be longer than what is shown.
fn last_words(console: &Tail) -> Vec<String> {
    let mut lines = console.lines(LINES_OF_A_PANIC);
    let first_shown = lines.len().saturating_sub(CONSOLE_LINES);
    let mut shown = lines.split_off(first_shown);
    let reason = lines
        .into_iter()
        .rfind(|line| line.contains("Kernel panic"));
    shown.splice(..0, reason);
    shown
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.vmm {
            write!(f, "\n  mote-vmm: {line}")?;
        }
        if self.console.is_empty() {
            return f.write_str("\n  (the guest's console is empty)");
        }
        f.write_str("\n  the guest's console ended with:")?;
        for line in &self.console {
            write!(f, "\n  | {line}")?;
        }
        Ok(())
    }
}

/// Why there is no exit code of a workload.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The VMM did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// This process could not do what a session needs.
    #[error("cannot {attempted}")]
    Host {
        /// What was attempted.
        attempted: &'static str,
        /// What the system reported.
        source: io::Error,
    },
    /// The VMM can no longer be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The guest could not start the workload, and said why.
    #[error("{}", .0.message)]
    Start(StartFailure),
    /// The microVM ended too early.
    #[error("{ending}, {stage}{diagnostics}")]
    Died {
        /// How it ended.
        ending: Ending,
        /// How far it had come.
        stage: Stage,
        /// What was printed last.
        diagnostics: Diagnostics,
    },
    /// The init gave up the session, but the machine goes on.
    #[error("the guest's init closed its control connection, {stage}{diagnostics}")]
    Lost {
        /// How far it had come.
        stage: Stage,
        /// What was printed last.
        diagnostics: Diagnostics,
    },
    /// Nothing had happened for too long, and the workload had not started.
    #[error(
        "the workload did not start: nothing happened for {} s {stage}{diagnostics}",
        waited.as_secs()
    )]
    TimedOut {
        /// How long the stage was waited for.
        waited: Duration,
        /// How far it had come.
        stage: Stage,
        /// What was printed last.
        diagnostics: Diagnostics,
    },
    /// The control connection failed.
    #[error("the guest's init does not speak as it should, {stage}{diagnostics}")]
    Protocol {
        /// How far it had come.
        stage: Stage,
        /// What was printed last.
        diagnostics: Diagnostics,
        /// What was wrong.
        source: WireError,
    },
    /// A message came out of turn.
    #[error("the guest's init sent {message} {stage}")]
    OutOfTurn {
        /// Its name.
        message: &'static str,
        /// How far the session had come.
        stage: Stage,
    },
    /// A signal ended the run before there was a workload to send it to, after
    /// the workload had ended, or because somebody insisted.
    #[error("stopped by signal {signal} {stage}")]
    Interrupted {
        /// The signal.
        signal: i32,
        /// How far the run had come.
        stage: Stage,
    },
    /// The workload's output was lost on this side.
    #[error("cannot write the workload's {}", .0.name)]
    Output(#[source] OutputFailure),
}

impl std::error::Error for OutputFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

impl fmt::Display for OutputFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl RunError {
    /// The exit code of `mote run`, by Docker's rules.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(failure) => match failure.kind {
                StartFailureKind::Setup => 125,
                StartFailureKind::NotExecutable => 126,
                StartFailureKind::NotFound => 127,
            },
            Self::Interrupted { signal, .. } => 128 + (*signal as u8 & 0x7f),
            _ => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_panic_is_shown_however_long_its_stack_is() {
        let shown_after = |stack: usize| {
            let mut console = Tail::default();
            console.push(b"[1.0] booting\n[2.0] Kernel panic - not syncing: no init\n");
            console.push("[2.0]  ? a_function\n".repeat(stack).as_bytes());
            last_words(&console)
        };
        assert_eq!(shown_after(1).len(), 3);
        for stack in [CONSOLE_LINES - 1, CONSOLE_LINES, 100] {
            let shown = shown_after(stack);
            assert!(shown[0].ends_with("no init"), "{shown:?}");
            assert!(shown.len() <= CONSOLE_LINES + 1, "{shown:?}");
        }
    }

    #[test]
    fn exit_codes_follow_docker() {
        let failure = |kind| {
            let message = String::new();
            RunError::Start(StartFailure { kind, message }).exit_code()
        };
        assert_eq!(failure(StartFailureKind::Setup), 125);
        assert_eq!(failure(StartFailureKind::NotExecutable), 126);
        assert_eq!(failure(StartFailureKind::NotFound), 127);
        let interrupted = RunError::Interrupted {
            signal: 2,
            stage: Stage::KernelBoot,
        };
        assert_eq!(interrupted.exit_code(), 130);
    }

    #[test]
    fn a_dead_guest_is_reported_with_its_last_words() {
        let error = RunError::Died {
            ending: Ending::Reset,
            stage: Stage::KernelBoot,
            diagnostics: Diagnostics {
                vmm: vec![],
                console: vec!["Kernel panic - not syncing: no init".into()],
            },
        };
        assert_eq!(
            error.to_string(),
            "the guest reset itself, as it does when its kernel or init panics, while the guest \
             kernel was booting, before its init reported\n  \
             the guest's console ended with:\n  | Kernel panic - not syncing: no init"
        );
    }
}
