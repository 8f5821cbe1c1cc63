//! One workload in one microVM.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_protocol::{
    CONTROL_PORT, ExitStatus, GuestMessage, HostMessage, STDERR_PORT, STDIN_PORT, STDOUT_PORT,
    WireError, Workload,
};
use jail::Cgroups;
use signal_hook::consts::{SIGKILL, SIGTERM};
use vmm::confinement::Landlock;
use vmm::event::{Event, EventKind, monotonic_ns};

use super::control::Control;
use super::device_event::DeviceEvent;
use super::error::{Diagnostics, RunError, Stage};
use super::signals::{Insistence, Signals};
use super::streams::{AtFirstOutput, Movers, Streams};
use super::timeline::Timeline;
use crate::control::{Asked, Place, Server};
use crate::vm_process::{Connection, Machine, Program, VmProcess, printable};

/// How long each stage up to the start of the workload may take: the VMM, the
/// kernel, the init. Generous: a distribution's kernel on a busy machine without
/// hardware virtualization needs a minute.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a guest may take to power off once its workload has ended.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);

/// How long output that had already left a guest which then died may take to
/// be written.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// As the guest reported it.
    pub status: ExitStatus,
    /// Whether the guest powered off by itself, as it should, or had to be
    /// killed.
    pub powered_off: bool,
}

impl Outcome {
    /// The exit code of `mote run`: the workload's own, or 128 and the signal
    /// that ended it.
    pub fn exit_code(&self) -> u8 {
        match self.status {
            // Linux keeps eight bits (`wait(2)`).
            ExitStatus::Code(code) => (code & 0xff) as u8,
            ExitStatus::Signal(signal) => 128 + (signal & 0x7f) as u8,
        }
    }
}

/// What to run, in what, with what.
#[derive(Debug)]
pub struct Request {
    /// The VMM.
    pub program: Program,
    /// The microVM.
    pub machine: Machine,
    /// Where the cgroup of its VMM is made; `None` where there is no place for one.
    pub cgroups: Option<Cgroups>,
    /// The process in it. `stdin` is set by whether `streams` has an input.
    pub workload: Workload,
    /// What its streams are here.
    pub streams: Streams,
    /// The number of the signal that asks the workload to end. It is sent in
    /// place of SIGTERM, which is how this process is asked to end.
    pub stop_signal: i32,
    /// Where others may ask for something while it runs.
    pub control: Option<Place>,
    /// How long each stage up to the start of the workload may take;
    /// [`BOOT_TIMEOUT`] suits all.
    pub boot_timeout: Duration,
}

/// Who wants to know what becomes of a run.
pub trait Observer {
    /// Its VMM has been started, with a page of metrics that is open there.
    fn vmm_started(&mut self, _pid: u32, _metrics: &Path) {}

    /// Its VMM says that it has confined itself; at most once, and before its guest's
    /// first instruction.
    fn vmm_confined(&mut self, _landlock: Landlock) {}

    /// Its workload has been started.
    fn workload_started(&mut self) {}

    /// What is to be done when the workload has written something for the first time; by
    /// a thread that carries it.
    fn at_first_output(&self) -> AtFirstOutput {
        Box::new(|| {})
    }

    /// Something has happened to one of its devices. As often as the guest likes: it
    /// can make a device fault whenever it has reset it.
    fn device_event(&mut self, _event: &DeviceEvent) {}
}

/// Nobody does.
impl Observer for () {}

