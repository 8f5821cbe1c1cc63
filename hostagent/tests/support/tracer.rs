//! Runs a program and tells of every system call by which it changes files below a
//! directory (`ptrace(2)`), before the call and after it; kills it where the test says.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::ptr;

use libc::pid_t;
use libtest_mimic::{Arguments, Failed, Trial};

const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_EXITKILL;

/// What a system call does to files. Files that are open are named by their inodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Opens a file, and makes it if it is not there.
    Create {
        path: PathBuf,
        truncates: bool,
    },
    MakeDirectory {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// Of a file, or of an empty directory.
    Remove {
        path: PathBuf,
    },
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Resize {
        inode: u64,
        length: u64,
    },
    /// Of a file or a directory.
    Sync {
        inode: u64,
    },
    SyncAll,
}

/// A moment in the life of a system call.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    Before,
    /// It has succeeded. The inode is that of what was created or made.
    After {
        made: Option<u64>,
    },
}

/// What becomes of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// It is killed, with all of its threads; the call is not made if it was not yet.
    Kill,
}

/// How a traced process ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A thread, and the call it is in.
#[derive(Debug, Default)]
struct Thread {
    change: Option<Change>,
    started: bool,
}

/// A test's name, and what it does.
pub type Test = (&'static str, fn() -> Result<(), Failed>);

/// Runs tests that trace processes, as a program's main function. Where that is not allowed
/// they are told as ignored.
pub fn run_tests(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::from_args();
    let possible = is_possible();
    if !possible {
        println!("ignored: this user may not trace processes (ptrace)");
    }
    let trials = tests
        .iter()
        .map(|(name, test)| Trial::test(*name, *test).with_ignored_flag(!possible));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Whether this test may trace its children. Whatever else keeps it from that is a failure.
fn is_possible() -> bool {
    let directory = std::env::temp_dir();
    let traced = run(&mut Command::new("true"), &directory, |_, _, _| {
        Verdict::GoOn
    });
    match traced {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
        traced => traced.unwrap().code == Some(0),
    }
}

/// Runs `command` to its end and tells `observe` what each of its threads does below
/// `root`, which is a path without links.
pub fn run(
    command: &mut Command,
    root: &Path,
    mut observe: impl FnMut(pid_t, &Change, Moment) -> Verdict,
) -> io::Result<Ended> {
    let directory = tempfile::tempdir()?;
    let said = ["stdout", "stderr"].map(|name| directory.path().join(name));
    command.stdout(File::create(&said[0])?);
    command.stderr(File::create(&said[1])?);
    // SAFETY: between fork and exec, only makes a system call.
    unsafe { command.pre_exec(trace_me) };
    // It stops at its execve(2).
    let child = command.spawn()?.id() as pid_t;
    let mut threads: HashMap<pid_t, Thread> = HashMap::new();
    let mut killed = false;
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call. Children of other threads are theirs.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if tid < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            threads.remove(&tid);
            if tid == child {
                let [stdout, stderr] = said.map(std::fs::read_to_string);
                return Ok(Ended {
                    code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                    stdout: stdout?,
                    stderr: stderr?,
                });
            }
            continue;
        }
        if threads.is_empty() {
            request(libc::PTRACE_SETOPTIONS, tid, 0, OPTIONS as usize)?;
        }
        let thread = threads.entry(tid).or_default();
        let mut signal = 0;
        match (libc::WSTOPSIG(status), status >> 16) {
            (stop, _) if stop == libc::SIGTRAP | 0x80 => {
                if !killed && system_call(tid, root, thread, &mut observe)? == Verdict::Kill {
                    killed = true;
                    // SAFETY: a child of this thread that has not been waited for.
                    unsafe { libc::kill(child, libc::SIGKILL) };
                }
            }
            (libc::SIGTRAP, event) if event != 0 => {}
            (libc::SIGSTOP | libc::SIGTRAP, _) if !thread.started => {}
            (other, _) => signal = other,
        }
        thread.started = true;
        // It may have been killed meanwhile.
        let _ = request(libc::PTRACE_SYSCALL, tid, 0, signal as usize);
    }
}

