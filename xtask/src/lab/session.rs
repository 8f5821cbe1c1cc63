//! One command in a lab, from this side: its streams, its signals, its end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab_init::protocol::{
    Command, ExitStatus, GuestMessage, HostMessage, Messages, Output, StartFailure, write_message,
};
use lab_init::stream::Switch;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;

use super::console::Console;
use super::machine::Machine;
use super::patience::Patience;
use super::streams::{OutputCarrier, Streams, carry_input};
use super::terminal::{self, RawMode};

/// A lab that takes longer to start has failed. The usual is 6 s; a machine with
/// many times more work than processors has been seen to take two minutes.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// A lab that says nothing on its console for this long while it starts stands
/// still. On an idle machine there is a line every second or so.
pub const START_PATIENCE: Duration = Duration::from_secs(60);
/// A lab whose init says nothing for this long while the command runs stands still,
/// whatever the command does: it says every few seconds that it is there.
pub const RUN_PATIENCE: Duration = Duration::from_secs(180);
/// A command that does not end when it is told to so often is killed together
/// with its lab, as Docker does.
const PATIENCE: usize = 3;

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// The command ran and ended like this.
    Ended(ExitStatus),
    /// The command could not be started.
    NotStarted(StartFailure),
    /// This process was told by a signal to end.
    Interrupted(i32),
}

impl Ending {
    /// The exit code that stands for it, as in a shell.
    pub fn exit_code(&self) -> u8 {
        let after_signal = |number: i32| 128u8.saturating_add(u8::try_from(number).unwrap_or(127));
        match self {
            Self::Ended(ExitStatus::Code(code)) => u8::try_from(*code).unwrap_or(u8::MAX),
            Self::Ended(ExitStatus::Signal(number)) | Self::Interrupted(number) => {
                after_signal(*number)
            }
            Self::NotStarted(failure) => failure.exit_code,
        }
    }
}

/// What the threads of a session tell its main loop.
enum Happening {
    Message(GuestMessage),
    ControlEnded(Option<String>),
    VirtiofsdEnded,
    Signal(i32),
    OutputClosed(Output),
    StdinEnded(u64),
}

/// What became of a lab that was told to start a command.
pub enum Start {
    /// The command runs.
    Running(Session),
    /// It never will.
    Over(Ending),
    /// The lab stood still before it came to it, as now and then one does whose
    /// QEMU is old (see `docs/lab.md`). Another one may well start.
    StoodStill(anyhow::Error),
}

/// What a signal that asks this process to end means for the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalled {
    /// It is told, and decides.
    Command,
    /// Its lab ends at once.
    Lab,
}

/// Has `machine` start `command`, and waits until it has. `patience`: how long its
/// console may be silent meanwhile.
pub fn start(
    machine: Machine,
    command: Command,
    signalled: Signalled,
    patience: Duration,
) -> Result<Start> {
    let on_terminal = command.terminal.is_some();
    let with_console = Patience::of(patience);
    let mut session = Session::new(machine, on_terminal, signalled, with_console.clone())?;
    session.tell(&HostMessage::Run(command))?;
    match session.wait_for_start(&with_console)? {
        Waited::Started => Ok(Start::Running(session)),
        Waited::Over(ending) => Ok(Start::Over(ending)),
        Waited::Silence(complaint) => Ok(Start::StoodStill(session.failure(&complaint))),
    }
}

enum Waited {
    Started,
    Over(Ending),
    Silence(String),
}

/// A command in a lab.
pub struct Session {
    machine: Machine,
    on_terminal: bool,
    signalled: Signalled,
    console: Console,
    happenings: Receiver<Happening>,
    sender: Sender<Happening>,
}

impl Session {
    fn new(
        machine: Machine,
        on_terminal: bool,
        signalled: Signalled,
        with_console: Patience,
    ) -> Result<Self> {
        let (sender, happenings) = mpsc::channel();
        let console = Console::keep(machine.console.try_clone()?, machine.verbose, with_console);
        watch_signals(sender.clone())?;
        watch_control(machine.ports.control.try_clone()?, sender.clone());
        watch_virtiofsd(machine.virtiofsd.end()?, sender.clone());
        Ok(Self {
            machine,
            on_terminal,
            signalled,
            console,
            happenings,
            sender,
        })
    }

    fn tell(&self, message: &HostMessage) -> Result<()> {
        write_message(&self.machine.ports.control, message)
            .context("cannot send a message to the lab")
    }

