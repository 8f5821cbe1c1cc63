//! From `clone3(2)` to `execveat(2)`.

use std::arch::asm;
use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    DumpableBehavior, Gid, Pid, PidfdFlags, Signal, Uid, dumpable_behavior, getpid, pidfd_open,
    set_dumpable_behavior, set_parent_process_death_signal, setsid,
};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, gettid, remove_capability_from_bounding_set,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::namespaces::{NewNamespaces, PREPARED, enter_empty_root};
use crate::{FIRST_ID, Jail, JailError, Jailed};

/// The kernel's `struct clone_args`, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Resets handled signals in the child (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// The child starts in [`CloneArgs::cgroup`] (Linux 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Those that are made with the process, whatever was made before it.
const NAMESPACES: u64 = (libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP) as u64;

/// Enough for a child that calls a dozen shallow functions.
const STACK_BYTES: usize = 64 << 10;

/// One past the last capability there can be: they are bits of 64.
const MAX_CAPABILITIES: u32 = 64;

impl Jail<'_> {
    /// Starts the program. Returns when it is being executed, or when it is known
    /// why it is not.
    ///
    /// As root (with `CAP_SYS_ADMIN`, `CAP_SETUID` and `CAP_SETGID`) the process
    /// gets ids of its own, and its namespaces belong to the caller's user
    /// namespace, so that not even all capabilities of its own would have power
    /// over them. As anyone else it keeps the caller's ids.
    pub fn spawn(self) -> Result<Jailed, JailError> {
        self.start(true)
    }

    /// Starts the program with its descriptors and nothing of what confines it. For
    /// a test's stand-in that needs the host's files; nothing a user can say leads
    /// here.
    pub fn spawn_unconfined(self) -> Result<Jailed, JailError> {
        self.start(false)
    }

    fn start(&self, confined: bool) -> Result<Jailed, JailError> {
        let given = self.standard.iter().chain(&self.descriptors);
        if let Some(fd) = given.map(AsRawFd::as_raw_fd).find(|fd| *fd < 3) {
            return Err(JailError::StandardNumber(fd));
        }
        let prepare = |what| move |errno: Errno| JailError::Prepare(what, errno.into());
        let privileged = is_privileged().map_err(prepare("read this process's capabilities"))?;
        // `PIDFD_THREAD`, since Linux 6.9: a child's parent is the thread that made it, and
        // this tells of its end even while others of its process are still ending.
        let thread = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);
        let parent = pidfd_open(gettid(), thread)
            .or_else(|_| pidfd_open(getpid(), PidfdFlags::empty()))
            .map_err(prepare("open a pidfd of this process"))?;
        let mut arguments: Vec<*const c_char> = self
            .arguments
            .iter()
            .map(|text: &CString| text.as_ptr())
            .collect();
        arguments.push(ptr::null());
        let mut birth = Birth {
            jail: self,
            arguments: arguments.as_ptr(),
            confined,
            privileged,
            parent: parent.as_fd(),
            pid: 0,
            failure: None,
        };
        let result = {
            let _dumpable = KeepDumpable::begin();
            let _signals = BlockedSignals::block();
            clone(&mut birth)
        };
        let (pid, pidfd) = result.map_err(JailError::Clone)?;
        let failure = birth.failure.take();
        let mut process = Jailed::new(pid, pidfd);
        match failure {
            None => Ok(process),
            Some((step, errno)) => {
                let _ = process.wait();
                let source = errno.into();
                Err(match step {
                    Step::Execute => JailError::Execute(source),
                    step => JailError::Confine {
                        step: step.name(),
                        source,
                    },
                })
            }
        }
    }
}

/// What it takes to give a process namespaces of this one's and ids of its own.
pub(crate) const PRIVILEGES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

fn is_privileged() -> rustix::io::Result<bool> {
    Ok(capabilities(None)?.effective.contains(PRIVILEGES))
}

/// What the child is told, and what it says of its failure, in memory it shares
/// with its parent, who waits.
struct Birth<'a> {
    jail: &'a Jail<'a>,
    arguments: *const *const c_char,
    confined: bool,
    privileged: bool,
    parent: BorrowedFd<'a>,
    /// The child's PID as the parent sees it, written by the kernel.
    pid: libc::pid_t,
    failure: Option<Failure>,
}

impl<'a> Birth<'a> {
    /// The namespaces that are made beside, if they are.
    fn namespaces(&self) -> Option<&'a NewNamespaces> {
        // Without privileges they must belong to the child's own user namespace.
        self.jail.namespaces.as_ref().filter(|_| self.privileged)
    }
}

