//! Pieces of guest memory that one transfer fills or empties, in order.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::memory::GuestMemory;

/// `IOV_MAX` (preadv(2)).
const MAX_PIECES_A_CALL: usize = 1024;

/// A list of guest memory pieces.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    bytes: u64,
}

impl<'m> Buffers<'m> {
    /// Adds `length` bytes at `address`; fails if they are not guest memory.
    pub fn push(
        &mut self,
        memory: &'m GuestMemory,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), GuestMemoryError> {
        for piece in memory.get_slices(address, length) {
            let piece = piece?;
            self.bytes += piece.len() as u64;
            self.pieces.push(piece);
        }
        Ok(())
    }

    /// The length of all pieces together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Cuts the first `bytes` off and returns them; all, if there are no more.
    pub fn split_off_front(&mut self, bytes: u64) -> Buffers<'m> {
        let mut front = Buffers::default();
        let mut wanted = bytes;
        let mut whole = 0;
        for piece in &mut self.pieces {
            let length = piece.len() as u64;
            if length > wanted {
                // `wanted` is below the length, so both cuts lie inside.
                let cut = wanted as usize;
                if let (Ok(head), Ok(tail)) = (piece.subslice(0, cut), piece.offset(cut)) {
                    if cut > 0 {
                        front.pieces.push(head);
                        front.bytes += wanted;
                    }
                    *piece = tail;
                }
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

    /// Fills all pieces from `file` at `offset`. A file that ends too early is
    /// an error: it has shrunk since it was opened.
    pub fn read_from(self, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.transfer(offset, |iovecs, at| {
            // SAFETY: the iovecs come from `VolatileSlice`s of mapped guest
            // memory, which outlive the call ('m); the guest may race with the
            // kernel's writes, as with any DMA, and no Rust reference exists to
            // that memory. The count is at most IOV_MAX.
            unsafe {
                libc::preadv(
                    file.as_fd().as_raw_fd(),
                    iovecs.as_ptr(),
                    iovecs.len() as libc::c_int,
                    at,
                )
            }
        })
    }

    /// Writes all pieces to `file` at `offset`.
    pub fn write_to(self, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.transfer(offset, |iovecs, at| {
            // SAFETY: as in `read_from`; the kernel only reads.
            unsafe {
                libc::pwritev(
                    file.as_fd().as_raw_fd(),
                    iovecs.as_ptr(),
                    iovecs.len() as libc::c_int,
                    at,
                )
            }
        })
    }

    /// The pieces as iovecs, at most as many as one call takes, and what keeps
    /// them mapped.
    fn iovecs(&self) -> (Vec<PtrGuardMut>, Vec<libc::iovec>) {
        let pieces = self.pieces.iter().take(MAX_PIECES_A_CALL);
        let guards: Vec<_> = pieces.map(VolatileSlice::ptr_guard_mut).collect();
        let iovecs = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        (guards, iovecs)
    }

    /// Writes all pieces to `to` as one frame (writev(2)); fails if there are more
    /// than one call takes.
    pub fn send_frame(&self, to: impl AsFd) -> io::Result<usize> {
        if self.pieces.len() > MAX_PIECES_A_CALL {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (_guards, iovecs) = self.iovecs();
        // SAFETY: the iovecs point to mapped guest memory, kept so by the guards;
        // the kernel only reads, and may race with the guest as any DMA does.
        let sent = unsafe {
            libc::writev(
                to.as_fd().as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Reads one frame from `from` (readv(2)) into all pieces and, what they do not
    /// hold, into `overflow`. Returns the length of the frame.
    pub fn receive_frame(&self, from: impl AsFd, overflow: &mut [u8]) -> io::Result<usize> {
        let (_guards, mut iovecs) = self.iovecs();
        // Some place for the overflow is left.
        iovecs.truncate(MAX_PIECES_A_CALL - 1);
        if iovecs.len() < self.pieces.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        iovecs.push(libc::iovec {
            iov_base: overflow.as_mut_ptr().cast(),
            iov_len: overflow.len(),
        });
        // SAFETY: as in `send_frame`, and the last iovec is `overflow`, borrowed
        // for the call; no Rust reference exists to guest memory.
        let received = unsafe {
            libc::readv(
                from.as_fd().as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Copies `bytes` to the pieces from byte `offset` of theirs on, as far as they
    /// reach.
    pub fn copy_at(&self, mut offset: usize, mut bytes: &[u8]) {
        for piece in &self.pieces {
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

    /// Repeats `call` until everything is transferred.
    fn transfer(
        mut self,
        mut offset: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
    ) -> io::Result<()> {
        while self.bytes > 0 {
            let (guards, iovecs) = self.iovecs();
            let at = libc::off_t::try_from(offset)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let done = match call(&iovecs, at) {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                n if n > 0 => n as u64,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(error);
                }
            };
            drop(guards);
            self.split_off_front(done);
            offset += done;
        }
        Ok(())
    }
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
    fn a_file_that_ends_early_is_an_error() {
        let memory = memory::create(MEMORY_BYTES).unwrap();
        let mut buffers = Buffers::default();
        buffers.push(&memory, GuestAddress(0), 100).unwrap();
        let error = buffers.read_from(file_with(&[1; 99]), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
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
                front.read_from(&file, offset).unwrap();
                offset += bytes;
            }
            prop_assert_eq!(offset + buffers.bytes(), total as u64);
            buffers.read_from(&file, offset).unwrap();
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