    /// Waits until the command runs, or until it is plain that it will not.
    fn wait_for_start(&mut self, with_console: &Patience) -> Result<Waited> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let until = deadline.min(with_console.ends());
            let left = until.saturating_duration_since(Instant::now());
            let happening = match self.happenings.recv_timeout(left) {
                Ok(happening) => happening,
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    let limit = START_DEADLINE.as_secs();
                    return Err(self.failure(&format!("it did not start within {limit} s")));
                }
                Err(RecvTimeoutError::Timeout) => match with_console.complaint("its console") {
                    Some(complaint) => return Ok(Waited::Silence(complaint)),
                    None => continue,
                },
                Err(RecvTimeoutError::Disconnected) => bail!("all watching threads have ended"),
            };
            match happening {
                Happening::Message(GuestMessage::Started) => return Ok(Waited::Started),
                Happening::Message(GuestMessage::Failed(failure)) => {
                    return Ok(Waited::Over(Ending::NotStarted(failure)));
                }
                Happening::Signal(number) if is_to_end(number) => {
                    return Ok(Waited::Over(Ending::Interrupted(number)));
                }
                other => self.unless_fatal(other)?,
            }
        }
    }

    /// Carries the command's streams and signals until it ends, and ends the lab.
    /// Gives up when the patience with the lab's init is over, or that with the
    /// command, where there is one.
    pub fn run_to_end(
        mut self,
        streams: Streams,
        with_init: Patience,
        with_command: Option<&Patience>,
    ) -> Result<Ending> {
        let on_terminal = self.on_terminal;
        let raw_mode = on_terminal.then(RawMode::enter).transpose()?;
        let ports = &self.machine.ports;
        let stdin_abort = Switch::new()?;
        match streams.stdin {
            Some(stdin) => {
                let sender = self.sender.clone();
                carry_input(
                    stdin,
                    ports.stdin.try_clone()?,
                    &stdin_abort,
                    move |bytes| {
                        let _ = sender.send(Happening::StdinEnded(bytes));
                    },
                )?;
            }
            None => self.tell(&HostMessage::StdinEnded { bytes: 0 })?,
        }
        let carry = |output, port, to| {
            let sender = self.sender.clone();
            // As a pipe would: who writes next gets SIGPIPE.
            OutputCarrier::start(port, to, move || {
                let _ = sender.send(Happening::OutputClosed(output));
            })
        };
        let stdout = carry(Output::Stdout, ports.stdout.try_clone()?, streams.stdout)?;
        let stderr = carry(Output::Stderr, ports.stderr.try_clone()?, streams.stderr)?;
        let mut requests_to_end = 0;
        // Until now it was not there to be heard.
        with_command.inspect(|patience| patience.heard());
        loop {
            let ends = with_command.map(Patience::ends);
            let until = with_init.ends().min(ends.unwrap_or(with_init.ends()));
            let left = until.saturating_duration_since(Instant::now());
            let happening = match self.happenings.recv_timeout(left) {
                Ok(happening) => happening,
                Err(RecvTimeoutError::Timeout) => {
                    let of_command = || with_command?.complaint("its command");
                    let complaint = with_init.complaint("its init").or_else(of_command);
                    match complaint {
                        Some(complaint) => return Err(self.failure(&complaint)),
                        None => continue,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => bail!("all watching threads have ended"),
            };
            if matches!(happening, Happening::Message(_)) {
                with_init.heard();
            }
            match happening {
                Happening::Message(GuestMessage::Exited {
                    status,
                    stdout_bytes,
                    stderr_bytes,
                }) => {
                    stdout.finish(stdout_bytes);
                    stderr.finish(stderr_bytes);
                    drop(raw_mode);
                    return Ok(Ending::Ended(status));
                }
                Happening::Message(GuestMessage::StdinClosed) => stdin_abort.throw(0),
                Happening::StdinEnded(bytes) => self.tell(&HostMessage::StdinEnded { bytes })?,
                Happening::OutputClosed(output) => {
                    self.tell(&HostMessage::OutputClosed(output))?;
                }
                Happening::Signal(SIGWINCH) => {
                    if on_terminal {
                        self.tell(&HostMessage::Resize(terminal::size()?))?;
                    }
                }
                Happening::Signal(number) => {
                    requests_to_end += usize::from(is_to_end(number));
                    let at_once = self.signalled == Signalled::Lab && is_to_end(number);
                    if at_once || requests_to_end >= PATIENCE {
                        return Ok(Ending::Interrupted(number));
                    }
                    self.tell(&HostMessage::Signal(number))?;
                }
                other => self.unless_fatal(other)?,
            }
        }
    }

    /// Fails for what means that the lab itself is broken.
    fn unless_fatal(&mut self, happening: Happening) -> Result<()> {
        match happening {
            Happening::ControlEnded(reason) => {
                let reason = reason.unwrap_or_else(|| "it switched itself off".to_owned());
                Err(self.failure(&reason))
            }
            Happening::VirtiofsdEnded => {
                Err(self.failure("virtiofsd, which serves its files, ended"))
            }
            _ => Ok(()),
        }
    }

    /// What went wrong, with the last words of all that took part.
    fn failure(&mut self, reason: &str) -> anyhow::Error {
        // Let the last lines arrive: the console is read by another thread.
        thread::sleep(Duration::from_millis(100));
        let mut text = format!("the lab has failed: {reason}");
        for (name, words) in [
            ("the lab's console", self.console.last_words()),
            ("qemu", self.machine.qemu.last_words()),
            ("virtiofsd", self.machine.virtiofsd.last_words()),
        ] {
            if !words.is_empty() {
                text.push_str(&format!("\n--- {name}:\n{words}"));
            }
        }
        anyhow::Error::msg(text)
    }
}

fn is_to_end(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGTERM | SIGHUP | SIGQUIT)
}

