//! Requests through io_uring(7) where they would make the caller wait.
//!
//! Measured with 4 KiB each, on ext4, per request: a read from the page cache
//! costs 1.5 µs by preadv2(2) and 2.5 µs through a ring, one at a time; 1.5 µs
//! either way, 32 at a time. So a read is tried with `RWF_NOWAIT`, and goes into
//! the ring only if its data are not in memory; from there it comes back without
//! a thread of its own. A write into the page cache costs 2.0 µs by pwritev(2)
//! and, as the kernel hands it to a worker thread, 8.4 µs through a ring, 5.3 µs
//! where there are 32. So it is done at once, unless writes have turned out to
//! wait for the disk. Files that somebody else serves (FUSE, NFS and their like), and
//! may cease to, are left to the ring altogether: the event loop never waits for them.
//! It does wait for a disk of this host's that hangs in a write.
//!
//! After [`RingDisk::new`], io_uring_enter(2) is all that a ring needs. It is
//! restricted to the four operations below and to the disk's own files: whoever
//! takes over the process cannot open anything by it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::fstatfs;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::extents::ExtentDisk;
use super::step::{Action, PUNCH_HOLE, Progress, Step, ZERO_RANGE};
use super::verified::{MAX_GROUPS, STEP_GROUPS};
use super::{BlockBackend, Operation, RESET_PATIENCE, Ticket};

/// Requests in flight: as many as a queue holds chains. Each has one entry in the
/// ring at a time.
const IN_FLIGHT: u32 = 256;
/// Worker threads that the kernel may start for one ring, of the kind that serves
/// files, and of the other, which is not used here.
const WORKERS: [u32; 2] = [4, 1];
/// A write that takes longer has waited for the disk.
const SLOW_WRITE: Duration = Duration::from_millis(1);
/// For so long afterwards, writes go through the ring.
const SLOW_SPELL: Duration = Duration::from_millis(100);
/// `f_type` of files that are nothing but memory (statfs(2)): nothing waits there.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `f_type` of files that somebody else serves, perhaps over a network, and may cease
/// to: FUSE (virtiofs too), NFS, CIFS, SMB2, Ceph, 9P, AFS, Coda, Lustre, GFS2, OCFS2
/// (linux/magic.h and the file systems' own sources).
const SERVED_MAGICS: [i64; 11] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x5346_414f,
    0x7375_7245,
    0x0bd0_0bd0,
    0x0116_1970,
    0x7461_636f,
];

/// What may be done at once, without the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shortcuts {
    /// What does not wait.
    Quick,
    /// Nothing: for tests.
    #[cfg(test)]
    None,
}

/// The disk.
pub struct RingDisk {
    disk: ExtentDisk,
    /// What each of its files lies on.
    storage: Vec<Storage>,
    ring: IoUring,
    event: EventFd,
    requests: Vec<Option<Request>>,
    free: Vec<u32>,
    /// Groups that requests in flight may have in memory.
    reserved: usize,
    shortcuts: Shortcuts,
    writes_slow_until: Option<Instant>,
}

struct Request {
    ticket: Ticket,
    /// The step that is in the ring last, those after it before.
    steps: Vec<Step>,
    /// Groups that one of its steps has in memory, at most.
    groups: usize,
}

impl RingDisk {
    /// Makes a ring for `disk`, or gives it back with the reason why there is
    /// none.
    pub fn new(disk: ExtentDisk) -> Result<Self, (ExtentDisk, io::Error)> {
        Self::with(disk, Shortcuts::Quick)
    }

    /// One that does nothing at once, so that tests see everything in flight.
    #[cfg(test)]
    pub fn without_shortcuts(disk: ExtentDisk) -> Result<Self, (ExtentDisk, io::Error)> {
        Self::with(disk, Shortcuts::None)
    }

    fn with(disk: ExtentDisk, shortcuts: Shortcuts) -> Result<Self, (ExtentDisk, io::Error)> {
        let (ring, event) = match create_ring(&disk) {
            Ok(made) => made,
            Err(error) => return Err((disk, error)),
        };
        let storage = disk.files().iter().map(|file| Storage::of(file)).collect();
        Ok(Self {
            disk,
            storage,
            ring,
            event,
            requests: (0..IN_FLIGHT).map(|_| None).collect(),
            free: (0..IN_FLIGHT).rev().collect(),
            reserved: 0,
            shortcuts,
            writes_slow_until: None,
        })
    }

