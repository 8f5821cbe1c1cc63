//! Text both ways, and sizes, seen by a driver.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::super::mmio::register;
use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{BUFFERS, MockDriver, QUEUE_SIZE, VERSION_1, WRITE};
use super::output::BACKLOG_BYTES;
use super::*;

const SIZE: Size = Size {
    columns: 80,
    rows: 25,
};
const FEATURES: u64 = VERSION_1 | F_SIZE;
const CONFIGURATION_CHANGE: u32 = 2;

/// A console, and its ends outside.
struct Terminal {
    driver: MockDriver,
    handle: ConsoleHandle,
    keyboard: Option<PipeWriter>,
    screen: PipeReader,
}

fn file(fd: impl Into<OwnedFd>) -> File {
    File::from(fd.into())
}

fn terminal() -> Terminal {
    let (input, keyboard) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let name = "console0".to_owned();
    let (device, handle) = Console::new(name, Some(file(input)), file(output), SIZE).unwrap();
    let mut driver = MockDriver::new(device);
    driver.start(FEATURES);
    Terminal {
        driver,
        handle,
        keyboard: Some(keyboard),
        screen,
    }
}

impl Terminal {
    fn type_in(&mut self, text: &[u8]) {
        self.keyboard.as_mut().unwrap().write_all(text).unwrap();
        self.driver.transport.process_backend();
    }

    /// What was printed so far.
    fn seen(&mut self) -> Vec<u8> {
        let count = rustix::io::ioctl_fionread(&self.screen).unwrap();
        let mut bytes = vec![0; count as usize];
        self.screen.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn size(&self) -> (u32, u32) {
        let size = self.driver.read(register::CONFIG);
        (size & 0xffff, size >> 16)
    }
}

#[test]
fn what_the_guest_prints_comes_out_in_order() {
    let mut terminal = terminal();
    let driver = &mut terminal.driver;
    driver.put(BUFFERS, b"one, two");
    driver.submit(
        TRANSMIT,
        &[(BUFFERS, 3, 0), (BUFFERS + 3, 0, 0), (BUFFERS + 3, 5, 0)],
    );
    driver.submit(TRANSMIT, &[(BUFFERS, 3, 0)]);
    assert_eq!(driver.take_used(TRANSMIT), [(0, 0), (0, 0)]);
    assert_eq!(terminal.seen(), b"one, twoone");
}

#[test]
fn input_waits_for_buffers_and_fills_them_in_order() {
    let mut terminal = terminal();
    terminal.type_in(b"hello");
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 2, WRITE), (BUFFERS + 0x100, 2, WRITE)]);
    driver.submit(RECEIVE, &[(BUFFERS + 0x200, 64, WRITE)]);
    assert_eq!(driver.take_used(RECEIVE), [(0, 4), (0, 1)]);
    assert_eq!(driver.bytes(BUFFERS, 2), b"he");
    assert_eq!(driver.bytes(BUFFERS + 0x100, 2), b"ll");
    assert_eq!(driver.bytes(BUFFERS + 0x200, 1), b"o");
}

#[test]
fn buffers_wait_for_input() {
    let mut terminal = terminal();
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 64, WRITE)]);
    assert_eq!(driver.take_used(RECEIVE), []);
    terminal.type_in(b"x");
    assert_eq!(terminal.driver.take_used(RECEIVE), [(0, 1)]);
    assert_eq!(terminal.driver.bytes(BUFFERS, 1), b"x");
}

#[test]
fn input_that_nobody_takes_does_not_keep_the_event_loop_awake() {
    let mut terminal = terminal();
    terminal.type_in(b"hello");
    let number = terminal.driver.transport.backend().unwrap();
    assert!(!is_ready(number));
    // Nor does the end of it.
    drop(terminal.keyboard.take());
    terminal.driver.transport.process_backend();
    assert!(!is_ready(number));
}

fn is_ready(number: i32) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    // SAFETY: open for as long as the device lives, which the caller holds.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let mut watched = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn the_end_of_input_leaves_buffers_with_the_device() {
    let mut terminal = terminal();
    drop(terminal.keyboard.take());
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 64, WRITE)]);
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RECEIVE), []);
    driver.put(BUFFERS, b"still here");
    driver.submit(TRANSMIT, &[(BUFFERS, 10, 0)]);
    assert_eq!(terminal.seen(), b"still here");
}

