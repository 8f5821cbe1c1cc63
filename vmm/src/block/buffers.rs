//! Pieces of guest memory that one transfer fills or empties, in order.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU8;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::memory::GuestMemory;

/// `IOV_MAX` (preadv(2)).
const MAX_PIECES_A_CALL: usize = 1024;

/// Makes preadv2(2) and pwritev2(2) behave as readv(2) and writev(2), for what has no
/// offsets: one pair of system calls is enough for all.
const NO_OFFSET: libc::off_t = -1;

/// What [`Buffers::zeroes`] is made of; never written. Could it not be written, it would lie
/// in the program's file.
static ZEROES: [AtomicU8; 64 << 10] = [const { AtomicU8::new(0) }; 64 << 10];

/// A list of guest memory pieces. It may be kept while the kernel works on it:
/// guest memory stays mapped until the process ends (see [`crate::memory::create`]).
#[derive(Debug, Default)]
pub struct Buffers {
    pieces: Vec<libc::iovec>,
    bytes: u64,
}

// SAFETY: the pointers are never dereferenced here, only given to the kernel; what
// they point to stays mapped, and belongs to no thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Adds `length` bytes at `address`; fails if they are not guest memory.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), GuestMemoryError> {
        for piece in memory.get_slices(address, length) {
            self.push_slice(&piece?);
        }
        Ok(())
    }

    fn push_slice(&mut self, slice: &VolatileSlice) {
        self.bytes += slice.len() as u64;
        self.pieces.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
    }

    /// Adds memory of this process's. It must stay where it is, and be used by nobody
    /// else, until the transfer is over.
    pub(super) fn push_host(&mut self, bytes: &mut [u8]) {
        self.bytes += bytes.len() as u64;
        self.pieces.push(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
    }

    /// `bytes` zeroes, to be written and never to be filled.
    pub(super) fn zeroes(bytes: u64) -> Self {
        let mut buffers = Self::default();
        while buffers.bytes < bytes {
            let length = (bytes - buffers.bytes).min(ZEROES.len() as u64);
            buffers.pieces.push(libc::iovec {
                iov_base: ZEROES.as_ptr().cast_mut().cast(),
                iov_len: length as usize,
            });
            buffers.bytes += length;
        }
        buffers
    }

    /// The length of all pieces together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces for one system call.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.pieces[..self.pieces.len().min(MAX_PIECES_A_CALL)]
    }

    /// Cuts the first `bytes` off and returns them; all, if there are no more.
    pub fn split_off_front(&mut self, bytes: u64) -> Buffers {
        if bytes >= self.bytes {
            return std::mem::take(self);
        }
        let mut front = Buffers::default();
        let mut wanted = bytes;
        let mut whole = 0;
        for piece in &mut self.pieces {
            let length = piece.iov_len as u64;
            if length > wanted {
                // Below the length, so the cut lies inside.
                let cut = wanted as usize;
                if cut > 0 {
                    front.pieces.push(libc::iovec {
                        iov_base: piece.iov_base,
                        iov_len: cut,
                    });
                    front.bytes += wanted;
                }
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(cut).cast();
                piece.iov_len -= cut;
                break;
            }
            front.pieces.push(*piece);
            front.bytes += length;
            wanted -= length;
            whole += 1;
        }
        self.pieces.drain(..whole);
        self.bytes -= front.bytes;
        front
    }

    /// Fills the front from `file` at `offset` by one preadv2(2) with `flags`;
    /// returns how many bytes that were.
    pub(super) fn read(&self, file: impl AsFd, offset: u64, flags: i32) -> io::Result<u64> {
        let iovecs = self.iovecs();
        // SAFETY: the iovecs point to mapped guest memory (`push`); the guest may
        // race with the kernel's writes, as with any DMA, and no Rust reference
        // exists to that memory. The count is at most IOV_MAX.
        let done = unsafe {
            libc::preadv2(
                file.as_fd().as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                file_offset(offset)?,
                flags,
            )
        };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the front to `file` at `offset` by one pwritev2(2); returns how many
    /// bytes that were.
    pub(super) fn write(&self, file: impl AsFd, offset: u64) -> io::Result<u64> {
        let iovecs = self.iovecs();
        // SAFETY: as in `read`; the kernel only reads.
        let done = unsafe {
            libc::pwritev2(
                file.as_fd().as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                file_offset(offset)?,
                0,
            )
        };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes all pieces to `to` as one frame; fails if there are more than one call
    /// takes.
    pub fn send_frame(&self, to: impl AsFd) -> io::Result<usize> {
        if self.pieces.len() > MAX_PIECES_A_CALL {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: as in `read`; the kernel only reads.
        let sent = unsafe {
            libc::pwritev2(
                to.as_fd().as_raw_fd(),
                self.pieces.as_ptr(),
                self.pieces.len() as libc::c_int,
                NO_OFFSET,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Reads one frame from `from` into all pieces and, what they do not hold, into
    /// `overflow`. Returns the length of the frame.
    pub fn receive_frame(&self, from: impl AsFd, overflow: &mut [u8]) -> io::Result<usize> {
        if self.pieces.len() >= MAX_PIECES_A_CALL {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut iovecs = Vec::with_capacity(self.pieces.len() + 1);
        iovecs.extend_from_slice(&self.pieces);
        iovecs.push(libc::iovec {
            iov_base: overflow.as_mut_ptr().cast(),
            iov_len: overflow.len(),
        });
        // SAFETY: as in `read`, and the last iovec is `overflow`, borrowed for the
        // call.
        let received = unsafe {
            libc::preadv2(
                from.as_fd().as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                NO_OFFSET,
                0,
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Copies `bytes` to the pieces from byte `offset` of theirs on, as far as they
    /// reach.
    pub fn copy_at(&self, mut offset: usize, mut bytes: &[u8]) {
        for piece in &self.pieces {
            // SAFETY: a piece of guest memory, which stays mapped (`push`).
            let piece = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
            let Ok(rest) = piece.offset(offset) else {
                offset -= piece.len();
                continue;
            };
            offset = 0;
            let (now, later) = bytes.split_at(bytes.len().min(rest.len()));
            rest.copy_from(now);
            bytes = later;
            if bytes.is_empty() {
                return;
            }
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory;

    const MEMORY_BYTES: u64 = 1 << 20;

    fn file_with(content: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn a_piece_outside_guest_memory_is_refused() {
        let memory = memory::create(MEMORY_BYTES).unwrap();
        let mut buffers = Buffers::default();
        assert!(
            buffers
                .push(&memory, GuestAddress(MEMORY_BYTES - 1), 2)
                .is_err()
        );
        assert!(buffers.push(&memory, GuestAddress(u64::MAX), 1).is_err());
    }

    #[test]
    fn zeroes_are_as_many_as_were_asked_for() {
        for bytes in [0, 1, 64 << 10, (64 << 10) + 1, 16 << 20] {
            let zeroes = Buffers::zeroes(bytes);
            assert_eq!(zeroes.bytes(), bytes);
            let lengths = zeroes.pieces.iter().map(|piece| piece.iov_len as u64);
            assert_eq!(lengths.sum::<u64>(), bytes);
            assert_eq!(zeroes.iovecs().len(), zeroes.pieces());
        }
    }

    proptest! {
        #[test]
        fn pieces_are_filled_in_order_however_they_are_split(
            lengths in proptest::collection::vec(0_usize..300, 1..20),
            cuts in proptest::collection::vec(0_u64..500, 0..5),
        ) {
            let memory = memory::create(MEMORY_BYTES).unwrap();
            let total: usize = lengths.iter().sum();
            let content: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
            let file = file_with(&content);
            let mut buffers = Buffers::default();
            for (length, index) in lengths.iter().zip(0..) {
                buffers.push(&memory, GuestAddress(index * 512), *length).unwrap();
            }
            prop_assert_eq!(buffers.bytes(), total as u64);
            let mut offset = 0;
            for cut in cuts {
                let front = buffers.split_off_front(cut);
                let bytes = front.bytes();
                prop_assert!(bytes <= cut);
                prop_assert_eq!(front.read(&file, offset, 0).unwrap(), bytes);
                offset += bytes;
            }
            prop_assert_eq!(offset + buffers.bytes(), total as u64);
            let rest = buffers.bytes();
            prop_assert_eq!(buffers.read(&file, offset, 0).unwrap(), rest);
            let mut read = Vec::new();
            for (length, index) in lengths.iter().zip(0..) {
                let mut piece = vec![0; *length];
                memory.read_slice(&mut piece, GuestAddress(index * 512)).unwrap();
                read.extend(piece);
            }
            prop_assert_eq!(read, content);
        }
    }
}
