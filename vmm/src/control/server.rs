//! The VMM's end of the control socket: a subscriber of the event loop.
//!
//! It never waits. What takes time (vCPUs that have to leave the guest, a guest
//! that has to tell its statistics) is begun here and answered when an event says
//! that it is done. Of each such thing there is one at a time.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::connection::Connection;
use super::{
    Answer, BalloonStatistics, BalloonStatus, Command, DeviceState, DeviceStatus, Outcome, Request,
    RunState, Status, VcpuState,
};
use crate::config;
use crate::devices::power::PowerButton;
use crate::devices::virtio::balloon::handle::BalloonHandle;
use crate::devices::virtio::balloon::statistics::Statistics;
use crate::devices::virtio::console::handle::ConsoleHandle;
use crate::devices::virtio::limiter::Direction;
use crate::devices::virtio::mmio::{LifeCycle, MmioTransport};
use crate::event::{EventKind, EventSink};
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::pause::{PauseGate, Phase, VcpuPlace};
use crate::spec::LimitsSpec;
use crate::timer::Timer;

/// How long the guest may take to tell its statistics.
const STATISTICS_PATIENCE: Duration = Duration::from_secs(2);

/// Event data.
const SOCKET: u32 = 0;
const GATE: u32 = 1;
const STATISTICS: u32 = 2;
const TIMER: u32 = 3;

/// What the server acts on.
pub struct Handles {
    /// How the microVM ends.
    pub exit: Arc<ExitLine>,
    /// How it is paused.
    pub gate: Arc<PauseGate>,
    /// Where it is told that it was.
    pub events: Arc<EventSink>,
    /// The power button.
    pub power_button: PowerButton,
    /// The virtio devices, to be asked how they are.
    pub devices: Vec<Arc<MmioTransport>>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonHandle>,
    /// The consoles.
    pub consoles: Vec<ConsoleHandle>,
}

/// The server.
pub struct ControlServer {
    connection: Connection,
    /// Runs while the guest is asked for statistics.
    timer: Timer,
    handles: Handles,
    /// The request that waits for the vCPUs.
    pause: Option<u64>,
    /// The request that waits for the guest's statistics.
    statistics: Option<u64>,
}

/// What becomes of a request.
enum Verdict {
    Answered(Answer),
    Refused(String),
    /// It is answered later.
    Begun,
}

fn refuse(reason: &str) -> Verdict {
    Verdict::Refused(reason.to_owned())
}

impl ControlServer {
    /// A server for the agent at the other end of `socket`.
    pub fn new(socket: OwnedFd, handles: Handles) -> std::io::Result<Self> {
        Ok(Self {
            connection: Connection::new(socket, SOCKET),
            timer: Timer::new()?,
            handles,
            pause: None,
            statistics: None,
        })
    }

    fn obey(&mut self, request: Request) {
        let id = request.id;
        let verdict = match request.command {
            Command::Pause => self.begin_pause(id),
            Command::Resume => self.resume(),
            Command::Status => Verdict::Answered(Answer::Status(self.status())),
            Command::SetBalloon { target_bytes } => self.set_balloon(target_bytes),
            Command::BalloonStatistics => self.ask_for_statistics(id),
            Command::SetLimits {
                device,
                direction,
                limits,
            } => self.set_limits(&device, direction, limits),
            Command::Resize {
                device,
                columns,
                rows,
            } => self.resize(&device, columns, rows),
            Command::PowerButton => match self.handles.power_button.press() {
                Ok(()) => Verdict::Answered(Answer::Done),
                Err(error) => Verdict::Refused(format!(
                    "cannot raise the power button's interrupt: {error}"
                )),
            },
            Command::Quit => {
                self.handles.exit.pull(ExitReason::Quit);
                Verdict::Answered(Answer::Done)
            }
        };
        match verdict {
            Verdict::Answered(answer) => self.connection.reply(Some(id), Outcome::Result(answer)),
            Verdict::Refused(reason) => self.connection.reply(Some(id), Outcome::Error(reason)),
            Verdict::Begun => {}
        }
    }

    fn begin_pause(&mut self, id: u64) -> Verdict {
        if self.pause.is_some() {
            return refuse("a pause is under way already");
        }
        if self.handles.gate.phase() == Phase::Paused {
            return Verdict::Answered(Answer::Done);
        }
        self.pause = Some(id);
        self.handles.gate.request();
        Verdict::Begun
    }

    fn resume(&mut self) -> Verdict {
        let was = self.handles.gate.phase();
        self.handles.gate.resume();
        if let Some(id) = self.pause.take() {
            let reason = "the microVM was resumed before it was paused";
            self.connection
                .reply(Some(id), Outcome::Error(reason.to_owned()));
        }
        if was == Phase::Paused {
            self.handles.events.send(EventKind::Resumed);
        }
        Verdict::Answered(Answer::Done)
    }

    /// The gate has changed: a pause may be complete.
    fn look_at_gate(&mut self) {
        let _ = self.handles.gate.changed().read();
        if self.handles.gate.phase() == Phase::Paused
            && let Some(id) = self.pause.take()
        {
            self.handles.events.send(EventKind::Paused);
            self.connection
                .reply(Some(id), Outcome::Result(Answer::Done));
        }
    }

    fn set_balloon(&mut self, target_bytes: u64) -> Verdict {
        let Some(balloon) = &self.handles.balloon else {
            return refuse(NO_BALLOON);
        };
        match balloon.set_target(target_bytes) {
            Ok(()) => Verdict::Answered(Answer::Done),
            Err(error) => Verdict::Refused(error.to_string()),
        }
    }

