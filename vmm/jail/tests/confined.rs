//! Starts this very program in a jail and looks at it from both sides.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use jail::{Ended, FIRST_ID, Jail, JailError, Jailed, Limits, NewNamespaces};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const LIMITS: Limits = Limits {
    address_space_bytes: 1 << 30,
    locked_memory_bytes: 8192,
    file_size_bytes: 4096,
    descriptors: 64,
    threads: 4,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("inside") => return inside(&arguments.next().unwrap_or_default()),
        Some("agent") => return agent(),
        Some("look") => {
            match start_with("look", Unusual::default()) {
                Ok(mut inmate) => println!("it sees {}", inmate.line()),
                Err(error) => println!("{error}"),
            }
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    let trial = |name, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok::<(), Failed>(())
        })
    };
    vec![
        trial("the_root_is_empty_and_cannot_be_written", the_root_is_empty),
        trial("an_agent_in_a_chroot_starts_nothing", agent_in_chroot)
            .with_ignored_flag(!rustix::process::geteuid().is_root()),
        trial("it_is_process_one_without_environment", it_is_process_one),
        trial(
            "its_ids_are_its_own_and_its_capabilities_none",
            ids_and_capabilities,
        ),
        trial("every_namespace_is_its_own", namespaces),
        trial(
            "it_has_the_descriptors_it_was_given_and_no_other",
            descriptors,
        ),
        trial("its_limits_are_those_asked_for", limits),
        trial("it_is_in_a_session_without_a_terminal", session),
        trial("memory_beyond_the_limit_is_refused", memory_limit),
        trial("processes_beyond_the_limit_are_refused", process_limit),
        trial("files_beyond_the_limit_are_refused", file_limit),
        trial("it_gains_nothing_in_namespaces_it_makes", no_new_power),
        trial("two_that_live_at_once_share_no_uid", two_share_nothing),
        trial("it_dies_with_its_parent", dies_with_parent),
        trial(
            "it_dies_with_its_parent_while_it_is_being_made",
            dies_unborn,
        ),
        trial("the_parent_stays_as_it_was", parent_unchanged),
        trial("an_unprivileged_agent_confines_it_too", unprivileged),
        trial("what_cannot_be_executed_is_an_error", not_executable),
        trial("a_cgroup_that_is_none_is_an_error", no_cgroup),
        trial("a_standard_number_cannot_be_passed_on", standard_number),
        trial("its_exit_code_and_its_signal_are_told_apart", endings),
    ]
}

/// A jailed process and both ends of its standard streams.
struct Inmate {
    process: Jailed,
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
}

/// What differs from the usual.
#[derive(Default)]
struct Unusual<'a> {
    program: Option<BorrowedFd<'a>>,
    descriptors: Vec<BorrowedFd<'a>>,
    cgroup: Option<BorrowedFd<'a>>,
    namespaces_with_process: bool,
}

fn start(what: &str) -> Inmate {
    start_with(what, Unusual::default()).unwrap()
}

fn start_with(what: &str, unusual: Unusual) -> Result<Inmate, JailError> {
    let program = File::open("/proc/self/exe").unwrap();
    let (input_end, input) = std::io::pipe().unwrap();
    let (output, output_end) = std::io::pipe().unwrap();
    // Beside, as an agent does it.
    let namespaces = match unusual.namespaces_with_process {
        false => NewNamespaces::begin().unwrap(),
        true => None,
    };
    let jail = Jail {
        program: unusual.program.unwrap_or(program.as_fd()),
        arguments: ["confined", "inside", what]
            .map(|text| CString::new(text).unwrap())
            .to_vec(),
        standard: [input_end.as_fd(), output_end.as_fd(), output_end.as_fd()],
        descriptors: unusual.descriptors,
        limits: LIMITS,
        namespaces,
        cgroup: unusual.cgroup,
        dies_with_parent: true,
    };
    Ok(Inmate {
        process: jail.spawn()?,
        input: Some(input),
        output: BufReader::new(output),
    })
}