#[test]
fn buffers_without_room_come_back_empty() {
    let mut terminal = terminal();
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 64, 0)]);
    terminal.type_in(b"x");
    assert_eq!(terminal.driver.take_used(RECEIVE), [(0, 0)]);
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 64, WRITE)]);
    assert_eq!(driver.take_used(RECEIVE), [(0, 1)]);
}

#[test]
fn a_reader_that_is_gone_costs_the_text_and_nothing_else() {
    let Terminal {
        mut driver, screen, ..
    } = terminal();
    drop(screen);
    for _ in 0..40 {
        driver.submit(TRANSMIT, &[(BUFFERS, 4096, 0)]);
    }
    assert_eq!(driver.take_used(TRANSMIT).len(), 40);
    assert!(!driver.needs_reset());
}

#[test]
fn a_slow_reader_gets_what_fits_and_then_what_follows() {
    let mut terminal = terminal();
    let capacity = rustix::pipe::fcntl_getpipe_size(&terminal.screen).unwrap();
    let printed: Vec<u8> = (0..256 << 10).map(|n: u32| (n / 4096) as u8).collect();
    terminal.driver.put(BUFFERS, &printed);
    let pieces = [(BUFFERS, printed.len() as u32, 0)];
    terminal.driver.submit(TRANSMIT, &pieces);
    assert_eq!(terminal.driver.take_used(TRANSMIT), [(0, 0)]);
    let mut seen = Vec::new();
    loop {
        let some = terminal.seen();
        if some.is_empty() {
            break;
        }
        seen.extend(some);
        terminal.driver.transport.process_backend();
    }
    // The pipe's and ours, without a gap.
    assert_eq!(seen.len(), capacity + BACKLOG_BYTES);
    assert!(printed.starts_with(&seen));
    terminal.driver.put(BUFFERS, b"later");
    terminal.driver.submit(TRANSMIT, &[(BUFFERS, 5, 0)]);
    assert_eq!(terminal.seen(), b"later");
}

