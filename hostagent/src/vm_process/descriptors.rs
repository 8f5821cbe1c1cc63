//! The one place where descriptors are passed to a process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use vmm::spec::Descriptor;

/// The first number that is not standard input, output or error.
const FIRST: i32 = 3;

/// Descriptors that a child will find under the numbers they have here.
///
/// A descriptor keeps its number, so that nothing has to be moved in the child,
/// where a move could land on a number that is in use. All are close-on-exec in
/// this process and stay so; only the child, between fork and exec, lets go of
/// the flag. No other child ever inherits one.
#[derive(Debug, Default)]
pub struct InheritedDescriptors {
    descriptors: Vec<Arc<OwnedFd>>,
}

impl InheritedDescriptors {
    /// Will pass `descriptor` and returns its number in the child. The same
    /// descriptor may be passed many times under one number.
    pub fn pass(&mut self, descriptor: &Arc<OwnedFd>) -> rustix::io::Result<Descriptor> {
        if self
            .descriptors
            .iter()
            .any(|other| Arc::ptr_eq(other, descriptor))
        {
            return Ok(descriptor.as_raw_fd());
        }
        let descriptor = if descriptor.as_raw_fd() < FIRST {
            // Opened while a standard descriptor was closed.
            Arc::new(fcntl_dupfd_cloexec(descriptor, FIRST)?)
        } else {
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
            Arc::clone(descriptor)
        };
        let number = descriptor.as_raw_fd();
        self.descriptors.push(descriptor);
        Ok(number)
    }

    /// Lets what `command` starts inherit them. They are closed here when
    /// `command` is dropped, unless somebody else holds on to them.
    pub fn inherit(self, command: &mut Command) {
        let descriptors = self.descriptors;
        let keep_open = move || {
            for descriptor in &descriptors {
                fcntl_setfd(descriptor, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec, the closure only reads memory that was
        // there before and calls fcntl(2), which is async-signal-safe.
        unsafe { command.pre_exec(keep_open) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    fn pipe() -> (File, Arc<OwnedFd>) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (read.into(), Arc::new(write))
    }

    #[test]
    fn a_child_finds_each_descriptor_under_its_number_and_no_other() {
        let file = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let (_read, write) = pipe();
        let mut inherited = InheritedDescriptors::default();
        let numbers = [
            inherited.pass(&file).unwrap(),
            inherited.pass(&write).unwrap(),
            inherited.pass(&file).unwrap(),
        ];
        assert_eq!(numbers[0], numbers[2]);
        let not_passed = File::open("/dev/null").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "for n; do [ -e /proc/self/fd/$n ] && echo yes || echo no; done",
            "sh",
        ]);
        let asked = [numbers[0], numbers[1], not_passed.as_raw_fd()];
        command.args(asked.map(|number| number.to_string()));
        inherited.inherit(&mut command);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(str::from_utf8(&output.stdout), Ok("yes\nyes\nno\n"));
    }

    #[test]
    fn nothing_stays_open_here_once_the_command_is_gone() {
        let (mut read, write) = pipe();
        let mut inherited = InheritedDescriptors::default();
        let number = inherited.pass(&write).unwrap();
        drop(write);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("echo inherited > /proc/self/fd/{number}")]);
        inherited.inherit(&mut command);
        assert!(command.status().unwrap().success());
        drop(command);
        // Would not end if this process still held the other end.
        assert_eq!(std::io::read_to_string(&mut read).unwrap(), "inherited\n");
    }

    #[test]
    fn a_program_that_cannot_be_started_is_an_error_of_the_spawn() {
        let (_read, write) = pipe();
        let mut inherited = InheritedDescriptors::default();
        inherited.pass(&write).unwrap();
        let mut command = Command::new("/no/such/program");
        inherited.inherit(&mut command);
        let error = command.spawn().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        // The descriptor is still whole.
        (&File::from(write.try_clone().unwrap()))
            .write_all(b"x")
            .unwrap();
    }
}