impl Inmate {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets it end, and returns all it printed and how it ended.
    fn finish(mut self) -> (String, Ended) {
        drop(self.input.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        (text, self.process.wait().unwrap())
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.process.pid().as_raw_nonzero());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn status(&self, field: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    fn link(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.process.pid().as_raw_nonzero());
        fs::read_link(path).unwrap().display().to_string()
    }
}

/// What the jailed program does. Says so, waits for the end of its input, ends.
fn inside(what: &str) -> ExitCode {
    match what {
        "wait" => println!("ready"),
        "look" => look(),
        "id" => {
            let environment = std::env::vars_os().count();
            println!("pid {} environment {environment}", std::process::id());
        }
        "memory" => println!("{:?}", vec_of(2 << 30).map(|_| ())),
        "fork" => println!("{}", fork_all()),
        "write" => println!("{:?}", write_far()),
        "power" => println!("{}", gain_power()),
        "exit" => return ExitCode::from(7),
        "abort" => std::process::abort(),
        other => println!("what is {other}?"),
    }
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

fn look() {
    let entries = fs::read_dir("/").map(|entries| entries.count());
    let written = File::create("/file").map_err(|error| error.kind());
    let made = fs::create_dir("/directory").map_err(|error| error.kind());
    let above = fs::read_dir("/..").map(|entries| entries.count());
    println!("{entries:?} {written:?} {made:?} {above:?}");
}

fn vec_of(bytes: usize) -> Result<Vec<u8>, std::collections::TryReserveError> {
    let mut bytes_vec = Vec::new();
    bytes_vec.try_reserve_exact(bytes)?;
    Ok(bytes_vec)
}

/// How many of 16 children could be made.
fn fork_all() -> usize {
    let mut made = 0;
    for _ in 0..16 {
        // SAFETY: the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                std::thread::park();
            },
            -1 => {}
            _ => made += 1,
        }
    }
    made
}

fn write_far() -> Result<(), std::io::ErrorKind> {
    // Ignored, so that it is an error and no death.
    // SAFETY: changes what a signal does, in a program of one thread.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let fd = rustix::fs::memfd_create(c"far", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = File::from(fd);
    file.write_all(&[0; 5000]).map_err(|error| error.kind())
}

/// What root could do, as root of a user namespace that was just made.
fn gain_power() -> String {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: this process has one thread.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) };
    let mounted = rustix::mount::mount(
        c"none",
        c"/",
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    );
    let kill = rustix::process::kill_process(
        rustix::process::Pid::from_raw(2).unwrap(),
        rustix::process::Signal::KILL,
    );
    let entries = fs::read_dir("/").map_or(0, Iterator::count);
    format!("{unshared:?} {} {kill:?} {entries}", mounted.is_ok())
}

fn the_root_is_empty() {
    empty_root(Unusual::default());
    empty_root(Unusual {
        namespaces_with_process: true,
        ..Unusual::default()
    });
}

#[track_caller]
fn assert_sees_nothing(line: &str) {
    assert!(line.starts_with("Ok(0) Err("), "{line}");
    assert!(line.ends_with(" Ok(0)"), "{line}");
    assert_eq!(line.matches("Err(").count(), 2, "{line}");
}

/// An agent whose root is not that of its mount namespace: there the empty root would take
/// the place of the wrong one. The kernel makes no user namespace for who is in a chroot.
fn agent_in_chroot() {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"mount --rbind / "$0" && exec chroot "$0" "$1" look"#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("make a user namespace"), "{said}");
}

