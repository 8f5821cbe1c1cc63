//! The root file system of the Linux guests that are measured: a minimal Debian with
//! fio and iperf3, as one EROFS file that any monitor has for a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use erofs::{Image, Limits, layer, merge};
use sha2::{Digest, Sha256};

use crate::{cache, debian_root, packages, progress};

/// The Debian release in it, whatever this machine runs.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "fio,iperf3,iproute2";
/// The guest's init.
const INIT: &str = "/usr/local/bin/bench";
const INIT_TEXT: &str = include_str!("guest.sh");

/// The file from the cache, made if it is not there.
pub fn fetch() -> Result<PathBuf> {
    let inputs = format!("{SUITE}\n{PACKAGES}\n{INIT}\n{INIT_TEXT}");
    let key = format!("{:x}", Sha256::digest(inputs));
    let directory = cache::entry(&format!("bench-image-{}", &key[..16]), |directory| {
        packages::require(&packages::FOR_DEMO_IMAGE)?;
        let _step = progress::step("building the benchmarks' image from Debian packages");
        make(directory)
    })?;
    Ok(directory.join("root.erofs"))
}

fn make(directory: &Path) -> Result<()> {
    let failed = "cannot make the benchmarks' image";
    let mut debian = tempfile::tempfile_in(directory).context(failed)?;
    debian_root::write(SUITE, PACKAGES, &mut debian)?;
    let mut init = tempfile::tempfile_in(directory).context(failed)?;
    debian_root::write_program(INIT, INIT_TEXT, &mut init)?;

    let limits = Limits::default();
    let (mut layers, mut blobs) = (Vec::new(), Vec::new());
    for mut tar in [debian, init] {
        tar.rewind().context(failed)?;
        let blob = tempfile::tempfile_in(directory).context(failed)?;
        let summary = layer::write(io::BufReader::new(tar), &blob, &limits).context(failed)?;
        let image = Image::open(blob.try_clone().context(failed)?, summary.blob_bytes);
        layers.push(image.context(failed)?);
        blobs.push(blob);
    }
    let mut disk = File::create(directory.join("root.erofs")).context(failed)?;
    merge::write(&layers, &disk, &limits).context(failed)?;
    disk.seek(SeekFrom::End(0)).context(failed)?;
    for mut blob in blobs {
        blob.rewind().context(failed)?;
        io::copy(&mut blob, &mut disk).context(failed)?;
    }
    Ok(())
}
