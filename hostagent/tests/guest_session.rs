//! `guest::run` as a process of its own, with real streams and signals, against
//! the real guest init. Only the machine is missing: a stand-in for the VMM,
//! which is this program too, runs the init in a PID namespace.

#[path = "../../guest-images/init/tests/support/as_guest.rs"]
mod as_guest;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::time::Duration;

use guest_protocol::Workload;
use hostagent::guest::{BOOT_TIMEOUT, DeviceEvent, Observer, Request, Streams, Timeline};
use hostagent::vm_process::{BootBlob, Disk, Extent, Machine, Program};
use jail::Cgroups;
use libtest_mimic::{Arguments, Trial};
use outboard::BlobHash;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use vmm::confinement::Landlock;
use vmm::event::{EventKind, EventSink};
use vmm::spec::{LimitsSpec, RateSpec, VmSpec};

macro_rules! tests {
    ($($name:ident,)*) => { &[$((stringify!($name), $name as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    output_and_errors_come_apart_and_the_exit_code_exactly,
    a_workload_that_a_signal_ends_gives_128_and_the_signal,
    what_cannot_be_started_gives_dockers_exit_codes,
    input_arrives_unchanged_and_ends,
    a_workload_that_reads_no_input_ends_all_the_same,
    without_an_input_the_workload_has_an_empty_one,
    every_signal_is_passed_on,
    the_same_signal_three_times_at_once_ends_a_run_that_does_not_answer,
    a_signal_before_the_workload_runs_ends_the_run,
    an_ignored_signal_stays_ignored,
    a_reader_that_goes_away_breaks_the_workloads_pipe,
    output_that_cannot_be_written_is_an_error,
    a_vmm_that_gives_up_is_reported_with_its_reason,
    a_vmm_that_a_signal_ends_is_reported_with_what_the_signal_means,
    a_vmm_that_fails_is_reported_with_its_reason,
    a_guest_that_panics_is_reported_with_its_console,
    a_guest_that_says_nothing_is_given_up_with_the_reason,
    a_vmm_that_is_killed_ends_the_run_at_once,
    the_machine_dies_with_mote,
    what_happens_to_devices_is_handed_on,
    only_the_first_report_of_a_confinement_before_the_guest_is_believed,
    every_phase_is_in_the_timeline_in_order,
    a_missing_vmm_is_named,
];

fn main() -> ExitCode {
    as_guest::run_if_asked();
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("--spec-fd"), Some(number)) => as_vmm(number.parse().unwrap()),
        (Some("as-mote"), Some(request)) => as_mote(&request.parse().unwrap()),
        _ => {
            let ignored = !as_guest::is_possible();
            if ignored {
                eprintln!("ignored: these tests make PID namespaces, which takes root");
            }
            let trial = |(name, test): &(&str, fn())| {
                let test = *test;
                let run = move || {
                    test();
                    Ok(())
                };
                Trial::test(*name, run).with_ignored_flag(ignored)
            };
            let trials = TESTS.iter().map(trial).collect();
            libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
        }
    }
}

// ---- The process under test.

const DISK_LIMITS: LimitsSpec = LimitsSpec {
    bandwidth: None,
    operations: Some(RateSpec {
        per_second: 1000,
        burst: 10,
    }),
};

fn as_mote(request: &Value) -> ExitCode {
    let mut timeline = Timeline::start();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let program = match request["program"].as_str() {
        Some(program) => Program::vmm(program),
        None => Program::unconfined_stand_in(std::env::current_exe().unwrap()),
    };
    let boot_blob = || BootBlob {
        hash: BlobHash::of(b""),
        file: null(),
        outboard: null(),
    };
    let machine = Machine {
        id: format!("test-{}", std::process::id()),
        kvm: null(),
        vcpus: 1,
        cpu_template: None,
        supported_cpuid: None,
        memory_bytes: 64 << 20,
        kernel: boot_blob(),
        initrd: Some(boot_blob()),
        command_line: request["vmm"].as_str().unwrap().to_owned(),
        disks: vec![Disk {
            read_only: true,
            source: None,
            extents: vec![Extent {
                file: null().into(),
                offset_bytes: 0,
                length_bytes: 512,
                blob: None,
            }],
            serial: None,
            limits: Some(DISK_LIMITS),
        }],
        entropy: Some(null()),
        nics: Vec::new(),
        namespaces: None,
        generation_id: None,
        io_limits: Vec::new(),
        filesystems: Vec::new(),
    };
    timeline.image_is_ready();
    let timeout = request["timeout_ms"].as_u64();
    let request = Request {
        control: None,
        program,
        machine,
        cgroups: Cgroups::open().unwrap(),
        workload: serde_json::from_value::<Workload>(request["workload"].clone()).unwrap(),
        streams: Streams::inherited(request["stdin"] == true).unwrap(),
        stop_signal: hostagent::stop_signal::DEFAULT,
        boot_timeout: timeout.map_or(BOOT_TIMEOUT, Duration::from_millis),
    };
    let mut observed = Observed::default();
    let result = hostagent::guest::run(request, &mut timeline, &mut observed);
    if let Ok(path) = std::env::var("OBSERVED") {
        fs::write(path, observed.0.concat()).unwrap();
    }
    if let Ok(path) = std::env::var("TIMELINE") {
        fs::write(path, format!("{:?}", timeline.phases())).unwrap();
    }
    match result {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            let code = error.exit_code();
            eprintln!("{:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}

/// What an observer was told, a line each.
#[derive(Default)]
struct Observed(Vec<String>);

impl Observer for Observed {
    fn vmm_confined(&mut self, landlock: Landlock) {
        self.0.push(format!("{landlock:?}\n"));
    }

    fn device_event(&mut self, event: &DeviceEvent) {
        self.0.push(format!("{event}\n"));
    }
}

// ---- The stand-in for the VMM. What it does stands in the command line.

fn as_vmm(spec_number: i32) -> ExitCode {
    // SAFETY: the parent passes this descriptor for us to take.
    let spec = unsafe { File::from_raw_fd(spec_number) };
    let spec: VmSpec = serde_json::from_reader(spec).unwrap();
    assert_eq!(spec.disks[0].limits, Some(DISK_LIMITS));
    let numbers = [
        spec.kvm,
        spec.boot.kernel.file,
        spec.disks[0].extents[0].file,
    ];
    for number in numbers {
        // SAFETY: the spec says that these were passed; the test fails if not.
        let passed = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_getfd(&passed).unwrap();
    }
    // SAFETY: as above; each number is in the spec once.
    let [console, events, channel] = unsafe {
        [
            spec.serial.unwrap().output,
            spec.events.unwrap(),
            spec.vsock.unwrap().channel,
        ]
        .map(|number| OwnedFd::from_raw_fd(number))
    };
    let mut console = File::from(console);
    let events = EventSink::new(Some(events.into()));
    events.send(EventKind::ProcessStarted);
    let (what, argument) = spec
        .boot
        .command_line
        .split_once('=')
        .unwrap_or((&spec.boot.command_line, ""));
    if what == "give-up" {
        eprintln!("the kernel is no kernel");
        return ExitCode::FAILURE;
    }
    let confined = |landlock| events.send(EventKind::Confined { landlock });
    if what == "confined" {
        confined(Landlock::Partial);
        confined(Landlock::Full);
    }
    events.send(EventKind::GuestEntered);
    if what == "confined" || what == "confined-late" {
        confined(Landlock::None);
    }
    if what == "trouble" {
        let reason = "no such\x1b[2J request".to_owned();
        let device = "blk0".to_owned();
        events.send(EventKind::DeviceFault { device, reason });
        let device = "blk1".to_owned();
        events.send(EventKind::DiskFull { device });
        let reason = "no such device".to_owned();
        let device = "net0".to_owned();
        events.send(EventKind::LinkDown { device, reason });
    }
    match what {
        "silent" => {
            console.write_all(b"Waiting for a miracle\n").unwrap();
            fs::write(argument, "entered").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
        "signal" => {
            console.write_all(b"Linux version 6\r\n").unwrap();
            let signal = argument.parse().unwrap();
            // SAFETY: what the standard library handles, it does not any more.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: a signal to itself, which ends it.
            unsafe { libc::raise(signal) };
        }
        "fail" => {
            let reason = "out of luck".to_owned();
            events.send(EventKind::HostFailure { reason });
            return ExitCode::from(1);
        }
        "panic" => {
            console
                .write_all(b"\x1b[31mKernel panic - not syncing: \x07no init\r\n")
                .unwrap();
            events.send(EventKind::Reset);
            return ExitCode::from(3);
        }
        _ => {
            if !argument.is_empty() {
                fs::write(argument, std::process::id().to_string()).unwrap();
            }
            // It must not outlive this process, as a real guest cannot.
            let guest = as_guest::command(channel.as_fd());
            let mut bound = Command::new("setpriv");
            bound
                .args(["--pdeathsig", "KILL"])
                .arg(guest.get_program())
                .args(guest.get_args());
            let mut guest = bound.spawn().unwrap();
            drop(channel);
            assert!(guest.wait().unwrap().success());
            events.send(EventKind::PoweredOff);
        }
    }
    ExitCode::SUCCESS
}

// ---- Helpers.

fn workload(args: &[&str]) -> Value {
    json!({
        "args": args, "env": [], "working_dir": "/", "user": "", "hostname": "guest",
        "stdin": false,
    })
}

fn shell(script: &str) -> Value {
    workload(&["/bin/sh", "-c", script])
}

/// `mote run` of `workload` in a working machine.
fn mote(workload: &Value, stdin: bool) -> Command {
    request(&json!({ "vmm": "guest", "workload": workload, "stdin": stdin }))
}

fn request(request: &Value) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["as-mote", &request.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

fn kill(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

fn read_line(from: &mut impl Read) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while from.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0].into());
    }
    line
}

/// Waits, within reason, for something to become true.
fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_true() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 20 s: {what}");
}

fn exists(pid: &str) -> bool {
    // A process that nobody has waited for yet has no command line any more.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

// ---- The tests.

fn output_and_errors_come_apart_and_the_exit_code_exactly() {
    let output = output(mote(&shell("echo out; echo err >&2; exit 7"), false));
    assert_eq!(
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr)
        ),
        (Some(7), "out\n", "err\n")
    );
}

fn a_workload_that_a_signal_ends_gives_128_and_the_signal() {
    let output = output(mote(&shell("kill -KILL $$"), false));
    assert_eq!(output.status.code(), Some(137));
}

fn what_cannot_be_started_gives_dockers_exit_codes() {
    let mut nobody = shell("true");
    nobody["user"] = "no-such-user".into();
    let cases = [
        (workload(&["no-such-command"]), 127, "no-such-command"),
        (workload(&["/etc/passwd"]), 126, "permission denied"),
        (nobody, 125, "no-such-user"),
    ];
    for (workload, code, said) in cases {
        let output = output(mote(&workload, false));
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(text(&output.stderr).contains(said), "{said}");
    }
}

fn input_arrives_unchanged_and_ends() {
    let bytes: Vec<u8> = (0..5_000_003u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    let mut child = mote(&workload(&["cat"]), true)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == bytes);
}

fn a_workload_that_reads_no_input_ends_all_the_same() {
    let mut child = mote(&shell("exit 3"), true)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Stays open and silent, like a terminal.
    let _stdin = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

fn without_an_input_the_workload_has_an_empty_one() {
    let mut child = mote(&shell("wc -c"), false)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let _stdin = child.stdin.take();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "0");
    assert!(child.wait().unwrap().success());
}

fn every_signal_is_passed_on() {
    let script = "trap 'echo int' INT; trap 'echo usr1' USR1; trap 'echo rtmin+3' 37; \
                  trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = mote(&shell(script), false).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "ready");
    // SAFETY: it is sent, not handled: the C library has no use for it here.
    let real_time = unsafe { Signal::from_raw_unchecked(37) };
    for (signal, said) in [
        (Signal::INT, "int"),
        (Signal::INT, "int"),
        (Signal::USR1, "usr1"),
        (real_time, "rtmin+3"),
        (Signal::TERM, "term"),
    ] {
        kill(&child, signal);
        assert_eq!(read_line(&mut stdout), said);
    }
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

fn the_same_signal_three_times_at_once_ends_a_run_that_does_not_answer() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = mote(&shell(script), false).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "ready");
    // Signals that arrive before the last was taken note of count once.
    eventually("the run has ended", || {
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            kill(&child, Signal::TERM);
        }
        ended
    });
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

fn a_signal_before_the_workload_runs_ends_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let entered = directory.path().join("entered");
    let vmm = format!("silent={}", entered.display());
    let child = request(&json!({ "vmm": vmm, "workload": shell("true") }))
        .spawn()
        .unwrap();
    eventually("the guest is entered", || entered.exists());
    kill(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("stopped by signal 2"));
}