    fn ask_for_statistics(&mut self, id: u64) -> Verdict {
        let Some(balloon) = &self.handles.balloon else {
            return refuse(NO_BALLOON);
        };
        if self.statistics.is_some() {
            return refuse("the guest is being asked for its statistics already");
        }
        if self.handles.gate.phase() != Phase::Running {
            return refuse("the guest tells no statistics while it is paused");
        }
        match balloon.ask_for_statistics() {
            Ok(()) => {
                self.statistics = Some(id);
                self.timer.set(STATISTICS_PATIENCE);
                Verdict::Begun
            }
            Err(error) => Verdict::Refused(error.to_string()),
        }
    }

    /// The guest has told its statistics, perhaps after nobody waited any more.
    fn take_statistics(&mut self) {
        let Some(balloon) = &self.handles.balloon else {
            return;
        };
        if let Some(statistics) = balloon.take_statistics()
            && let Some(id) = self.statistics.take()
        {
            self.timer.stop();
            let answer = Answer::BalloonStatistics(statistics.into());
            self.connection.reply(Some(id), Outcome::Result(answer));
        }
    }

    fn give_up_statistics(&mut self) {
        self.timer.has_expired();
        if let Some(id) = self.statistics.take() {
            let reason = format!(
                "the guest did not tell its statistics within {} seconds",
                STATISTICS_PATIENCE.as_secs()
            );
            self.connection.reply(Some(id), Outcome::Error(reason));
        }
    }

    fn set_limits(
        &self,
        device: &str,
        direction: Option<Direction>,
        limits: LimitsSpec,
    ) -> Verdict {
        let limits = match config::limits::limits(Some(limits), "limits") {
            Ok(limits) => limits,
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        let mut devices = self.handles.devices.iter();
        match devices.find(|transport| transport.life_cycle().0 == device) {
            None => Verdict::Refused(format!("there is no device {device:?}")),
            Some(transport) => match transport.set_limits(direction, limits) {
                Ok(()) => Verdict::Answered(Answer::Done),
                Err(refused) => Verdict::Refused(format!("the device {device:?} {refused}")),
            },
        }
    }

    fn resize(&self, device: &str, columns: u16, rows: u16) -> Verdict {
        let size = match config::console::size(columns, rows, "") {
            Ok(size) => size,
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        let mut consoles = self.handles.consoles.iter();
        match consoles.find(|console| console.name() == device) {
            None => Verdict::Refused(format!("there is no console {device:?}")),
            Some(console) => {
                console.resize(size);
                Verdict::Answered(Answer::Done)
            }
        }
    }

    fn status(&self) -> Status {
        let gate = &self.handles.gate;
        Status {
            state: match gate.phase() {
                Phase::Running => RunState::Running,
                Phase::Pausing | Phase::Held => RunState::Pausing,
                Phase::Paused => RunState::Paused,
            },
            vcpus: gate.vcpus().map(VcpuState::from).collect(),
            devices: self.handles.devices.iter().map(device_status).collect(),
            balloon: self.handles.balloon.as_ref().map(|balloon| BalloonStatus {
                target_bytes: balloon.target_bytes(),
                actual_bytes: balloon.actual_bytes(),
                reported_bytes: balloon.reported_bytes(),
            }),
        }
    }
}

const NO_BALLOON: &str = "this microVM has no balloon";

fn device_status(transport: &Arc<MmioTransport>) -> DeviceStatus {
    let (name, life_cycle) = transport.life_cycle();
    let state = match life_cycle {
        LifeCycle::Idle => DeviceState::Idle,
        LifeCycle::Active => DeviceState::Active,
        LifeCycle::NeedsReset => DeviceState::NeedsReset,
    };
    DeviceStatus { name, state }
}

impl From<VcpuPlace> for VcpuState {
    fn from(place: VcpuPlace) -> Self {
        match place {
            VcpuPlace::Starting => Self::Starting,
            VcpuPlace::Running => Self::Running,
            VcpuPlace::Parked => Self::Paused,
        }
    }
}

impl From<Statistics> for BalloonStatistics {
    fn from(told: Statistics) -> Self {
        Self {
            swap_in_bytes: told.swap_in_bytes,
            swap_out_bytes: told.swap_out_bytes,
            major_faults: told.major_faults,
            minor_faults: told.minor_faults,
            free_bytes: told.free_bytes,
            total_bytes: told.total_bytes,
            available_bytes: told.available_bytes,
            disk_cache_bytes: told.disk_cache_bytes,
            hugetlb_allocations: told.hugetlb_allocations,
            hugetlb_failures: told.hugetlb_failures,
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut ready = EventSet::empty();
        match events.data() {
            GATE => self.look_at_gate(),
            STATISTICS => self.take_statistics(),
            TIMER => self.give_up_statistics(),
            _ => {
                ready = events.event_set();
                match self.connection.turn(ready) {
                    Some(Ok(request)) => self.obey(request),
                    Some(Err((id, reason))) => self.connection.reply(id, Outcome::Error(reason)),
                    None => {}
                }
            }
        }
        self.connection.watch(ready, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Every descriptor here is registered once; epoll has no other objection.
        self.connection.register(ops);
        let gate = self.handles.gate.changed();
        let _ = ops.add(Events::with_data(gate, GATE, EventSet::IN));
        if let Some(balloon) = &self.handles.balloon {
            let _ = ops.add(Events::with_data(
                balloon.answered(),
                STATISTICS,
                EventSet::IN,
            ));
        }
        let timer = self.timer.as_fd().as_raw_fd();
        let _ = ops.add(Events::with_data_raw(timer, TIMER, EventSet::IN));
    }
}