/// Runs a workload in a microVM to its end.
///
/// Starts the VMM, waits for the guest's init, starts the workload, moves its
/// streams, passes signals of this process on to it, and returns when it has
/// ended, its output has been written and the machine is gone.
///
/// - What has no exit code of the workload's own is a [`RunError`]; both have
///   `exit_code()` by Docker's rules. The error's text says what happened, how
///   far the run had come, and what the guest's console said last.
/// - A signal that arrives before the workload runs ends the run; later ones are
///   passed on, every time, but the third of the same within a second ends the run
///   whether the guest answers or not. Signals that were ignored when this process started
///   stay ignored.
/// - A reader of this process's output that goes away breaks the workload's
///   pipe; the exit code is then the workload's, usually 141 (SIGPIPE).
/// - `timeline` is filled in as far as the run gets, also when it fails.
/// - The machine dies with the calling thread: call this from the main one.
pub fn run(
    request: Request,
    timeline: &mut Timeline,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let Request {
        program,
        machine,
        cgroups,
        mut workload,
        streams,
        stop_signal,
        control,
        boot_timeout,
    } = request;
    let signals = Signals::catch().map_err(host("catch signals"))?;
    let movers = Movers::new(observer.at_first_output()).map_err(host("make a socket pair"))?;
    workload.stdin = streams.stdin.is_some();
    let mut vm = VmProcess::spawn(&program, machine, cgroups.as_ref())?;
    observer.vmm_started(vm.pid(), &vm.metrics());
    let server = control
        .zip(vm.take_control())
        .map(|(place, vmm)| Server::new(place, vmm))
        .transpose()
        .map_err(host("listen for what others ask"))?;
    let session = Session {
        vm,
        signals,
        insistence: Insistence::default(),
        movers,
        server,
        control: None,
        stage: Stage::VmmStart,
        workload: Some(workload),
        stdin: streams.stdin,
        stdout: Some(streams.stdout),
        stderr: Some(streams.stderr),
        status: None,
        confined: false,
        stop_signal,
        boot_timeout,
        timeline,
        observer,
    };
    session.run()
}

fn host(attempted: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Host { attempted, source }
}

struct Session<'a> {
    vm: VmProcess,
    signals: Signals,
    insistence: Insistence,
    movers: Movers,
    server: Option<Server>,
    control: Option<Control>,
    stage: Stage,
    /// Until it is sent.
    workload: Option<Workload>,
    // Until the guest connects them.
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    status: Option<ExitStatus>,
    /// Whether the VMM has said so.
    confined: bool,
    stop_signal: i32,
    boot_timeout: Duration,
    timeline: &'a mut Timeline,
    observer: &'a mut dyn Observer,
}

