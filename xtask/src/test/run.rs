//! Runs test executables, here or in labs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, PipeReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::report::{self, Report};
use crate::cargo::Executable;
use crate::lab;
use crate::progress::{self, Step};

/// What tests are told, as environment variables.
pub type Variables = [(OsString, OsString)];

/// A test executable that takes longer is stopped: it hangs. The whole of the
/// end-to-end tests takes minutes in a lab.
const TIME_LIMIT: Duration = Duration::from_secs(30 * 60);

/// A lab whose tests print nothing for this long is lost: a guest stands still, as now
/// and then one does there (see `docs/lab.md`). A test that makes it do so will do it
/// again in the next. The longest takes a minute and a half.
const LAB_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Runs `executables` on this machine, one after another.
pub fn here(executables: &[Executable], variables: &Variables) -> Report {
    let mut total = Report::default();
    for executable in executables {
        let name = name_of(executable);
        let step = progress::step(format!("testing {name}"));
        let report = match run_here(executable, variables, &step) {
            Ok((printed, ended_well)) => conclude(executable, &printed, ended_well),
            Err(error) => Report::of_failure(format!("{name}: {error:#}")),
        };
        drop(step);
        total.add(announce(&name, report));
    }
    total
}

/// Runs `executables` one after another, each in a lab of its own: a lab is safest
/// while it is young (see `docs/lab.md`).
pub fn in_lab(
    executables: &[Executable],
    variables: &Variables,
    options: &lab::MachineOptions,
) -> Report {
    let mut total = Report::default();
    for executable in executables {
        let (outputs, lost) = run_in_lab(&[(executable, "")], variables, options);
        let output = outputs.into_iter().next().unwrap_or_default();
        let ended_well = output.exit_code == Some(0);
        let report = conclude(executable, &output.printed, ended_well);
        total.add(announce(&name_of(executable), report));
        total.lost_labs += usize::from(lost);
    }
    total
}

/// Which tests run once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Those that had no chance to end: their lab was lost.
    Unfinished,
    /// Those that failed.
    Failed,
}

/// Runs tests that did not pass in `first` once more, in another lab.
///
/// QEMU's emulation of nested virtualization now and then loses a guest, or the
/// lab. Tests that were lost with their lab are judged by their next run. So are
/// tests that failed, but those are told: they are unsteady, not right.
pub fn again_in_lab(
    mut first: Report,
    which: Again,
    executables: &[Executable],
    variables: &Variables,
    options: &lab::MachineOptions,
) -> Report {
    let filters: Vec<String> = executables
        .iter()
        .map(|executable| first.to_run_again(&name_of(executable), which))
        .collect();
    let runs: Vec<_> = executables
        .iter()
        .zip(&filters)
        .filter(|(_, names)| !names.is_empty())
        .map(|(executable, names)| (executable, names.as_str()))
        .collect();
    if runs.is_empty() {
        return first;
    }
    match which {
        Again::Unfinished => eprintln!("what was lost with its lab, in another:"),
        Again::Failed => eprintln!("once more what failed, in another lab:"),
    }
    let (outputs, lost) = run_in_lab(&runs, variables, options);
    first.lost_labs += usize::from(lost);
    for ((executable, _), output) in runs.iter().zip(&outputs) {
        let name = name_of(executable);
        let again = Report::read(&name, &output.printed, &Default::default(), true);
        if !again.failed.is_empty() {
            eprintln!("--- {name} printed:\n{}\n---", output.printed.trim_end());
        }
        match which {
            Again::Unfinished => first.finish(&name, &output.printed),
            Again::Failed => first.steady(&name, &output.printed),
        }
        eprintln!("{name}, once more: {}", again.counts());
    }
    first
}

/// The report on an executable that never had a chance.
pub fn not_run(executable: &Executable) -> Report {
    conclude(executable, "", false)
}

