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
/// How long it is given to end, by itself or when it is told to.
const GRACE: Duration = Duration::from_secs(20);

/// Another place, by way of a program.
#[derive(Debug)]
pub struct Place {
    /// A command line that takes another after its own arguments, and runs it there.
    pub way: Vec<OsString>,
    /// What this program is told there besides.
    pub arguments: Vec<OsString>,
    /// How many times in a row it may be lost, without a turn between.
    pub losses: usize,
}

impl Place {
    /// Has as many turns of `benchmark` measured there. `finished` gets each, and what was
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
                .args(&self.arguments)
                .env(ARRIVED, "1");
            let mut elsewhere = Elsewhere::start(&mut command)?;
            let mut given_up = false;
            while done < turns {
                let turn = match elsewhere.next_turn() {
                    Ok(Some(turn)) => turn,
                    Ok(None) => break,
                    Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                    Err(error) => {
                        tell(&error.to_string());
                        break;
                    }
                };
                given_up |= turn.turns == 0;
                losses = if turn.turns == 0 { losses } else { 0 };
                done += turn.turns;
                finished(turn)?;
            }
            // One that has made all is not waited for: it may be lost while it ends.
            if done >= turns {
                return Ok(());
            }
            let error = elsewhere.end(&command)?;
            if losses == self.losses {
                return Err(error);
            }
            losses += 1;
            tell(&format!("elsewhere once more, since {error}"));
            if !given_up {
                let mut lost = Comparison::new(benchmark, 0, String::new(), &[]);
                lost.made_again.push("a lab".to_owned());
                finished(lost)?;
            }
        }
    }
}

/// A process that measures and prints each turn. It ends, with all that it started, when
/// this is dropped.
struct Elsewhere {
    child: Child,
    stdout: Option<ChildStdout>,
    /// What has come of the next lines.
    bytes: Vec<u8>,
}

impl Elsewhere {
    fn start(command: &mut Command) -> Result<Self, BenchError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|source| BenchError::Start {
            path: command.get_program().into(),
            source,
        })?;
        let stdout = child.stdout.take();
        let bytes = Vec::new();
        Ok(Self {
            child,
            stdout,
            bytes,
        })
    }

    /// The next turn, once it is made; `None` at the end of what it prints. What comes
    /// after the last end of a line was cut off, and is none.
    fn next_turn(&mut self) -> Result<Option<Comparison>, BenchError> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(None);
        };
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let turn = serde_json::from_slice(&line);
                return Ok(Some(turn.map_err(host("understand what was measured"))?));
            }
            if !interruption::wait_readable(&*stdout, PATIENCE)? {
                return Err(BenchError::Hangs {
                    name: "a turn".to_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            let read = stdout.read(&mut chunk);
            match read.map_err(host("read what was measured"))? {
                0 => return Ok(None),
                length => self.bytes.extend_from_slice(&chunk[..length]),
            }
        }
    }

    /// Ends it, where it has not made all; returns why that is.
    fn end(mut self, command: &Command) -> Result<BenchError, BenchError> {
        // It has said all, and says why on standard error.
        if !self.ends_within(GRACE) {
            self.ask_to_end();
        }
        let status = self.child.wait().map_err(host("wait for a program"))?;
        Ok(BenchError::Program {
            command: format!("{command:?}"),
            errors: format!("{status} before all turns were made; see above"),
        })
    }

    fn ask_to_end(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if !self.ends_within(GRACE) {
            let _ = self.child.kill();
        }
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.ask_to_end();
            let _ = self.child.wait();
        }
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
        let arguments = Vec::new();
        Place {
            way,
            arguments,
            losses,
        }
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
            turns.push((turn.turns, turn.made_again.len()));
            Ok(())
        };
        place.measure("net", 4, |_| told += 1, finished).unwrap();
        assert_eq!(turns, [(1, 0), (1, 0), (0, 1), (0, 1), (1, 0), (1, 0)]);
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
        let finished = |turn: Comparison| {
            turns += turn.turns;
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
        assert!(
            error.to_string().contains("before all turns were made"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_ends_badly_after_all_turns_has_made_them() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), r#"echo "$turn"; exit 1"#, 0);
        place.measure("net", 1, |_| (), |_| Ok(())).unwrap();
    }

    #[test]
    fn a_turn_that_nobody_takes_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), r#"echo "$turn"; echo "$turn""#, 2);
        let refused = |_| Err(BenchError::Mixed);
        let error = place.measure("net", 2, |_| (), refused).unwrap_err();
        assert!(matches!(error, BenchError::Mixed), "{error}");
    }
}
