//! Linux guests that measure: one root image, one kernel, one init for all of them.

use std::arch::x86_64::__cpuid;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::comparison::Comparison;
use crate::error::BenchError;
use crate::monitor::{Disk, Guest, Machine, Monitor};

/// The guest's memory.
pub const MEMORY_MIB: u64 = 256;

/// Longer than Linux takes to start where every instruction is emulated.
const START_PATIENCE: Duration = Duration::from_secs(240);

/// What Linux guests are made of.
#[derive(Debug, Clone)]
pub struct Images {
    /// The kernel: an ELF file.
    pub kernel: PathBuf,
    /// The root file system: EROFS, with `/usr/local/bin/bench` as its init.
    pub root: PathBuf,
}

impl Images {
    /// A guest that does what `arguments` say.
    pub fn guest(&self, arguments: &str) -> Result<Guest, BenchError> {
        let command_line = format!(
            "console=ttyS0 quiet root=/dev/vda ro rootfstype=erofs init=/usr/local/bin/bench -- {arguments}"
        );
        let mut guest = Guest::linux(&self.kernel, command_line, MEMORY_MIB)?;
        guest.disks.push(Disk {
            file: self.root.clone(),
            read_only: true,
        });
        Ok(guest)
    }
}

/// How often a trial is made where guests are lost.
const TRIES_IN_THE_LAB: usize = 3;

/// What QEMU calls itself where it emulates the processor (CPUID leaf 0x4000_0000).
const EMULATION: [u32; 3] = [
    u32::from_le_bytes(*b"TCGT"),
    u32::from_le_bytes(*b"CGTC"),
    u32::from_le_bytes(*b"GTCG"),
];

/// Trials that failed: the lab loses a guest now and then, whoever its monitor is (see
/// `docs/lab.md`), so that there they are made again. Elsewhere a failure is one.
#[derive(Debug)]
pub struct Lost {
    /// How often a trial is made.
    tries: usize,
    monitors: Vec<&'static str>,
}

impl Lost {
    /// None yet, on this machine.
    pub fn here() -> Self {
        let leaf = __cpuid(0x4000_0000);
        Self::among(match [leaf.ebx, leaf.ecx, leaf.edx] == EMULATION {
            true => TRIES_IN_THE_LAB,
            false => 1,
        })
    }

    fn among(tries: usize) -> Self {
        Self {
            tries,
            monitors: Vec::new(),
        }
    }

    /// Makes a trial of `monitor`, again if it fails; `progress` is told why it did.
    pub fn trial<T>(
        &mut self,
        monitor: &'static str,
        mut progress: impl FnMut(&str),
        mut trial: impl FnMut() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut failed = 0;
        loop {
            let error = match trial() {
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) => error,
                done => return done,
            };
            failed += 1;
            self.monitors.push(monitor);
            if failed == self.tries {
                return Err(error);
            }
            progress(&format!("once more, since {error}"));
        }
    }

    /// Whose they were.
    pub fn into_names(self) -> Vec<String> {
        self.monitors.into_iter().map(str::to_owned).collect()
    }
}

/// Makes `turns` by `turn`, which is told its number. `finished` gets each, and what failed
/// in one that is given up, which ends it.
pub fn turns(
    benchmark: &str,
    monitors: &[Monitor],
    turns: Range<usize>,
    mut turn: impl FnMut(usize, &mut Lost) -> Result<Comparison, BenchError>,
    mut finished: impl FnMut(Comparison) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    for number in turns {
        let mut lost = Lost::here();
        let (mut comparison, result) = match turn(number, &mut lost) {
            Ok(comparison) => (comparison, Ok(())),
            Err(error) => {
                let nothing = Comparison::new(benchmark, 0, String::new(), monitors);
                (nothing, Err(error))
            }
        };
        comparison.made_again = lost.into_names();
        finished(comparison)?;
        result?;
    }
    Ok(())
}

/// The order of `count` monitors in turn number `turn`: one, and then the other.
pub fn order(turn: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| match turn % 2 {
        0 => step,
        _ => count - 1 - step,
    })
}

/// Waits until the init has made everything ready.
pub fn wait_until_ready(machine: &mut Machine<'_>) -> Result<(), BenchError> {
    loop {
        let line = machine.line(START_PATIENCE)?;
        match line.as_str() {
            "ready" => return Ok(()),
            line if line.starts_with("failed: ") => return Err(unexpected(machine, line, "ready")),
            // The kernel or the firmware.
            _ => {}
        }
    }
}

/// What the guest prints up to and without the line `done`.
pub fn lines_until_done(
    machine: &mut Machine<'_>,
    patience: Duration,
) -> Result<Vec<String>, BenchError> {
    let mut lines = Vec::new();
    loop {
        let line = machine.line(patience)?;
        match line.as_str() {
            "done" => return Ok(lines),
            line if line.starts_with("failed: ") => return Err(unexpected(machine, line, "done")),
            _ => lines.push(line),
        }
    }
}

/// The guest wrote `found`.
pub fn unexpected(machine: &Machine<'_>, found: &str, expected: &str) -> BenchError {
    BenchError::Unexpected {
        name: machine.name().to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hangs() -> BenchError {
        BenchError::Hangs {
            name: "it".to_owned(),
            seconds: 1,
        }
    }

    #[test]
    fn a_trial_that_fails_is_made_again_and_told() {
        let mut lost = Lost::among(3);
        let mut told = Vec::new();
        let mut results = vec![Ok(7), Err(hangs()), Err(hangs())];
        let made = lost.trial(
            "it",
            |text| told.push(text.to_owned()),
            || results.pop().unwrap(),
        );
        assert_eq!(made.unwrap(), 7);
        assert_eq!(told.len(), 2);
        assert_eq!(lost.into_names(), ["it", "it"]);
    }

    #[test]
    fn a_trial_that_always_fails_and_one_that_is_interrupted_end_the_benchmark() {
        let mut tries = 0;
        let mut lost = Lost::among(3);
        let made = lost.trial(
            "it",
            |_| (),
            || {
                tries += 1;
                Err::<(), _>(hangs())
            },
        );
        assert!(matches!(made, Err(BenchError::Hangs { .. })));
        assert_eq!(tries, 3);
        assert_eq!(lost.into_names().len(), 3);
        let made = Lost::among(3).trial("it", |_| (), || Err::<(), _>(BenchError::Interrupted));
        assert!(matches!(made, Err(BenchError::Interrupted)));
    }
}
