//! Runs the command and carries its streams.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command as Process, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::ports::Ports;
use crate::protocol::{
    ALIVE_EVERY, Command, ExitStatus, GuestMessage, HostMessage, Messages, Output, StartFailure,
    TerminalSize, write_message,
};
use crate::stream::{Switch, TransferError, receive, send};

/// The lab's ends of the command's streams.
struct Streams {
    /// Where the command reads from; on a terminal the same as `stdout`.
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// None on a terminal.
    stderr: Option<OwnedFd>,
}

/// What tells the transfers to end.
#[derive(Clone)]
struct Switches {
    stdin_end: Switch,
    drain: Switch,
    stdout_abort: Switch,
    stderr_abort: Switch,
}

/// Writes messages from several threads, whole.
type Control = Arc<Mutex<File>>;

/// Runs `request` to its end and tells the machine how it went.
pub fn run(request: &Command, ports: Ports, messages: Messages<File>) -> anyhow::Result<()> {
    let control: Control = Arc::new(Mutex::new(ports.control));
    let (pid, streams) = match start(request) {
        Ok(started) => started,
        Err(failure) => return tell(&control, &GuestMessage::Failed(failure)),
    };
    tell(&control, &GuestMessage::Started)?;
    say_alive(&control);
    let switches = Switches {
        stdin_end: Switch::new()?,
        drain: Switch::new()?,
        stdout_abort: Switch::new()?,
        stderr_abort: Switch::new()?,
    };
    let terminal = match request.terminal {
        Some(_) => Some(streams.stdout.try_clone()?),
        None => None,
    };
    let listener = {
        let switches = switches.clone();
        thread::spawn(move || listen(messages, pid, &switches, terminal))
    };
    carry_input(streams.stdin, ports.stdin, &switches, &control);
    let stdout = carry_output(streams.stdout, ports.stdout, &switches, Output::Stdout);
    let stderr = streams
        .stderr
        .map(|stderr| carry_output(stderr, ports.stderr, &switches, Output::Stderr));

    let status = wait_for(pid)?;
    switches.drain.throw(0);
    let bytes_of = |thread: Option<JoinHandle<u64>>| thread.map_or(0, |t| t.join().unwrap_or(0));
    let exited = GuestMessage::Exited {
        status,
        stdout_bytes: bytes_of(Some(stdout)),
        stderr_bytes: bytes_of(stderr),
    };
    tell(&control, &exited)?;
    // The machine closes the control port once it has read everything; to power
    // off before that would lose what the ports still hold.
    let _ = listener.join();
    Ok(())
}

fn tell(control: &Control, message: &GuestMessage) -> anyhow::Result<()> {
    let port = control
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    write_message(&*port, message).context("the control port")
}

/// Says that the lab is there, from now on, on a thread that nobody waits for.
fn say_alive(control: &Control) {
    let control = Arc::clone(control);
    thread::spawn(move || {
        while tell(&control, &GuestMessage::Alive).is_ok() {
            thread::sleep(ALIVE_EVERY);
        }
    });
}

fn start(request: &Command) -> Result<(Pid, Streams), StartFailure> {
    let internal = |error: io::Error| StartFailure {
        exit_code: 125,
        message: format!("cannot set up the command's streams: {error}"),
    };
    let Some((program, arguments)) = request.args.split_first() else {
        return Err(internal(io::Error::other("there is no command")));
    };
    if let Err(error) = std::env::set_current_dir(&request.working_dir) {
        return Err(StartFailure {
            exit_code: 125,
            message: format!(
                "cannot enter the working directory {:?}: {error}",
                request.working_dir
            ),
        });
    }
    let mut process = Process::new(program);
    process
        .args(arguments)
        .env_clear()
        .envs(request.env.iter().map(|(name, value)| (name, value)));
    let streams = match request.terminal {
        Some(size) => on_terminal(&mut process, size),
        None => on_pipes(&mut process),
    }
    .map_err(internal)?;
    match process.spawn() {
        Ok(child) => Ok((Pid::from_child(&child), streams)),
        Err(error) => Err(StartFailure {
            exit_code: if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            },
            message: format!("cannot run {program:?}: {error}"),
        }),
    }
}

