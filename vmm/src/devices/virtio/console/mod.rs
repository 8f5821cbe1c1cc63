//! virtio-console (virtio 1.3, section 5.3): one port, which is a terminal.
//!
//! [`output`] is where the guest's text goes, [`handle`] how the terminal changes its
//! size. This file is the device.

pub mod handle;
pub mod output;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::Bytes;
use vmm_sys_util::epoll::EventSet;

use super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use super::watch::Watch;
use super::{VirtioDevice, read_config_bytes};
use crate::memory::GuestMemory;
use handle::{ConsoleHandle, DeviceEnd, Size};
use output::Output;

/// `VIRTIO_CONSOLE_F_SIZE` (section 5.3.3).
const F_SIZE: u64 = 1 << 0;

/// Queue indices of port 0 (section 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE; 2];

/// Bytes that are read or written at once, on the stack.
const PIECE_BYTES: usize = 4096;
/// The most text that is taken from one chain: what is longer is cut. Linux sends a
/// page from its console, and 32 KiB from a port.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// `struct virtio_console_config` up to `rows`; what follows is for features that are
/// not offered.
const CONFIG_BYTES: usize = 4;

/// Indices into [`Watch`].
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const RESIZED: usize = 2;

/// Where text comes from.
#[derive(Debug)]
struct Input {
    file: File,
    /// Set by the watch, cleared by a read that finds nothing.
    readable: bool,
}

/// The device.
pub struct Console {
    size: Size,
    configuration_changed: bool,
    /// Whether the driver was told its size since it began to use each queue.
    told_size: [bool; 2],
    host: DeviceEnd,
    input: Option<Input>,
    output: Output,
    watch: Watch,
}

impl Console {
    /// A terminal of `size` that prints to `output` and reads from `input`, and the
    /// host's handle of it. Both descriptors become non-blocking, for whoever shares
    /// them too (`O_NONBLOCK`, fcntl(2)).
    pub fn new(
        name: String,
        input: Option<File>,
        output: File,
        size: Size,
    ) -> io::Result<(Self, ConsoleHandle)> {
        let (host, handle) = handle::pair(name, size)?;
        let watch = Watch::new([])?;
        watch.add(host.as_fd(), RESIZED, EventSet::IN)?;
        do_not_block(&output)?;
        unless_always_ready(watch.add(output.as_fd(), OUTPUT, EventSet::OUT))?;
        if let Some(input) = &input {
            do_not_block(input)?;
            unless_always_ready(watch.add(input.as_fd(), INPUT, EventSet::IN))?;
        }
        let device = Self {
            size,
            configuration_changed: false,
            told_size: [false; 2],
            host,
            input: input.map(|file| Input {
                file,
                readable: true,
            }),
            output: Output::new(output),
            watch,
        };
        Ok((device, handle))
    }

    /// Fills the driver's buffers while there are both buffers and input.
    fn receive(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let Some(input) = &mut self.input else {
            return Ok(Drained::Empty);
        };
        let memory = queues.memory();
        let mut budget = QUEUE_SIZE;
        let mut used = false;
        let drained = loop {
            if !input.readable {
                break Drained::Empty;
            }
            // Each turn counts, also one that finds nothing: a driver may move its
            // index forth and back.
            let Some(left) = budget.checked_sub(1) else {
                break Drained::Again;
            };
            budget = left;
            let Some(chain) = queues.pop(RECEIVE)? else {
                if queues.want_doorbell(RECEIVE, true)? {
                    continue;
                }
                break Drained::Empty;
            };
            let head = chain.head_index();
            match input.fill(memory, chain)? {
                Some(written) => {
                    queues.push_used(RECEIVE, head, written)?;
                    used = true;
                }
                None => queues.unpop(RECEIVE),
            }
        };
        if used {
            queues.notify(RECEIVE)?;
        }
        Ok(drained)
    }

    fn transmit(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        let output = &mut self.output;
        queues.drain(TRANSMIT, |chain| print(memory, chain, output))
    }
}

impl Input {
    /// Fills a chain with what there is; `None` if there is nothing.
    fn fill(&mut self, memory: &GuestMemory, chain: Chain) -> Result<Option<u32>, DeviceFault> {
        let lengths = chain.clone().writable().map(|piece| piece.len() as usize);
        let room = lengths.fold(0_usize, usize::saturating_add);
        let room = room.min(PIECE_BYTES);
        if room == 0 {
            return Ok(Some(0));
        }
        let mut bytes = [0; PIECE_BYTES];
        let count = match self.file.read(&mut bytes[..room]) {
            Ok(count) if count > 0 => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            // Nothing, or nothing for good: the watch tells if there is more.
            Ok(_) | Err(_) => {
                self.readable = false;
                return Ok(None);
            }
        };
        let mut rest = &bytes[..count];
        for piece in chain.writable() {
            let (now, later) = rest.split_at(rest.len().min(piece.len() as usize));
            memory
                .write_slice(now, piece.addr())
                .map_err(|_| DeviceFault::Chain {
                    queue: RECEIVE,
                    reason: "a buffer for input lies outside guest memory",
                })?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        // At most PIECE_BYTES.
        Ok(Some((count - rest.len()) as u32))
    }
}

fn print(memory: &GuestMemory, chain: Chain, output: &mut Output) -> Result<Served, DeviceFault> {
    let mut left = MAX_TEXT_BYTES;
    let mut bytes = [0; PIECE_BYTES];
    for descriptor in chain.readable() {
        let mut address = descriptor.addr();
        let mut length = (descriptor.len() as usize).min(left);
        left -= length;
        while length > 0 {
            let bytes = &mut bytes[..length.min(PIECE_BYTES)];
            let outside = |_| DeviceFault::Chain {
                queue: TRANSMIT,
                reason: "text outside guest memory",
            };
            memory.read_slice(bytes, address).map_err(outside)?;
            output.send(bytes);
            length -= bytes.len();
            // An address that wraps around is not memory either.
            address.0 = address.0.wrapping_add(bytes.len() as u64);
        }
    }
    Ok(Served {
        written: 0,
        moved: (MAX_TEXT_BYTES - left) as u64,
    })
}

fn do_not_block(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// What cannot be watched is never waited for.
fn unless_always_ready(watched: io::Result<()>) -> io::Result<()> {
    match watched {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..2].copy_from_slice(&self.size.columns.to_le_bytes());
        config[2..].copy_from_slice(&self.size.rows.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn take_configuration_change(&mut self) -> bool {
        std::mem::take(&mut self.configuration_changed)
    }

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        // Linux takes a terminal to be 0 by 0 until it is told of a change: before it gives
        // buffers away it has no terminal to set the size of, and may have none until it
        // prints.
        if let Some(told @ false) = self.told_size.get_mut(index) {
            *told = true;
            self.configuration_changed = true;
        }
        match index {
            RECEIVE => self.receive(queues),
            TRANSMIT => self.transmit(queues),
            _ => Ok(Drained::Empty),
        }
    }

    /// Nothing of the driver's is kept; text on its way still arrives.
    fn reset(&mut self) {
        self.told_size = [false; 2];
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let (input, output) = (&mut self.input, &mut self.output);
        self.watch.poll(|index, _| match index {
            INPUT => input.iter_mut().for_each(|input| input.readable = true),
            OUTPUT => output.flush(),
            _ => {}
        });
        let size = self.host.size();
        self.configuration_changed |= size != self.size;
        self.size = size;
        // Without a driver the input stays where it is.
        let Some(queues) = queues else { return Ok(()) };
        if self.receive(queues)? == Drained::Again {
            self.watch.wake_again();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