fn empty_root(unusual: Unusual) {
    let mut inmate = start_with("look", unusual).unwrap();
    assert_sees_nothing(&inmate.line());
    let mounts = inmate.proc("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
}

fn it_is_process_one() {
    let mut inmate = start("id");
    assert_eq!(inmate.line(), "pid 1 environment 0");
}

fn ids_and_capabilities() {
    let mut inmate = start("wait");
    assert_eq!(inmate.line(), "ready");
    let id = FIRST_ID + inmate.process.pid().as_raw_nonzero().get() as u32;
    let ids = [id; 4].map(|id| id.to_string()).join("\t");
    assert_eq!(inmate.status("Uid"), ids);
    assert_eq!(inmate.status("Gid"), ids);
    assert_eq!(inmate.status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(inmate.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(inmate.status("NoNewPrivs"), "1");
    // No id of the host's means anything in there.
    assert_eq!(inmate.proc("uid_map"), "");
    assert_eq!(inmate.proc("gid_map"), "");
}

fn namespaces() {
    own_namespaces(Unusual::default());
    own_namespaces(Unusual {
        namespaces_with_process: true,
        ..Unusual::default()
    });
}

fn own_namespaces(unusual: Unusual) {
    let mut inmate = start_with("wait", unusual).unwrap();
    inmate.line();
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let name = format!("ns/{name}");
        let ours = fs::read_link(Path::new("/proc/self").join(&name)).unwrap();
        assert_ne!(inmate.link(&name), ours.display().to_string(), "{name}");
    }
    let interfaces = inmate.proc("net/dev");
    assert_eq!(interfaces.matches(':').count(), 1, "{interfaces}");
}

fn descriptors() {
    let given = File::open("/dev/null").unwrap();
    let (_not_given, _neither) = std::io::pipe().unwrap();
    // Not even one that any child would inherit.
    let careless = File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let unusual = Unusual {
        descriptors: vec![given.as_fd()],
        ..Unusual::default()
    };
    let mut inmate = start_with("wait", unusual).unwrap();
    inmate.line();
    let path = format!("/proc/{}/fd", inmate.process.pid().as_raw_nonzero());
    let mut numbers: Vec<i32> = fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, given.as_raw_fd()]);
}

fn limits() {
    let mut inmate = start("wait");
    inmate.line();
    let limits = inmate.proc("limits");
    let limit = |name: &str| -> Vec<&str> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().take(2).collect()
    };
    assert_eq!(limit("Max address space"), ["1073741824"; 2]);
    assert_eq!(limit("Max locked memory"), ["8192"; 2]);
    assert_eq!(limit("Max file size"), ["4096"; 2]);
    assert_eq!(limit("Max open files"), ["64"; 2]);
    assert_eq!(limit("Max processes"), ["4"; 2]);
    for name in [
        "Max core file size",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
    ] {
        assert_eq!(limit(name), ["0"; 2], "{name}");
    }
}

fn session() {
    let mut inmate = start("wait");
    inmate.line();
    let stat = inmate.proc("stat");
    let pid = inmate.process.pid().as_raw_nonzero().to_string();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // Process group, session, terminal (proc_pid_stat(5)).
    assert_eq!(fields[2..5], [&pid, &pid, "0"], "{stat}");
}

fn memory_limit() {
    let line = start("memory").line();
    assert!(line.starts_with("Err("), "{line}");
}

fn process_limit() {
    // Four in all, itself included.
    assert_eq!(start("fork").line(), "3");
}

fn file_limit() {
    assert_eq!(start("write").line(), "Err(FileTooLarge)");
}

fn no_new_power() {
    let mut inmate = start("power");
    let line = inmate.line();
    // Whether it may make a user namespace is the host's choice; the root it has in
    // it is as empty, and there is nobody to kill.
    assert!(line.contains("Err(Os { code: 3"), "{line}");
    assert!(line.ends_with(" 0"), "{line}");
}

fn two_share_nothing() {
    let (mut a, mut b) = (start("wait"), start("wait"));
    a.line();
    b.line();
    assert_ne!(a.status("Uid"), b.status("Uid"));
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let name = format!("ns/{name}");
        assert_ne!(a.link(&name), b.link(&name));
    }
}

