//! How a VMM ended, and how that is told.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use vmm::event::EventKind;

use super::process::PROGRAM;
use super::tail::printable;

/// Exit codes of `mote-vmm`, for when its events were lost (see its `main.rs`).
const POWERED_OFF: i32 = 0;
const GUEST_RESET: i32 = 3;
const GUEST_FAULT: i32 = 4;

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off, as it should.
    PoweredOff,
    /// The guest reset itself, which is what its kernel does after a panic, and
    /// its init when it cannot reach the host.
    Reset,
    /// The guest reached a state in which a vCPU cannot go on.
    GuestFault(String),
    /// The VMM failed, and said why.
    HostFailure(String),
    /// The VMM made a system call that its filter forbids (`SIGSYS`). Which one, and in
    /// which thread, only the host's audit log knows.
    ForbiddenCall,
    /// The host had no memory for it (`SIGKILL`).
    OutOfMemory(OutOfMemory),
    /// Another signal killed the VMM.
    Killed(i32),
    /// The VMM gave up with this exit code. Its standard error says why.
    GaveUp(i32),
}

/// Whose memory was used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// What the microVM may have: its cgroup counts such kills.
    Cgroup,
    /// That of the host, or of a cgroup the agent is in: somebody was killed for it
    /// since the VMM was started, and this is the likely one.
    Host,
}

impl Ending {
    /// What became of a VMM that ended with `status`, after `last_word` was the first
    /// end it had reported. `out_of_memory` is asked only about a `SIGKILL`.
    pub(super) fn of(
        status: ExitStatus,
        last_word: Option<&EventKind>,
        out_of_memory: impl FnOnce() -> Option<OutOfMemory>,
    ) -> Self {
        match last_word {
            Some(EventKind::PoweredOff) => return Self::PoweredOff,
            Some(EventKind::Reset) => return Self::Reset,
            Some(EventKind::GuestFault { reason }) => return Self::GuestFault(printable(reason)),
            Some(EventKind::HostFailure { reason }) => return Self::HostFailure(printable(reason)),
            _ => {}
        }
        match (status.signal(), status.code()) {
            (Some(libc::SIGSYS), _) => Self::ForbiddenCall,
            (Some(libc::SIGKILL), _) => match out_of_memory() {
                Some(whose) => Self::OutOfMemory(whose),
                None => Self::Killed(libc::SIGKILL),
            },
            (Some(signal), _) => Self::Killed(signal),
            (None, Some(POWERED_OFF)) => Self::PoweredOff,
            (None, Some(GUEST_RESET)) => Self::Reset,
            (None, Some(GUEST_FAULT)) => Self::GuestFault(format!("see what {PROGRAM} printed")),
            (None, code) => Self::GaveUp(code.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => {
                f.write_str("the guest reset itself, as it does when its kernel or init panics")
            }
            Self::GuestFault(reason) => write!(f, "the guest crashed: {reason}"),
            Self::HostFailure(reason) => write!(f, "{PROGRAM} failed: {reason}"),
            Self::ForbiddenCall => write!(
                f,
                "{PROGRAM} was killed for a system call that its filter forbids (SIGSYS), \
                 a defect of it, an attack by the guest, or a want of memory within its \
                 limits, where it is mmap(2); the kernel's audit log (`dmesg`, type=1326) \
                 has the call's number"
            ),
            Self::OutOfMemory(OutOfMemory::Cgroup) => write!(
                f,
                "{PROGRAM} was killed as out of memory: the microVM and what the host keeps \
                 for it need more than its cgroup allows (memory.max)"
            ),
            Self::OutOfMemory(OutOfMemory::Host) => write!(
                f,
                "{PROGRAM} was killed (SIGKILL), most likely as this host, or the cgroup of \
                 mote in it, is out of memory (see `dmesg`); free some, or give the microVM \
                 less with --memory"
            ),
            Self::Killed(signal) => match name(*signal) {
                Some((name, what)) => write!(f, "{PROGRAM} was killed by {name} ({what})"),
                None => write!(f, "{PROGRAM} was killed by signal {signal}"),
            },
            Self::GaveUp(code) => write!(f, "{PROGRAM} gave up (exit code {code})"),
        }
    }
}

/// Signals that end a program by default and are sent for what it did, or to end it
/// (signal(7)).
fn name(signal: i32) -> Option<(&'static str, &'static str)> {
    Some(match signal {
        libc::SIGSEGV => (
            "SIGSEGV",
            "it used memory that is not its own, a defect of it",
        ),
        libc::SIGBUS => (
            "SIGBUS",
            "memory it used has lost what is behind it, such as a file that was cut",
        ),
        libc::SIGILL => ("SIGILL", "it executed what is no instruction here"),
        libc::SIGFPE => ("SIGFPE", "an impossible calculation, a defect of it"),
        libc::SIGABRT => ("SIGABRT", "it found a defect of its own"),
        libc::SIGTRAP => ("SIGTRAP", "it found a defect of its own, or was debugged"),
        libc::SIGXFSZ => ("SIGXFSZ", "it wrote past the size that files may have"),
        libc::SIGXCPU => ("SIGXCPU", "it used more time than it may have"),
        libc::SIGKILL => ("SIGKILL", "somebody ended it"),
        libc::SIGTERM => ("SIGTERM", "somebody ended it"),
        _ => return None,
    })
}

/// How many processes this host has killed for want of memory since it was started
/// (`oom_kill` of proc_vmstat(5)); 0 where that is not known.
pub(super) fn host_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn nobody() -> Option<OutOfMemory> {
        None
    }

