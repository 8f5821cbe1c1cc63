//! One start of one monitor.

use std::time::{Duration, Instant};

use super::MEMORY_MIB;
use crate::error::{BenchError, host};
use crate::footprint::{self, Footprint};
use crate::interruption;
use crate::monitor::{Guest, Monitor};

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

/// A guest that writes its first byte and powers off.
pub fn short_lived() -> Result<Guest, BenchError> {
    Guest::bare_metal(probe_guests::FIRST_INSTRUCTION, "off", MEMORY_MIB)
}

/// A guest that writes its first byte and halts for good.
pub fn idle() -> Result<Guest, BenchError> {
    Guest::bare_metal(probe_guests::FIRST_INSTRUCTION, "idle", MEMORY_MIB)
}

/// Starts a machine that powers off at once.
pub fn run(monitor: &Monitor, guest: &Guest) -> Result<Trial, BenchError> {
    let prepared = monitor.prepare()?;
    let clock = Instant::now();
    let mut machine = monitor.start_prepared(guest, prepared)?;
    machine.wait_for(probe_guests::FIRST_BYTE)?;
    let first_instruction = clock.elapsed();
    machine.wait()?;
    let whole_process = clock.elapsed();
    Ok(Trial {
        first_instruction_ms: milliseconds(first_instruction),
        whole_process_ms: milliseconds(whole_process),
    })
}

/// Starts a machine that idles, and looks at its monitor's memory.
pub fn footprint(monitor: &Monitor, guest: &Guest) -> Result<Footprint, BenchError> {
    let mut machine = monitor.start(guest)?;
    machine.wait_for(probe_guests::FIRST_BYTE)?;
    interruption::sleep(SETTLE)?;
    let found = footprint::read(machine.id(), MEMORY_MIB << 10);
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
        let trial = run(&monitor, &short_lived().unwrap()).unwrap();
        assert!(trial.first_instruction_ms > 0.0);
        assert!(trial.whole_process_ms >= trial.first_instruction_ms);
    }

    #[test]
    fn a_monitor_that_prints_nothing_is_an_error_with_its_words() {
        let monitor = Monitor::firecracker(&stand_in()).unwrap();
        let error = footprint(&monitor, &idle().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no such guest"), "{error}");
    }

    #[test]
    fn a_monitor_that_is_not_there_is_an_error_with_its_path() {
        let error = Monitor::qemu(Path::new("/nowhere/qemu")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
    }
}