/// Says in one line how it went.
fn announce(name: &str, report: Report) -> Report {
    eprintln!("{name}: {}", report.counts());
    report
}

fn conclude(executable: &Executable, printed: &str, ended_well: bool) -> Report {
    let name = name_of(executable);
    let report = match list(&executable.path) {
        Ok(listed) => Report::read(&name, printed, &report::listed(&listed), ended_well),
        Err(error) => Report::of_failure(format!("{name}: {error:#}")),
    };
    if !report.failed.is_empty() && !printed.is_empty() {
        eprintln!("--- {name} printed:\n{}\n---", printed.trim_end());
    }
    report
}

fn list(executable: &Path) -> Result<String> {
    let mut command = Command::new(executable);
    crate::command::output(command.args(["--list", "--format", "terse"]))
}

fn name_of(executable: &Executable) -> String {
    if executable.is_integration_test || executable.target != executable.package {
        format!("{} {}", executable.package, executable.target)
    } else {
        executable.package.clone()
    }
}

fn run_here(executable: &Executable, variables: &Variables, step: &Step) -> Result<(String, bool)> {
    let failed = || format!("cannot run {}", executable.path.display());
    let (reader, writer) = std::io::pipe().with_context(failed)?;
    let mut command = Command::new("timeout");
    command
        .args(time_limit())
        .arg(&executable.path)
        .current_dir(&executable.package_dir)
        .env("CARGO_MANIFEST_DIR", &executable.package_dir)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(writer.try_clone().with_context(failed)?)
        .stderr(writer);
    let mut child = command.spawn().with_context(failed)?;
    // It holds the writing ends, which would keep the pipe open.
    drop(command);
    let mut printed = String::new();
    each_line(reader, |line| {
        step.detail(line);
        printed.push_str(line);
        printed.push('\n');
    });
    Ok((printed, child.wait().with_context(failed)?.success()))
}

/// Arguments for timeout(1).
fn time_limit() -> [String; 2] {
    let limit = TIME_LIMIT.as_secs();
    ["--kill-after=10".to_owned(), limit.to_string()]
}

/// Begins the line that says which executable comes next.
const BEGIN: &str = "@@ begin ";
/// Begins the line that says with which code it has exited.
const END: &str = "@@ end ";

/// What an executable printed in the lab.
#[derive(Debug, Default, PartialEq, Eq)]
struct Output {
    printed: String,
    /// None: it was interrupted.
    exit_code: Option<i32>,
}

/// Runs each executable with the names of the tests to run; all, if empty. Returns
/// what they printed, and whether the lab was lost meanwhile, which it tells.
fn run_in_lab(
    runs: &[(&Executable, &str)],
    variables: &Variables,
    options: &lab::MachineOptions,
) -> (Vec<Output>, bool) {
    let (outputs, ending) = match try_in_lab(runs, variables, options) {
        Ok((outputs, ending)) => (outputs, ending),
        Err(error) => (Vec::new(), Err(error)),
    };
    match ending {
        Ok(lab::Ending::Interrupted(_)) => {
            // The user wants no verdict.
            eprintln!("interrupted");
            std::process::exit(ending.map_or(1, |ending| ending.exit_code().into()));
        }
        Ok(ending) => {
            if outputs.len() < runs.len() {
                eprintln!("the lab ended before all tests had run: {ending:?}");
            }
            (outputs, false)
        }
        Err(error) => {
            eprintln!("{error:#}");
            (outputs, error.is::<lab::Lost>())
        }
    }
}

