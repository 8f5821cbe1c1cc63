//! Requests that take their time: reset in between, out of order, too many,
//! limited, and without room.

use std::collections::VecDeque;
use std::sync::Mutex;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::super::limiter::Rate;
use super::super::super::mmio::register;
use super::super::super::mock::{QUEUE_SIZE, VERSION_1};
use super::*;

/// What a test decides about a disk.
#[derive(Default)]
struct Script {
    in_flight: VecDeque<Ticket>,
    done: VecDeque<(Ticket, io::Result<()>)>,
    room: usize,
    waited: usize,
    waited_in_vain: usize,
    started: usize,
    hangs: bool,
}

/// A disk whose requests are done when the test says so.
struct Scripted {
    script: Arc<Mutex<Script>>,
    event: EventFd,
}

impl BlockBackend for Scripted {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn start(&mut self, ticket: Ticket, _: Operation) -> Option<io::Result<()>> {
        let mut script = self.script.lock().unwrap();
        script.started += 1;
        script.in_flight.push_back(ticket);
        None
    }

    fn has_room(&self) -> bool {
        let script = self.script.lock().unwrap();
        script.in_flight.len() < script.room
    }

    fn complete(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.script.lock().unwrap().done.pop_front()
    }

    fn wake(&mut self) {
        self.event.write(1).unwrap();
    }

    fn wait(&mut self, _: Duration) -> bool {
        let mut script = self.script.lock().unwrap();
        if script.hangs {
            script.waited_in_vain += 1;
            return script.in_flight.is_empty();
        }
        script.in_flight.clear();
        script.done.clear();
        script.waited += 1;
        true
    }
}

fn scripted(room: usize) -> (MockDriver, Arc<Mutex<Script>>) {
    let script = Arc::new(Mutex::new(Script {
        room,
        ..Script::default()
    }));
    let backend = Scripted {
        script: Arc::clone(&script),
        event: EventFd::new(EFD_NONBLOCK).unwrap(),
    };
    (driver_of(Box::new(backend), Limits::default()), script)
}

/// Completes the request that was begun as number `index` of those in flight.
fn complete(driver: &MockDriver, script: &Mutex<Script>, index: usize, result: io::Result<()>) {
    let mut locked = script.lock().unwrap();
    let ticket = locked.in_flight.remove(index).unwrap();
    locked.done.push_back((ticket, result));
    drop(locked);
    driver.transport.process_backend();
}

/// Makes `count` reads of a sector each available, and rings once.
fn offer_reads(driver: &mut MockDriver, count: u16) {
    put_header(driver, VIRTIO_BLK_T_IN, 0);
    for index in 0..count {
        let status = STATUS + u64::from(index);
        driver.put(status, &[UNANSWERED]);
        let pieces = [(HEADER, 16, 0), (DATA, 512, WRITE), (status, 1, WRITE)];
        driver.submit_at(0, index * 3, &pieces);
    }
    driver.transport.process_queue(0);
}

#[test]
fn requests_are_returned_in_the_order_in_which_they_are_done() {
    let (mut driver, script) = scripted(8);
    offer_reads(&mut driver, 3);
    assert_eq!(driver.take_used(0), []);
    assert_eq!(driver.take_interrupt(), 0);
    complete(&driver, &script, 2, Ok(()));
    assert_eq!(driver.take_interrupt(), 1);
    let failed = io::Error::from(io::ErrorKind::UnexpectedEof);
    complete(&driver, &script, 0, Err(failed));
    complete(&driver, &script, 0, Ok(()));
    assert_eq!(driver.take_used(0), [(6, 513), (0, 1), (3, 513)]);
    assert_eq!(driver.bytes(STATUS, 3), [IO_ERROR, OK, OK]);
}

#[test]
fn what_is_in_flight_is_waited_for_at_a_reset_and_never_returned() {
    let (mut driver, script) = scripted(8);
    offer_reads(&mut driver, 3);
    let stale = script.lock().unwrap().in_flight[0];
    driver.start(VERSION_1);
    assert!(script.lock().unwrap().waited > 0);
    assert!(script.lock().unwrap().in_flight.is_empty());
    driver.transport.process_backend();
    assert_eq!(driver.take_used(0), []);
    assert_eq!(driver.bytes(stale.status.0, 1), [UNANSWERED]);
}

