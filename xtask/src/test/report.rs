//! Reads what test executables print (libtest's format, which libtest-mimic
//! shares) and counts.

use std::collections::{BTreeMap, BTreeSet};

use super::run::Again;

/// A test that did not run because it said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// The executable and the test.
    pub name: String,
    /// Why, if it gave a reason.
    pub reason: Option<String>,
}

/// What became of a number of tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// Those that failed or did not run, each with what is known about it.
    pub failed: Vec<String>,
    /// Those that were left out on purpose.
    pub skipped: Vec<Skip>,
    /// Those that failed once and passed when run again.
    pub unsteady: Vec<String>,
    /// How many labs were lost under their tests.
    pub lost_labs: usize,
    /// What hostile drivers and guests have tried, and a device has survived: each
    /// case of a property test, each test of a bare-metal guest's attack.
    pub hostile_cases: usize,
}

/// What a test says that cannot run; its name and the reason follow.
const SKIPPED: &str = "skipped: ";
/// What a property test says when that many cases more are done.
const HOSTILE_CASES: &str = "hostile cases: ";
/// The tests of attacks by bare-metal guests.
const HOSTILE_TESTS: &str = "hostile::";

/// Ends the name of a test that did not run to its end.
const DID_NOT_RUN: &str = " (did not run)";

enum Outcome {
    Passed,
    Failed,
    Skipped(Option<String>),
}

impl Report {
    /// Something that went wrong before a test could run.
    pub fn of_failure(what: impl Into<String>) -> Self {
        Self {
            failed: vec![what.into()],
            ..Self::default()
        }
    }

    /// Reads what the executable `name` has printed. `listed` are the tests it
    /// has: those it tells nothing about have failed. So has the executable, if
    /// it neither ended well nor told of a failed test.
    pub fn read(name: &str, printed: &str, listed: &BTreeSet<String>, ended_well: bool) -> Self {
        let printed = &untangle(printed);
        let counts = printed
            .lines()
            .filter_map(|line| line.strip_prefix(HOSTILE_CASES)?.parse::<usize>().ok());
        let mut report = Self {
            hostile_cases: counts.sum(),
            ..Self::default()
        };
        let mut told = BTreeSet::new();
        // What our own executables say when they skip all they have.
        let common_reason = printed
            .lines()
            .find_map(|line| line.strip_prefix("ignored: "));
        // What a test says that cannot run, and then returns: libtest lets no
        // test skip itself.
        let skipped: BTreeMap<&str, &str> = printed
            .lines()
            .filter_map(|line| line.strip_prefix(SKIPPED)?.split_once(": "))
            .collect();
        for (test, outcome) in printed.lines().filter_map(outcome) {
            let full = format!("{name}: {test}");
            let outcome = match (outcome, skipped.get(test)) {
                (Outcome::Passed, Some(reason)) => Outcome::Skipped(Some((*reason).to_owned())),
                (outcome, _) => outcome,
            };
            match outcome {
                Outcome::Passed => {
                    report.passed += 1;
                    report.hostile_cases += usize::from(test.starts_with(HOSTILE_TESTS));
                }
                Outcome::Failed => report.failed.push(full),
                Outcome::Skipped(reason) => report.skipped.push(Skip {
                    name: full,
                    reason: reason.or_else(|| common_reason.map(str::to_owned)),
                }),
            }
            told.insert(test);
        }
        for test in listed.iter().filter(|test| !told.contains(test.as_str())) {
            report.failed.push(format!("{name}: {test}{DID_NOT_RUN}"));
        }
        if !ended_well && report.failed.is_empty() {
            report.failed.push(format!("{name} (ended badly)"));
        }
        report
    }