#[test]
fn text_without_end_is_cut() {
    let (_, keyboard) = std::io::pipe().unwrap();
    drop(keyboard);
    let output = rustix::fs::memfd_create("screen", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let screen = File::from(output.try_clone().unwrap());
    let (device, _handle) = Console::new("console0".to_owned(), None, file(output), SIZE).unwrap();
    let mut driver = MockDriver::started(device);
    driver.submit(TRANSMIT, &[(0, 0x10_0000, 0); 16]);
    assert_eq!(driver.take_used(TRANSMIT), [(0, 0)]);
    assert_eq!(screen.metadata().unwrap().len(), MAX_TEXT_BYTES as u64);
}

#[test]
fn a_new_size_is_announced_once_and_changes_the_generation() {
    let terminal = terminal();
    let driver = &terminal.driver;
    assert_eq!(terminal.size(), (80, 25));
    let generation = driver.read(register::CONFIG_GENERATION);
    let size = Size {
        columns: 200,
        rows: 50,
    };
    terminal.handle.resize(size);
    driver.transport.process_backend();
    assert_eq!(driver.take_interrupt(), CONFIGURATION_CHANGE);
    assert_eq!(terminal.size(), (200, 50));
    assert_ne!(driver.read(register::CONFIG_GENERATION), generation);
    // The same again is no change.
    terminal.handle.resize(size);
    driver.transport.process_backend();
    assert_eq!(driver.take_interrupt(), 0);
}

#[test]
fn a_driver_is_told_to_look_at_the_size_when_it_begins_to_use_a_queue() {
    let mut terminal = terminal();
    let driver = &mut terminal.driver;
    for _ in 0..2 {
        for (queue, flags) in [(RECEIVE, WRITE), (TRANSMIT, 0)] {
            driver.submit(queue, &[(BUFFERS, 1, flags)]);
            assert_ne!(driver.take_interrupt() & CONFIGURATION_CHANGE, 0);
            driver.submit(queue, &[(BUFFERS, 1, flags)]);
            assert_eq!(driver.take_interrupt() & CONFIGURATION_CHANGE, 0);
        }
        // As is one that comes after it.
        driver.reset();
        driver.start(FEATURES);
        driver.take_interrupt();
    }
}

#[test]
fn a_size_told_before_there_is_a_driver_is_there_when_it_comes() {
    let mut terminal = terminal();
    terminal.driver.reset();
    let size = Size {
        columns: 1,
        rows: u16::MAX,
    };
    terminal.handle.resize(size);
    terminal.driver.transport.process_backend();
    terminal.driver.start(FEATURES);
    assert_eq!(terminal.driver.take_interrupt(), 0);
    assert_eq!(terminal.size(), (1, 0xffff));
}

#[test]
fn input_typed_before_there_is_a_driver_is_not_lost() {
    let mut terminal = terminal();
    terminal.driver.reset();
    terminal.type_in(b"early");
    terminal.driver.start(FEATURES);
    let driver = &mut terminal.driver;
    driver.submit(RECEIVE, &[(BUFFERS, 64, WRITE)]);
    assert_eq!(driver.take_used(RECEIVE), [(0, 5)]);
}

#[test]
fn text_and_buffers_outside_memory_are_faults() {
    let mut terminal = terminal();
    terminal.driver.submit(TRANSMIT, &[(1 << 40, 4, 0)]);
    assert!(terminal.driver.needs_reset());
    terminal.driver.start(FEATURES);
    terminal.driver.submit(TRANSMIT, &[(u64::MAX, u32::MAX, 0)]);
    assert!(terminal.driver.needs_reset());
    terminal.driver.start(FEATURES);
    terminal.type_in(b"x");
    terminal.driver.submit(RECEIVE, &[(1 << 40, 4, WRITE)]);
    assert!(terminal.driver.needs_reset());
    assert_eq!(terminal.driver.faults().len(), 3);
}

proptest! {
    /// However text is cut into chains and pieces, it comes out as it went in.
    #[test]
    fn text_comes_out_whole_however_it_is_cut(
        chains in proptest::collection::vec(
            proptest::collection::vec(0_u32..600, 1..QUEUE_SIZE as usize), 1..6),
    ) {
        let mut terminal = terminal();
        let total: u32 = chains.iter().flatten().sum();
        let text: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
        terminal.driver.put(BUFFERS, &text);
        let mut at = BUFFERS;
        for chain in &chains {
            let pieces: Vec<_> = chain.iter().map(|length| {
                let piece = (at, *length, 0);
                at += u64::from(*length);
                piece
            }).collect();
            terminal.driver.submit(TRANSMIT, &pieces);
        }
        prop_assert_eq!(terminal.driver.take_used(TRANSMIT).len(), chains.len());
        prop_assert_eq!(terminal.seen(), text);
    }

    /// However the driver cuts its buffers, they hold what was typed.
    #[test]
    fn input_arrives_whole_however_buffers_are_cut(
        length in 0_usize..2000,
        chains in proptest::collection::vec(
            proptest::collection::vec(0_u32..300, 1..6), 1..30),
    ) {
        let mut terminal = terminal();
        let text: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        terminal.type_in(&text);
        let driver = &mut terminal.driver;
        let mut arrived = Vec::new();
        for chain in &chains {
            let pieces: Vec<_> = chain.iter().zip(0..)
                .map(|(length, index)| (BUFFERS + index * 0x200, *length, WRITE))
                .collect();
            driver.submit(RECEIVE, &pieces);
            let used = driver.take_used(RECEIVE);
            let Some((_, written)) = used.first() else { break };
            let mut left = *written;
            for (address, length, _) in pieces {
                let now = left.min(length);
                arrived.extend(driver.bytes(address, now as usize));
                left -= now;
            }
        }
        prop_assert!(text.starts_with(&arrived));
        let room: u32 = chains.iter().flatten().sum();
        prop_assert_eq!(arrived.len(), length.min(room as usize));
    }

    /// Whatever a driver does, while text and sizes arrive.
    #[test]
    fn no_driver_breaks_the_device(acts in any_acts(2), text in any::<[u8; 32]>()) {
        let mut terminal = terminal();
        terminal.type_in(&text);
        terminal.handle.resize(Size { columns: 1, rows: 1 });
        play(&mut terminal.driver, &acts)?;
    }
}