#[test]
fn what_is_in_flight_is_waited_for_when_the_queue_is_taken_away() {
    let (mut driver, script) = scripted(8);
    offer_reads(&mut driver, 2);
    let before = script.lock().unwrap().waited;
    driver.write(register::QUEUE_SEL, 0);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(script.lock().unwrap().waited, before + 1);
    driver.transport.process_backend();
    assert_eq!(driver.bytes(STATUS, 2), [UNANSWERED; 2]);
}

#[test]
fn no_more_is_begun_than_there_is_room_for() {
    let (mut driver, script) = scripted(2);
    offer_reads(&mut driver, 5);
    assert_eq!(script.lock().unwrap().started, 2);
    // Ringing again changes nothing; each that is done makes room for one.
    driver.transport.process_queue(0);
    assert_eq!(script.lock().unwrap().started, 2);
    for done in 1..=5 {
        complete(&driver, &script, 0, Ok(()));
        assert_eq!(script.lock().unwrap().started, (2 + done).min(5));
    }
    assert_eq!(driver.take_used(0).len(), 5);
}

#[test]
fn a_disk_without_room_is_an_io_error_and_one_event() {
    let (mut driver, script) = scripted(8);
    let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
    let write = |driver: &mut MockDriver, result| {
        put_header(driver, VIRTIO_BLK_T_OUT, 0);
        driver.submit(0, &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
        complete(driver, &script, 0, result);
        status(driver)
    };
    for _ in 0..10 {
        assert_eq!(write(&mut driver, full()), IO_ERROR);
    }
    // A guest that overwrites what it has in between is no louder.
    assert_eq!(write(&mut driver, Ok(())), OK);
    assert_eq!(write(&mut driver, full()), IO_ERROR);
    let device = "blk0".to_owned();
    assert_eq!(driver.events(), [EventKind::DiskFull { device }]);
}

#[test]
fn a_full_disk_is_told_again_after_a_change_and_a_while() {
    let minute = DISK_FULL_PAUSE.as_nanos() as u64;
    let mut full = Full::default();
    assert!(full.refused(5));
    assert!(!full.refused(5 + 2 * minute));
    full.written();
    assert!(full.refused(6 + 2 * minute));
    full.written();
    assert!(!full.refused(7 + 2 * minute));
}

#[test]
fn a_limited_disk_serves_what_it_may_and_the_rest_when_tokens_return() {
    let operations = Some(Rate {
        per_second: 1000,
        burst: 2,
    });
    for backend in [Backend::Plain, Backend::RingOnly] {
        let limits = Limits {
            bandwidth: None,
            operations,
        };
        let (mut driver, _) = driver_on(backend, true, limits);
        offer_reads(&mut driver, 5);
        assert_eq!(driver.wait_for_used(0, 5).len(), 5);
        assert_eq!(driver.bytes(STATUS, 5), [OK; 5]);
    }
}

#[test]
fn a_limit_can_be_lifted_while_requests_wait_for_it() {
    let slow = Limits {
        bandwidth: Some(Rate {
            per_second: 1,
            burst: 1,
        }),
        operations: None,
    };
    let (mut driver, _) = driver_on(Backend::Plain, true, slow);
    offer_reads(&mut driver, 5);
    // One passes for the token there was; the next would in 512 seconds.
    assert_eq!(driver.take_used(0).len(), 1);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0), []);
    assert_eq!(driver.transport.set_limits(None, Limits::default()), Ok(()));
    assert_eq!(driver.wait_for_used(0, 4).len(), 4);
}

#[test]
fn a_limited_disk_can_be_reset() {
    let slow = Limits {
        bandwidth: None,
        operations: Some(Rate {
            per_second: 1,
            burst: 1,
        }),
    };
    let (mut driver, _) = driver_on(Backend::Plain, true, slow);
    offer_reads(&mut driver, 5);
    assert_eq!(driver.take_used(0).len(), 1);
    driver.start(VERSION_1);
    assert_eq!(driver.transport.set_limits(None, Limits::default()), Ok(()));
    driver.transport.process_timer(0);
    assert_eq!(
        request(&mut driver, VIRTIO_BLK_T_IN, 0, 512, WRITE),
        (OK, 513)
    );
}

