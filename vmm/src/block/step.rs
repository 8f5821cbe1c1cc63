//! One system call's worth of a request.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::buffers::Buffers;
use super::verified::{Check, Need, Nodes, Verification};

/// What a step does to a range of its file.
#[derive(Debug)]
pub enum Action {
    /// preadv(2).
    Read(Buffers),
    /// preadv(2) of whole groups or blocks of a blob, which are verified and then copied.
    Check(Box<Check>),
    /// preadv(2) of nodes of a blob's hash tree, as often as needed.
    Nodes(Box<Nodes>),
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
    /// To be called again after this one.
    After(Step),
    /// It failed for good.
    Failed(io::Error),
}

/// `mode` of fallocate(2).
pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `mode` of fallocate(2).
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl Action {
    /// What is to be filled, if it is a read.
    pub fn fills(&self) -> Option<&Buffers> {
        match self {
            Self::Read(buffers) => Some(buffers),
            Self::Check(check) => Some(check.wanted()),
            Self::Nodes(nodes) => Some(nodes.wanted()),
            _ => None,
        }
    }
}

impl Step {
    /// Makes the call on `file` and waits for it.
    pub fn run(&self, file: &File) -> io::Result<u64> {
        if let Some(buffers) = self.action.fills() {
            return buffers.read(file, self.offset, 0);
        }
        match &self.action {
            // Told above.
            Action::Read(_) | Action::Check(_) | Action::Nodes(_) => Ok(0),
            Action::Write(buffers) => buffers.write(file, self.offset),
            Action::Sync => file.sync_data().map(|()| 0),
            Action::Discard(length) | Action::ZeroByHole(length) => {
                fallocate(file, PUNCH_HOLE, self.offset, *length)
            }
            Action::Zero(length) => fallocate(file, ZERO_RANGE, self.offset, *length),
        }
    }

    /// How many groups of a blob it has in memory while it runs.
    pub fn groups(&self) -> usize {
        match &self.action {
            Action::Check(check) => check.count(),
            _ => 0,
        }
    }

    /// Whether it is a read of which all is there, to be verified.
    pub fn is_read(&self) -> bool {
        match &self.action {
            Action::Check(check) => check.wanted().bytes() == 0,
            _ => false,
        }
    }

    /// Takes note of what the call returned. What is known of the disk's blobs is
    /// `verification`.
    pub fn advance(
        &mut self,
        result: io::Result<u64>,
        verification: &mut Verification,
    ) -> Progress {
        let done = match result {
            Ok(done) => done,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Progress::Again,
            Err(error) => return self.fall_back(error),
        };
        let (buffers, place) = match &mut self.action {
            Action::Read(buffers) | Action::Write(buffers) => (buffers, None),
            Action::Check(check) => {
                let place = (check.blob(), check.span());
                (check.missing(), Some(place))
            }
            Action::Nodes(nodes) => {
                let place = (nodes.blob(), nodes.span());
                (nodes.missing(), Some(place))
            }
            _ => return Progress::Done,
        };
        if done == 0 && buffers.bytes() > 0 {
            // The file has shrunk since it was opened.
            return Progress::Failed(match place {
                Some((blob, span)) => verification.truncated(blob, span, self.offset),
                None => io::Error::from(io::ErrorKind::UnexpectedEof),
            });
        }
        self.offset += buffers.split_off_front(done).bytes();
        match buffers.bytes() {
            0 => self.filled(verification),
            _ => Progress::Again,
        }
    }

    /// Goes on when all that was asked for has been transferred.
    fn filled(&mut self, verification: &mut Verification) -> Progress {
        let outcome = match &mut self.action {
            Action::Check(check) => match verification.finish(check) {
                Ok(Need::Nothing) => Ok(()),
                Ok(Need::Before(step)) => return Progress::After(step),
                Ok(Need::Read(file, offset)) => {
                    (self.file, self.offset) = (file, offset);
                    return Progress::Again;
                }
                Err(error) => {
                    verification.release(check);
                    Err(error)
                }
            },
            Action::Nodes(nodes) => match nodes.go_on() {
                Some(offset) => {
                    self.offset = offset;
                    return Progress::Again;
                }
                None => verification.keep(nodes),
            },
            _ => Ok(()),
        };
        outcome.map_or_else(Progress::Failed, |()| Progress::Done)
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
        assert!(matches!(
            step.advance(unsupported(), &mut Verification::default()),
            Progress::Again
        ));
        assert!(matches!(step.action, Action::Zero(_)));
        assert!(matches!(
            step.advance(unsupported(), &mut Verification::default()),
            Progress::Again
        ));
        assert!(matches!(&step.action, Action::Write(zeroes) if zeroes.bytes() == 200 << 10));
        assert!(matches!(
            step.advance(Ok(1 << 10), &mut Verification::default()),
            Progress::Again
        ));
        assert_eq!(step.offset, 512 + (1 << 10));
        assert!(matches!(
            step.advance(Ok(199 << 10), &mut Verification::default()),
            Progress::Done
        ));
    }

    #[test]
    fn a_discard_that_the_file_system_refuses_is_done() {
        let mut step = step(Action::Discard(512));
        assert!(matches!(
            step.advance(unsupported(), &mut Verification::default()),
            Progress::Done
        ));
    }

    #[test]
    fn other_errors_are_not_papered_over() {
        for action in [Action::Discard(512), Action::Zero(512), Action::Sync] {
            let error = Err(io::Error::from_raw_os_error(libc::EIO));
            assert!(matches!(
                step(action).advance(error, &mut Verification::default()),
                Progress::Failed(_)
            ));
        }
        assert!(matches!(
            step(Action::Sync).advance(unsupported(), &mut Verification::default()),
            Progress::Failed(_)
        ));
    }
}
