//! One start of one monitor.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::MEMORY_MIB;
use super::error::{BenchError, host};
use super::footprint::{self, Footprint};
use super::monitor::{Behaviour, Files, Monitor, Started};

/// Longer than any start takes on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// From the first instruction to the look at an idling monitor's memory.
const SETTLE: Duration = Duration::from_millis(100);

/// What one start took.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Until the guest's first byte arrived.
    pub first_instruction_ms: f64,
    /// Until the process was gone.
    pub whole_process_ms: f64,
}

/// Starts a machine that powers off at once.
pub fn run(monitor: &Monitor, files: &Files) -> Result<Trial, BenchError> {
    let clock = Instant::now();
    let mut machine = Machine::start(monitor, files, Behaviour::PowerOff)?;
    machine.wait_for_first_byte()?;
    let first_instruction = clock.elapsed();
    let status = machine.wait()?;
    let whole_process = clock.elapsed();
    if !status.success() {
        return Err(BenchError::Ended {
            name: monitor.name().to_owned(),
            status,
            errors: machine.errors(),
        });
    }
    Ok(Trial {
        first_instruction_ms: milliseconds(first_instruction),
        whole_process_ms: milliseconds(whole_process),
    })
}

/// Starts a machine that idles, and looks at its monitor's memory.
pub fn footprint(monitor: &Monitor, files: &Files) -> Result<Footprint, BenchError> {
    let mut machine = Machine::start(monitor, files, Behaviour::Idle)?;
    machine.wait_for_first_byte()?;
    std::thread::sleep(SETTLE);
    let found = footprint::read(machine.started.process.id(), MEMORY_MIB << 10);
    found
        .map_err(host("read the memory map of a process"))?
        .map_err(|found| BenchError::GuestMapping {
            name: monitor.name().to_owned(),
            found,
        })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A machine that does not outlive its measurement.
struct Machine<'a> {
    monitor: &'a Monitor,
    started: Started,
}

impl<'a> Machine<'a> {
    fn start(
        monitor: &'a Monitor,
        files: &Files,
        behaviour: Behaviour,
    ) -> Result<Self, BenchError> {
        let started = monitor.start(files, behaviour)?;
        Ok(Self { monitor, started })
    }

    fn wait_for_first_byte(&mut self) -> Result<(), BenchError> {
        let mut bytes = [0; 256];
        loop {
            wait_readable(&self.started.console, self.monitor)?;
            let length = self
                .started
                .console
                .read(&mut bytes)
                .map_err(host("read what a guest prints"))?;
            // A monitor may print something of its own before.
            if bytes[..length].contains(&probe_guests::FIRST_BYTE) {
                return Ok(());
            }
            if length == 0 {
                return Err(BenchError::NoFirstByte {
                    name: self.monitor.name().to_owned(),
                    errors: self.errors(),
                });
            }
        }
    }

    fn wait(&mut self) -> Result<ExitStatus, BenchError> {
        let process = &mut self.started.process;
        let pidfd = process.pidfd().map_err(host("watch a process"))?;
        wait_readable(&pidfd, self.monitor)?;
        process.wait().map_err(host("wait for a process"))
    }

    /// What the monitor says on standard error, once it is gone.
    fn errors(&mut self) -> String {
        self.started.process.errors()
    }
}

fn wait_readable(fd: impl AsFd, monitor: &Monitor) -> Result<(), BenchError> {
    let mut watched = [PollFd::new(&fd, PollFlags::IN)];
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut watched, Some(&patience)).map_err(host("wait for a process"))? {
        0 => Err(BenchError::Hangs {
            name: monitor.name().to_owned(),
            seconds: PATIENCE.as_secs(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn stand_in() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/firecracker")
    }

    #[test]
    fn firecracker_is_given_the_guest_and_its_size() {
        let monitor = Monitor::firecracker(&stand_in()).unwrap();
        assert_eq!(monitor.version(), "Firecracker v0.0.0");
        let trial = run(&monitor, &Files::create().unwrap()).unwrap();
        assert!(trial.first_instruction_ms > 0.0);
        assert!(trial.whole_process_ms >= trial.first_instruction_ms);
    }

    #[test]
    fn a_monitor_that_prints_nothing_is_an_error_with_its_words() {
        let monitor = Monitor::firecracker(&stand_in()).unwrap();
        let error = footprint(&monitor, &Files::create().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no such guest"), "{error}");
    }

    #[test]
    fn a_monitor_that_is_not_there_is_an_error_with_its_path() {
        let error = Monitor::qemu(Path::new("/nowhere/qemu")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
    }
}
