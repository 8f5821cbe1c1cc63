//! Runs fuzz targets, at most one on each processor.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use super::report::Outcome;
use crate::progress;

/// The most memory of one target, in MiB: several times what any needs.
const MEMORY_MIB: u32 = 1024;
/// The longest that one input may take, in seconds: thousands of times what one
/// does on a machine of today.
const INPUT_SECONDS: u32 = 10;
/// The longest input, in bytes. Longer ones reach no more and take longer.
const INPUT_BYTES: u32 = 8192;
/// What a target may take beyond its time, to begin with its corpus and to end.
const GRACE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// What is run, and where things are.
pub struct Plan {
    /// The directory of the built targets.
    pub programs: PathBuf,
    /// A directory of seeds for each target.
    pub seeds: PathBuf,
    /// Where corpora, logs and crashing inputs go.
    pub output: PathBuf,
    /// How long each target runs.
    pub time: Duration,
}

/// Runs `targets`; returns what came of each, in their order, or `None` if SIGINT or
/// SIGTERM has ended it.
pub fn all(plan: &Plan, targets: &[String]) -> Result<Option<Vec<Outcome>>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("cannot listen for signals")?;
    }
    let waiting: Mutex<VecDeque<_>> = Mutex::new(targets.iter().enumerate().collect());
    let outcomes = Mutex::new(Vec::new());
    let step = progress::step("fuzzing");
    let worker = || -> Result<()> {
        loop {
            let next = lock(&waiting).pop_front();
            let Some((index, target)) = next.filter(|_| !interrupted.load(Ordering::SeqCst)) else {
                return Ok(());
            };
            step.detail(target);
            if let Some(outcome) = one(plan, target, &interrupted)? {
                lock(&outcomes).push((index, outcome));
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| anyhow!("a thread that runs fuzz targets panicked"))?
        })
    })?;
    if interrupted.load(Ordering::SeqCst) {
        return Ok(None);
    }
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(index, _)| *index);
    Ok(Some(
        outcomes.into_iter().map(|(_, outcome)| outcome).collect(),
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one target; `None` if it was interrupted.
fn one(plan: &Plan, target: &str, interrupted: &AtomicBool) -> Result<Option<Outcome>> {
    let directory = |kind: &str| -> Result<PathBuf> {
        let path = plan.output.join(kind).join(target);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    };
    let (corpus, artifacts) = (directory("corpus")?, directory("artifacts")?);
    let log = directory("logs")?.join("latest");
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let program = plan.programs.join(target);
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={}", plan.time.as_secs()))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        // From the first moment: a short run would see nothing but short inputs.
        .arg("-len_control=0")
        // A slash at the end: files go into the directory.
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        // The first directory takes what is found.
        .arg(corpus)
        .args(Some(plan.seeds.join(target)).filter(|seeds| seeds.is_dir()))
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share a log file")?)
        .stderr(file);
    let child = command
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let Some(status) = wait(child, plan.time + GRACE, interrupted)? else {
        return Ok(None);
    };
    Ok(Some(Outcome::of(
        target,
        &program,
        status,
        &read_lossy(&log)?,
    )))
}

/// Waits for the end of `child`, and brings it about when there is a signal or its
/// time is long over.
fn wait(
    mut child: Child,
    patience: Duration,
    interrupted: &AtomicBool,
) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a fuzz target")? {
            return Ok(Some(status).filter(|_| !interrupted.load(Ordering::SeqCst)));
        }
        if interrupted.load(Ordering::SeqCst) {
            end(&mut child);
            return Ok(None);
        }
        if started.elapsed() > patience {
            let _ = child.kill();
        }
        thread::sleep(POLL);
    }
}

/// Asks a target to end, as Ctrl-C on a terminal has done already, and then makes it.
fn end(child: &mut Child) {
    // Not reaped yet, so the number is still its.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::INT);
    }
    for _ in 0..40 {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Inputs that are printed need not be text.
fn read_lossy(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Two targets that are shell scripts.
    fn plan(directory: &Path, script: &str) -> Plan {
        for name in ["one", "two"] {
            let path = directory.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Plan {
            programs: directory.to_owned(),
            seeds: directory.join("seeds"),
            output: directory.join("output"),
            time: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_came_of_each_target_is_told_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"echo "stat::number_of_executed_units: 7" >&2; [ "${0##*/}" = one ]"#;
        let plan = plan(directory.path(), script);
        let targets = ["two".to_owned(), "one".to_owned()];
        let outcomes = all(&plan, &targets).unwrap().unwrap();
        let told: Vec<_> = outcomes
            .iter()
            .map(|o| (o.target.as_str(), o.executions, o.failed()))
            .collect();
        assert_eq!(told, [("two", 7, true), ("one", 7, false)]);
    }

    #[test]
    fn a_signal_ends_a_target_that_does_not_listen_to_it() {
        let mut command = Command::new("sh");
        let child = command.args(["-c", "trap '' INT; while :; do sleep 0.1; done"]);
        let child = child.stdin(Stdio::null()).spawn().unwrap();
        let status = wait(child, Duration::from_secs(600), &AtomicBool::new(true)).unwrap();
        assert_eq!(status, None);
    }
}
