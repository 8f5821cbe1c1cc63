//! Small file systems: each a tmpfs, in a mount namespace that is the test program's own.
//! That takes root or user namespaces.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::support::Mote;

/// Sizes are numbers of these: less is not allocated.
const PAGE: u64 = 4096;
/// More than any test needs.
const AMPLE: u64 = (64 << 20) / PAGE;
/// Set where the program is in its namespace.
const INSIDE: &str = "MOTE_TEST_HAS_ITS_MOUNTS";

/// A test's name, and what it does.
pub type Test = (&'static str, fn() -> Result<(), Failed>);

/// How a program gets a mount namespace here, if at all.
fn unshare() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    WAYS.into_iter().find(|flags| {
        let script = "mount -t tmpfs none /mnt";
        let mut command = Command::new("unshare");
        command.args(*flags).args(["sh", "-c", script]);
        command.output().is_ok_and(|output| output.status.success())
    })
}

/// Runs tests that mount file systems, as a program's main function. Where that is not
/// possible they are told as ignored.
pub fn run_tests(tests: &[Test]) -> ExitCode {
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside && let Some(flags) = unshare() {
        let mut again = Command::new("unshare");
        again.args(flags).arg(std::env::current_exe().unwrap());
        let again = again.args(std::env::args_os().skip(1)).env(INSIDE, "1");
        panic!("cannot run in a mount namespace: {}", again.exec());
    }
    if !inside {
        println!("ignored: there is no way to mount a file system here");
    }
    let trials = tests
        .iter()
        .map(|(name, test)| Trial::test(*name, *test).with_ignored_flag(!inside));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A small file system. It is empty at first, and ample.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// On this directory.
    pub fn on(directory: &Path) -> Self {
        let disk = Self(directory.to_owned());
        disk.mount(&["-t", "tmpfs", "-o", &size(AMPLE), "none"]);
        disk
    }

    /// Gives it so many pages, which are no fewer than it uses, and at least one.
    pub fn resize(&self, pages: u64) {
        // None would be as many as there are.
        self.mount(&["-o", &format!("remount,{}", size(pages.max(1)))]);
    }

    /// Leaves nothing free.
    pub fn fill(&self) {
        self.resize(self.used());
        assert_eq!(self.counted("%f"), 0);
    }

    /// Makes it ample again.
    pub fn make_room(&self) {
        self.resize(AMPLE);
    }

    /// How many pages are in use.
    pub fn used(&self) -> u64 {
        self.counted("%b") - self.counted("%f")
    }

    fn mount(&self, arguments: &[&str]) {
        let mut mount = Command::new("mount");
        let mounted = mount.args(arguments).arg(&self.0).output().unwrap();
        assert!(mounted.status.success(), "{arguments:?}: {mounted:?}");
    }

    fn counted(&self, what: &str) -> u64 {
        let mut stat = Command::new("stat");
        let stat = stat.args(["--file-system", "--format", what]).arg(&self.0);
        let told = stat.output().unwrap();
        let text = String::from_utf8(told.stdout).unwrap();
        text.trim().parse().unwrap()
    }
}

fn size(pages: u64) -> String {
    format!("size={}k", pages * PAGE / 1024)
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What cannot be unmounted is when the namespace goes.
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

/// A store on a disk of its own.
pub struct SmallStore {
    // Unmounted before its directory is removed.
    pub disk: SmallDisk,
    pub mote: Mote,
}

impl SmallStore {
    /// A copy of this one.
    pub fn copy(of: &Mote) -> Self {
        let mut mote = Mote::new();
        mote.config.clone_from(&of.config);
        let disk = SmallDisk::on(mote.root.path());
        // Holes in files stay holes.
        let mut copy = Command::new("cp");
        let copy = copy.arg("-a").arg(of.root.path().join("."));
        assert!(copy.arg(mote.root.path()).status().unwrap().success());
        Self { disk, mote }
    }
}
