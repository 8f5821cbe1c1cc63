//! The pause gate: brings all vCPUs out of the guest and holds them outside.
//!
//! ```text
//!            request              last vCPU parks          confirm
//! Running ───────────► Pausing ───────────────────► Held ──────────► Paused
//!    ▲                    │                          │                 │
//!    └────────────────────┴────────── resume ────────┴─────────────────┘
//! ```
//!
//! The event loop requests and resumes; it confirms once the devices rest too.
//! A vCPU is kicked by a signal whose handler sets `kvm_run.immediate_exit`: it
//! leaves `KVM_RUN` if it is there, wherever in it (running, halted, waiting for
//! a startup IPI), and does not stay if it is about to enter (KVM API,
//! "immediate_exit"). Nobody waits for a vCPU: the gate's event tells of changes.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Error as SignalError, block_signal, unblock_signal};

/// How far a pause has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The guest runs.
    Running,
    /// The vCPUs have been asked to leave the guest.
    Pausing,
    /// All vCPUs are parked; devices may still serve what they have been given.
    Held,
    /// Nothing of the guest's goes on.
    Paused,
}

/// Where one vCPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuPlace {
    /// Its thread has no seat at the gate yet.
    Starting,
    /// In the guest, or answering for it.
    Running,
    /// Outside, until the guest is resumed.
    Parked,
}

/// Shared by the vCPU threads and the event loop.
#[derive(Debug)]
pub struct PauseGate {
    /// This process, to which the signals go.
    process: u32,
    state: Mutex<State>,
    /// Whether `state` says anything but [`Phase::Running`]; for the vCPUs to
    /// look at before each entry.
    closed: AtomicBool,
    opened: Condvar,
    changed: EventFd,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// How many vCPUs are parked.
    parked: usize,
}

#[derive(Debug, Default)]
struct Slot {
    /// The thread's id; 0 before it has its seat.
    thread: AtomicI32,
    parked: AtomicBool,
}

impl PauseGate {
    /// An open gate for `vcpus` vCPUs. Installs the handler of the kick signal.
    pub fn new(vcpus: usize) -> io::Result<Arc<Self>> {
        install_handler()?;
        Ok(Arc::new(Self {
            process: std::process::id(),
            state: Mutex::new(State {
                phase: Phase::Running,
                parked: 0,
            }),
            closed: AtomicBool::new(false),
            opened: Condvar::new(),
            changed: EventFd::new(EFD_NONBLOCK)?,
            slots: (0..vcpus).map(|_| Slot::default()).collect(),
        }))
    }

    /// Asks all vCPUs to leave the guest. Without effect unless it runs.
    pub fn request(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Running {
            return;
        }
        state.phase = Phase::Pausing;
        self.closed.store(true, Ordering::SeqCst);
        // Who has not yet left after a resume is parked all along.
        self.hold_if_all_parked(&mut state);
        drop(state);
        for slot in &self.slots {
            slot.kick(self.process);
        }
    }

    /// The devices rest: what was [`Phase::Held`] is [`Phase::Paused`].
    pub fn confirm(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Held {
            state.phase = Phase::Paused;
            self.tell();
        }
    }

    /// Lets the guest run again, however far a pause has come.
    pub fn resume(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Running {
            state.phase = Phase::Running;
            self.closed.store(false, Ordering::SeqCst);
            self.opened.notify_all();
            self.tell();
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Where each vCPU is.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuPlace> {
        self.slots.iter().map(|slot| {
            if slot.parked.load(Ordering::SeqCst) {
                VcpuPlace::Parked
            } else if slot.thread.load(Ordering::SeqCst) == 0 {
                VcpuPlace::Starting
            } else {
                VcpuPlace::Running
            }
        })
    }

    /// Readable after each change of the phase but the step to
    /// [`Phase::Pausing`], until it is read.
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Makes the calling thread, which is `thread`, the one of vCPU `index`, which runs
    /// `vcpu` and nothing else as long as the seat lives. Without a system call.
    pub fn take_seat(&self, index: usize, vcpu: &mut VcpuFd, thread: KickedThread) -> Seat<'_> {
        let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
        self.seat(index, immediate_exit.cast(), thread)
    }

    /// `immediate_exit` must stay valid for as long as the seat lives.
    fn seat(
        &self,
        index: usize,
        immediate_exit: *const AtomicU8,
        thread: KickedThread,
    ) -> Seat<'_> {
        let slot = &self.slots[index];
        IMMEDIATE_EXIT.set(immediate_exit);
        slot.thread.store(thread.id, Ordering::SeqCst);
        Seat {
            gate: self,
            slot,
            immediate_exit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold_if_all_parked(&self, state: &mut State) {
        if state.phase == Phase::Pausing && state.parked == self.slots.len() {
            state.phase = Phase::Held;
            self.tell();
        }
    }

    fn tell(&self) {
        // Non-blocking; a counter nobody has read yet says the same.
        let _ = self.changed.write(1);
    }
}

impl Slot {
    /// Signals the thread, if it has its seat. One that has not looks at `closed`
    /// after it has set `thread`; the caller has set `closed` before.
    fn kick(&self, process: u32) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: tgkill(2) only takes numbers. The thread lasts until the
            // process ends; were it gone, the call would fail.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, KICK) };
        }
    }
}

