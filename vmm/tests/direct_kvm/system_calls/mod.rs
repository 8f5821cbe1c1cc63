//! The filters: what they allow is needed, what they do not allow kills.

mod policy;
mod recorder;

use std::process::{Command, Stdio};

use policy::{Policy, Rule};
use vmm::seccomp::{self, ThreadKind};

use crate::machine::probe;

/// As many system calls as each kind of thread may have.
const MOST_CALLS: [usize; 2] = [25, 12];

/// What no thread of a VMM may ever call.
const FORBIDDEN: [i64; 16] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_ptrace,
    libc::SYS_mount,
    libc::SYS_mmap,
    libc::SYS_mprotect,
];

/// One past the last number that is tried: there were 470 in Linux 6.18.
const NUMBERS: i64 = 1024;
/// uretprobe and uprobe, which newer kernels let past every filter, since they do
/// nothing but where the kernel itself has put a probe.
const PAST_FILTERS: [i64; 2] = [335, 336];
/// The bit that makes a call one of the x32 ABI.
const X32: i64 = 1 << 30;

#[test]
fn the_policies_are_as_short_as_they_shall_be_and_give_reasons() {
    for (policy, most) in Policy::all().iter().zip(MOST_CALLS) {
        let numbers = policy.numbers();
        assert!(
            numbers.len() <= most,
            "{:?}: {}",
            policy.kind,
            numbers.len()
        );
        for forbidden in FORBIDDEN {
            assert!(
                !numbers.contains(&forbidden),
                "{:?}: {forbidden}",
                policy.kind
            );
        }
        for rule in &policy.rules {
            assert!(rule.comment.len() > 10, "{rule:?}");
            assert!(
                rule.args.iter().all(|arg| arg.comment.len() > 3),
                "{rule:?}"
            );
        }
    }
}