/// What was printed, and what became of the lab.
fn try_in_lab(
    runs: &[(&Executable, &str)],
    variables: &Variables,
    options: &lab::MachineOptions,
) -> Result<(Vec<Output>, Result<lab::Ending>)> {
    let mut args: Vec<OsString> = vec!["sh".into(), "-c".into(), script().into(), "sh".into()];
    for (executable, names) in runs {
        args.push(executable.package_dir.clone().into());
        args.push(executable.path.clone().into());
        args.push(names.into());
    }
    let mut request = lab::Request::new(args)?;
    request.signalled = lab::Signalled::Lab;
    let patience = lab::Patience::of(LAB_PATIENCE);
    request.patience = Some(patience.clone());
    for (name, value) in variables {
        request.env.retain(|(known, _)| known != name);
        request.env.push((name.clone(), value.clone()));
    }
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let streams = lab::Streams {
        stdin: None,
        stdout: writer
            .try_clone()
            .context("cannot duplicate a pipe")?
            .into(),
        stderr: writer.into(),
    };
    let reading = read_outputs(reader, patience);
    let ending = lab::run(options, &request, streams);
    let outputs = reading
        .join()
        .map_err(|_| anyhow::anyhow!("what the lab printed could not be read"))?;
    Ok((outputs, ending))
}

/// Runs each triple of directory, executable and test names among its arguments.
fn script() -> String {
    let [kill_after, limit] = time_limit();
    format!(
        "while [ $# -gt 0 ]; do\n\
         echo '{BEGIN}'\"$2\"\n\
         (cd \"$1\" && CARGO_MANIFEST_DIR=\"$1\" exec timeout {kill_after} {limit} \"$2\" ${{3:+--exact}} $3) </dev/null\n\
         echo '{END}'$?\n\
         shift 3\n\
         done"
    )
}

fn read_outputs(reader: PipeReader, patience: lab::Patience) -> JoinHandle<Vec<Output>> {
    thread::spawn(move || {
        let mut outputs = Vec::new();
        // From the first line on: until then there is the step of the lab's start.
        let mut step = None;
        each_line(reader, |line| {
            patience.heard();
            step.get_or_insert_with(|| progress::step("testing in the lab"))
                .detail(line);
            take_line(&mut outputs, line);
        });
        outputs
    })
}

fn take_line(outputs: &mut Vec<Output>, line: &str) {
    if line.starts_with(BEGIN) {
        outputs.push(Output::default());
    } else if let Some(output) = outputs.last_mut() {
        // A test's own last line may lack its end.
        match line.rsplit_once(END) {
            Some((rest, code)) if code.parse::<i32>().is_ok() => {
                output.printed.push_str(rest);
                output.exit_code = code.parse().ok();
            }
            _ => {
                output.printed.push_str(line);
                output.printed.push('\n');
            }
        }
    }
}

fn each_line(reader: PipeReader, mut take: impl FnMut(&str)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => take(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_in_the_lab_are_told_apart() {
        let mut outputs = Vec::new();
        for line in [
            "noise",
            "@@ begin /t/a",
            "test x ... ok",
            "@@ end 0",
            "@@ begin /t/b",
            "no newline@@ end 101",
            "@@ begin /t/c",
            "cut",
        ] {
            take_line(&mut outputs, line);
        }
        let output = |printed: &str, exit_code| Output {
            printed: printed.to_owned(),
            exit_code,
        };
        assert_eq!(
            outputs,
            [
                output("test x ... ok\n", Some(0)),
                output("no newline", Some(101)),
                output("cut\n", None),
            ]
        );
    }

    #[test]
    fn the_script_of_the_lab_runs_each_executable_in_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &script(), "sh"]);
        shell.arg(&path).args([
            "/bin/pwd",
            "",
            "/",
            "/bin/false",
            "",
            "/",
            "/bin/echo",
            "a b",
        ]);
        let printed = crate::command::output(&mut shell).unwrap();
        let mut outputs = Vec::new();
        printed
            .lines()
            .for_each(|line| take_line(&mut outputs, line));
        assert_eq!(outputs[0].printed, format!("{}\n", path.display()));
        assert_eq!(outputs[0].exit_code, Some(0));
        assert_eq!(outputs[1].exit_code, Some(1));
        assert_eq!(outputs[2].printed, "--exact a b\n");
    }
}