    /// Adds what `other` has.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.unsteady.extend(other.unsteady);
        self.lost_labs += other.lost_labs;
        self.hostile_cases += other.hostile_cases;
    }

    /// The names, with spaces between, of the tests of executable `name` that
    /// `which` is about.
    pub fn to_run_again(&self, name: &str, which: Again) -> String {
        let prefix = format!("{name}: ");
        let names = self.failed.iter().filter_map(|failed| {
            let test = failed.strip_prefix(&prefix)?;
            match which {
                Again::Unfinished => test.strip_suffix(DID_NOT_RUN),
                Again::Failed => (!test.contains(' ')).then_some(test),
            }
        });
        names.collect::<Vec<_>>().join(" ")
    }

    /// Takes what `printed`, by a later run, says of the tests of executable
    /// `name` that did not run before.
    pub fn finish(&mut self, name: &str, printed: &str) {
        for (test, outcome) in printed.lines().filter_map(outcome) {
            let full = format!("{name}: {test}");
            let unfinished = format!("{full}{DID_NOT_RUN}");
            let Some(index) = self.failed.iter().position(|failed| *failed == unfinished) else {
                continue;
            };
            match outcome {
                Outcome::Passed => {
                    self.failed.remove(index);
                    self.passed += 1;
                }
                Outcome::Failed => self.failed[index] = full,
                Outcome::Skipped(reason) => {
                    self.failed.remove(index);
                    self.skipped.push(Skip { name: full, reason });
                }
            }
        }
    }

    /// Counts as passed, and as unsteady, the failed tests of executable `name`
    /// of which `printed`, by a second run, says that they passed.
    pub fn steady(&mut self, name: &str, printed: &str) {
        for (test, outcome) in printed.lines().filter_map(outcome) {
            let full = format!("{name}: {test}");
            let failed = self.failed.iter().position(|failed| *failed == full);
            if let (Outcome::Passed, Some(index)) = (outcome, failed) {
                self.unsteady.push(self.failed.remove(index));
                self.passed += 1;
            }
        }
    }

    /// Whether at least one test ran, and none failed.
    pub fn is_success(&self) -> bool {
        self.passed > 0 && self.failed.is_empty()
    }

    /// The counts, in the words of the last line of `cargo xtask test`.
    pub fn counts(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        )
    }
}