/// The step that failed, and why.
type Failure = (Step, Errno);

/// Makes the child, which runs [`child`] on a stack of its own, and waits until it
/// has executed the program or ended.
fn clone(birth: &mut Birth) -> io::Result<(Pid, OwnedFd)> {
    // Of u128, for the alignment that a stack has.
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArgs {
        flags: CLONE_CLEAR_SIGHAND
            // Its descriptors too, until `arrange_descriptors`: one of them may be yet
            // to come.
            | (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64
            | libc::CLONE_PARENT_SETTID as u64,
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        parent_tid: ptr::from_mut(&mut birth.pid).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr().expose_provenance() as u64,
        stack_size: STACK_BYTES as u64,
        ..CloneArgs::default()
    };
    if birth.confined {
        arguments.flags |= NAMESPACES;
        if birth.namespaces().is_none() {
            arguments.flags |= u64::from(PREPARED.bits());
        }
        if !birth.privileged {
            arguments.flags |= libc::CLONE_NEWUSER as u64;
        }
    }
    if let Some(cgroup) = birth.jail.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `arguments` is what clone3(2) reads, and outlives it, as do `stack`,
    // `pidfd` and `birth`: this thread goes on only when the child has let go of
    // the shared memory (CLONE_VFORK). The child runs `child`, which never
    // returns, on `stack`, with this thread's thread-local memory, which the
    // waiting thread does not use.
    let result = unsafe { clone3(&arguments, child, birth) };
    drop(stack);
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    let pid = Pid::from_raw(result as i32).ok_or(io::ErrorKind::Other)?;
    // SAFETY: the kernel has stored the number of a new descriptor there.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Calls clone3(2). In the child, calls `run(birth)` on the stack that `arguments`
/// names; to the parent, returns what clone3 does: a PID, or an errno below 0.
///
/// # Safety
///
/// `arguments` describes a child with a stack of its own that is no longer in use
/// when it is freed; `run` does not return, and does nothing that this thread, or
/// any other, could not bear in the memory they share.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    arguments: &CloneArgs,
    run: unsafe extern "C" fn(*mut Birth) -> !,
    birth: *mut Birth,
) -> isize {
    let mut result = libc::SYS_clone3 as isize;
    // SAFETY: in the parent, this is a system call, which keeps all registers but
    // rax, rcx and r11. The child never leaves it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {birth}",
            "call {run}",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") ptr::from_ref(arguments),
            in("rsi") size_of::<CloneArgs>(),
            run = in(reg) run,
            birth = in(reg) birth,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// What the child does. The name of each completes "cannot … for a confined process".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Session,
    Root,
    Limits,
    Namespaces,
    Ids,
    UserNamespace,
    Capabilities,
    DieWithParent,
    Descriptors,
    Execute,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "begin a session (setsid)",
            Self::Root => "make an empty root (mount, pivot_root)",
            Self::Limits => "set resource limits (setrlimit)",
            Self::Namespaces => "make or enter its namespaces (unshare, pivot_root, setns)",
            Self::Ids => "take a uid and gid of its own (setresuid, setresgid)",
            Self::UserNamespace => "make a user namespace (unshare)",
            Self::Capabilities => "give up capabilities (prctl)",
            Self::DieWithParent => "ask to die with the parent (prctl)",
            Self::Descriptors => "arrange the descriptors (dup2, close_range, fcntl)",
            Self::Execute => "execute the program (execveat)",
        }
    }
}

/// The child's life until it is the program.
///
/// # Safety
///
/// Called by [`clone3`] only, with what its parent waits for.
unsafe extern "C" fn child(birth: *mut Birth) -> ! {
    // SAFETY: the parent, whose this is, waits until this process has executed the
    // program or ended, and touches nothing of it meanwhile.
    let birth = unsafe { &mut *birth };
    let Err(failure) = become_the_program(birth);
    birth.failure = Some(failure);
    // SAFETY: ends this process alone, without running what the parent has
    // registered for its own end.
    unsafe { libc::_exit(127) }
}