    /// Goes through the steps that need no ring; `Some` after the last one.
    fn advance(&mut self, request: &mut Request) -> Option<io::Result<()>> {
        while let Some(step) = request.steps.last_mut() {
            self.disk.begin(step);
            let result = at_once(
                step,
                &self.disk,
                &self.storage,
                self.shortcuts,
                &mut self.writes_slow_until,
            )?;
            match step.advance(result, self.disk.verification()) {
                Progress::Done => {
                    request.steps.pop();
                }
                Progress::Again => {}
                Progress::After(step) => request.steps.push(step),
                Progress::Failed(error) => return Some(Err(error)),
            }
        }
        Some(Ok(()))
    }

    /// Goes on with `request`, in slot `slot` of those in flight if need be.
    fn go_on(&mut self, slot: u32, mut request: Request) -> Option<io::Result<()>> {
        let result = self.advance(&mut request);
        let Some(step) = request.steps.last().filter(|_| result.is_none()) else {
            self.retire(slot, request.groups);
            return result.or(Some(Ok(())));
        };
        let served = self.storage[step.file] == Storage::Served;
        let entry = entry(step)
            .flags(match served {
                // By a worker from the start: else the kernel may try it in this thread
                // first, and wait there, as it does for FUSE.
                true => squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC,
                false => squeue::Flags::FIXED_FILE,
            })
            .user_data(slot.into());
        // SAFETY: the entry points to the step's list of iovecs, which stays where
        // it is in `requests` until the completion is taken, and these to guest
        // memory, which stays mapped, or to memory of the step's own, which stays where
        // it is as long. `Drop` waits for all completions.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Impossible: the ring has an entry for each slot.
            self.retire(slot, request.groups);
            return Some(Err(io::Error::from(io::ErrorKind::OutOfMemory)));
        }
        self.requests[slot as usize] = Some(request);
        None
    }

    /// Takes a slot back, and what its request had reserved.
    fn retire(&mut self, slot: u32, groups: usize) {
        self.free.push(slot);
        self.reserved -= groups;
        if self.reserved == 0 {
            self.disk.verification().rest();
        }
    }

    /// A request whose entry the kernel is done with, and what it says.
    fn take_completed(&mut self) -> Option<(u32, Request, io::Result<u64>)> {
        let entry = self.ring.completion().next()?;
        let slot = entry.user_data() as u32;
        let request = self.requests.get_mut(slot as usize)?.take()?;
        let result = u64::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        Some((slot, request, result))
    }
}

/// What a file lies on, by how long it may make one wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// Memory: never.
    Memory,
    /// A disk of this host's.
    Local,
    /// Somebody serves it: without end.
    Served,
}

impl Storage {
    fn of(file: &File) -> Self {
        match fstatfs(file).map(|stat| stat.f_type) {
            Ok(TMPFS_MAGIC) => Self::Memory,
            Ok(magic) if SERVED_MAGICS.contains(&magic) => Self::Served,
            _ => Self::Local,
        }
    }
}

/// Whether `file` is nothing but memory.
pub(super) fn in_memory(file: &File) -> bool {
    Storage::of(file) == Storage::Memory
}

/// Does `step` now if that does not wait for a disk.
fn at_once(
    step: &Step,
    disk: &ExtentDisk,
    storage: &[Storage],
    shortcuts: Shortcuts,
    writes_slow_until: &mut Option<Instant>,
) -> Option<io::Result<u64>> {
    if step.is_read() {
        return Some(Ok(0));
    }
    if shortcuts != Shortcuts::Quick {
        return None;
    }
    let file = &disk.files()[step.file];
    match storage[step.file] {
        Storage::Memory => return Some(step.run(file)),
        Storage::Served => return None,
        Storage::Local => {}
    }
    if let Some(buffers) = step.action.fills() {
        return match buffers.read(file, step.offset, libc::RWF_NOWAIT) {
            // Nothing may mean the end, or not: some kernels are mistaken there
            // (preadv2(2), BUGS). The ring knows better.
            Ok(0) | Err(_) => None,
            done => Some(done),
        };
    }
    match &step.action {
        Action::Write(_) => {
            let before = Instant::now();
            if writes_slow_until.is_some_and(|until| before < until) {
                return None;
            }
            let result = step.run(file);
            let after = Instant::now();
            let slow = after.duration_since(before) > SLOW_WRITE;
            *writes_slow_until = slow.then(|| after + SLOW_SPELL);
            Some(result)
        }
        _ => None,
    }
}

