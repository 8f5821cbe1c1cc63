//! The one place where descriptors are passed to a process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use vmm::spec::Descriptor;

/// The first number that is not standard input, output or error.
const FIRST: i32 = 3;

/// Descriptors that a child will find under the numbers they have here.
///
/// A descriptor keeps its number, so that nothing has to be moved in the child,
/// where a move could land on a number that is in use. All are close-on-exec in
/// this process and stay so: no other child ever inherits one.
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

    /// All that are passed.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors.iter().map(|descriptor| descriptor.as_fd())
    }

    /// The greatest number among them, 2 if there is none.
    pub fn greatest(&self) -> Descriptor {
        let numbers = self.descriptors.iter().map(AsRawFd::as_raw_fd);
        numbers.max().unwrap_or(FIRST - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_descriptor_keeps_its_number_and_is_passed_once() {
        let file = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let other = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let mut inherited = InheritedDescriptors::default();
        assert_eq!(inherited.greatest(), 2);
        for descriptor in [&file, &other, &file] {
            assert_eq!(inherited.pass(descriptor), Ok(descriptor.as_raw_fd()));
        }
        let numbers: Vec<_> = inherited.all().map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(numbers, [file.as_raw_fd(), other.as_raw_fd()]);
        assert_eq!(
            inherited.greatest(),
            file.as_raw_fd().max(other.as_raw_fd())
        );
    }

    #[test]
    fn no_child_but_the_one_it_is_passed_to_inherits_it() {
        let file = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let mut inherited = InheritedDescriptors::default();
        inherited.pass(&file).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&file), Ok(FdFlags::CLOEXEC));
    }
}