/// All of it, in an order in which each step still has the power it needs. Only
/// system calls, no allocation: another thread may hold the allocator's lock.
fn become_the_program(birth: &Birth) -> Result<Infallible, Failure> {
    let at = |step| move |errno| (step, errno);
    let jail = birth.jail;
    // Until it is the program it needs its parent: for memory, for the namespaces that
    // a thread there makes, for whoever would know of it.
    die_with(birth.parent).map_err(at(Step::DieWithParent))?;
    // No controlling terminal, and a process group of its own: what is typed at the
    // parent's terminal is not for this process.
    setsid().map_err(at(Step::Session))?;
    if birth.confined {
        confine(birth)?;
    }
    // Again, as taking other ids has cleared it.
    match jail.dies_with_parent {
        true => die_with(birth.parent),
        false => set_parent_process_death_signal(None),
    }
    .map_err(at(Step::DieWithParent))?;
    arrange_descriptors(jail).map_err(at(Step::Descriptors))?;
    unblock_signals();
    Err((Step::Execute, execute(jail.program, birth.arguments)))
}

fn confine(birth: &Birth) -> Result<(), Failure> {
    let at = |step| move |errno| (step, errno);
    match birth.namespaces() {
        Some(namespaces) => {
            let entered = namespaces.enter(|| is_alive(birth.parent));
            entered.map_err(at(Step::Namespaces))?;
        }
        None => enter_empty_root().map_err(at(Step::Root))?,
    }
    birth.jail.limits.apply().map_err(at(Step::Limits))?;
    if birth.privileged {
        take_ids(FIRST_ID + birth.pid as u32).map_err(at(Step::Ids))?;
        // SAFETY: this process has one thread and shares no user namespace with
        // code that would mind.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
            .map_err(at(Step::UserNamespace))?;
    }
    give_up_capabilities().map_err(at(Step::Capabilities))
}

/// Of this thread, which is all there is: the C library's functions would have the
/// parent's threads follow.
fn take_ids(id: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Executing a program as another user than root leaves it the capabilities of the
/// bounding set that the file grants. After this there are none, and no file may.
fn give_up_capabilities() -> rustix::io::Result<()> {
    for number in 0..MAX_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            // One past the last that this kernel knows.
            Err(Errno::INVAL) if number > 0 => break,
            result => result?,
        }
    }
    set_no_new_privs(true)
}

fn die_with(parent: BorrowedFd) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before it was asked for.
    is_alive(parent)
}

fn is_alive(parent: BorrowedFd) -> rustix::io::Result<()> {
    let mut watched = [PollFd::from_borrowed_fd(parent, PollFlags::IN)];
    match poll(&mut watched, Some(&Timespec::default()))? {
        0 => Ok(()),
        _ => Err(Errno::SRCH),
    }
}

fn arrange_descriptors(jail: &Jail) -> rustix::io::Result<()> {
    // SAFETY: makes a copy of the table first, and marks descriptors there.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE | libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result < 0 {
        return Err(last_error());
    }
    let [input, output, error] = jail.standard;
    rustix::stdio::dup2_stdin(input)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(error)?;
    for descriptor in &jail.descriptors {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(())
}

fn unblock_signals() {
    // SAFETY: an empty set is all zeroes on Linux.
    let none = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: sets the mask of this thread from a set that outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) };
}

/// Returns only if it fails.
fn execute(program: BorrowedFd, arguments: *const *const c_char) -> Errno {
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: `arguments` is a list of strings that ends with a null pointer and
    // lives in the parent's waiting frame; the environment is such a list too.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments,
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_error()
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// All signals, blocked in this thread: the child begins with its parent's mask,
/// and must not run for a signal before it is confined.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn block() -> Self {
        // SAFETY: zeroes are a valid set, which the calls below overwrite.
        let mut all = unsafe { std::mem::zeroed::<libc::sigset_t>() };
        let mut before = all;
        // SAFETY: writes to a set of this frame.
        unsafe { libc::sigfillset(&mut all) };
        // SAFETY: both sets are of this frame.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) };
        Self(before)
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the call that blocked the signals.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

/// Taking other ids makes the child's memory undumpable, which is this process's
/// too while the child is not the program yet. The last of several that are born
/// at one time puts back what the first one found.
struct KeepDumpable;

static BIRTHS: Mutex<(usize, Option<DumpableBehavior>)> = Mutex::new((0, None));

impl KeepDumpable {
    fn begin() -> Self {
        let (count, before) = &mut *BIRTHS.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            *before = dumpable_behavior().ok();
        }
        *count += 1;
        Self
    }
}

impl Drop for KeepDumpable {
    fn drop(&mut self) {
        let (count, before) = &mut *BIRTHS.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0
            && let Some(behaviour) = before.take()
        {
            let _ = set_dumpable_behavior(behaviour);
        }
    }
}
