//! COM1: a 16550 that prints to one descriptor and reads from another.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;

/// The UART, shared by the vCPUs and, where it has input, the event loop.
pub struct SerialPort {
    uart: Mutex<Uart>,
}

type Uart = Serial<Interrupt, Drained, Output>;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the event loop that the guest has read all its input.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // Non-blocking: a counter nobody has read yet says the same.
        let _ = self.0.write(1);
    }
}

/// Writes what the guest prints, never fails and never waits: a full pipe or a
/// reader that is gone costs the guest its output, not its life.
struct Output(Option<File>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.0 {
            match file.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.0 = None,
                _ => {}
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// A UART that prints to `output`, which does not block, and interrupts through
    /// `interrupt`.
    pub fn new(output: File, interrupt: EventFd) -> io::Result<Arc<Self>> {
        let drained = Drained(EventFd::new(EFD_NONBLOCK)?);
        let uart = Serial::with_events(Interrupt(interrupt), drained, Output(Some(output)));
        Ok(Arc::new(Self {
            uart: Mutex::new(uart),
        }))
    }

    fn with<R>(&self, act: impl FnOnce(&mut Uart) -> R) -> R {
        // The UART holds no invariant that a panic elsewhere could break.
        act(&mut self.uart.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Repeated string accesses arrive as one: each byte is one access to
        // the same register.
        self.with(|uart| data.fill_with(|| uart.read(offset as u8)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.with(|uart| {
            for byte in data {
                // Only the interrupt can fail, and an eventfd refuses nothing
                // but an overflow of 2^64 - 2 unread interrupts.
                let _ = uart.write(offset as u8, *byte);
            }
        });
    }
}

/// Carries bytes from a descriptor into the UART as fast as the guest reads.
pub struct SerialInput {
    input: File,
    drained: EventFd,
    port: Arc<SerialPort>,
}

impl SerialInput {
    /// Input for `port` from `input`, which must be something to poll: a pipe,
    /// a socket or a terminal.
    pub fn new(input: File, port: Arc<SerialPort>) -> io::Result<Self> {
        let drained = port.with(|uart| uart.events().0.try_clone())?;
        Ok(Self {
            input,
            drained,
            port,
        })
    }

    fn forward(&mut self) -> io::Result<Forwarded> {
        let room = self.port.with(|uart| uart.fifo_capacity());
        if room == 0 {
            return Ok(Forwarded::NoRoom);
        }
        let mut bytes = [0; 64];
        let limit = room.min(bytes.len());
        let length = self.input.read(&mut bytes[..limit])?;
        if length == 0 {
            return Ok(Forwarded::End);
        }
        let queued = self
            .port
            .with(|uart| uart.enqueue_raw_bytes(&bytes[..length]).map(|_| ()));
        debug_assert!(!matches!(queued, Err(vm_superio::serial::Error::FullFifo)));
        Ok(Forwarded::Bytes)
    }
}

enum Forwarded {
    Bytes,
    NoRoom,
    End,
}

impl MutEventSubscriber for SerialInput {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let input = Events::new(&self.input, EventSet::IN);
        if events.fd() == self.drained.as_raw_fd() {
            let _ = self.drained.read();
            // Fails, harmlessly, if input was being watched all along.
            let _ = ops.add(input);
            return;
        }
        match self.forward() {
            Ok(Forwarded::Bytes) => {}
            // Comes back when the guest has read what it has.
            Ok(Forwarded::NoRoom) => {
                let _ = ops.remove(input);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Ok(Forwarded::End) | Err(_) => {
                let _ = ops.remove(input);
                let _ = ops.remove(Events::new(&self.drained, EventSet::IN));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // A regular file cannot be polled; `config` has refused it.
        let _ = ops.add(Events::new(&self.input, EventSet::IN));
        let _ = ops.add(Events::new(&self.drained, EventSet::IN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (Arc<SerialPort>, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let output = File::from(std::os::fd::OwnedFd::from(writer));
        let port = SerialPort::new(output, EventFd::new(0).unwrap()).unwrap();
        (port, reader)
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let (port, mut reader) = port();
        port.write(0, b"boot");
        port.write(0, b"\n");
        drop(port);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "boot\n");
    }

    #[test]
    fn a_reader_that_is_gone_does_not_stop_the_guest() {
        let (port, reader) = port();
        drop(reader);
        for _ in 0..3 {
            port.write(0, b"lost");
        }
    }

    #[test]
    fn input_reaches_the_guest_in_order() {
        let (port, _reader) = port();
        let (input_reader, mut input_writer) = std::io::pipe().unwrap();
        let input = File::from(std::os::fd::OwnedFd::from(input_reader));
        let mut input = SerialInput::new(input, port.clone()).unwrap();
        input_writer.write_all(b"hi").unwrap();
        assert!(matches!(input.forward().unwrap(), Forwarded::Bytes));
        let mut byte = [0; 2];
        port.read(0, &mut byte);
        assert_eq!(&byte, b"hi");
        drop(input_writer);
        assert!(matches!(input.forward().unwrap(), Forwarded::End));
    }
}