fn system_call(
    tid: pid_t,
    root: &Path,
    thread: &mut Thread,
    observe: &mut impl FnMut(pid_t, &Change, Moment) -> Verdict,
) -> io::Result<Verdict> {
    // SAFETY: zeroes are a valid value of this structure of integers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let (size, address) = (size_of_val(&info), ptr::from_mut(&mut info).addr());
    if request(libc::PTRACE_GET_SYSCALL_INFO, tid, size, address).is_err() {
        return Ok(Verdict::GoOn);
    }
    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
        // SAFETY: `op` says that this is the entry.
        let entry = unsafe { info.u.entry };
        let call = Call { tid, root };
        thread.change = call.change(entry.nr as i64, entry.args)?;
        if let Some(change) = &thread.change {
            return Ok(observe(tid, change, Moment::Before));
        }
    } else if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
        // SAFETY: `op` says that this is the exit.
        let exit = unsafe { info.u.exit };
        if let (Some(mut change), 0) = (thread.change.take(), exit.is_error) {
            let made = match &mut change {
                Change::Create { .. } => Some(inode(tid, exit.sval as u64)?),
                Change::MakeDirectory { path } => Some(std::fs::metadata(path)?.ino()),
                Change::Write { bytes, .. } => {
                    bytes.truncate(exit.sval as usize);
                    None
                }
                _ => None,
            };
            return Ok(observe(tid, &change, Moment::After { made }));
        }
    }
    Ok(Verdict::GoOn)
}

/// A call that a thread is about to make.
struct Call<'c> {
    tid: pid_t,
    root: &'c Path,
}

