//! The workload's main process: made ready in a fork of the init, then executed.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use guest_protocol::{StartFailure, Workload};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::{Gid, Uid};

use crate::environment;
use crate::failure::{Attempt, SetupError, setup_failure};
use crate::program;
use crate::signals;
use crate::users::User;

/// Docker's limit of open files, and the kernel's own ceiling (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;

/// The workload's ends of its streams.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Starts the workload and returns once its program runs. The caller must have
/// no other thread.
///
/// The process leads a session, has no controlling terminal, default signals,
/// no descriptors but its three, and, if it is root, every capability.
pub fn spawn(
    workload: &Workload,
    user: &User,
    stdio: Stdio,
    cgroup: Option<&File>,
) -> Result<Pid, StartFailure> {
    let (report, reporter) = pipe_with(PipeFlags::CLOEXEC)
        .attempt(|| "cannot make a pipe for the new process".into())?;
    // SAFETY: this process has one thread, so that the child may do whatever the
    // parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error())
            .attempt(|| "cannot fork".into())
            .map_err(StartFailure::from),
        0 => {
            let Err(failure) = become_workload(workload, user, &stdio, cgroup);
            let text = serde_json::to_vec(&failure).unwrap_or_default();
            let _ = File::from(reporter).write_all(&text);
            // SAFETY: _exit(2) takes a number. Nothing of the parent is torn
            // down here: its buffers and descriptors are the parent's.
            unsafe { libc::_exit(127) }
        }
        raw => {
            drop(reporter);
            // Closed by execve(2) or by the child's end.
            let mut text = Vec::new();
            File::from(report)
                .read_to_end(&mut text)
                .attempt(|| "cannot learn whether the process started".into())?;
            if let Ok(failure) = serde_json::from_slice(&text) {
                return Err(failure);
            }
            Pid::from_raw(raw)
                .ok_or(Errno::SRCH)
                .attempt(|| "cannot fork".into())
                .map_err(StartFailure::from)
        }
    }
}

/// Runs in the child. Returns only if it could not become the workload.
fn become_workload(
    workload: &Workload,
    user: &User,
    stdio: &Stdio,
    cgroup: Option<&File>,
) -> Result<Infallible, StartFailure> {
    signals::reset().attempt(|| "cannot reset signals".into())?;
    rustix::process::setsid().attempt(|| "cannot make a session".into())?;
    if let Some(mut procs) = cgroup {
        procs
            .write_all(b"0")
            .attempt(|| "cannot join the workload's cgroup".into())?;
    }
    set_stdio(stdio).attempt(|| "cannot set up standard input and output".into())?;
    set_limits();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // As root: the image's WorkingDir may be closed to the user it runs as.
    enter_directory(&workload.working_dir)?;
    become_user(user)?;

    let env = environment::complete(&workload.env, &workload.hostname, &user.home);
    let name = workload.args.first().map_or("", String::as_str);
    let search_path = environment::value(&env, "PATH").unwrap_or(environment::DEFAULT_PATH);
    let path = program::find(name, search_path)?;
    Err(execute(&path, &workload.args, &env))
}

fn set_stdio(stdio: &Stdio) -> Result<(), Errno> {
    rustix::stdio::dup2_stdin(&stdio.stdin)?;
    rustix::stdio::dup2_stdout(&stdio.stdout)?;
    rustix::stdio::dup2_stderr(&stdio.stderr)?;
    // Everything of the init is close-on-exec already; this holds also for what
    // the kernel or a mistake may have left open.
    // SAFETY: close_range(2) with this flag closes nothing before execve(2).
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// A limit that cannot be raised stays as it is: programs ask before they rely
/// on one.
fn set_limits() {
    let both = |limit| Rlimit {
        current: limit,
        maximum: limit,
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, both(Some(OPEN_FILES)));
    // The machine's memory limits processes; the kernel's default for a small
    // machine is a few hundred.
    let _ = rustix::process::setrlimit(Resource::Nproc, both(None));
}

fn enter_directory(path: &str) -> Result<(), SetupError> {
    let path = if path.is_empty() { "/" } else { path };
    fs::create_dir_all(path).attempt(|| format!("cannot make the working directory {path}"))?;
    rustix::process::chdir(path)
        .attempt(|| format!("cannot change to the working directory {path}"))
}

fn become_user(user: &User) -> Result<(), SetupError> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    // This process has one thread, so that what is set for a thread is set for
    // the process. Groups first: only root may change them.
    rustix::thread::set_thread_groups(&groups)
        .attempt(|| format!("cannot set the groups {:?}", user.groups))?;
    rustix::thread::set_thread_gid(Gid::from_raw(user.gid))
        .attempt(|| format!("cannot set the group id {}", user.gid))?;
    rustix::thread::set_thread_uid(Uid::from_raw(user.uid))
        .attempt(|| format!("cannot set the user id {}", user.uid))
}

/// Executes `path`, and says why if that fails.
fn execute(path: &Path, args: &[String], env: &[String]) -> StartFailure {
    let prepared = c_strings(args).and_then(|args| {
        let path = CString::new(path.as_os_str().as_bytes())?;
        Ok((path, args, c_strings(env)?))
    });
    let (c_path, args, env) =
        match prepared.attempt(|| format!("cannot execute {}", path.display())) {
            Ok(prepared) => prepared,
            Err(error) => return setup_failure(&error),
        };
    let (args, env) = (pointers(&args), pointers(&env));
    // SAFETY: the path is a C string, the arrays are null-terminated arrays of
    // pointers to C strings, and all of them outlive the call.
    unsafe { libc::execve(c_path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    let error = io::Error::last_os_error();
    program::refused(path, Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

fn c_strings(texts: &[String]) -> io::Result<Vec<CString>> {
    let strings = texts.iter().map(|text| Ok(CString::new(text.as_str())?));
    strings.collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}