/// Puts what tests say by themselves on lines of its own: the harness may have written
/// the first half of a line just before, as in `test a ... skipped: b: why`, `ok`.
fn untangle(printed: &str) -> String {
    let mut lines = Vec::new();
    let mut first_half = None;
    for line in printed.lines() {
        let said = [SKIPPED, HOSTILE_CASES]
            .iter()
            .filter_map(|said| line.find(said))
            .find(|at| *at == 0 || line[..*at].ends_with(" ... "));
        match (said, first_half.take()) {
            (Some(0), half) => {
                lines.push(line.to_owned());
                first_half = half;
            }
            (Some(at), _) => {
                lines.push(line[at..].to_owned());
                first_half = Some(&line[..at]);
            }
            (None, Some(half)) => lines.push(format!("{half}{line}")),
            (None, None) => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

/// The tests that an executable lists with `--list`.
pub fn listed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// Reads a line such as `test queue::wraps ... ok`.
fn outcome(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.trim_end();
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    let outcome = match outcome {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ => {
            // "ignored", "ignored, REASON", and "ignored (REASON)".
            let reason = outcome.strip_prefix("ignored")?;
            let reason = reason
                .strip_prefix(", ")
                .or_else(|| reason.strip_prefix(" (")?.strip_suffix(')'));
            Outcome::Skipped(reason.map(str::to_owned))
        }
    };
    Some((name, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "
running 4 tests
test queue::wraps ... ok
test queue::needs_hardware ... ignored, needs a TPM
test queue::slow ... ignored
test queue::overflows - should panic ... FAILED

failures:

---- queue::overflows stdout ----
test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out
";

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_outcome_is_counted() {
        let report = Report::read("vmm", PRINTED, &BTreeSet::new(), false);
        assert_eq!(report.counts(), "1 passed, 1 failed, 2 skipped");
        assert_eq!(report.failed, ["vmm: queue::overflows"]);
        let reasons: Vec<_> = report.skipped.iter().map(|s| s.reason.as_deref()).collect();
        assert_eq!(reasons, [Some("needs a TPM"), None]);
        assert!(!report.is_success());
    }

    #[test]
    fn a_test_that_passes_when_run_again_is_unsteady() {
        let first = "test a ... FAILED\ntest b ... FAILED\ntest c ... ok\n";
        let mut report = Report::read("e2e run", first, &names(&["a", "b", "c"]), false);
        report.steady("e2e run", "test a ... ok\ntest b ... FAILED\n");
        assert_eq!(report.counts(), "2 passed, 1 failed, 0 skipped");
        assert_eq!(report.unsteady, ["e2e run: a"]);
        assert_eq!(report.failed, ["e2e run: b"]);
    }

    #[test]
    fn tests_lost_with_their_lab_are_judged_by_their_next_run() {
        let all = names(&["a", "b", "c", "d"]);
        let first = "test a ... ok\ntest b ... FAILED\n";
        let mut report = Report::read("e2e run", first, &all, false);
        assert_eq!(report.to_run_again("e2e run", Again::Unfinished), "c d");
        assert_eq!(report.to_run_again("e2e run", Again::Failed), "b");
        report.finish(
            "e2e run",
            "test b ... ok\ntest c ... ok\ntest d ... FAILED\n",
        );
        assert_eq!(report.counts(), "2 passed, 2 failed, 0 skipped");
        assert_eq!(report.failed, ["e2e run: b", "e2e run: d"]);
        assert!(report.unsteady.is_empty());
    }

    #[test]
    fn names_padded_for_alignment_are_the_same_names() {
        let report = Report::read("init", "test a     ... ok\n", &names(&["a"]), true);
        assert_eq!(report.counts(), "1 passed, 0 failed, 0 skipped");
        assert!(report.is_success());
    }

    #[test]
    fn a_listed_test_that_tells_nothing_has_failed() {
        let all = names(&["a", "b"]);
        let report = Report::read("e2e", "test a ... ok\n", &all, false);
        assert_eq!(report.failed, ["e2e: b (did not run)"]);
    }

    #[test]
    fn an_executable_that_dies_after_its_tests_has_failed() {
        let report = Report::read("e2e", "test a ... ok\n", &names(&["a"]), false);
        assert_eq!(report.failed, ["e2e (ended badly)"]);
    }

    #[test]
    fn reasons_are_found_wherever_they_are_given() {
        let printed = "ignored: this takes root\ntest a ... ignored\ntest b ... ignored (no KVM)\n";
        let report = Report::read("init", printed, &BTreeSet::new(), true);
        let reasons: Vec<_> = report.skipped.iter().map(|s| s.reason.as_deref()).collect();
        assert_eq!(reasons, [Some("this takes root"), Some("no KVM")]);
    }

    #[test]
    fn a_test_that_says_it_skips_has_not_passed() {
        let printed = "skipped: a::b: no /dev/kvm: gone\ntest a::b ... ok\ntest c ... ok\n";
        let report = Report::read("vmm", printed, &names(&["a::b", "c"]), true);
        assert_eq!(report.counts(), "1 passed, 0 failed, 1 skipped");
        let reason = Some("no /dev/kvm: gone".to_owned());
        assert_eq!(report.skipped[0].reason, reason);
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert!(!Report::default().is_success());
    }

    #[test]
    fn hostile_cases_are_counted_in_property_tests_and_guests() {
        let printed = "hostile cases: 64\ntest hostile::a_loop ... ok\nhostile cases: 64\n\
                       test hostile::a_jump ... FAILED\ntest block::reads ... ok\n";
        let report = Report::read("vmm", printed, &BTreeSet::new(), true);
        assert_eq!(report.hostile_cases, 129);
    }

    #[test]
    fn what_a_test_says_does_not_hide_the_outcome_of_another() {
        let printed = "test a ... skipped: b: no /dev/b\nhostile cases: 64\nok\n\
                       test b ... ok\ntest c ... hostile cases: 64\nFAILED\n";
        let report = Report::read("vmm", printed, &names(&["a", "b", "c"]), false);
        assert_eq!(report.counts(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(report.failed, ["vmm: c"]);
        assert_eq!(report.hostile_cases, 128);
    }

    #[test]
    fn lists_have_tests_and_nothing_else() {
        let text = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(listed(text), names(&["a::b", "c"]));
    }
}