impl Call<'_> {
    /// What it will do. Calls that would change files and are not known here are errors:
    /// a test must not overlook them.
    fn change(&self, number: i64, args: [u64; 6]) -> io::Result<Option<Change>> {
        const HERE: u64 = libc::AT_FDCWD as u64;
        let change = match number {
            libc::SYS_openat => self.open(args[0], args[1], args[2])?,
            libc::SYS_open => self.open(HERE, args[0], args[1])?,
            libc::SYS_creat => self.open(HERE, args[0], (libc::O_CREAT | libc::O_TRUNC) as u64)?,
            libc::SYS_mkdir => self.make_directory(HERE, args[0])?,
            libc::SYS_mkdirat => self.make_directory(args[0], args[1])?,
            libc::SYS_rename => self.rename([HERE, args[0], HERE, args[1]])?,
            libc::SYS_renameat => self.rename([args[0], args[1], args[2], args[3]])?,
            libc::SYS_renameat2 if args[4] & libc::RENAME_EXCHANGE as u64 == 0 => {
                self.rename([args[0], args[1], args[2], args[3]])?
            }
            libc::SYS_unlink | libc::SYS_rmdir => self.remove(HERE, args[0])?,
            libc::SYS_unlinkat => self.remove(args[0], args[1])?,
            libc::SYS_write => self.write(args, None)?,
            libc::SYS_pwrite64 => self.write(args, Some(args[3]))?,
            libc::SYS_ftruncate => self.file(args[0])?.map(|inode| Change::Resize {
                inode,
                length: args[1],
            }),
            // Sets blocks aside; the file is never shorter after it.
            libc::SYS_fallocate if args[1] == 0 => self.grow(args[0], args[2] + args[3])?,
            libc::SYS_fsync | libc::SYS_fdatasync => {
                self.file(args[0])?.map(|inode| Change::Sync { inode })
            }
            libc::SYS_sync => Some(Change::SyncAll),
            libc::SYS_syncfs => self.file(args[0])?.map(|_| Change::SyncAll),
            libc::SYS_writev
            | libc::SYS_pwritev
            | libc::SYS_pwritev2
            | libc::SYS_fallocate
            | libc::SYS_sendfile
            | libc::SYS_splice => {
                // The descriptor that is written to.
                let written = match number {
                    libc::SYS_splice => args[2],
                    _ => args[0],
                };
                match self.file(written)? {
                    Some(_) => return Err(unknown(number)),
                    None => None,
                }
            }
            libc::SYS_copy_file_range
            | libc::SYS_io_uring_setup
            | libc::SYS_link
            | libc::SYS_linkat
            | libc::SYS_openat2
            | libc::SYS_renameat2
            | libc::SYS_symlink
            | libc::SYS_symlinkat
            | libc::SYS_truncate => return Err(unknown(number)),
            _ => None,
        };
        Ok(change)
    }

    fn open(&self, directory: u64, path: u64, flags: u64) -> io::Result<Option<Change>> {
        let truncates = flags & libc::O_TRUNC as u64 != 0;
        if flags & libc::O_CREAT as u64 == 0 && !truncates {
            return Ok(None);
        }
        let path = self.path(directory, path)?;
        Ok(path.map(|path| Change::Create { path, truncates }))
    }

    fn make_directory(&self, directory: u64, path: u64) -> io::Result<Option<Change>> {
        let path = self.path(directory, path)?;
        Ok(path.map(|path| Change::MakeDirectory { path }))
    }

    fn remove(&self, directory: u64, path: u64) -> io::Result<Option<Change>> {
        let path = self.path(directory, path)?;
        Ok(path.map(|path| Change::Remove { path }))
    }

    fn rename(
        &self,
        [from_directory, from, to_directory, to]: [u64; 4],
    ) -> io::Result<Option<Change>> {
        let (from, to) = (
            self.path(from_directory, from)?,
            self.path(to_directory, to)?,
        );
        Ok(from.zip(to).map(|(from, to)| Change::Rename { from, to }))
    }

    fn write(&self, args: [u64; 6], offset: Option<u64>) -> io::Result<Option<Change>> {
        let Some(inode) = self.file(args[0])? else {
            return Ok(None);
        };
        let mut bytes = vec![0; args[2] as usize];
        self.memory()?.read_exact_at(&mut bytes, args[1])?;
        let offset = match offset {
            Some(offset) => offset,
            None => self.position(args[0])?,
        };
        Ok(Some(Change::Write {
            inode,
            offset,
            bytes,
        }))
    }

    fn grow(&self, descriptor: u64, least: u64) -> io::Result<Option<Change>> {
        let Some(inode) = self.file(descriptor)? else {
            return Ok(None);
        };
        let length = open_file(self.tid, descriptor)?.len().max(least);
        Ok(Some(Change::Resize { inode, length }))
    }

    /// The inode of what is open below the root; `None` for other descriptors.
    fn file(&self, descriptor: u64) -> io::Result<Option<u64>> {
        let link = std::fs::read_link(format!("/proc/{}/fd/{}", self.tid, descriptor as i32));
        match link.is_ok_and(|path| path.starts_with(self.root)) {
            true => inode(self.tid, descriptor).map(Some),
            false => Ok(None),
        }
    }

    /// Where in a file the next write(2) goes.
    fn position(&self, descriptor: u64) -> io::Result<u64> {
        let path = format!("/proc/{}/fdinfo/{}", self.tid, descriptor as i32);
        let text = std::fs::read_to_string(path)?;
        let position = text.lines().find_map(|line| line.strip_prefix("pos:"));
        position
            .and_then(|position| position.trim().parse().ok())
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The path at this address, if it is below the root.
    fn path(&self, directory: u64, address: u64) -> io::Result<Option<PathBuf>> {
        use std::os::unix::ffi::OsStrExt;
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        // Less if the memory behind it is nobody's.
        let length = self.memory()?.read_at(&mut bytes, address)?;
        let end = bytes[..length].iter().position(|byte| *byte == 0);
        let path = Path::new(std::ffi::OsStr::from_bytes(&bytes[..end.unwrap_or(length)]));
        let directory = match directory as i32 {
            libc::AT_FDCWD => format!("/proc/{}/cwd", self.tid),
            descriptor => format!("/proc/{}/fd/{descriptor}", self.tid),
        };
        let path = match path.is_absolute() {
            true => path.to_owned(),
            false => std::fs::read_link(directory)?.join(path),
        };
        Ok(path.starts_with(self.root).then_some(path))
    }

    fn memory(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/mem", self.tid))
    }
}

fn inode(tid: pid_t, descriptor: u64) -> io::Result<u64> {
    Ok(open_file(tid, descriptor)?.ino())
}

fn open_file(tid: pid_t, descriptor: u64) -> io::Result<Metadata> {
    std::fs::metadata(format!("/proc/{tid}/fd/{}", descriptor as i32))
}

fn unknown(number: i64) -> io::Error {
    io::Error::other(format!(
        "the tracer does not know what system call {number} does to files"
    ))
}

fn trace_me() -> io::Result<()> {
    request(libc::PTRACE_TRACEME, 0, 0, 0)
}

fn request(what: libc::c_uint, tid: pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: acts on a process of this test's; where `data` is an address, it is
    // that of a variable of the caller's, as large as the request writes.
    match unsafe { libc::ptrace(what, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