/// A thread that takes kicks.
pub struct KickedThread {
    id: libc::pid_t,
    /// It is no other thread's.
    _here: PhantomData<*const ()>,
}

impl KickedThread {
    /// The calling thread, from now on.
    pub fn here() -> Self {
        // The signal may have been blocked in whoever started this process. It
        // can only fail for numbers that are no signals.
        let _ = unblock_signal(KICK);
        Self {
            // SAFETY: gettid(2) has no arguments and does not fail.
            id: unsafe { libc::gettid() },
            _here: PhantomData,
        }
    }
}

/// A vCPU thread's place at the gate.
pub struct Seat<'a> {
    gate: &'a PauseGate,
    slot: &'a Slot,
    immediate_exit: *const AtomicU8,
}

impl Seat<'_> {
    /// Whether to stay out of the guest and [`park`](Self::park). To be asked
    /// before each entry: a kick that comes after the answer makes the entry
    /// return at once.
    pub fn is_wanted_outside(&self) -> bool {
        self.set_immediate_exit(0);
        self.gate.closed.load(Ordering::SeqCst)
    }

    /// Makes `KVM_RUN` finish the access it returned for last and then return
    /// without entering the guest, until [`Self::is_wanted_outside`] is asked.
    pub fn stay_outside(&self) {
        self.set_immediate_exit(1);
    }

    /// Waits for the guest to be resumed.
    pub fn park(&self) {
        let gate = self.gate;
        let mut state = gate.lock();
        self.slot.parked.store(true, Ordering::SeqCst);
        state.parked += 1;
        gate.hold_if_all_parked(&mut state);
        while state.phase != Phase::Running {
            state = gate
                .opened
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        self.slot.parked.store(false, Ordering::SeqCst);
    }

    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: points into the vCPU's `kvm_run`, which stays mapped while the
        // seat lives (`take_seat`). It is written by this thread and its signal
        // handler alone, always atomically.
        unsafe { &*self.immediate_exit }.store(value, Ordering::SeqCst);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null in other threads.
    /// Constant and without destructor, so that a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// The signal of a kick. No real-time one: those queue up, within a limit, for a
/// vCPU that has no processor to run on while the guest is paused again and again.
const KICK: libc::c_int = libc::SIGUSR1;

extern "C" fn leave_guest(_signal: libc::c_int) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: as in `Seat::set_immediate_exit`; the pointer is null again
        // before the seat is gone.
        unsafe { &*immediate_exit }.store(1, Ordering::SeqCst);
    }
}

/// Keeps the signal of kicks from this thread: whoever sends it to the process as a
/// whole kicks a vCPU, which does no harm. What a return from its handler takes, only
/// filters of vCPUs allow.
pub fn leave_kicks_to_vcpus() -> io::Result<()> {
    // It fails where the signal is blocked already, too, which is as good.
    match block_signal(KICK) {
        Ok(()) | Err(SignalError::SignalAlreadyBlocked(_)) => Ok(()),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

fn install_handler() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags, nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = leave_guest as *const () as libc::sighandler_t;
    // `KVM_RUN` is interrupted all the same; a write to a slow console is not,
    // and loses nothing.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action is complete, and its handler does nothing that a signal
    // handler must not: it reads a thread-local and stores an atomic.
    let result = unsafe { libc::sigaction(KICK, &raw const action, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
