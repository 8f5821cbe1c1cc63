//! What a disk does.
//!
//! fio runs in a Linux guest, on the second of its two virtio-blk devices: a file in
//! memory, so that the way to it is measured and not a disk behind it. Every monitor
//! has the same kernel, root image and kind of file. They take turns, in one order and
//! then in the other.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::comparison::{Better, Comparison, Group};
use crate::error::{BenchError, host};
use crate::linux::{self, Images, Lost};
use crate::monitor::{Disk, Monitor, Programs};

/// The size of the disk.
const DISK_MIB: u64 = 256;
/// How long each job runs.
const JOB_SECONDS: u64 = 5;
/// How long all jobs may take, with what is around them.
const PATIENCE: Duration = Duration::from_secs(300);
/// A file system in memory.
const DIRECTORY: &str = "/dev/shm";

/// What is measured of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Operations,
    Bandwidth,
}

/// A job of fio: its name in the guest's init, and how it is called here.
struct Job {
    name: &'static str,
    title: &'static str,
    quantity: Quantity,
    writes: bool,
}

const fn job(name: &'static str, title: &'static str, quantity: Quantity, writes: bool) -> Job {
    Job {
        name,
        title,
        quantity,
        writes,
    }
}

const JOBS: [Job; 6] = [
    job(
        "randread-4k-1",
        "random read, depth 1",
        Quantity::Operations,
        false,
    ),
    job(
        "randread-4k-32",
        "random read, depth 32",
        Quantity::Operations,
        false,
    ),
    job(
        "randwrite-4k-1",
        "random write, depth 1",
        Quantity::Operations,
        true,
    ),
    job(
        "randwrite-4k-32",
        "random write, depth 32",
        Quantity::Operations,
        true,
    ),
    job("read-1m", "sequential read", Quantity::Bandwidth, false),
    job("write-1m", "sequential write", Quantity::Bandwidth, true),
];

/// A figure for each job.
type Trial = [f64; JOBS.len()];

/// Measures `turns`; `progress` is told what is being done, `finished` gets each turn.
pub fn run(
    programs: &Programs,
    images: &Images,
    turns: Range<usize>,
    mut progress: impl FnMut(&str),
    finished: impl FnMut(Comparison) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let monitors = programs.without_firecracker()?;
    let all = turns.end;
    let turn = |turn, lost: &mut Lost| {
        let mut trials: Vec<Option<Trial>> = vec![None; monitors.len()];
        for index in linux::order(turn, monitors.len()) {
            let monitor = &monitors[index];
            let name = monitor.name();
            progress(&format!("turn {} of {all}, {name}", turn + 1));
            let made = lost.trial(name, &mut progress, || trial(monitor, images))?;
            trials[index] = Some(made);
        }
        Ok(report(&monitors, &trials))
    };
    linux::turns("block", &monitors, turns, turn, finished)
}

/// One turn.
fn report(monitors: &[Monitor], trials: &[Option<Trial>]) -> Comparison {
    let setting = format!("{JOB_SECONDS} s for each job, disk of {DISK_MIB} MiB in {DIRECTORY}");
    let mut comparison = Comparison::new("block", 1, setting, monitors);
    for (quantity, title, unit) in [
        (Quantity::Operations, "4 KiB at random", "IOPS"),
        (Quantity::Bandwidth, "1 MiB in sequence, depth 4", "MiB/s"),
    ] {
        let mut group = Group {
            title: title.to_owned(),
            unit: unit.to_owned(),
            better: Better::More,
            rows: Vec::new(),
        };
        for (index, job) in JOBS.iter().enumerate() {
            if job.quantity == quantity {
                let values = trials
                    .iter()
                    .map(|trial| trial.iter().map(|trial| trial[index]).collect());
                group.push(job.title, values.collect());
            }
        }
        comparison.groups.push(group);
    }
    comparison
}

fn trial(monitor: &Monitor, images: &Images) -> Result<Trial, BenchError> {
    let file = disk()?;
    let mut guest = images.guest(&format!("block {JOB_SECONDS}"))?;
    guest.disks.push(Disk {
        file: file.path().to_owned(),
        read_only: false,
    });
    let mut machine = monitor.start(&guest)?;
    linux::wait_until_ready(&mut machine)?;
    let lines = linux::lines_until_done(&mut machine, PATIENCE)?;
    let mut trial = [0.0; JOBS.len()];
    for (job, figure) in JOBS.iter().zip(&mut trial) {
        let found = lines.iter().find_map(|line| parse(line, job));
        *figure = found.ok_or_else(|| {
            let expected = format!("what fio found in {}", job.name);
            linux::unexpected(&machine, &lines.join("\n"), &expected)
        })?;
    }
    Ok(trial)
}

/// A file that is all there, or its first writes would be others than the rest.
fn disk() -> Result<NamedTempFile, BenchError> {
    let failed = "write a disk to /dev/shm";
    let mut file = NamedTempFile::new_in(Path::new(DIRECTORY)).map_err(host(failed))?;
    let mut random = File::open("/dev/urandom").map_err(host("open /dev/urandom"))?;
    let mut bytes = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut random, &mut bytes).map_err(host("read /dev/urandom"))?;
    for _ in 0..DISK_MIB {
        file.write_all(&bytes).map_err(host(failed))?;
    }
    Ok(file)
}

/// Reads fio's terse output, version 3 (fio(1)): the job's name is the third field,
/// bandwidth in KiB/s and IOPS of reads the seventh and eighth, of writes the 48th and
/// 49th.
fn parse(line: &str, job: &Job) -> Option<f64> {
    let fields: Vec<&str> = line.split(';').collect();
    if *fields.first()? != "3" || *fields.get(2)? != job.name {
        return None;
    }
    let first = if job.writes { 47 } else { 6 };
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let found = match job.quantity {
        Quantity::Bandwidth => number(first)? / 1024.0,
        Quantity::Operations => number(first + 1)?,
    };
    // A job that failed has zeroes.
    (found > 0.0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, read: [u32; 2], write: [u32; 2]) -> String {
        let mut fields = vec!["0".to_owned(); 60];
        fields[0] = "3".to_owned();
        fields[1] = "fio-3.33".to_owned();
        fields[2] = name.to_owned();
        for (start, values) in [(6, read), (47, write)] {
            fields[start] = values[0].to_string();
            fields[start + 1] = values[1].to_string();
        }
        fields.join(";")
    }

    #[test]
    fn figures_are_found_in_the_line_of_their_job() {
        let [read, .., write] = &JOBS;
        let text = line("randread-4k-1", [4000, 1000], [0, 0]);
        assert_eq!(parse(&text, read), Some(1000.0));
        assert_eq!(parse(&text, write), None);
        let text = line("write-1m", [0, 0], [512_000, 500]);
        assert_eq!(parse(&text, write), Some(500.0));
    }

    #[test]
    fn a_job_that_failed_has_no_figure() {
        assert_eq!(
            parse(&line("randread-4k-1", [0, 0], [0, 0]), &JOBS[0]),
            None
        );
        assert_eq!(parse("fio: cannot open /dev/vdb", &JOBS[0]), None);
        assert_eq!(parse("3;fio-3.33;randread-4k-1", &JOBS[0]), None);
    }
}
