//! `--device-read-bps` and its like: what a microVM's VMM may read from and write to disks
//! of this host. The kernel keeps these limits, as those of Docker's flags of the same
//! names, by `io.max` of the VMM's cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use jail::IoLimit;
use rustix::fs::{major, minor};

use crate::size;

/// The flags, in the order of [`parse`].
const FLAGS: [&str; 4] = [
    "--device-read-bps",
    "--device-write-bps",
    "--device-read-iops",
    "--device-write-iops",
];

/// What is wrong with such a flag.
#[derive(Debug, thiserror::Error)]
pub enum IoLimitError {
    /// Not a path and a number.
    #[error("{flag} {text}: it must be DISK:RATE, such as /dev/sda:10m, and not 0")]
    Malformed {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// The disk cannot be looked at.
    #[error("{flag} {text}: cannot look at the disk")]
    Stat {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not a block device.
    #[error("{flag} {text}: {path} is no disk of this host (a block device)")]
    NoDisk {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
        /// What it names.
        path: String,
    },
    /// A part of a disk.
    #[error("{flag} {text}: {path} is a partition; limits are for whole disks")]
    Partition {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
        /// What it names.
        path: String,
    },
}

/// Reads the values of `--device-read-bps`, `--device-write-bps`, `--device-read-iops` and
/// `--device-write-iops`. The last of several for one disk counts.
pub fn parse(values: [&[String]; FLAGS.len()]) -> Result<Vec<IoLimit>, IoLimitError> {
    let mut limits: Vec<IoLimit> = Vec::new();
    for ((texts, flag), index) in values.into_iter().zip(FLAGS).zip(0..) {
        for text in texts {
            let (path, rate) = split(flag, text)?;
            let (major, minor) = disk(flag, text, path)?;
            let known = limits
                .iter()
                .position(|limit| (limit.major, limit.minor) == (major, minor));
            let at = known.unwrap_or_else(|| {
                limits.push(IoLimit {
                    major,
                    minor,
                    ..IoLimit::default()
                });
                limits.len() - 1
            });
            let limit = &mut limits[at];
            let slots = [
                &mut limit.read_bps,
                &mut limit.write_bps,
                &mut limit.read_iops,
                &mut limit.write_iops,
            ];
            for (slot, number) in slots.into_iter().zip(0..) {
                if number == index {
                    *slot = Some(rate);
                }
            }
        }
    }
    Ok(limits)
}

fn split<'t>(flag: &'static str, text: &'t str) -> Result<(&'t str, u64), IoLimitError> {
    let parts = text.rsplit_once(':').filter(|(path, _)| !path.is_empty());
    parts
        .and_then(|(path, rate)| Some((path, size::parse(rate).ok().filter(|rate| *rate > 0)?)))
        .ok_or_else(|| IoLimitError::Malformed {
            flag,
            text: text.to_owned(),
        })
}

fn disk(flag: &'static str, text: &str, path: &str) -> Result<(u32, u32), IoLimitError> {
    let (text, path) = (text.to_owned(), path.to_owned());
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(source) => return Err(IoLimitError::Stat { flag, text, source }),
    };
    if !metadata.file_type().is_block_device() {
        return Err(IoLimitError::NoDisk { flag, text, path });
    }
    let number = (major(metadata.rdev()), minor(metadata.rdev()));
    let sys = format!("/sys/dev/block/{}:{}/partition", number.0, number.1);
    if fs::exists(sys).unwrap_or(false) {
        return Err(IoLimitError::Partition { flag, text, path });
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let values = [text.to_owned()];
        let error = parse([&[], &values, &[], &[]]).unwrap_err().to_string();
        assert!(
            error.contains("--device-write-bps") && error.contains(text),
            "{error}"
        );
        error
    }

    #[test]
    fn what_is_no_disk_and_no_rate_is_refused_by_name() {
        for bad in [
            "",
            "/dev/sda",
            "/dev/sda:",
            ":1m",
            "/dev/sda:fast",
            "/dev/sda:0",
        ] {
            assert!(error(bad).contains("DISK:RATE"), "{bad}");
        }
        assert!(error("/dev/null:1m").contains("no disk"));
        assert!(error("/no/such:1m").contains("cannot look at"));
    }

    #[test]
    fn nothing_asked_for_is_no_limit() {
        assert_eq!(parse([&[], &[], &[], &[]]).unwrap(), []);
    }
}
