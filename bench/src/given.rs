//! What `cargo xtask bench` tells the benchmarks, and where they can be made by that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bench::elsewhere::{self, Place};
use bench::linux::Images;
use bench::monitor::Programs;

use crate::{Benchmark, Options, Peer};

/// How many labs in a row may be lost before a turn is done.
const LOST_LABS: usize = 2;
/// The lab's disk for images.
const LAB_SCRATCH: &str = "8G";

/// What `cargo xtask bench` says, and not who runs it: in the environment.
#[derive(Debug)]
pub struct Given {
    /// What is measured.
    pub programs: Programs,
    /// The program `mote`, and the reference of an image for it.
    image: Option<(PathBuf, String)>,
    /// For Linux guests.
    pub images: Option<Images>,
    /// What runs a command where Linux guests run, if that is not here.
    lab: Option<OsString>,
    /// The directory where files are written.
    pub output: PathBuf,
}

impl Given {
    /// From the environment.
    pub fn read(options: &Options) -> Result<Self> {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let needed = |name| {
            path(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
        };
        let firecracker = options.peers.last();
        let firecracker = firecracker.map(|Peer::Firecracker(path)| path.clone());
        let images = path("MOTE_BENCH_KERNEL").zip(path("MOTE_BENCH_ROOT"));
        Ok(Self {
            image: path("MOTE_BENCH_MOTE").zip(std::env::var("MOTE_BENCH_IMAGE").ok()),
            images: images.map(|(kernel, root)| Images { kernel, root }),
            lab: std::env::var_os("MOTE_BENCH_LAB"),
            programs: Programs {
                mote_vmm: needed("MOTE_BENCH_VMM")?,
                qemu: path("MOTE_BENCH_QEMU"),
                firecracker,
            },
            output: needed("MOTE_BENCH_OUTPUT")?,
        })
    }

    /// The program `mote`, and an image's reference.
    pub fn image(&self) -> Result<(&Path, &str)> {
        let image = self.image.as_ref();
        let (mote, reference) = image.context("no image: run `cargo xtask bench`")?;
        Ok((mote, reference))
    }

    /// Where `benchmark` can be measured; `None`: here.
    pub fn place(&self, benchmark: Benchmark, prepared: Option<&Path>) -> Option<Place> {
        if elsewhere::has_arrived() {
            return None;
        }
        let mut way: Vec<OsString> = Vec::new();
        if let Some(lab) = &self.lab {
            way.push(lab.clone());
            way.extend(["lab", "--no-build"].map(Into::into));
            if benchmark == Benchmark::ImageGuests {
                way.extend(["--scratch", LAB_SCRATCH].map(Into::into));
            }
            way.push("--".into());
        }
        if matches!(benchmark, Benchmark::Net | Benchmark::ImageGuests) {
            // Its interfaces vanish with the last process in it.
            way.extend(["unshare", "--net"].map(Into::into));
        }
        let losses = if self.lab.is_some() { LOST_LABS } else { 0 };
        let prepared = prepared.map(|directory| ["--prepared".into(), directory.into()]);
        let arguments = prepared.into_iter().flatten().collect();
        (!way.is_empty()).then_some(Place {
            way,
            arguments,
            losses,
        })
    }
}