/// A ring that can do what [`entry`] makes, with the files of `disk`, and no more.
fn create_ring(disk: &ExtentDisk) -> io::Result<(IoUring, EventFd)> {
    let ring = IoUring::builder().setup_r_disabled().build(IN_FLIGHT)?;
    if !ring.params().is_feature_nodrop() {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let numbers: Vec<_> = disk.files().iter().map(AsRawFd::as_raw_fd).collect();
    let submitter = ring.submitter();
    submitter.register_files(&numbers)?;
    submitter.register_eventfd(event.as_raw_fd())?;
    submitter.register_iowq_max_workers(&mut { WORKERS })?;
    let fixed_file = squeue::Flags::FIXED_FILE.bits();
    let asynchronous = squeue::Flags::ASYNC.bits();
    submitter.register_restrictions(&mut [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_allowed(fixed_file | asynchronous),
        Restriction::sqe_flags_required(fixed_file),
    ])?;
    submitter.register_enable_rings()?;
    Ok((ring, event))
}

fn entry(step: &Step) -> squeue::Entry {
    // No descriptor: an index into the ring's own table.
    let file = types::Fixed(step.file as u32);
    let fallocate = |mode, length: u64| {
        opcode::Fallocate::new(file, length)
            .offset(step.offset)
            .mode(mode)
            .build()
    };
    if let Some(buffers) = step.action.fills() {
        let iovecs = buffers.iovecs();
        return opcode::Readv::new(file, iovecs.as_ptr(), iovecs.len() as u32)
            .offset(step.offset)
            .build();
    }
    match &step.action {
        // Told above.
        Action::Read(_) | Action::Check(_) | Action::Nodes(_) => opcode::Nop::new().build(),
        Action::Write(buffers) => {
            let iovecs = buffers.iovecs();
            opcode::Writev::new(file, iovecs.as_ptr(), iovecs.len() as u32)
                .offset(step.offset)
                .build()
        }
        Action::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Action::Discard(length) | Action::ZeroByHole(length) => fallocate(PUNCH_HOLE, *length),
        Action::Zero(length) => fallocate(ZERO_RANGE, *length),
    }
}

impl BlockBackend for RingDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn start(&mut self, ticket: Ticket, operation: Operation) -> Option<io::Result<()>> {
        let Some(slot) = self.free.pop() else {
            return Some(Err(io::Error::from(io::ErrorKind::OutOfMemory)));
        };
        let steps = self.disk.plan(operation);
        let groups = steps.iter().map(Step::groups).max().unwrap_or(0);
        self.reserved += groups;
        let request = Request {
            ticket,
            steps,
            groups,
        };
        self.go_on(slot, request)
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() && self.reserved + STEP_GROUPS <= MAX_GROUPS
    }

    fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        // What the kernel did not take, for want of memory or for a signal, it is
        // offered again in the next turn.
        let _ = self.ring.submit();
        if !self.ring.submission().is_empty() {
            self.wake();
        }
    }

    fn complete(&mut self) -> Option<(Ticket, io::Result<()>)> {
        loop {
            let (slot, mut request, result) = self.take_completed()?;
            let ticket = request.ticket;
            let progress = match request.steps.last_mut() {
                Some(step) => step.advance(result, self.disk.verification()),
                None => Progress::Done,
            };
            match progress {
                Progress::Done => {
                    request.steps.pop();
                }
                Progress::Again => {}
                Progress::After(step) => request.steps.push(step),
                Progress::Failed(error) => {
                    self.retire(slot, request.groups);
                    return Some((ticket, Err(error)));
                }
            }
            if let Some(result) = self.go_on(slot, request) {
                return Some((ticket, result));
            }
        }
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the eventfd is open for as long as `self`, which is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) })
    }

    fn acknowledge(&mut self) {
        let _ = self.event.read();
    }

    fn wake(&mut self) {
        let _ = self.event.write(1);
    }

    fn wait(&mut self, patience: Duration) -> bool {
        let begin = Instant::now();
        loop {
            while let Some((slot, request, _)) = self.take_completed() {
                self.retire(slot, request.groups);
            }
            if self.free.len() == self.requests.len() {
                self.acknowledge();
                return true;
            }
            let left = patience.saturating_sub(begin.elapsed());
            let timeout = types::Timespec::from(left);
            let args = types::SubmitArgs::new().timespec(&timeout);
            // An error is the end of the time, a signal, or want of memory, and passes.
            let _ = self.ring.submitter().submit_with_args(1, &args);
            if left.is_zero() && self.ring.completion().is_empty() {
                return false;
            }
        }
    }
}

impl Drop for RingDisk {
    fn drop(&mut self) {
        // Without end: the kernel has addresses of what is dropped.
        while !self.wait(RESET_PATIENCE) {}
    }
}

#[cfg(test)]
pub(super) mod tests;
