//! Runs a program and records which rules of the policies the VMMs it starts make
//! use of (`ptrace(2)`). They run with their real filters, which know nothing of it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use vmm::seccomp::ThreadKind;

use super::policy::Policy;

/// A rule, by the policy's and its own index.
pub type Used = BTreeSet<(usize, usize)>;

const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_EXITKILL;

/// A thread that is looked at.
#[derive(Debug, Default, Clone, Copy)]
struct Traced {
    /// Of a VMM.
    vmm: bool,
    /// What it is, once it has its filter.
    kind: Option<ThreadKind>,
    /// The call it is in.
    call: Option<i64>,
    /// Its first stop, which tells nothing, is over.
    started: bool,
}

/// Runs `command` to its end; returns what was used, and the exit code.
pub fn record(command: &mut Command, policies: &[Policy]) -> io::Result<(Used, i32)> {
    // SAFETY: between fork and exec, only makes a system call.
    unsafe { command.pre_exec(trace_me) };
    // It stops at its execve(2).
    let child = command.spawn()?.id() as libc::pid_t;
    let mut threads: HashMap<libc::pid_t, Traced> = HashMap::new();
    let mut used = Used::new();
    let mut options_set = false;
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
                return Ok((used, libc::WEXITSTATUS(status)));
            }
            continue;
        }
        if !options_set {
            request(libc::PTRACE_SETOPTIONS, tid, 0, OPTIONS as usize)?;
            options_set = true;
        }
        let thread = *threads.entry(tid).or_default();
        let (thread, signal) = match (libc::WSTOPSIG(status), status >> 16) {
            (libc::SIGTRAP, libc::PTRACE_EVENT_EXEC) => {
                let vmm = is_vmm(tid);
                (
                    Traced {
                        vmm,
                        started: true,
                        ..Traced::default()
                    },
                    0,
                )
            }
            (libc::SIGTRAP, event) if event != 0 => {
                let mut new = 0_u64;
                request(
                    libc::PTRACE_GETEVENTMSG,
                    tid,
                    0,
                    ptr::from_mut(&mut new).addr(),
                )?;
                // A VMM starts no process, so what it starts is a thread of it. Of what
                // others start this may come later than that it has become a VMM.
                threads.entry(new as libc::pid_t).or_default().vmm |= thread.vmm;
                (thread, 0)
            }
            (stop, _) if stop == libc::SIGTRAP | 0x80 => {
                (system_call(tid, thread, policies, &mut used)?, 0)
            }
            (libc::SIGSTOP | libc::SIGTRAP, _) if !thread.started => (
                Traced {
                    started: true,
                    ..thread
                },
                0,
            ),
            (signal, _) => (thread, signal),
        };
        threads.insert(tid, thread);
        let how = if thread.vmm {
            libc::PTRACE_SYSCALL
        } else {
            libc::PTRACE_CONT
        };
        // It may have been killed meanwhile.
        let _ = request(how, tid, 0, signal as usize);
    }
}

fn trace_me() -> io::Result<()> {
    request(libc::PTRACE_TRACEME, 0, 0, 0)
}

fn request(what: libc::c_uint, tid: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: acts on a process of this test's; where `data` is an address, it is
    // that of a variable of the caller's, as large as the request writes.
    match unsafe { libc::ptrace(what, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn is_vmm(pid: libc::pid_t) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|program| program.file_name().is_some_and(|name| name == "mote-vmm"))
}

/// Notes the call that a thread is about to make, or has made.
fn system_call(
    tid: libc::pid_t,
    mut thread: Traced,
    policies: &[Policy],
    used: &mut Used,
) -> io::Result<Traced> {
    // SAFETY: zeroes are a valid value of this structure of integers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let (size, address) = (size_of_val(&info), ptr::from_mut(&mut info).addr());
    if request(libc::PTRACE_GET_SYSCALL_INFO, tid, size, address).is_err() {
        return Ok(thread);
    }
    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
        // SAFETY: `op` says that this is the entry.
        let entry = unsafe { info.u.entry };
        let number = entry.nr as i64;
        thread.call = Some(number);
        for (policy, index) in policies.iter().zip(0..) {
            if thread.kind == Some(policy.kind) {
                used.extend(
                    policy
                        .matching(number, entry.args)
                        .map(|rule| (index, rule)),
                );
            }
        }
    } else if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
        // SAFETY: `op` says that this is the exit.
        let failed = unsafe { info.u.exit.is_error } != 0;
        if thread.call.take() == Some(libc::SYS_seccomp) && !failed {
            thread.kind = kind_of(tid);
        }
    }
    Ok(thread)
}

fn kind_of(tid: libc::pid_t) -> Option<ThreadKind> {
    let name = std::fs::read_to_string(format!("/proc/{tid}/comm")).ok()?;
    Some(match name.starts_with("vcpu") {
        true => ThreadKind::Vcpu,
        false => ThreadKind::EventLoop,
    })
}
