//! One system call's worth of a request.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::buffers::Buffers;

/// What a step does to a range of its file.
#[derive(Debug)]
pub enum Action {
    /// preadv(2).
    Read(Buffers),
    /// pwritev(2).
    Write(Buffers),
    /// fdatasync(2).
    Sync,
    /// fallocate(2) with `PUNCH_HOLE`, for so many bytes. A file system that
    /// cannot leaves the bytes as they are.
    Discard(u64),
    /// The same, but they must read as zeroes whatever the file system can.
    ZeroByHole(u64),
    /// fallocate(2) with `ZERO_RANGE`, for so many bytes. Where the file system
    /// cannot, zeroes are written.
    Zero(u64),
}

/// A system call still to be made, if need be several times.
#[derive(Debug)]
pub struct Step {
    /// Which of the disk's files.
    pub file: usize,
    /// From which of its bytes on.
    pub offset: u64,
    /// What to do there.
    pub action: Action,
}

/// Where a step is after a call.
#[derive(Debug)]
pub enum Progress {
    /// Its end.
    Done,
    /// To be called again, as it now is.
    Again,
    /// It failed for good.
    Failed(io::Error),
}

/// `mode` of fallocate(2).
pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `mode` of fallocate(2).
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl Step {
    /// Makes the call on `file` and waits for it.
    pub fn run(&self, file: &File) -> io::Result<u64> {
        match &self.action {
            Action::Read(buffers) => buffers.read(file, self.offset, 0),
            Action::Write(buffers) => buffers.write(file, self.offset),
            Action::Sync => file.sync_data().map(|()| 0),
            Action::Discard(length) | Action::ZeroByHole(length) => {
                fallocate(file, PUNCH_HOLE, self.offset, *length)
            }
            Action::Zero(length) => fallocate(file, ZERO_RANGE, self.offset, *length),
        }
    }

    /// Takes note of what the call returned.
    pub fn advance(&mut self, result: io::Result<u64>) -> Progress {
        let done = match result {
            Ok(done) => done,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Progress::Again,
            Err(error) => return self.fall_back(error),
        };
        let (Action::Read(buffers) | Action::Write(buffers)) = &mut self.action else {
            return Progress::Done;
        };
        if done == 0 && buffers.bytes() > 0 {
            // The file has shrunk since it was opened.
            return Progress::Failed(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.offset += buffers.split_off_front(done).bytes();
        match buffers.bytes() {
            0 => Progress::Done,
            _ => Progress::Again,
        }
    }

    /// Does in another way what the file system cannot do in this one.
    fn fall_back(&mut self, error: io::Error) -> Progress {
        let unsupported = matches!(
            error.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
        );
        match self.action {
            Action::Discard(_) if unsupported => return Progress::Done,
            Action::ZeroByHole(length) if unsupported => self.action = Action::Zero(length),
            Action::Zero(length) if unsupported => {
                self.action = Action::Write(Buffers::zeroes(length));
            }
            _ => return Progress::Failed(error),
        }
        Progress::Again
    }
}

fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<u64> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(offset).map_err(invalid)?;
    let length = libc::off_t::try_from(length).map_err(invalid)?;
    // SAFETY: the call touches no memory of this process.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } {
        0 => Ok(0),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(action: Action) -> Step {
        Step {
            file: 0,
            offset: 512,
            action,
        }
    }

    fn unsupported() -> io::Result<u64> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    #[test]
    fn zeroes_that_no_file_system_makes_are_written() {
        let mut step = step(Action::ZeroByHole(200 << 10));
        assert!(matches!(step.advance(unsupported()), Progress::Again));
        assert!(matches!(step.action, Action::Zero(_)));
        assert!(matches!(step.advance(unsupported()), Progress::Again));
        assert!(matches!(&step.action, Action::Write(zeroes) if zeroes.bytes() == 200 << 10));
        assert!(matches!(step.advance(Ok(1 << 10)), Progress::Again));
        assert_eq!(step.offset, 512 + (1 << 10));
        assert!(matches!(step.advance(Ok(199 << 10)), Progress::Done));
    }

    #[test]
    fn a_discard_that_the_file_system_refuses_is_done() {
        let mut step = step(Action::Discard(512));
        assert!(matches!(step.advance(unsupported()), Progress::Done));
    }

    #[test]
    fn other_errors_are_not_papered_over() {
        for action in [Action::Discard(512), Action::Zero(512), Action::Sync] {
            let error = Err(io::Error::from_raw_os_error(libc::EIO));
            assert!(matches!(step(action).advance(error), Progress::Failed(_)));
        }
        assert!(matches!(
            step(Action::Sync).advance(unsupported()),
            Progress::Failed(_)
        ));
    }
}
