//! The host's side of a guest: a workload run in a microVM, from its start to
//! its exit code, over the guest protocol ([`guest_protocol`]).

mod control;
mod device_event;
mod error;
mod session;
mod signals;
mod streams;
mod timeline;

pub use device_event::{DeviceEvent, DeviceEventKind};
pub use error::{Diagnostics, RunError, Stage};
pub use session::{BOOT_TIMEOUT, Observer, Outcome, Request, run};
pub use signals::is_ignored;
pub use streams::AtFirstOutput;
pub use streams::Streams;
pub use timeline::Timeline;
