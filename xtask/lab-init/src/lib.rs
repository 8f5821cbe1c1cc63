//! PID 1 of the lab: the virtual machine in which mote is tested where there is
//! no hardware virtualization.
//!
//! [`run`] loads the kernel modules, mounts the machine's root directory
//! (shared through virtiofs, read-only, under an overlay), runs one command,
//! carries its streams and powers off. The machine's end of it is
//! `cargo xtask lab`, which shares [`protocol`] and [`stream`].

mod command;
mod kvm;
mod ports;
mod processors;
pub mod protocol;
mod root;
pub mod stream;

use std::process;

use anyhow::Context;
use rustix::system::RebootCommand;

/// Does all that PID 1 of the lab does, and powers off.
pub fn run() -> ! {
    if let Err(error) = lab() {
        // The serial console: the machine shows its end when a lab fails.
        eprintln!("lab-init: {error:#}");
    }
    // Whatever could be lost with the caches is lost by design: nothing that is
    // written in the lab outlives it.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    process::exit(1)
}

fn lab() -> anyhow::Result<()> {
    root::mount_kernel_filesystems()?;
    root::load_modules()?;
    let _stand_in = kvm::StandIn::create()?;
    processors::bring_up().context("bringing up the processors")?;
    let ports = ports::Ports::open()?;
    let mut messages = protocol::Messages::new(ports.control.try_clone()?);
    let Some(message) = messages.next_message().context("the control port")? else {
        return Ok(());
    };
    let protocol::HostMessage::Run(request) = message else {
        anyhow::bail!("the first message is not a command but {message:?}");
    };
    if let Err(error) = root::enter(&request) {
        let failure = protocol::StartFailure {
            exit_code: 125,
            message: format!("the lab could not be set up: {error:#}"),
        };
        let message = protocol::GuestMessage::Failed(failure);
        protocol::write_message(&ports.control, &message)?;
        return Err(error);
    }
    command::run(&request, ports, messages)
}
