//! The life of a guest, from the control connection to the last message on it.

use std::fs::File;
use std::time::Duration;

use guest_protocol::{GuestMessage, HostMessage, StartFailure, StartFailureKind, Workload};

use crate::console;
use crate::control::{Control, uptime_ns};
use crate::failure::{Attempt, SetupError, chain};
use crate::supervise;
use crate::transport::Transport;

/// How long the host may take to say what to run. It does so as soon as it has
/// read `Ready`.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the host may take to close the control connection, which it does
/// when it has read all there is.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What surrounds the workload.
pub trait System {
    /// Makes the root file system and what every workload finds in it. The host
    /// is told `Ready` before and decides meanwhile what to run.
    fn enter(&mut self) -> Result<(), SetupError>;

    /// Makes the system what this workload asks for. Returns the `cgroup.procs`
    /// of the group it shall run in.
    fn configure(&mut self, workload: &Workload) -> Result<Option<File>, SetupError>;
}

/// Runs the one workload of this guest as the host asks, and tells the host how
/// it went. When this returns there is nothing left to do but to power off.
pub fn serve(transport: &dyn Transport, system: &mut dyn System) -> Result<(), SetupError> {
    let mut control =
        Control::connect(transport).attempt(|| "cannot reach the host over vsock".into())?;
    let last = match run(transport, &mut control, system) {
        Ok(message) => message,
        Err(failure) => GuestMessage::Failed(failure),
    };
    match control.send(&last) {
        Ok(()) => control
            .wait_closed(CLOSE_TIMEOUT)
            .unwrap_or_else(|error| console::say(&chain(&error))),
        // Then the console is the only place left to say it.
        Err(_) => console::say(&format!("the host is gone; the last was {last:?}")),
    }
    Ok(())
}

fn run(
    transport: &dyn Transport,
    control: &mut Control,
    system: &mut dyn System,
) -> Result<GuestMessage, StartFailure> {
    let ready = GuestMessage::Ready {
        uptime_ns: uptime_ns(),
    };
    control.send(&ready).map_err(|error| lost(&error))?;
    system.enter()?;
    let workload = match control.wait_message(START_TIMEOUT) {
        Ok(Some(HostMessage::Start(workload))) => workload,
        Ok(Some(HostMessage::Signal(_))) => return Err(unexpected("a signal")),
        Ok(None) => return Err(unexpected("the end of the connection")),
        Err(error) => return Err(lost(&error)),
    };
    let cgroup = system.configure(&workload)?;
    let status = supervise::run(transport, control, &workload, cgroup.as_ref())?;
    Ok(GuestMessage::Exited(status))
}

fn lost(error: &dyn std::error::Error) -> StartFailure {
    crate::failure::setup_failure(error)
}

fn unexpected(what: &str) -> StartFailure {
    StartFailure {
        kind: StartFailureKind::Setup,
        message: format!("the host sent {what} instead of a workload"),
    }
}
