//! The init with real processes and real streams, seen from the host's end of
//! the protocol. Only the mounts and the machine are missing.

#[path = "support/as_guest.rs"]
mod as_guest;
#[path = "support/host.rs"]
mod host;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use guest_protocol::{ExitStatus, HostMessage, StartFailureKind};
use libtest_mimic::{Arguments, Trial};

use host::{Guest, Outcome, shell, workload};

/// The tests: their names are sentences about the init.
macro_rules! tests {
    ($($name:ident,)*) => { &[$((stringify!($name), $name as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    output_and_errors_arrive_apart_and_the_exit_code_exactly,
    a_workload_that_a_signal_ends_is_reported_so,
    a_command_that_is_not_there_is_not_found,
    a_command_that_cannot_be_executed_is_not_executable,
    an_unknown_user_fails_the_setup,
    a_working_directory_below_a_file_fails_the_setup,
    a_nul_byte_in_an_argument_fails_the_setup,
    a_missing_working_directory_is_made,
    the_environment_is_what_was_sent_and_the_defaults,
    the_program_is_looked_up_in_the_workloads_path,
    signals_reach_the_main_process,
    the_workload_starts_with_default_signals_and_three_descriptors,
    the_workload_leads_a_session_without_a_terminal,
    bytes_pass_through_unchanged_and_in_order,
    output_that_nobody_reads_yet_is_kept_past_the_end,
    without_a_stream_input_is_empty,
    a_workload_that_stops_reading_ends_the_hosts_input,
    a_stream_the_workload_closes_ends_at_once,
    a_stream_the_host_closes_breaks_the_workloads_pipe,
    processes_left_behind_end_with_the_main_process,
    orphans_are_reaped,
    another_user_has_its_ids_and_may_reopen_its_streams,
    a_host_that_is_gone_ends_the_guest,
    a_signal_instead_of_a_workload_fails_the_setup,
];

fn main() {
    as_guest::run_if_asked();
    let arguments = Arguments::from_args();
    let ignored = !as_guest::is_possible();
    if ignored {
        eprintln!("ignored: these tests make PID namespaces, which takes root");
    }
    let trials = TESTS.iter().map(|(name, test)| {
        let run = || {
            test();
            Ok(())
        };
        Trial::test(*name, run).with_ignored_flag(ignored)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn code(code: i32) -> Result<ExitStatus, StartFailureKind> {
    Ok(ExitStatus::Code(code))
}

fn output_and_errors_arrive_apart_and_the_exit_code_exactly() {
    let outcome = Guest::run(&shell("echo out; echo err >&2; exit 7"));
    assert_eq!(
        (
            outcome.status(),
            outcome.stdout_text(),
            outcome.stderr_text()
        ),
        (code(7), "out\n", "err\n")
    );
}

fn a_workload_that_a_signal_ends_is_reported_so() {
    let outcome = Guest::run(&shell("kill -KILL $$"));
    assert_eq!(outcome.status(), Ok(ExitStatus::Signal(9)));
}

fn failure(outcome: &Outcome) -> StartFailureKind {
    outcome.status().unwrap_err()
}

fn a_command_that_is_not_there_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    for command in ["no-such-command", "/no/such/file", script.to_str().unwrap()] {
        let outcome = Guest::run(&workload(&[command]));
        assert_eq!(failure(&outcome), StartFailureKind::NotFound, "{command}");
        assert!(outcome.message().contains(command));
    }
}

fn a_command_that_cannot_be_executed_is_not_executable() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage");
    std::fs::write(&garbage, "neither a program nor a script").unwrap();
    std::fs::set_permissions(&garbage, PermissionsExt::from_mode(0o755)).unwrap();
    for command in ["/etc/passwd", "/etc", garbage.to_str().unwrap()] {
        let outcome = Guest::run(&workload(&[command]));
        assert_eq!(
            failure(&outcome),
            StartFailureKind::NotExecutable,
            "{command}"
        );
    }
}

fn an_unknown_user_fails_the_setup() {
    let mut workload = shell("true");
    workload.user = "no-such-user".into();
    let outcome = Guest::run(&workload);
    assert_eq!(failure(&outcome), StartFailureKind::Setup);
    assert!(outcome.message().contains("no-such-user"));
}

fn a_working_directory_below_a_file_fails_the_setup() {
    let mut workload = shell("true");
    workload.working_dir = "/etc/passwd/below".into();
    let outcome = Guest::run(&workload);
    assert_eq!(failure(&outcome), StartFailureKind::Setup);
}

fn a_nul_byte_in_an_argument_fails_the_setup() {
    let outcome = Guest::run(&workload(&["/bin/echo", "a\0b"]));
    assert_eq!(failure(&outcome), StartFailureKind::Setup);
}

fn a_missing_working_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not/yet");
    let mut workload = shell("pwd");
    workload.working_dir = path.to_str().unwrap().into();
    let outcome = Guest::run(&workload);
    assert_eq!(outcome.stdout_text().trim_end(), path.to_str().unwrap());
}

fn the_environment_is_what_was_sent_and_the_defaults() {
    let mut workload = workload(&["env"]);
    workload.env = vec!["B=2".into(), "A=x=y z".into(), "HOME=/elsewhere".into()];
    workload.hostname = "box".into();
    let outcome = Guest::run(&workload);
    assert_eq!(
        outcome.stdout_text(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         HOSTNAME=box\nB=2\nA=x=y z\nHOME=/elsewhere\n"
    );
}

fn the_program_is_looked_up_in_the_workloads_path() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("env");
    std::fs::write(&script, "#!/bin/sh\necho found $0 $1\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let mut workload = workload(&["env", "argument"]);
    workload.env = vec![format!(
        "PATH=/none:{}:/usr/bin",
        directory.path().display()
    )];
    let outcome = Guest::run(&workload);
    let expected = format!("found {} argument\n", script.display());
    assert_eq!(outcome.stdout_text(), expected);
}

fn signals_reach_the_main_process() {
    let mut guest = Guest::start(&shell(
        "trap 'echo hup' HUP; trap 'echo term; exit 3' TERM; \
         echo ready; while :; do sleep 0.01; done",
    ));
    guest.wait_stdout("ready\n");
    guest.send(&HostMessage::Signal(libc::SIGHUP));
    guest.wait_stdout("hup\n");
    guest.send(&HostMessage::Signal(libc::SIGTERM));
    let outcome = guest.finish();
    assert_eq!(outcome.status(), code(3));
    assert_eq!(outcome.stdout_text(), "term\n");
}

fn the_workload_starts_with_default_signals_and_three_descriptors() {
    let outcome = Guest::run(&shell("cat /proc/self/status; ls /proc/self/fd >&2"));
    for name in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        let text = outcome.stdout_text();
        let set = text.lines().find_map(|line| line.strip_prefix(name));
        let set = u64::from_str_radix(set.unwrap().trim(), 16).unwrap();
        // Signals 32 and 33 belong to the C library, which lets nobody change
        // them; whoever started the test may have them ignored.
        assert_eq!(set & !(0b11 << 31), 0, "{name} {set:x}");
    }
    // The fourth is the directory that ls reads.
    assert_eq!(outcome.stderr_text(), "0\n1\n2\n3\n");
}

fn the_workload_leads_a_session_without_a_terminal() {
    let outcome = Guest::run(&shell(
        "read pid name state parent group session terminal rest < /proc/self/stat; \
         [ $pid = $group ] && [ $pid = $session ] && echo $terminal; umask",
    ));
    assert_eq!(outcome.stdout_text(), "0\n0022\n");
}

fn bytes_pass_through_unchanged_and_in_order() {
    let mut workload = workload(&["cat"]);
    workload.stdin = true;
    // Every byte value, and no period that a buffer's size could hide.
    let bytes: Vec<u8> = (0..6_000_001u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    let mut guest = Guest::start(&workload);
    let mut stdin = guest.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        stdin.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let outcome = guest.finish();
    writer.join().unwrap();
    assert_eq!(outcome.status(), code(0));
    assert!(outcome.stdout == bytes);
}

fn output_that_nobody_reads_yet_is_kept_past_the_end() {
    let guest = Guest::start(&shell("head -c 1000000 /dev/zero; echo end >&2"));
    // Ample time for the workload to end; its output waits in the guest.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let outcome = guest.finish();
    assert_eq!(outcome.stdout.len(), 1_000_000);
    assert_eq!(outcome.stderr_text(), "end\n");
}

fn without_a_stream_input_is_empty() {
    let outcome = Guest::run(&shell("wc -c"));
    assert_eq!(outcome.stdout_text(), "0\n");
}

fn a_workload_that_stops_reading_ends_the_hosts_input() {
    let mut workload = shell("head -c 3; exec <&-; echo closed; sleep 1000");
    workload.stdin = true;
    let mut guest = Guest::start(&workload);
    let mut stdin = guest.stdin.take().unwrap();
    stdin.write_all(b"abc").unwrap();
    guest.wait_stdout("abcclosed\n");
    let piece = [0; 65536];
    let error = loop {
        if let Err(error) = stdin.write_all(&piece) {
            break error;
        }
    };
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    guest.send(&HostMessage::Signal(libc::SIGKILL));
    assert_eq!(guest.finish().status(), Ok(ExitStatus::Signal(9)));
}

fn a_stream_the_workload_closes_ends_at_once() {
    let mut workload = shell("echo last; exec >&-; read line; echo $line >&2");
    workload.stdin = true;
    let mut guest = Guest::start(&workload);
    let mut text = String::new();
    // To the end, while the workload still waits for its input.
    guest.stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last\n");
    let mut stdin = guest.stdin.take().unwrap();
    stdin.write_all(b"go on\n").unwrap();
    assert_eq!(guest.finish().stderr_text(), "go on\n");
}

fn a_stream_the_host_closes_breaks_the_workloads_pipe() {
    let mut guest = Guest::start(&workload(&["yes"]));
    guest.wait_stdout("y\n");
    guest.close_stdout();
    let outcome = guest.finish();
    assert_eq!(outcome.status(), Ok(ExitStatus::Signal(libc::SIGPIPE)));
}

fn processes_left_behind_end_with_the_main_process() {
    let outcome = Guest::run(&shell(
        "(trap '' HUP TERM INT; while :; do sleep 1000; done) & \
         setsid sleep 1000 & echo done; exit 5",
    ));
    assert_eq!(outcome.status(), code(5));
    assert_eq!(outcome.stdout_text(), "done\n");
}

fn orphans_are_reaped() {
    // The orphan's parent is gone before it ends; a zombie would still take
    // signals.
    let outcome = Guest::run(&shell(
        "orphan=$(sh -c 'sleep 0.1 >/dev/null & echo $!'); n=0; \
         while kill -0 $orphan 2>/dev/null; do \
         n=$((n+1)); [ $n -gt 2000 ] && exit 1; sleep 0.01; done; exit 0",
    ));
    assert_eq!(outcome.status(), code(0));
}

fn another_user_has_its_ids_and_may_reopen_its_streams() {
    let mut workload = shell(
        "id -u; id -G; echo $HOME; echo reopened > /proc/self/fd/2; \
         cat /proc/self/fd/0",
    );
    workload.user = "65534:12345".into();
    workload.stdin = true;
    let mut guest = Guest::start(&workload);
    drop(guest.stdin.take());
    let outcome = guest.finish();
    assert_eq!(outcome.stderr_text(), "reopened\n");
    assert_eq!(outcome.status(), code(0));
    let mut lines = outcome.stdout_text().lines();
    assert_eq!(lines.next(), Some("65534"));
    assert_eq!(lines.next(), Some("12345"));
    assert!(lines.next().unwrap().starts_with('/'));
}

fn a_host_that_is_gone_ends_the_guest() {
    let guest = Guest::start(&shell("trap '' TERM HUP; while :; do sleep 1; done"));
    assert!(guest.abandon().success());
}

fn a_signal_instead_of_a_workload_fails_the_setup() {
    let outcome = Guest::connect().run_with(&HostMessage::Signal(15));
    assert_eq!(failure(&outcome), StartFailureKind::Setup);
}