    #[test]
    fn what_was_reported_counts_for_more_than_the_status() {
        let reason = "triple\u{7} fault".to_owned();
        let fault = EventKind::GuestFault { reason };
        let ending = Ending::of(killed(libc::SIGKILL), Some(&fault), nobody);
        assert_eq!(ending, Ending::GuestFault("triple fault".to_owned()));
    }

    #[test]
    fn exit_codes_stand_in_for_events_that_were_lost() {
        assert_eq!(Ending::of(exited(0), None, nobody), Ending::PoweredOff);
        assert_eq!(Ending::of(exited(3), None, nobody), Ending::Reset);
        assert!(matches!(
            Ending::of(exited(4), None, nobody),
            Ending::GuestFault(_)
        ));
        assert_eq!(Ending::of(exited(1), None, nobody), Ending::GaveUp(1));
    }

    #[test]
    fn each_way_to_be_killed_is_told_apart() {
        let told = |status, memory| Ending::of(status, None, || memory).to_string();
        for (signal, parts) in [
            (
                libc::SIGSYS,
                ["SIGSYS", "system call that its filter forbids"],
            ),
            (libc::SIGSEGV, ["SIGSEGV", "memory"]),
            (libc::SIGBUS, ["SIGBUS", "file"]),
            (libc::SIGABRT, ["SIGABRT", "defect"]),
            (libc::SIGKILL, ["SIGKILL", "somebody"]),
            (libc::SIGUSR2, ["mote-vmm", "signal 12"]),
        ] {
            let text = told(killed(signal), None);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        let text = told(killed(libc::SIGKILL), Some(OutOfMemory::Cgroup));
        assert!(text.contains("out of memory") && text.contains("memory.max"));
        let text = told(killed(libc::SIGKILL), Some(OutOfMemory::Host));
        assert!(text.contains("out of memory") && text.contains("dmesg"));
        // Memory has nothing to do with other signals.
        let text = told(killed(libc::SIGSEGV), Some(OutOfMemory::Cgroup));
        assert!(!text.contains("out of memory"), "{text}");
    }

    #[test]
    fn this_host_counts_its_kills() {
        assert!(host_kills() <= host_kills());
    }
}