#[test]
fn a_file_that_shrinks_under_a_disk_fails_its_reads_on_every_backend() {
    for backend in [Backend::Plain, Backend::Ring, Backend::RingOnly] {
        let (mut driver, file) = driver_on(backend, false, Limits::default());
        file.set_len(700).unwrap();
        let mut read = |sector| request(&mut driver, VIRTIO_BLK_T_IN, sector, 512, WRITE);
        assert_eq!(read(0), (OK, 513));
        assert_eq!(read(1), (IO_ERROR, 1), "half a sector is there");
        assert_eq!(read(9), (IO_ERROR, 1));
        assert_eq!(driver.faults(), [""; 0]);
    }
}

#[test]
fn no_read_of_an_earlier_life_reaches_memory_after_a_reset() {
    let (mut driver, _) = driver_on(Backend::RingOnly, true, Limits::default());
    for _ in 0..200 {
        put_header(&driver, VIRTIO_BLK_T_IN, 0);
        for index in 0..QUEUE_SIZE / 3 {
            let data = DATA + u64::from(index) * DISK_BYTES as u64;
            let pieces = [
                (HEADER, 16, 0),
                (data, DISK_BYTES as u32, WRITE),
                (STATUS, 1, WRITE),
            ];
            driver.submit_at(0, index * 3, &pieces);
        }
        driver.transport.process_queue(0);
        driver.start(VERSION_1);
        let buffers = vec![0x77; 5 * DISK_BYTES];
        driver.put(DATA, &buffers);
        driver.put(STATUS, &[UNANSWERED]);
        driver.transport.process_backend();
        std::thread::yield_now();
        assert!(driver.bytes(DATA, buffers.len()) == buffers);
        assert_eq!(status(&driver), UNANSWERED);
        assert_eq!(driver.take_used(0), []);
    }
    assert_eq!(
        request(&mut driver, VIRTIO_BLK_T_IN, 0, 512, WRITE),
        (OK, 513)
    );
}

#[test]
fn a_reset_is_not_over_before_a_disk_that_hangs_has_ended_what_was_begun() {
    let (mut driver, script) = scripted(4);
    offer_reads(&mut driver, 2);
    script.lock().unwrap().hangs = true;
    driver.reset();
    // Nobody waits; the driver sees that it is not over, and can do nothing meanwhile.
    assert_ne!(driver.status(), 0);
    assert!(!driver.negotiate(VERSION_1));
    driver.reset();
    driver.write(register::QUEUE_SEL, 0);
    assert_eq!(
        driver.read(register::QUEUE_READY),
        1,
        "it may be written to"
    );
    assert_eq!(driver.faults().len(), 1);
    script.lock().unwrap().in_flight.pop_front();
    driver.transport.process_backend();
    assert_ne!(driver.status(), 0);
    script.lock().unwrap().in_flight.pop_front();
    driver.transport.process_backend();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    script.lock().unwrap().hangs = false;
    driver.start(VERSION_1);
    offer_reads(&mut driver, 1);
    complete(&driver, &script, 0, Ok(()));
    assert_eq!(driver.take_used(0).len(), 1);
    assert_eq!(driver.faults().len(), 1);
}

#[test]
fn a_queue_of_a_disk_that_hangs_is_not_gone_and_the_device_asks_for_reset() {
    let (mut driver, script) = scripted(4);
    offer_reads(&mut driver, 1);
    script.lock().unwrap().hangs = true;
    driver.write(register::QUEUE_SEL, 0);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    assert!(driver.needs_reset());
    // Once more costs no more patience.
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(script.lock().unwrap().waited_in_vain, 1);
    script.lock().unwrap().in_flight.clear();
    driver.transport.process_backend();
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    driver.start(VERSION_1);
    assert!(!driver.needs_reset());
}
