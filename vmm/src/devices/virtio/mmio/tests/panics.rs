//! A device that panics, in each call in turn.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::*;
use crate::devices::virtio::limiter::Limiter;
use crate::devices::virtio::mock::BUFFERS;
use crate::devices::virtio::queues::Served;
use crate::devices::virtio::worker::QueueWorker;
use crate::event_loop::EventLoop;
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::pause::PauseGate;

/// The calls that a driver, a backend or the agent can bring about while a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Nothing,
    ReadConfig,
    WriteConfig,
    TakeConfigurationChange,
    Activate,
    HandOver,
    ProcessQueue,
    QueueTakenAway,
    ProcessBackend,
    Limiters,
    Reset,
}

/// All but the reset.
const CALLS: [Call; 9] = [
    Call::ReadConfig,
    Call::WriteConfig,
    Call::TakeConfigurationChange,
    Call::Activate,
    Call::HandOver,
    Call::ProcessQueue,
    Call::QueueTakenAway,
    Call::ProcessBackend,
    Call::Limiters,
];

/// Panics in one call, once.
#[derive(Clone, Default)]
struct Trap(Arc<AtomicU32>);

impl Trap {
    fn set(&self, call: Call) {
        self.0.store(call as u32, Ordering::SeqCst);
    }

    fn spring(&self, call: Call) {
        let armed = call as u32;
        let sprung = self
            .0
            .compare_exchange(armed, 0, Ordering::SeqCst, Ordering::SeqCst);
        assert!(sprung.is_err(), "in {call:?}");
    }
}

struct Fragile {
    trap: Trap,
    backend: EventFd,
    limiter: Limiter,
    /// Of the backend, which it forgets to acknowledge after a panic.
    looks: Arc<AtomicU32>,
}

impl VirtioDevice for Fragile {
    fn name(&self) -> &str {
        "fragile"
    }
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(7);
        self.trap.spring(Call::ReadConfig);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {
        self.trap.spring(Call::WriteConfig);
    }
    fn take_configuration_change(&mut self) -> bool {
        self.trap.spring(Call::TakeConfigurationChange);
        false
    }
    fn activate(&mut self, _: u64) {
        self.trap.spring(Call::Activate);
    }
    fn hand_over(&mut self, _: u64, _: &[Queue], _: &[EventFd]) -> Result<(), DeviceFault> {
        self.trap.spring(Call::HandOver);
        Ok(())
    }
    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        self.trap.spring(Call::ProcessQueue);
        queues.drain(index, |_| {
            Ok(Served {
                written: 0,
                moved: 0,
            })
        })
    }
    fn reset(&mut self) {
        self.trap.spring(Call::Reset);
    }
    fn queue_taken_away(&mut self, _: usize) {
        self.trap.spring(Call::QueueTakenAway);
    }
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: open for as long as the eventfd, which is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.backend.as_raw_fd()) })
    }
    fn process_backend(&mut self, _: Option<&mut Queues>) -> Result<(), DeviceFault> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.trap.spring(Call::ProcessBackend);
        let _ = self.backend.read();
        Ok(())
    }
    fn limiters(&mut self) -> &mut [Limiter] {
        self.trap.spring(Call::Limiters);
        std::slice::from_mut(&mut self.limiter)
    }
}

struct Set {
    driver: MockDriver,
    trap: Trap,
    backend: EventFd,
    looks: Arc<AtomicU32>,
}

fn set() -> Set {
    let trap = Trap::default();
    let backend = EventFd::new(EFD_NONBLOCK).unwrap();
    let looks = Arc::default();
    let device = Fragile {
        trap: trap.clone(),
        backend: backend.try_clone().unwrap(),
        limiter: Limiter::new(Limits::default()).unwrap(),
        looks: Arc::clone(&looks),
    };
    let mut driver = MockDriver::new(device);
    driver.start(VERSION_1);
    Set {
        driver,
        trap,
        backend,
        looks,
    }
}

/// Does what leads to `call`.
fn provoke(driver: &mut MockDriver, call: Call) {
    let transport = Arc::clone(&driver.transport);
    match call {
        Call::Nothing | Call::Reset => {}
        Call::ReadConfig => {
            let mut bytes = [1; 4];
            transport.read(register::CONFIG, &mut bytes);
            assert_eq!(bytes, [0; 4]);
        }
        Call::WriteConfig => transport.write(register::CONFIG, &[1]),
        Call::Activate | Call::HandOver => driver.start(VERSION_1),
        Call::ProcessQueue | Call::TakeConfigurationChange => transport.process_queue(0),
        Call::QueueTakenAway => {
            driver.write(register::QUEUE_SEL, 0);
            driver.write(register::QUEUE_READY, 0);
            assert_eq!(driver.read(register::QUEUE_READY), 0);
        }
        Call::ProcessBackend => transport.process_backend(),
        Call::Limiters => assert_eq!(
            transport.set_limits(None, Limits::default()),
            Err(LimitsRefused::Broken)
        ),
    }
}