impl Session<'_> {
    fn run(mut self) -> Result<Outcome, RunError> {
        let result = self.until_exit();
        // The guest takes this as leave to power off.
        self.control = None;
        let (status, grace) = match result {
            Ok(status) => (Ok(status), POWER_OFF_TIMEOUT),
            // It said so itself and is about to power off.
            Err(RunError::Start(failure)) => (Err(RunError::Start(failure)), POWER_OFF_TIMEOUT),
            Err(error) => (Err(error), Duration::ZERO),
        };
        let powered_off = self.vm.end_within(grace);
        self.timeline.vm_ended_ns = Some(monotonic_ns());
        let status = status?;
        if let Some(failure) = self.movers.failure() {
            return Err(RunError::Output(failure));
        }
        Ok(Outcome {
            status,
            powered_off: powered_off?,
        })
    }

    /// Until the workload has ended and all its output is written.
    fn until_exit(&mut self) -> Result<ExitStatus, RunError> {
        let mut stage = self.stage;
        let mut deadline = Instant::now() + self.boot_timeout;
        loop {
            let starting = self.stage < Stage::Running;
            let ended = self.turn(starting.then_some(deadline))?;
            if ended {
                self.hear_last_words()?;
            }
            if self.stage == Stage::Ended {
                break;
            }
            if ended {
                return Err(self.died());
            }
            if self.stage > stage {
                stage = self.stage;
                deadline = Instant::now() + self.boot_timeout;
            }
            if stage < Stage::Running && Instant::now() >= deadline {
                return Err(RunError::TimedOut {
                    waited: self.boot_timeout,
                    stage: self.stage,
                    diagnostics: Diagnostics::of(&self.vm),
                });
            }
        }
        self.movers.expect_no_more();
        self.finish_output(None)?;
        self.status.ok_or(RunError::OutOfTurn {
            message: "the end of the workload",
            stage: self.stage,
        })
    }

    /// Waits once and handles what happened. True if the VMM has ended.
    fn turn(&mut self, deadline: Option<Instant>) -> Result<bool, RunError> {
        let mut others = vec![self.signals.as_fd()];
        others.extend(self.control.as_ref().map(AsFd::as_fd));
        let own = others.len();
        others.extend(self.server.iter().flat_map(Server::descriptors));
        let wakeup = self.vm.wait(&others, deadline)?;
        for event in wakeup.events {
            self.note(&event);
        }
        for connection in wakeup.connections {
            self.accept(connection)?;
        }
        // A message before a signal, so that one which arrived with the start
        // of the workload finds it started.
        let (own, of_server) = wakeup.ready.split_at(own.min(wakeup.ready.len()));
        if own.get(1) == Some(&true) {
            self.listen()?;
        }
        if own.first() == Some(&true) {
            self.pass_signals_on()?;
        }
        let asked = self.server.as_mut().map(|server| server.turn(of_server));
        for asked in asked.into_iter().flatten() {
            self.obey(asked)?;
        }
        Ok(wakeup.ended)
    }

    fn note(&mut self, event: &Event) {
        let moment = Some(event.monotonic_ns);
        match event.kind {
            // Once a guest runs, its VMM may say what the guest wants it to.
            EventKind::Confined { landlock } if self.stage == Stage::VmmStart && !self.confined => {
                self.confined = true;
                self.observer.vmm_confined(landlock);
            }
            EventKind::ProcessStarted => self.timeline.vm_process_started_ns = moment,
            EventKind::GuestEntered => {
                self.timeline.guest_entered_ns = moment;
                self.stage = self.stage.max(Stage::KernelBoot);
            }
            _ => {}
        }
        if let Some(event) = DeviceEvent::of(&event.kind) {
            self.observer.device_event(&event);
        }
    }

    /// A connection nobody expects is closed, which the guest reads as a reset.
    fn accept(&mut self, connection: Connection) -> Result<(), RunError> {
        let Connection { port, socket } = connection;
        let started = match port {
            CONTROL_PORT if self.control.is_none() && self.stage < Stage::Setup => {
                self.stage = Stage::Setup;
                Control::new(socket).map(|control| self.control = Some(control))
            }
            STDIN_PORT => match self.stdin.take() {
                Some(input) => self.movers.start_input(input, socket),
                None => Ok(()),
            },
            STDOUT_PORT => start_output(&mut self.movers, "stdout", socket, &mut self.stdout),
            STDERR_PORT => start_output(&mut self.movers, "stderr", socket, &mut self.stderr),
            _ => Ok(()),
        };
        started.map_err(host("take over a connection of the guest"))
    }

    fn listen(&mut self) -> Result<(), RunError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let received = control.receive().map_err(|source| self.protocol(source))?;
        for message in received.messages {
            self.handle(message)?;
        }
        if received.closed {
            self.control = None;
            if self.stage != Stage::Ended {
                return Err(self.lost()?);
            }
        }
        Ok(())
    }

    /// Reads what was sent before the VMM ended, which is all there will be.
    fn hear_last_words(&mut self) -> Result<(), RunError> {
        while self.control.is_some() && self.stage != Stage::Ended {
            self.listen()?;
        }
        Ok(())
    }

    /// The init has closed the control connection, and should not have. If it is
    /// because its machine ends, the machine's end says more.
    fn lost(&mut self) -> Result<RunError, RunError> {
        if self.vm.end_within(POWER_OFF_TIMEOUT)? {
            return Ok(self.died());
        }
        Ok(RunError::Lost {
            stage: self.stage,
            diagnostics: Diagnostics::of(&self.vm),
        })
    }

    fn handle(&mut self, message: GuestMessage) -> Result<(), RunError> {
        let now = Some(monotonic_ns());
        match message {
            GuestMessage::Ready { uptime_ns } => {
                let workload = self.workload.take().ok_or(RunError::OutOfTurn {
                    message: "Ready twice",
                    stage: self.stage,
                })?;
                self.timeline.init_ready_ns = now;
                self.timeline.kernel_to_init_ns = Some(uptime_ns);
                self.send(&HostMessage::Start(workload))
            }
            GuestMessage::Started { .. } if self.stage == Stage::Setup => {
                self.timeline.workload_started_ns = now;
                self.observer.workload_started();
                self.stage = Stage::Running;
                Ok(())
            }
            GuestMessage::Exited(status) if self.stage == Stage::Running => {
                self.timeline.workload_has_exited();
                self.status = Some(status);
                self.stage = Stage::Ended;
                Ok(())
            }
            GuestMessage::Failed(mut failure) => {
                // A guest chose these words.
                failure.message = printable(&failure.message);
                Err(RunError::Start(failure))
            }
            GuestMessage::Started { .. } => Err(self.out_of_turn("Started")),
            GuestMessage::Exited(_) => Err(self.out_of_turn("Exited")),
        }
    }

    fn send(&mut self, message: &HostMessage) -> Result<(), RunError> {
        let Some(control) = &self.control else {
            return Ok(());
        };
        match control.send(message) {
            // The guest's end of it is what will be reported.
            Ok(()) | Err(WireError::Io(_)) => Ok(()),
            Err(error) => Err(self.protocol(error)),
        }
    }

    fn pass_signals_on(&mut self) -> Result<(), RunError> {
        for signal in self.signals.take() {
            let insisted = self.insistence.notice(signal, Instant::now());
            if insisted || self.stage != Stage::Running {
                return Err(RunError::Interrupted {
                    signal,
                    stage: self.stage,
                });
            }
            let signal = match signal {
                SIGTERM => self.stop_signal,
                other => other,
            };
            self.send(&HostMessage::Signal(signal))?;
        }
        Ok(())
    }

    /// Does what another `mote` asked this one for.
    fn obey(&mut self, asked: Asked) -> Result<(), RunError> {
        let stage = self.stage;
        match asked {
            Asked::Stop if stage == Stage::Running => {
                self.send(&HostMessage::Signal(self.stop_signal))
            }
            Asked::Stop => Err(RunError::Interrupted {
                signal: SIGTERM,
                stage,
            }),
            Asked::Kill => Err(RunError::Interrupted {
                signal: SIGKILL,
                stage,
            }),
        }
    }

    /// Waits until all output that has arrived is written, or a signal comes.
    fn finish_output(&mut self, deadline: Option<Instant>) -> Result<(), RunError> {
        loop {
            let done = self.movers.done();
            let others = [self.signals.as_fd(), done.as_fd()];
            let wakeup = self.vm.wait(&others, deadline)?;
            for event in &wakeup.events {
                self.note(event);
            }
            if wakeup.ready.get(1) == Some(&true) {
                return Ok(());
            }
            if wakeup.ready.first() == Some(&true) {
                self.pass_signals_on()?;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(());
            }
        }
    }

    /// The VMM has ended, and should not have.
    fn died(&mut self) -> RunError {
        self.movers.expect_no_more();
        let _ = self.finish_output(Some(Instant::now() + LAST_OUTPUT_TIMEOUT));
        match self.vm.ending() {
            Some(ending) => RunError::Died {
                ending,
                stage: self.stage,
                diagnostics: Diagnostics::of(&self.vm),
            },
            None => self.out_of_turn("nothing"),
        }
    }

    fn protocol(&self, source: WireError) -> RunError {
        RunError::Protocol {
            stage: self.stage,
            diagnostics: Diagnostics::of(&self.vm),
            source,
        }
    }

    fn out_of_turn(&self, message: &'static str) -> RunError {
        RunError::OutOfTurn {
            message,
            stage: self.stage,
        }
    }
}

fn start_output(
    movers: &mut Movers,
    name: &'static str,
    socket: UnixStream,
    output: &mut Option<OwnedFd>,
) -> std::io::Result<()> {
    match output.take() {
        Some(output) => movers.start_output(name, socket, output),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(status: ExitStatus) -> u8 {
        let powered_off = true;
        Outcome {
            status,
            powered_off,
        }
        .exit_code()
    }

    #[test]
    fn exit_codes_are_the_workloads_own_or_128_and_the_signal() {
        assert_eq!(exit_code(ExitStatus::Code(0)), 0);
        assert_eq!(exit_code(ExitStatus::Code(255)), 255);
        assert_eq!(exit_code(ExitStatus::Signal(9)), 137);
        assert_eq!(exit_code(ExitStatus::Signal(64)), 192);
    }
}
