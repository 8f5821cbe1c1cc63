//! Takes ownership of inherited descriptors by number, each once.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use crate::spec::Descriptor;

/// Why a descriptor that the spec names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Nothing is open at that number.
    #[error("{field} names descriptor {number}, which is not open; the parent must pass it")]
    NotOpen {
        /// The field of the spec.
        field: String,
        /// The number it holds.
        number: Descriptor,
    },
    /// The number belongs to a standard stream.
    #[error("{field} names descriptor {number}; 0 to 2 are standard input, output and error")]
    Standard {
        /// The field of the spec.
        field: String,
        /// The number it holds.
        number: Descriptor,
    },
    /// Two fields name the same number.
    #[error("{field} names descriptor {number}, which another field already uses")]
    UsedTwice {
        /// The field of the spec.
        field: String,
        /// The number it holds.
        number: Descriptor,
    },
}

/// The descriptors of this process that have been claimed so far.
#[derive(Debug, Default)]
pub struct Descriptors {
    files: BTreeMap<Descriptor, Claim>,
}

#[derive(Debug)]
enum Claim {
    Exclusive,
    Shared(Arc<File>),
}

impl Descriptors {
    /// Claims `number` for `field` alone.
    pub fn take(&mut self, number: Descriptor, field: &str) -> Result<OwnedFd, DescriptorError> {
        if self.files.contains_key(&number) {
            let field = field.to_owned();
            return Err(DescriptorError::UsedTwice { field, number });
        }
        let fd = adopt_other(number, field)?;
        self.files.insert(number, Claim::Exclusive);
        Ok(fd)
    }

    /// Claims `number` for `field`, which may share it with other callers of
    /// this function.
    pub fn share(&mut self, number: Descriptor, field: &str) -> Result<Arc<File>, DescriptorError> {
        match self.files.get(&number) {
            Some(Claim::Shared(file)) => Ok(Arc::clone(file)),
            Some(Claim::Exclusive) => {
                let field = field.to_owned();
                Err(DescriptorError::UsedTwice { field, number })
            }
            None => {
                let file = Arc::new(File::from(adopt_other(number, field)?));
                self.files.insert(number, Claim::Shared(Arc::clone(&file)));
                Ok(file)
            }
        }
    }
}

/// Owns the descriptor that `option` of the command line names, which may be a standard
/// stream: nothing else is inherited then.
pub fn only(number: Descriptor, option: &str) -> Result<OwnedFd, DescriptorError> {
    adopt(number, option)
}

/// The same for a number that must not be a standard stream's.
fn adopt_other(number: Descriptor, field: &str) -> Result<OwnedFd, DescriptorError> {
    if (0..=2).contains(&number) {
        let field = field.to_owned();
        return Err(DescriptorError::Standard { field, number });
    }
    adopt(number, field)
}

/// Owns `number` after making sure that something is open there, and marks it
/// close-on-exec.
fn adopt(number: Descriptor, field: &str) -> Result<OwnedFd, DescriptorError> {
    let not_open = || DescriptorError::NotOpen {
        field: field.to_owned(),
        number,
    };
    if number < 0 {
        return Err(not_open());
    }
    // SAFETY: the borrow lasts for the two calls below, which fail with EBADF
    // and touch nothing if the number is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd).map_err(|_| not_open())?;
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC).map_err(|_| not_open())?;
    // SAFETY: the number is open (checked above) and nobody else in this
    // process owns it: it was inherited, and `Descriptors` hands each out once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether reading and writing are allowed by the mode `fd` was opened with: neither if
/// it only stands for a path (`O_PATH`, open(2)).
pub fn access(fd: impl AsFd) -> (bool, bool) {
    use rustix::fs::OFlags;
    let Ok(flags) = rustix::fs::fcntl_getfl(fd) else {
        return (false, false);
    };
    if flags.contains(OFlags::PATH) {
        return (false, false);
    }
    let mode = flags & OFlags::RWMODE;
    (mode != OFlags::WRONLY, mode != OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn open_number() -> Descriptor {
        File::open("/dev/null").unwrap().into_raw_fd()
    }

    #[test]
    fn a_number_that_is_not_open_is_refused_by_name() {
        for number in [-1, 1 << 20] {
            let error = Descriptors::default().take(number, "kvm").unwrap_err();
            assert!(error.to_string().contains("kvm"), "{error}");
        }
    }

    #[test]
    fn what_only_stands_for_a_path_can_be_neither_read_nor_written() {
        use rustix::fs::{Mode, OFlags, open};
        let access_of = |flags| access(open("/dev/null", flags, Mode::empty()).unwrap());
        assert_eq!(access_of(OFlags::PATH), (false, false));
        assert_eq!(access_of(OFlags::RDONLY), (true, false));
        assert_eq!(access_of(OFlags::RDWR), (true, true));
    }

    #[test]
    fn standard_streams_are_nobody_elses() {
        for number in 0..=2 {
            let error = Descriptors::default().take(number, "kvm").unwrap_err();
            assert!(error.to_string().starts_with("kvm"), "{error}");
        }
    }

    #[test]
    fn a_descriptor_taken_once_is_not_given_twice() {
        let number = open_number();
        let mut descriptors = Descriptors::default();
        let _kept = descriptors.take(number, "a").unwrap();
        assert!(descriptors.take(number, "b").is_err());
        assert!(descriptors.share(number, "c").is_err());
    }

    #[test]
    fn a_shared_descriptor_is_one_file() {
        let number = open_number();
        let mut descriptors = Descriptors::default();
        let a = descriptors.share(number, "a").unwrap();
        let b = descriptors.share(number, "b").unwrap();
        assert!(Arc::ptr_eq(&a, &b));
        assert!(descriptors.take(number, "c").is_err());
    }
}