/// The device takes buffers and gives them back.
fn works(driver: &mut MockDriver) -> bool {
    driver.submit(0, &[(BUFFERS, 4, 0)]);
    driver.take_used(0).len() == 1
}

#[test]
fn a_panic_in_any_call_stops_the_device_until_its_reset() {
    for call in CALLS {
        let Set {
            mut driver, trap, ..
        } = set();
        assert!(works(&mut driver));
        let _ = driver.take_interrupt();
        trap.set(call);
        provoke(&mut driver, call);
        assert!(driver.needs_reset(), "{call:?}");
        assert_eq!(driver.take_interrupt(), 2, "{call:?}");
        let reason = format!("the device panicked at in {call:?}");
        assert_eq!(driver.faults(), std::slice::from_ref(&reason));
        // It is not called until then, whatever is done.
        for other in CALLS {
            trap.set(other);
            if !matches!(other, Call::Activate | Call::HandOver) {
                provoke(&mut driver, other);
            }
        }
        trap.set(Call::Nothing);
        assert!(!works(&mut driver), "{call:?}");
        assert!(!driver.transport.listens(), "{call:?}");
        assert_eq!(driver.read(register::DEVICE_ID), 42);
        driver.start(VERSION_1);
        assert!(!driver.needs_reset());
        assert!(works(&mut driver), "{call:?}");
        assert!(driver.transport.listens());
        assert_eq!(driver.faults(), [reason]);
    }
}

#[test]
fn each_reset_allows_for_one_event() {
    let Set {
        mut driver, trap, ..
    } = set();
    for count in 1..10 {
        trap.set(Call::ProcessQueue);
        for _ in 0..10 {
            driver.transport.process_queue(0);
        }
        assert_eq!(driver.faults().len(), count);
        driver.start(VERSION_1);
    }
}

#[test]
fn a_device_that_panics_in_its_reset_is_dead_and_answers_its_registers() {
    for broken_before in [false, true] {
        let Set {
            mut driver, trap, ..
        } = set();
        if broken_before {
            trap.set(Call::ProcessQueue);
            driver.transport.process_queue(0);
        }
        trap.set(Call::Reset);
        driver.reset();
        assert_eq!(driver.status(), 0);
        for _ in 0..10 {
            driver.reset();
            assert!(!driver.negotiate(VERSION_1), "it agrees to nothing");
            driver.add_status(DRIVER_OK);
            assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
            assert!(!works(&mut driver));
        }
        for call in CALLS {
            trap.set(call);
            if !matches!(call, Call::Activate | Call::HandOver) {
                provoke(&mut driver, call);
            }
        }
        assert_eq!(driver.read(register::DEVICE_ID), 42);
        assert_eq!(driver.read(register::MAGIC_VALUE), MAGIC);
        let last = "the device panicked while it was reset, and is dead, at in Reset";
        assert_eq!(driver.faults().last().unwrap(), last);
        assert_eq!(driver.faults().len(), 1 + usize::from(broken_before));
        assert_eq!(driver.transport.life_cycle().1, LifeCycle::Idle);
    }
}

/// Acts each time that the event loop comes round, with the number of the round.
struct EachRound<F>(EventFd, u32, F);

impl<F: FnMut(u32) + Send> MutEventSubscriber for EachRound<F> {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.1 += 1;
        (self.2)(self.1);
    }
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }
}

#[test]
fn a_broken_device_does_not_keep_the_event_loop_busy_and_is_heard_again_after_its_reset() {
    let Set {
        mut driver,
        trap,
        backend,
        looks,
    } = set();
    let exit = ExitLine::new().unwrap();
    let gate = PauseGate::new(0).unwrap();
    let mut event_loop = EventLoop::new(Arc::clone(&exit), gate).unwrap();
    let worker = QueueWorker::new(Arc::clone(&driver.transport));
    event_loop.add(Box::new(worker));
    let act = move |round| {
        let looks = looks.load(Ordering::SeqCst);
        match round {
            1 => {
                trap.set(Call::ProcessBackend);
                // And it stays ready: nobody acknowledges it.
                backend.write(1).unwrap();
            }
            50 => {
                assert_eq!(looks, 1);
                assert!(driver.needs_reset());
                driver.start(VERSION_1);
            }
            100 => {
                assert_eq!(looks, 2);
                assert!(!driver.needs_reset());
                trap.set(Call::Reset);
                driver.reset();
                backend.write(1).unwrap();
            }
            150 => {
                // One round it takes to find out.
                assert!(looks <= 3);
                exit.pull(ExitReason::Quit);
            }
            _ => {}
        }
    };
    let always = EventFd::new(EFD_NONBLOCK).unwrap();
    always.write(1).unwrap();
    event_loop.add(Box::new(EachRound(always, 0, act)));
    assert_eq!(event_loop.run().unwrap(), ExitReason::Quit);
}