/// Who is told of signals: the session under way, if there is one.
static LISTENER: Mutex<Option<Sender<Happening>>> = Mutex::new(None);

/// Has `sender` told of signals from now on, instead of whoever was before. Where
/// nobody listens any more, between two labs, a signal to end ends this process, and
/// with it whatever is tied to it.
fn watch_signals(sender: Sender<Happening>) -> Result<()> {
    let mut listener = LISTENER
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let is_first = listener.replace(sender).is_none();
    drop(listener);
    if !is_first {
        return Ok(());
    }
    let watched = [
        SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
    ];
    let mut signals = Signals::new(watched).context("cannot watch for signals")?;
    thread::spawn(move || {
        for number in signals.forever() {
            let listener = LISTENER
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let is_heard = listener
                .as_ref()
                .is_some_and(|sender| sender.send(Happening::Signal(number)).is_ok());
            if !is_heard && is_to_end(number) {
                std::process::exit(Ending::Interrupted(number).exit_code().into());
            }
        }
    });
    Ok(())
}

fn watch_control(port: UnixStream, sender: Sender<Happening>) {
    thread::spawn(move || {
        let mut messages = Messages::new(port);
        loop {
            let happening = match messages.next_message() {
                Ok(Some(message)) => Happening::Message(message),
                Ok(None) => Happening::ControlEnded(None),
                Err(error) => Happening::ControlEnded(Some(error.to_string())),
            };
            let last = matches!(happening, Happening::ControlEnded(_));
            if sender.send(happening).is_err() || last {
                break;
            }
        }
    });
}

