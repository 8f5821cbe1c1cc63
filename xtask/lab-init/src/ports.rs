//! The virtio serial ports.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol;

const DEADLINE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(2);

/// The open ports, each connected to the machine.
pub struct Ports {
    pub control: File,
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
}

impl Ports {
    /// Opens the ports, which the driver adds some time after it is loaded.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self {
            control: open(protocol::CONTROL_PORT)?,
            stdin: open(protocol::STDIN_PORT)?,
            stdout: open(protocol::STDOUT_PORT)?,
            stderr: open(protocol::STDERR_PORT)?,
        })
    }
}

fn open(name: &str) -> anyhow::Result<File> {
    let deadline = Instant::now() + DEADLINE;
    let port = loop {
        // The device node comes after the entry in /sys.
        let opened = find(name).and_then(|path| {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .ok()
        });
        if let Some(port) = opened {
            break port;
        }
        if Instant::now() > deadline {
            bail!("there is no virtio serial port {name}");
        }
        thread::sleep(INTERVAL);
    };
    // A read before the driver knows that the far end is connected is an end of
    // file; until then the port polls as hung up.
    loop {
        let mut events = [PollFd::new(&port, PollFlags::OUT)];
        poll(&mut events, Some(&Timespec::default())).context("polling a serial port")?;
        if !events[0].revents().contains(PollFlags::HUP) {
            return Ok(port);
        }
        if Instant::now() > deadline {
            bail!("nobody is connected to the virtio serial port {name}");
        }
        thread::sleep(INTERVAL);
    }
}

fn find(name: &str) -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find(|entry| {
            fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name)
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
}