fn an_ignored_signal_stays_ignored() {
    let script = "trap 'echo hup' HUP; trap 'echo term; exit' TERM; \
                  echo ready; while :; do sleep 0.01; done";
    let mote = mote(&shell(script), false);
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(mote.get_program())
        .args(mote.get_args())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "ready");
    kill(&child, Signal::HUP);
    kill(&child, Signal::TERM);
    assert_eq!(read_line(&mut stdout), "term");
    child.wait().unwrap();
}

fn a_reader_that_goes_away_breaks_the_workloads_pipe() {
    let mut child = mote(&workload(&["yes"]), false).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "y");
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = mote(&shell("echo lost"), false);
    let output = output({
        command.stdout(full);
        command
    });
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(
        said.contains("stdout") && said.contains("No space left"),
        "{said}"
    );
}

fn a_vmm_that_gives_up_is_reported_with_its_reason() {
    let output = output(request(
        &json!({ "vmm": "give-up", "workload": shell("true") }),
    ));
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("mote-vmm: the kernel is no kernel"), "{said}");
    assert!(said.contains("while the VM was being built"), "{said}");
}

fn a_vmm_that_a_signal_ends_is_reported_with_what_the_signal_means() {
    for (signal, said) in [
        (
            libc::SIGSYS,
            "a system call that its filter forbids (SIGSYS)",
        ),
        (libc::SIGSEGV, "killed by SIGSEGV"),
        (libc::SIGBUS, "killed by SIGBUS"),
        (libc::SIGKILL, "SIGKILL"),
    ] {
        let vmm = format!("signal={signal}");
        let output = output(request(&json!({ "vmm": vmm, "workload": shell("true") })));
        assert_eq!(output.status.code(), Some(125));
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{stderr}");
        assert!(stderr.contains("before its init reported"), "{stderr}");
        assert!(stderr.contains("| Linux version 6\n"), "{stderr}");
    }
}