fn watch_virtiofsd(end: OwnedFd, sender: Sender<Happening>) {
    thread::spawn(move || {
        let mut events = [PollFd::new(&end, PollFlags::IN)];
        while poll(&mut events, None).is_err() {}
        let _ = sender.send(Happening::VirtiofsdEnded);
    });
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::lab::machine::Ports;
    use crate::lab::process::TiedCommand;

    /// The lab's ends of a machine without a lab in it.
    struct Lab {
        console: UnixStream,
        control: UnixStream,
        _streams: [UnixStream; 3],
    }

    fn machine() -> (Machine, Lab) {
        let pair = || UnixStream::pair().unwrap();
        let idle = || {
            let mut sleep = TiedCommand::new("sleep");
            sleep.arg("600");
            sleep.start().unwrap()
        };
        let (control, far_control) = pair();
        let (console, far_console) = pair();
        let [stdin, stdout, stderr] = [pair(), pair(), pair()];
        let machine = Machine {
            ports: Ports {
                control,
                stdin: stdin.0,
                stdout: stdout.0,
                stderr: stderr.0,
            },
            console,
            qemu: idle(),
            virtiofsd: idle(),
            verbose: false,
        };
        let lab = Lab {
            console: far_console,
            control: far_control,
            _streams: [stdin.1, stdout.1, stderr.1],
        };
        (machine, lab)
    }

    fn command() -> Command {
        Command {
            args: vec!["true".into()],
            env: Vec::new(),
            working_dir: "/".into(),
            terminal: None,
            modules_dir: "/".into(),
            scratch: false,
        }
    }

    #[test]
    fn a_lab_whose_console_falls_silent_while_it_starts_stands_still() {
        let (machine, mut lab) = machine();
        lab.console.write_all(b"Marking stable\n").unwrap();
        let patience = Duration::from_millis(50);
        match start(machine, command(), Signalled::Command, patience).unwrap() {
            Start::StoodStill(error) => {
                assert!(error.to_string().contains("Marking stable"), "{error}");
            }
            _ => panic!("it started"),
        }
    }

    #[test]
    fn a_lab_that_speaks_may_take_longer_than_it_may_be_silent() {
        let (machine, mut lab) = machine();
        // Forty times what lies between two lines, for machines that are busy.
        let patience = Duration::from_secs(4);
        let speaking = thread::spawn(move || {
            for _ in 0..50 {
                lab.console.write_all(b"still starting\n").unwrap();
                thread::sleep(Duration::from_millis(100));
            }
            write_message(&lab.control, &GuestMessage::Started).unwrap();
            lab
        });
        assert!(matches!(
            start(machine, command(), Signalled::Command, patience).unwrap(),
            Start::Running(_)
        ));
        speaking.join().unwrap();
    }

    fn running(machine: Machine, lab: &Lab) -> Session {
        write_message(&lab.control, &GuestMessage::Started).unwrap();
        let patience = Duration::from_secs(60);
        match start(machine, command(), Signalled::Command, patience).unwrap() {
            Start::Running(session) => session,
            _ => panic!("it did not start"),
        }
    }

    fn nowhere() -> Streams {
        let null = || std::fs::File::options().write(true).open("/dev/null");
        Streams {
            stdin: None,
            stdout: null().unwrap().into(),
            stderr: null().unwrap().into(),
        }
    }

    #[test]
    fn a_lab_whose_init_falls_silent_while_its_command_runs_has_failed() {
        let (machine, mut lab) = machine();
        let session = running(machine, &lab);
        lab.console.write_all(b"rcu stall\n").unwrap();
        let patience = Patience::of(Duration::from_millis(50));
        let error = session.run_to_end(nowhere(), patience, None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("its init was silent"), "{text}");
        assert!(text.contains("rcu stall"), "{text}");
    }

    #[test]
    fn a_command_may_be_silent_for_longer_than_its_labs_init() {
        let (machine, lab) = machine();
        let session = running(machine, &lab);
        // Forty times what lies between two messages, for machines that are busy.
        let patience = Patience::of(Duration::from_secs(4));
        let speaking = thread::spawn(move || {
            for _ in 0..50 {
                write_message(&lab.control, &GuestMessage::Alive).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
            let exited = GuestMessage::Exited {
                status: ExitStatus::Code(3),
                stdout_bytes: 0,
                stderr_bytes: 0,
            };
            write_message(&lab.control, &exited).unwrap();
            lab
        });
        let ending = session.run_to_end(nowhere(), patience, None).unwrap();
        assert_eq!(ending.exit_code(), 3);
        speaking.join().unwrap();
    }

    #[test]
    fn a_command_that_must_not_be_silent_is_given_up_with_its_lab() {
        let (machine, lab) = machine();
        let session = running(machine, &lab);
        let with_init = Patience::of(Duration::from_secs(600));
        let with_command = Patience::of(Duration::from_millis(50));
        let error = session.run_to_end(nowhere(), with_init, Some(&with_command));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("its command was silent"), "{text}");
    }

    #[test]
    fn endings_have_a_shells_exit_codes() {
        let ended = |status| Ending::Ended(status).exit_code();
        assert_eq!(ended(ExitStatus::Code(0)), 0);
        assert_eq!(ended(ExitStatus::Code(7)), 7);
        assert_eq!(ended(ExitStatus::Code(255)), 255);
        assert_eq!(ended(ExitStatus::Signal(SIGTERM)), 143);
        assert_eq!(Ending::Interrupted(SIGINT).exit_code(), 130);
        let failure = StartFailure {
            exit_code: 127,
            message: String::new(),
        };
        assert_eq!(Ending::NotStarted(failure).exit_code(), 127);
    }
}
