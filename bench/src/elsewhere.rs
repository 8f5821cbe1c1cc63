//! Measuring elsewhere: in the lab, where this machine cannot run Linux guests, and in
//! a network namespace that nobody else is in. This program is started there and prints
//! each turn as a line of JSON, which is read here. So a lab that is lost takes one turn
//! with it, and another goes on.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::comparison::Comparison;
use crate::error::{BenchError, host};
use crate::interruption;

/// Set where everything is as it should be, and measuring can begin.
const ARRIVED: &str = "MOTE_BENCH_ARRIVED";

/// Whether this process is where it was to be.
pub fn has_arrived() -> bool {
    std::env::var_os(ARRIVED).is_some()
}

/// No turn takes so long.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long it is given to end by itself when it is told to.
const GRACE: Duration = Duration::from_secs(20);

/// Another place, by way of a program.
#[derive(Debug)]
pub struct Place {
    /// A command line that takes another after its own arguments, and runs it there.
    pub way: Vec<OsString>,
    /// How many times in a row it may be lost, without a turn between.
    pub losses: usize,
}

impl Place {
    /// Has as many turns of `benchmark` measured there. `finished` gets each, with what was
    /// lost before it; `tell` hears of what is lost.
    pub fn measure(
        &self,
        benchmark: &str,
        turns: usize,
        mut tell: impl FnMut(&str),
        mut finished: impl FnMut(Comparison) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let own = std::env::current_exe().map_err(host("find this program"))?;
        let mut done = 0;
        let mut losses = 0;
        loop {
            let mut words = self
                .way
                .iter()
                .map(OsString::as_os_str)
                .chain([own.as_os_str()]);
            let mut command = Command::new(words.next().unwrap_or_default());
            command
                .args(words)
                .args([benchmark, "--format", "json"])
                .arg(format!("--runs={turns}"))
                .arg(format!("--first-turn={done}"))
                .env(ARRIVED, "1");
            let outcome = measure_once(&mut command, |mut turn| {
                done += 1;
                turn.made_again.extend(vec!["a lab".to_owned(); losses]);
                losses = 0;
                finished(turn)
            });
            match outcome {
                Ok(()) if done == turns => return Ok(()),
                Ok(()) => return Err(BenchError::Missing),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) if losses == self.losses => return Err(error),
                Err(error) => tell(&format!("elsewhere once more, since {error}")),
            }
            losses += 1;
        }
    }
}

/// Runs `command` to its end; `finished` gets what each line of its output says.
fn measure_once(
    command: &mut Command,
    mut finished: impl FnMut(Comparison) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().map_err(|source| BenchError::Start {
        path: command.get_program().into(),
        source,
    })?;
    let mut child = Elsewhere(child);
    let mut lines = Lines {
        stdout: child.0.stdout.take(),
        bytes: Vec::new(),
    };
    while let Some(line) = lines.next()? {
        finished(serde_json::from_slice(&line).map_err(host("understand what was measured"))?)?;
    }
    let status = child.0.wait().map_err(host("wait for a program"))?;
    match status.success() {
        true => Ok(()),
        false => Err(BenchError::Program {
            command: format!("{command:?}"),
            errors: format!("{status}; see above"),
        }),
    }
}

/// What a process prints, by the line.
struct Lines {
    stdout: Option<ChildStdout>,
    /// What has come of the next ones.
    bytes: Vec<u8>,
}

impl Lines {
    /// The next line; `None` at the end. What comes after the last end of a line was cut
    /// off, and is none.
    fn next(&mut self) -> Result<Option<Vec<u8>>, BenchError> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(None);
        };
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.bytes.drain(..=end).collect()));
            }
            if !interruption::wait_readable(&*stdout, PATIENCE)? {
                return Err(BenchError::Hangs {
                    name: "a turn".to_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            match stdout
                .read(&mut chunk)
                .map_err(host("read what was measured"))?
            {
                0 => return Ok(None),
                length => self.bytes.extend_from_slice(&chunk[..length]),
            }
        }
    }
}

/// A process that ends, with all that it started, when this is dropped.
struct Elsewhere(Child);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let end = Instant::now() + GRACE;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place whose program is a shell script, which knows how often it ran (`$runs`) and
    /// has a line for a turn (`$turn`).
    fn place(directory: &std::path::Path, script: &str, losses: usize) -> Place {
        let turn = Comparison::new("net", 1, "a setting".to_owned(), &[]);
        let turn = serde_json::to_string(&turn).unwrap();
        let record = directory.join("runs");
        let record = record.display();
        let script =
            format!("echo \"$6\" >>{record}; runs=$(wc -l <{record}); turn='{turn}'; {script}");
        let way = ["sh", "-c", &script, "sh"].map(OsString::from).into();
        Place { way, losses }
    }

    #[test]
    fn a_place_that_is_lost_takes_one_turn_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"case $runs in
            1) echo "$turn"; echo "$turn"; printf '{"benchmark"'; exit 1;;
            2) exit 1;;
            3) echo "$turn"; echo "$turn";;
            esac"#;
        let (mut turns, mut told) = (Vec::new(), 0);
        let place = place(directory.path(), script, 2);
        let finished = |turn: Comparison| {
            turns.push(turn.made_again.len());
            Ok(())
        };
        place.measure("net", 4, |_| told += 1, finished).unwrap();
        assert_eq!(turns, [0, 0, 2, 0]);
        assert_eq!(told, 2);
        // Each went on where the one before it was lost.
        let record = std::fs::read_to_string(directory.path().join("runs")).unwrap();
        assert_eq!(record, "--first-turn=0\n--first-turn=2\n--first-turn=2\n");
    }

    #[test]
    fn a_place_that_is_lost_again_and_again_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"test $runs = 1 && echo "$turn"; exit 3"#;
        let mut turns = 0;
        let place = place(directory.path(), script, 1);
        let finished = |_| {
            turns += 1;
            Ok(())
        };
        let error = place.measure("net", 4, |_| (), finished).unwrap_err();
        assert!(matches!(error, BenchError::Program { .. }), "{error}");
        assert_eq!(turns, 1);
        let record = std::fs::read_to_string(directory.path().join("runs")).unwrap();
        assert_eq!(record.lines().count(), 2);
    }

    #[test]
    fn a_program_that_forgets_turns_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), r#"echo "$turn""#, 0);
        let error = place.measure("net", 2, |_| (), |_| Ok(())).unwrap_err();
        assert!(matches!(error, BenchError::Missing), "{error}");
    }
}