fn a_vmm_that_fails_is_reported_with_its_reason() {
    let output = output(request(
        &json!({ "vmm": "fail", "workload": shell("true") }),
    ));
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("mote-vmm failed: out of luck"), "{said}");
}

fn a_guest_that_panics_is_reported_with_its_console() {
    let output = output(request(
        &json!({ "vmm": "panic", "workload": shell("true") }),
    ));
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("the guest reset itself"), "{said}");
    assert!(
        said.contains("| [31mKernel panic - not syncing: no init\n"),
        "{said}"
    );
}

fn a_guest_that_says_nothing_is_given_up_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let vmm = format!("silent={}", directory.path().join("x").display());
    let request = request(&json!({
        "vmm": vmm, "workload": shell("true"), "timeout_ms": 500,
    }));
    let output = output(request);
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("did not start"), "{said}");
    assert!(said.contains("Waiting for a miracle"), "{said}");
}

/// A machine whose workload runs, and the process id of its VMM.
fn running(stdout: &mut Option<impl Read>, pid_file: &std::path::Path) -> String {
    assert_eq!(read_line(stdout.as_mut().unwrap()), "ready");
    fs::read_to_string(pid_file).unwrap()
}

fn start_running(directory: &tempfile::TempDir) -> (Child, String) {
    let pid_file = directory.path().join("pid");
    let vmm = format!("guest={}", pid_file.display());
    let workload = shell("echo ready; trap '' HUP TERM; while :; do sleep 1; done");
    let mut child = request(&json!({ "vmm": vmm, "workload": workload }))
        .spawn()
        .unwrap();
    let vmm = running(&mut child.stdout, &pid_file);
    assert!(exists(&vmm));
    (child, vmm)
}