#[test]
fn the_numbers_in_the_policies_are_what_their_comments_say() {
    let names: [(&str, u64); 32] = [
        // linux/vhost.h and linux/if_tun.h.
        ("VHOST_SET_FEATURES", 0x4008af00),
        ("VHOST_SET_VRING_NUM", 0x4008af10),
        ("VHOST_SET_VRING_BASE", 0x4008af12),
        ("VHOST_SET_VRING_ADDR", 0x4028af11),
        ("VHOST_SET_VRING_KICK", 0x4008af20),
        ("VHOST_NET_SET_BACKEND", 0x4008af30),
        ("TUNSETQUEUE", 0x400454d9),
        ("TUNSETOFFLOAD", 0x400454d0),
        (
            "FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE",
            (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64,
        ),
        (
            "FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE",
            (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE) as u64,
        ),
        ("MADV_DONTNEED", libc::MADV_DONTNEED as u64),
        ("MADV_REMOVE", libc::MADV_REMOVE as u64),
        ("SIGUSR1", libc::SIGUSR1 as u64),
        ("AF_UNIX", libc::AF_UNIX as u64),
        (
            "SOCK_STREAM | SOCK_CLOEXEC",
            (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64,
        ),
        ("FIONBIO", libc::FIONBIO),
        (
            "FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG",
            (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as u64,
        ),
        (
            "FUTEX_WAKE | FUTEX_PRIVATE_FLAG",
            (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64,
        ),
        (
            "FUTEX_WAIT | FUTEX_PRIVATE_FLAG",
            (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64,
        ),
        ("F_GETFD", libc::F_GETFD as u64),
        ("no flags", 0),
        ("the protocol of the family", 0),
        ("RWF_NOWAIT", libc::RWF_NOWAIT as u64),
        ("MSG_DONTWAIT", libc::MSG_DONTWAIT as u64),
        (
            "MSG_DONTWAIT | MSG_TRUNC",
            (libc::MSG_DONTWAIT | libc::MSG_TRUNC) as u64,
        ),
        (
            "MSG_DONTWAIT | MSG_CMSG_CLOEXEC",
            (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64,
        ),
        (
            "MSG_DONTWAIT | MSG_NOSIGNAL",
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64,
        ),
        // linux/io_uring.h.
        ("IORING_ENTER_GETEVENTS", 1),
        ("IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG", 1 | 8),
        ("KVM_RUN", kvm(0, 0x80, 0)),
        (
            "KVM_GET_REGS",
            kvm(2, 0x81, size_of::<kvm_bindings::kvm_regs>()),
        ),
        (
            "KVM_SET_REGS",
            kvm(1, 0x82, size_of::<kvm_bindings::kvm_regs>()),
        ),
    ];
    for rule in Policy::all().iter().flat_map(|policy| &policy.rules) {
        for condition in &rule.args {
            let name = names.iter().find(|(name, _)| *name == condition.comment);
            let (_, value) = name.unwrap_or_else(|| panic!("{rule:?}"));
            assert_eq!(condition.val, *value, "{rule:?}");
        }
    }
}

/// An ioctl of KVM's (linux/kvm.h): direction, number, size.
fn kvm(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | number
}

#[test]
fn each_thread_is_killed_by_each_call_that_is_not_on_its_list() {
    for policy in Policy::all() {
        let allowed = policy.numbers();
        let mut killed = 0;
        for number in (0..NUMBERS).chain(X32..X32 + NUMBERS) {
            let outcome = call_behind_filter(policy.kind, number, [u64::MAX; 6]);
            if PAST_FILTERS.contains(&number) {
                killed += 1;
            } else if !allowed.contains(&number) {
                assert_eq!(outcome, Outcome::Killed, "{:?}: {number}", policy.kind);
                killed += 1;
            }
        }
        assert_eq!(killed, 2 * NUMBERS as usize - allowed.len());
    }
}

#[test]
fn each_thread_survives_each_call_on_its_list_with_the_arguments_it_is_for() {
    for policy in Policy::all() {
        let rules = policy.rules.iter();
        // These two do not come back.
        let ends = [libc::SYS_exit_group, libc::SYS_rt_sigreturn];
        for rule in rules.filter(|rule| !ends.contains(&rule.number())) {
            let outcome = call_behind_filter(policy.kind, rule.number(), rule.allowed_args());
            assert_eq!(outcome, Outcome::Survived, "{:?}: {rule:?}", policy.kind);
        }
    }
}

#[test]
fn other_arguments_than_those_allowed_kill() {
    for policy in Policy::all() {
        for rule in &policy.rules {
            for condition in &rule.args {
                for wrong in other_values(&policy, rule, condition.index) {
                    let mut args = rule.allowed_args();
                    args[condition.index] = wrong;
                    let outcome = call_behind_filter(policy.kind, rule.number(), args);
                    assert_eq!(outcome, Outcome::Killed, "{wrong:#x}: {rule:?}");
                }
            }
        }
    }
}

/// Values near the allowed one, and each single bit, that no rule allows.
fn other_values(policy: &Policy, rule: &Rule, index: usize) -> Vec<u64> {
    let allowed = rule.allowed_args()[index];
    let near = [allowed + 1, allowed.wrapping_sub(1), 0, u64::from(u32::MAX)];
    let bits = (0..32).map(|bit| allowed ^ 1 << bit);
    let tried = near.into_iter().chain(bits);
    tried
        .filter(|value| {
            let mut args = rule.allowed_args();
            args[index] = *value;
            policy.matching(rule.number(), args).next().is_none()
        })
        .collect()
}

/// What became of a call.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Killed,
    Survived,
    Other(i32),
}

/// Makes one call in a process of its own, behind the real filter.
fn call_behind_filter(kind: ThreadKind, number: i64, args: [u64; 6]) -> Outcome {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child makes system calls only.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let _ = seccomp::install(kind);
        let [a, b, c, d, e, f] = args;
        // SAFETY: in a process that ends here, whatever the call does.
        unsafe { libc::syscall(number, a, b, c, d, e, f) };
        let _ = rustix::io::write(&writer, b"survived");
        // SAFETY: likewise.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut said = [0; 16];
    let length = rustix::io::read(&reader, &mut said).unwrap_or(0);
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if length > 0 {
        Outcome::Survived
    } else if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS {
        Outcome::Killed
    } else {
        Outcome::Other(status)
    }
}

#[test]
fn each_rule_is_needed_by_some_guest_or_names_a_rare_case() {
    if probe("").is_none() {
        return;
    }
    let policies = Policy::all();
    let mut all_others = Command::new(std::env::current_exe().unwrap());
    all_others
        .args(["--skip", "system_calls::", "--test-threads", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let (used, code) = recorder::record(&mut all_others, &policies).unwrap();
    assert_eq!(code, 0, "the tests fail when they are recorded");
    let rules = policies.iter().zip(0..).flat_map(|(policy, index)| {
        let rules = policy.rules.iter().zip(0..);
        rules.map(move |(rule, number)| ((index, number), policy.kind, rule))
    });
    let idle: Vec<String> = rules
        .filter(|(id, _, rule)| !used.contains(id) && !rule.is_rare())
        .map(|(_, kind, rule)| format!("{kind:?}: {}: {}", rule.syscall, rule.comment))
        .collect();
    assert!(
        idle.is_empty(),
        "nothing used these rules:\n{}",
        idle.join("\n")
    );
}
