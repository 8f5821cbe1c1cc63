//! Reads what a libFuzzer target says, and tells what came of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use serde_json::{Value, json};

use crate::command::last_lines;

/// How much of what a crashed target said is shown, in lines.
const SHOWN_LINES: usize = 25;

/// What came of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its name.
    pub target: String,
    /// How many inputs it was given.
    pub executions: u64,
    /// How many a second.
    pub executions_per_second: u64,
    /// Edges of the code that were reached.
    pub edges: u64,
    /// Those, told apart by how often and with what values.
    pub features: u64,
    /// Inputs that reached something new.
    pub new_inputs: u64,
    /// The most memory it had, in MiB.
    pub memory_mib: u64,
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
}

/// A target that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The input that did it, if there is one.
    pub input: Option<PathBuf>,
    /// The target's program.
    pub program: PathBuf,
    /// How it ended.
    pub status: String,
    /// The end of what it said.
    pub said: String,
}

impl Outcome {
    /// Reads `log`, what `program` said until it ended with `status`.
    pub fn of(target: &str, program: &Path, status: ExitStatus, log: &str) -> Self {
        let stat = |name: &str| number_after(log, &format!("stat::{name}:"));
        let executions = stat("number_of_executed_units");
        // One that says nothing, or was given nothing, has tried nothing.
        let came_to_its_end = status.success() && executions > 0;
        Self {
            target: target.to_owned(),
            executions,
            executions_per_second: stat("average_exec_per_sec"),
            edges: number_after(log, " cov:"),
            features: number_after(log, " ft:"),
            new_inputs: stat("new_units_added"),
            memory_mib: stat("peak_rss_mb"),
            failure: (!came_to_its_end).then(|| Failure {
                input: input(log),
                program: program.to_owned(),
                status: status.to_string(),
                said: last_lines(log, SHOWN_LINES),
            }),
        }
    }

    /// Whether something went wrong.
    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What went wrong, and how to see it again.
    pub fn failure_story(&self) -> Option<String> {
        let failure = self.failure.as_ref()?;
        let (target, status, said) = (&self.target, &failure.status, &failure.said);
        let mut story = format!("{said}\n\nfailed: {target} ({status})");
        if let Some(input) = &failure.input {
            let (input, program) = (input.display(), failure.program.display());
            let _ = write!(
                story,
                "\n  the input: {input}\n  to reproduce: {program} {input}"
            );
        }
        Some(story)
    }
}

/// The number after the last `label`, or 0.
fn number_after(log: &str, label: &str) -> u64 {
    let Some((_, rest)) = log.rsplit_once(label) else {
        return 0;
    };
    let digits = rest
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The file that libFuzzer says it has written the crashing input to.
fn input(log: &str) -> Option<PathBuf> {
    let (_, rest) = log.rsplit_once("Test unit written to ")?;
    rest.lines().next().map(|path| path.trim().into())
}

/// A line for each target.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<16}{:>12}{:>10}{:>8}{:>10}{:>8}{:>8}  {}\n",
        "target", "executions", "/s", "edges", "features", "new", "MiB", "crashes"
    );
    for outcome in outcomes {
        let _ = writeln!(
            table,
            "{:<16}{:>12}{:>10}{:>8}{:>10}{:>8}{:>8}  {}",
            outcome.target,
            outcome.executions,
            outcome.executions_per_second,
            outcome.edges,
            outcome.features,
            outcome.new_inputs,
            outcome.memory_mib,
            u8::from(outcome.failed()),
        );
    }
    table
}

/// The same for programs, with the inputs that crash.
pub fn json(outcomes: &[Outcome]) -> Value {
    let one = |outcome: &Outcome| {
        json!({
            "target": outcome.target,
            "executions": outcome.executions,
            "executions_per_second": outcome.executions_per_second,
            "edges": outcome.edges,
            "features": outcome.features,
            "new_inputs": outcome.new_inputs,
            "memory_mib": outcome.memory_mib,
            "failure": outcome.failure.as_ref().map(|failure| json!({
                "status": failure.status,
                "input": failure.input,
            })),
        })
    };
    json!({ "targets": outcomes.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LOG: &str = "\
INFO: seed corpus: files: 7 min: 1b max: 42b total: 79b rss: 60Mb
#8\tINITED cov: 402 ft: 600 corp: 7/79b exec/s: 0 rss: 61Mb
#9120\tNEW    cov: 410 ft: 651 corp: 9/120b lim: 42 exec/s: 4560 rss: 80Mb L: 12/42
#99123\tDONE   cov: 410 ft: 655 corp: 9/120b lim: 42 exec/s: 4720 rss: 90Mb
stat::number_of_executed_units: 99123
stat::average_exec_per_sec:     4720
stat::new_units_added:          12
stat::slowest_unit_time_sec:    0
stat::peak_rss_mb:              91
";

    fn outcome(code: i32, log: &str) -> Outcome {
        let status = ExitStatus::from_raw(code << 8);
        Outcome::of("spec", Path::new("/t/spec"), status, log)
    }

    #[test]
    fn the_figures_of_a_run_are_read() {
        let outcome = outcome(0, LOG);
        assert_eq!(
            (outcome.executions, outcome.executions_per_second),
            (99123, 4720)
        );
        assert_eq!((outcome.edges, outcome.features), (410, 655));
        assert_eq!((outcome.new_inputs, outcome.memory_mib), (12, 91));
        assert_eq!(outcome.failure_story(), None);
        let table = table(std::slice::from_ref(&outcome));
        let line = table.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["spec", "99123", "4720", "410", "655", "12", "91", "0"]
        );
    }

    #[test]
    fn a_crash_tells_its_input_and_how_to_reproduce_it() {
        let crash = "panicked at src/lib.rs:1\nartifact_prefix='/o/'; Test unit written to /o/crash-1\nBase64: AA==\n";
        let outcome = outcome(77, &format!("{LOG}{crash}"));
        assert!(outcome.failed());
        let story = outcome.failure_story().unwrap();
        assert!(story.contains("panicked at src/lib.rs:1"), "{story}");
        assert!(
            story.ends_with("to reproduce: /t/spec /o/crash-1"),
            "{story}"
        );
        let json = json(&[outcome]);
        assert_eq!(json["targets"][0]["failure"]["input"], "/o/crash-1");
    }

    #[test]
    fn a_target_that_says_nothing_and_fails_has_failed() {
        let outcome = outcome(1, "");
        assert!(outcome.failed());
        assert_eq!(outcome.executions, 0);
        assert!(outcome.failure_story().unwrap().contains("exit status: 1"));
    }

    #[test]
    fn a_target_that_was_given_nothing_has_failed_however_it_ended() {
        assert!(outcome(0, "").failed());
    }
}