fn a_vmm_that_is_killed_ends_the_run_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (child, vmm) = start_running(&directory);
    let pid = Pid::from_raw(vmm.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(
        said.contains("killed by SIGKILL (somebody ended it), while the workload was running"),
        "{said}"
    );
}

fn the_machine_dies_with_mote() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, vmm) = start_running(&directory);
    child.kill().unwrap();
    let status: ExitStatus = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9));
    eventually("the VMM is gone", || !exists(&vmm));
}

/// What an observer was told of a run with this stand-in.
fn observed(vmm: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("observed");
    let mut command = request(&json!({ "vmm": vmm, "workload": shell("true") }));
    command.env("OBSERVED", &path);
    assert!(command.status().unwrap().success());
    let text = fs::read_to_string(&path).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn what_happens_to_devices_is_handed_on() {
    let told = observed("trouble");
    let wanted = [
        ("blk0 has stopped", "no such[2J request"),
        ("no room", "blk1"),
        ("net0 has lost its tap", "no such device"),
    ];
    assert_eq!(told.len(), wanted.len(), "{told:?}");
    for (line, (what, why)) in told.iter().zip(wanted) {
        assert!(line.contains(what) && line.contains(why), "{line}");
    }
}

fn only_the_first_report_of_a_confinement_before_the_guest_is_believed() {
    assert_eq!(observed("confined"), ["Partial"]);
    assert!(observed("confined-late").is_empty());
}

fn every_phase_is_in_the_timeline_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("timeline");
    let mut command = mote(&shell("true"), false);
    command.env("TIMELINE", &path);
    assert!(command.status().unwrap().success());
    let phases = fs::read_to_string(&path).unwrap();
    let mut last = 0.0;
    for name in [
        "image ready",
        "VM process started",
        "first guest instruction",
        "init",
        "workload started",
        "workload exited",
        "VM ended",
    ] {
        let (_, rest) = phases.split_once(&format!("(\"{name}\", ")).expect(name);
        let at: f64 = rest.split(')').next().unwrap().parse().unwrap();
        assert!(at >= last, "{name}: {phases}");
        last = at;
    }
}

fn a_missing_vmm_is_named() {
    let output = output(request(&json!({
        "vmm": "guest", "workload": shell("true"), "program": "/no/such/mote-vmm",
    })));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("/no/such/mote-vmm"));
}