fn on_pipes(process: &mut Process) -> io::Result<Streams> {
    let (stdin, stdin_writer) = io::pipe()?;
    let (stdout_reader, stdout) = io::pipe()?;
    let (stderr_reader, stderr) = io::pipe()?;
    process.stdin(stdin).stdout(stdout).stderr(stderr);
    // SAFETY: between fork and exec only setsid(2) is called, which is
    // async-signal-safe and touches no memory.
    unsafe {
        process.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    Ok(Streams {
        stdin: stdin_writer.into(),
        stdout: stdout_reader.into(),
        stderr: Some(stderr_reader.into()),
    })
}

fn on_terminal(process: &mut Process, size: TerminalSize) -> io::Result<Streams> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name.as_c_str(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    tcsetwinsize(&master, winsize(size))?;
    let slave = File::from(slave);
    process
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave));
    // SAFETY: between fork and exec only setsid(2) and ioctl(2) are called,
    // which are async-signal-safe. Standard input is the terminal by then.
    unsafe {
        process.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    Ok(Streams {
        stdin: master.try_clone()?,
        stdout: master,
        stderr: None,
    })
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Carries standard input on a thread that nobody waits for.
fn carry_input(to: OwnedFd, port: File, switches: &Switches, control: &Control) {
    let end = switches.stdin_end.clone();
    let control = Arc::clone(control);
    thread::spawn(move || {
        if let Err(TransferError::Write(_)) = receive(&port, &to, &end) {
            // Nobody reads it any more: the machine may stop sending.
            let _ = tell(&control, &GuestMessage::StdinClosed);
        }
        // Dropping `to` is the end of file.
    });
}

/// Carries an output on a thread that returns how many bytes it had.
fn carry_output(from: OwnedFd, port: File, switches: &Switches, output: Output) -> JoinHandle<u64> {
    let drain = switches.drain.clone();
    let abort = match output {
        Output::Stdout => switches.stdout_abort.clone(),
        Output::Stderr => switches.stderr_abort.clone(),
    };
    thread::spawn(move || match send(&from, &port, &drain, &abort) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("lab-init: {output:?}: {error:?}");
            0
        }
    })
}

/// Obeys the machine until it closes the control port.
fn listen(mut messages: Messages<File>, pid: Pid, switches: &Switches, terminal: Option<OwnedFd>) {
    loop {
        match messages.next_message() {
            Ok(Some(HostMessage::Signal(number))) => forward_signal(pid, number),
            Ok(Some(HostMessage::Resize(size))) => {
                if let Some(terminal) = &terminal {
                    let _ = tcsetwinsize(terminal.as_fd(), winsize(size));
                }
            }
            Ok(Some(HostMessage::StdinEnded { bytes })) => switches.stdin_end.throw(bytes),
            Ok(Some(HostMessage::OutputClosed(Output::Stdout))) => switches.stdout_abort.throw(0),
            Ok(Some(HostMessage::OutputClosed(Output::Stderr))) => switches.stderr_abort.throw(0),
            Ok(Some(HostMessage::Run(_))) => eprintln!("lab-init: a second command is ignored"),
            Ok(None) => return,
            Err(error) => {
                eprintln!("lab-init: control port: {error}");
                return;
            }
        }
    }
}

fn forward_signal(pid: Pid, number: i32) {
    let Some(signal) = Signal::from_named_raw(number) else {
        eprintln!("lab-init: {number} is not a signal");
        return;
    };
    // The command may be gone already; then nobody is to be told.
    let _ = if matches!(signal, Signal::INT | Signal::QUIT) {
        rustix::process::kill_process_group(pid, signal)
    } else {
        rustix::process::kill_process(pid, signal)
    };
}

/// Reaps every process that ends until `pid` has.
fn wait_for(pid: Pid) -> anyhow::Result<ExitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => {
                if let Some(code) = status.exit_status() {
                    return Ok(ExitStatus::Code(code));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(ExitStatus::Signal(signal));
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}
