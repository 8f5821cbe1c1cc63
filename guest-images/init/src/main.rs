//! `/init` of the guest's initramfs.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use guest_init::failure::{SetupError, chain};
use guest_init::guest::{System, serve};
use guest_init::transport::Vsock;
use guest_init::{cgroup, console, modules, power, root, system};
use guest_protocol::Workload;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("guest-init is PID 1 of a mote guest and does nothing else");
        return ExitCode::from(125);
    }
    power::reset_on_panic();
    match boot() {
        Ok(()) => power::off(),
        Err(error) => {
            console::say(&chain(&error));
            power::reset()
        }
    }
}

fn boot() -> Result<(), SetupError> {
    root::mount_devices()?;
    console::use_kernel_log();
    modules::load_all(Path::new("/modules"));
    serve(&Vsock, &mut Image)
}

/// The image on the machine's first disk.
struct Image;

impl System for Image {
    fn enter(&mut self) -> Result<(), SetupError> {
        root::enter_image()?;
        system::mount_all()
    }

    fn configure(&mut self, workload: &Workload) -> Result<Option<File>, SetupError> {
        system::configure(workload)?;
        cgroup::make_workload_group()
    }
}
