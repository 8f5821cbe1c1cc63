//! From the initramfs to the image: its read-only EROFS below, memory above.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::failure::{Attempt, SetupError};

/// The first virtio-blk disk: the image.
const IMAGE_DISK: &str = "/dev/vda";

/// How long the disk may take to appear.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of the memory the writable layer may fill. What is written beyond
/// it fails with `ENOSPC`, which a program can handle, rather than with the
/// out-of-memory killer, which it cannot.
const WRITABLE_PERCENT: u32 = 75;

/// One inode is allowed for this much memory.
const PAGE_BYTES: u64 = 4096;

// Mount points in the initramfs; nothing of them is seen after the switch.
const LOWER: &str = "/image";
const UPPER: &str = "/memory";
const MERGED: &str = "/root-of-image";

/// Mounts the device nodes the init itself needs.
pub fn mount_devices() -> Result<(), SetupError> {
    make_directory("/dev")?;
    rustix::mount::mount(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        None,
    )
    .attempt(|| "cannot mount devtmpfs on /dev".into())
}

/// Makes the image the root file system of this process and all to come.
pub fn enter_image() -> Result<(), SetupError> {
    for directory in [LOWER, UPPER, MERGED] {
        make_directory(directory)?;
    }
    wait_for_disk()?;
    rustix::mount::mount(IMAGE_DISK, LOWER, "erofs", MountFlags::RDONLY, None)
        .attempt(|| format!("cannot mount the image on {IMAGE_DISK} as EROFS"))?;
    mount_memory()?;
    mount_overlay()?;
    leave_initramfs();
    switch_root()
}

fn wait_for_disk() -> Result<(), SetupError> {
    // The kernel makes the node when the driver binds, usually before the init
    // starts; there is nothing cheaper to wait for than the node itself.
    let deadline = Instant::now() + DISK_TIMEOUT;
    loop {
        match rustix::fs::stat(IMAGE_DISK) {
            Err(rustix::io::Errno::NOENT) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => {
                return result
                    .map(|_| ())
                    .attempt(|| format!("the disk {IMAGE_DISK} is not there"));
            }
        }
    }
}

fn mount_memory() -> Result<(), SetupError> {
    // A file costs the kernel about 1 KiB besides its contents. One inode a page
    // bounds that to a quarter of the memory; the default of half as many is too
    // few for small machines.
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram as u64 * u64::from(memory.mem_unit);
    let inodes = bytes / PAGE_BYTES;
    let options = format!("mode=0755,size={WRITABLE_PERCENT}%,nr_inodes={inodes}");
    mount_with_options("tmpfs", UPPER, &options)?;
    make_directory(&format!("{UPPER}/upper"))?;
    make_directory(&format!("{UPPER}/work"))
}

fn mount_overlay() -> Result<(), SetupError> {
    // xino: one st_dev for the whole tree, so that tools which stay on one file
    // system (find -xdev, rsync -x, tar --one-file-system) see all of it.
    // redirect_dir: rename(2) of a directory of the image works.
    let options = format!(
        "lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work,xino=on,redirect_dir=on"
    );
    mount_with_options("overlay", MERGED, &options)
}

fn mount_with_options(kind: &str, target: &str, options: &str) -> Result<(), SetupError> {
    let data = CString::new(options).unwrap_or_default();
    rustix::mount::mount(kind, target, kind, MountFlags::empty(), data.as_c_str())
        .attempt(|| format!("cannot mount {kind} on {target} with {options}"))
}

/// Gives the initramfs's memory back and hides what the overlay is made of, as
/// far as that works: nothing depends on it.
fn leave_initramfs() {
    for target in [LOWER, UPPER, "/dev"] {
        // The overlay holds on to what it needs.
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
    }
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
}

/// `switch_root(8)`: the initramfs cannot be unmounted or pivoted from, so the
/// new root is moved over it.
fn switch_root() -> Result<(), SetupError> {
    let attempted = || "cannot make the image the root file system".to_owned();
    rustix::process::chdir(MERGED).attempt(attempted)?;
    rustix::mount::mount_move(".", "/").attempt(attempted)?;
    rustix::process::chroot(".").attempt(attempted)?;
    rustix::process::chdir("/").attempt(attempted)
}

/// Makes a directory and those above it, unless they are there.
pub fn make_directory(path: &str) -> Result<(), SetupError> {
    match fs::create_dir_all(Path::new(path)) {
        Ok(()) => Ok(()),
        result => result.attempt(|| format!("cannot make the directory {path}")),
    }
}

/// Makes sure that `path` is a directory itself, not a link to one: what is
/// mounted on it must not end up elsewhere.
pub fn make_mount_point(path: &str) -> Result<(), SetupError> {
    let attempted = || format!("cannot make the mount point {path}");
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path).attempt(attempted)?,
        Err(_) => {}
    }
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).attempt(attempted)
}
