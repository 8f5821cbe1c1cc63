//! The policy files, as tests read them.

use serde::Deserialize;
use vmm::seccomp::ThreadKind;

/// Begins the reason of a rule that no test comes by: it names the case instead.
const RARE: &str = "rare: ";

/// What one kind of thread may call.
#[derive(Debug)]
pub struct Policy {
    pub kind: ThreadKind,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mismatch_action: String,
    match_action: String,
    filter: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub syscall: String,
    #[serde(default)]
    pub args: Vec<Condition>,
    pub comment: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub index: usize,
    #[serde(rename = "type")]
    pub kind: String,
    pub op: String,
    pub val: u64,
    pub comment: String,
}

impl Policy {
    pub fn all() -> [Self; 2] {
        [
            Self::read(
                ThreadKind::EventLoop,
                "event_loop",
                include_str!("../../../seccomp/event_loop.json"),
            ),
            Self::read(
                ThreadKind::Vcpu,
                "vcpu",
                include_str!("../../../seccomp/vcpu.json"),
            ),
        ]
    }

    fn read(kind: ThreadKind, name: &str, text: &str) -> Self {
        let mut file: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).unwrap();
        let policy: File = serde_json::from_value(file.remove(name).unwrap()).unwrap();
        assert!(file.is_empty(), "{name}");
        assert_eq!(policy.mismatch_action, "kill_process", "{name}");
        assert_eq!(policy.match_action, "allow", "{name}");
        let rules = policy.filter;
        Self { kind, rules }
    }

    /// The numbers of all calls that some rule allows, each once.
    pub fn numbers(&self) -> Vec<i64> {
        let mut numbers: Vec<i64> = self.rules.iter().map(Rule::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The rules that allow this call.
    pub fn matching(&self, number: i64, args: [u64; 6]) -> impl Iterator<Item = usize> {
        let rules = self.rules.iter().zip(0..);
        rules
            .filter(move |(rule, _)| rule.number() == number && rule.matches(args))
            .map(|(_, index)| index)
    }
}

impl Rule {
    pub fn number(&self) -> i64 {
        number_of(&self.syscall)
    }

    pub fn is_rare(&self) -> bool {
        self.comment.starts_with(RARE)
    }

    fn matches(&self, args: [u64; 6]) -> bool {
        self.args.iter().all(|condition| condition.holds(args))
    }

    /// Arguments that this rule allows, as wrong as can be otherwise.
    pub fn allowed_args(&self) -> [u64; 6] {
        let mut args = [u64::MAX; 6];
        for condition in &self.args {
            args[condition.index] = condition.val;
        }
        args
    }
}

impl Condition {
    fn holds(&self, args: [u64; 6]) -> bool {
        assert_eq!((self.kind.as_str(), self.op.as_str()), ("dword", "eq"));
        args[self.index] as u32 == self.val as u32
    }
}

/// The number of a system call that a policy names.
fn number_of(name: &str) -> i64 {
    match name {
        "brk" => libc::SYS_brk,
        "clock_gettime" => libc::SYS_clock_gettime,
        "close" => libc::SYS_close,
        "epoll_ctl" => libc::SYS_epoll_ctl,
        "epoll_wait" => libc::SYS_epoll_wait,
        "exit_group" => libc::SYS_exit_group,
        "fallocate" => libc::SYS_fallocate,
        "fcntl" => libc::SYS_fcntl,
        "fdatasync" => libc::SYS_fdatasync,
        "futex" => libc::SYS_futex,
        "io_uring_enter" => libc::SYS_io_uring_enter,
        "ioctl" => libc::SYS_ioctl,
        "lseek" => libc::SYS_lseek,
        "madvise" => libc::SYS_madvise,
        "preadv2" => libc::SYS_preadv2,
        "pwritev2" => libc::SYS_pwritev2,
        "read" => libc::SYS_read,
        "readv" => libc::SYS_readv,
        "recvmsg" => libc::SYS_recvmsg,
        "rt_sigreturn" => libc::SYS_rt_sigreturn,
        "sendmsg" => libc::SYS_sendmsg,
        "shutdown" => libc::SYS_shutdown,
        "socketpair" => libc::SYS_socketpair,
        "tgkill" => libc::SYS_tgkill,
        "timerfd_settime" => libc::SYS_timerfd_settime,
        "write" => libc::SYS_write,
        "writev" => libc::SYS_writev,
        _ => panic!("{name} is new in a policy: give its number here"),
    }
}