/// Starts a jailed process, says its PID, waits to be killed.
fn agent() -> ExitCode {
    let status = || fs::read_to_string("/proc/thread-self/status").unwrap();
    let before = status();
    let mut inmate = match start_with("wait", Unusual::default()) {
        Ok(inmate) => inmate,
        Err(error) => {
            println!("error {error:?}");
            return ExitCode::FAILURE;
        }
    };
    let ready = inmate.line();
    println!("{ready} {}", inmate.process.pid().as_raw_nonzero());
    for name in ["Uid", "CapEff", "CapBnd", "NoNewPrivs"] {
        println!("{name} {}", inmate.status(name));
    }
    println!("mounts {}", inmate.proc("mountinfo").lines().count());
    let same = ["Uid", "Gid", "CapEff", "SigBlk", "NoNewPrivs"];
    let after = status();
    let changed: Vec<&str> = after
        .lines()
        .filter(|line| same.iter().any(|field| line.starts_with(field)))
        .filter(|line| !before.contains(line))
        .collect();
    println!("changed {changed:?}");
    println!("dumpable {:?}", rustix::process::dumpable_behavior());
    println!("end");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

fn agent_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("agent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn agent_says(command: &mut Command) -> String {
    let mut agent = command.spawn().unwrap();
    let mut output = BufReader::new(agent.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("end\n") && output.read_line(&mut text).unwrap() > 0 {}
    agent.kill().unwrap();
    agent.wait().unwrap();
    text
}

fn dies_with_parent() {
    let mut agent = agent_command().spawn().unwrap();
    let mut output = BufReader::new(agent.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let pid: i32 = line.trim().strip_prefix("ready ").unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(readable_soon(&pidfd));
}

fn dies_unborn() {
    for trial in 0..100 {
        // What should be left holds nothing that anybody else waits for.
        let mut agent = agent_command().stderr(Stdio::null()).spawn().unwrap();
        let output = OwnedFd::from(agent.stdout.take().unwrap());
        // At another step each time.
        std::thread::sleep(Duration::from_micros(trial * 70));
        agent.kill().unwrap();
        agent.wait().unwrap();
        // Until it is the program it has all descriptors of its parent.
        assert!(soon(&output, PollFlags::empty()), "trial {trial}");
    }
}

fn readable_soon(fd: &OwnedFd) -> bool {
    soon(fd, PollFlags::IN)
}

/// Whether one of `flags`, or its end, comes to a descriptor.
fn soon(fd: &OwnedFd, flags: PollFlags) -> bool {
    let patience = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(fd, flags)], Some(&patience)) == Ok(1)
}

fn parent_unchanged() {
    let text = agent_says(&mut agent_command());
    assert!(text.contains("dumpable Ok(Dumpable)\n"), "{text}");
    assert!(text.contains("changed []\n"), "{text}");
}

fn unprivileged() {
    const NOBODY: u32 = 65_534;
    let text = agent_says(agent_command().uid(NOBODY).gid(NOBODY));
    assert!(text.starts_with("ready "), "{text}");
    assert!(text.contains("Uid 65534\t65534\t65534\t65534\n"), "{text}");
    for line in [
        "CapEff 0000000000000000",
        "CapBnd 0000000000000000",
        "NoNewPrivs 1",
        "mounts 1",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

fn not_executable() {
    let text = File::open("/proc/self/status").unwrap();
    let unusual = Unusual {
        program: Some(text.as_fd()),
        ..Unusual::default()
    };
    let result = start_with("wait", unusual);
    assert!(matches!(result, Err(JailError::Execute(_))));
}

fn no_cgroup() {
    let file = File::open("/dev/null").unwrap();
    let unusual = Unusual {
        cgroup: Some(file.as_fd()),
        ..Unusual::default()
    };
    let result = start_with("wait", unusual);
    assert!(matches!(result, Err(JailError::Clone(_))));
}

fn standard_number() {
    let error = std::io::stderr();
    let unusual = Unusual {
        descriptors: vec![error.as_fd()],
        ..Unusual::default()
    };
    let result = start_with("wait", unusual);
    assert!(matches!(result, Err(JailError::StandardNumber(2))));
}

fn endings() {
    assert_eq!(start("exit").finish().1, Ended::Exited(7));
    assert!(matches!(start("abort").finish().1, Ended::Killed(_)));
    let mut inmate = start("wait");
    inmate.line();
    assert_eq!(inmate.process.try_wait(), Ok(None));
    inmate.process.kill();
    assert_eq!(inmate.process.wait(), Ok(Ended::Killed(libc::SIGKILL)));
    assert_eq!(
        inmate.process.try_wait(),
        Ok(Some(Ended::Killed(libc::SIGKILL)))
    );
}
