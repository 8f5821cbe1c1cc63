//! What a driver does, good or bad, one act after the other, and what a device may
//! do meanwhile.

use std::ops::Range;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{Bytes, GuestAddress};

use super::{
    BUFFERS, Descriptor, MEMORY_BYTES, MockDriver, QUEUE_BYTES, QUEUE_SIZE, USED, VERSION_1, WRITE,
    register,
};
use crate::bus::BusDevice;
use crate::event::EventKind;

/// Where indirect tables are, behind the buffers of good requests.
pub const TABLES: u64 = BUFFERS + 0x8_0000;
pub const TABLE_BYTES: u64 = 0x400;
pub const TABLE_COUNT: u64 = 8;
/// Not memory: a device's window, past the end, and where addition wraps.
pub const OUTSIDE: [u64; 4] = [0xd000_0000, 1 << 40, u64::MAX - 15, u64::MAX];
/// What a device may change around a used ring: its flags, index and event index.
const USED_BYTES: u64 = 0x100;

/// One thing a driver does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Writes a descriptor into the table of a queue.
    Describe(usize, u16, Descriptor),
    /// Writes a descriptor into an indirect table.
    DescribeIndirect(u64, u16, Descriptor),
    /// Makes a chain available.
    Offer(usize, u16),
    /// Sets the available index to anything.
    SetAvailable(usize, u16),
    /// Rings.
    Notify(usize),
    /// Waits a little: the backend has its turn.
    LetWork,
    /// Writes anything to a register, or to the configuration space.
    WriteRegister(u64, Vec<u8>),
    /// Reads so many bytes there.
    ReadRegister(u64, usize),
    /// Writes into memory, as far as there is some.
    Put(u64, Vec<u8>),
    /// Resets the device and starts it again.
    Reset,
    /// Takes a queue away.
    TakeAway(usize),
    /// Resets the device and starts it with this queue's three areas here, in
    /// memory or not, on top of each other or not.
    Place(usize, [u64; 3]),
}

/// A driver and a device at it. It is the device's business not to panic; here is
/// checked that it writes nowhere but into buffers that it was given to write and
/// into used rings, faults once in a life at most, and lets go of everything when it
/// is reset.
pub struct Play {
    lives: usize,
    watch: Watch,
}

impl Play {
    /// Begins with a driver that has started with its queues where they usually are.
    pub fn new(driver: &MockDriver) -> Self {
        Self {
            lives: 1,
            watch: Watch::new(driver),
        }
    }

    /// Does one thing more; fails if the device has done what it must not.
    pub fn act(&mut self, driver: &mut MockDriver, act: &Act) -> Result<(), String> {
        match act {
            Act::Describe(queue, index, descriptor) => {
                let [table, ..] = MockDriver::queue_addresses(*queue);
                let at = table + u64::from(*index) * 16;
                self.watch.described(driver, at, descriptor);
                driver.describe(*queue, *index, *descriptor);
            }
            Act::DescribeIndirect(table, index, descriptor) => {
                let at = TABLES + table * TABLE_BYTES + u64::from(*index) * 16;
                self.watch.described(driver, at, descriptor);
                driver.describe_at(at, *descriptor);
            }
            Act::Offer(queue, head) => driver.offer(*queue, *head),
            Act::SetAvailable(queue, index) => driver.set_available(*queue, *index),
            Act::Notify(queue) => driver.transport.process_queue(*queue),
            Act::LetWork => {
                let_others_work();
                driver.transport.process_backend();
            }
            Act::WriteRegister(offset, bytes) => self.write_register(driver, *offset, bytes)?,
            Act::ReadRegister(offset, length) => {
                driver.transport.read(*offset, &mut vec![0; *length]);
            }
            Act::Put(address, bytes) => {
                self.watch.allow(driver, *address, bytes.len() as u64);
                // Past the end there is nothing to write to.
                let _ = driver.memory.write(bytes, GuestAddress(*address));
            }
            Act::Reset => {
                self.end_life(driver)?;
                driver.start(VERSION_1);
                self.watch.begin(driver);
            }
            Act::TakeAway(queue) => {
                driver.write(register::QUEUE_SEL, *queue as u32);
                driver.write(register::QUEUE_READY, 0);
            }
            Act::Place(queue, areas) => {
                self.end_life(driver)?;
                driver.negotiate(VERSION_1);
                driver.place_queue(*queue as u32, QUEUE_SIZE.into(), *areas);
                driver.add_status(super::DRIVER_OK);
                // What it makes of its own rings is its business, and is nowhere
                // but in memory.
                self.watch.blind = true;
            }
        }
        Ok(())
    }

    /// Resets the device, looks at what it has left, and starts it once more.
    pub fn end(mut self, driver: &mut MockDriver) -> Result<(), String> {
        self.end_life(driver)?;
        let events = driver.events();
        let is_fault = |event: &&EventKind| matches!(event, EventKind::DeviceFault { .. });
        let (faults, lives) = (events.iter().filter(is_fault).count(), self.lives);
        if faults >= lives {
            return Err(format!("{faults} faults in {} lives", lives - 1));
        }
        driver.start(VERSION_1);
        // Nothing of an earlier life comes back.
        self.watch.begin(driver);
        let_others_work();
        driver.transport.process_backend();
        self.watch.check(driver)?;
        match driver.needs_reset() {
            false => Ok(()),
            true => Err("a fault of an earlier life".to_owned()),
        }
    }

    fn end_life(&mut self, driver: &mut MockDriver) -> Result<(), String> {
        self.lives += 1;
        driver.reset();
        self.watch.check(driver)
    }

    fn write_register(
        &mut self,
        driver: &mut MockDriver,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        match offset {
            register::STATUS if bytes == [0; 4] => {
                self.end_life(driver)?;
                self.watch.blind = true;
            }
            // The driver may have put its rings anywhere when it goes on.
            register::QUEUE_DESC_LOW..=register::QUEUE_DEVICE_HIGH => self.watch.blind = true,
            _ => {}
        }
        driver.transport.write(offset, bytes);
        Ok(())
    }
}

/// Gives the kernel a moment for what a ring has begun. Only unit tests have rings;
/// where many inputs are tried a moment is long.
fn let_others_work() {
    if cfg!(test) {
        std::thread::yield_now();
    }
}

/// Which bytes the device may change, in one life of it.
struct Watch {
    /// What all of memory was when the life began.
    before: Vec<u8>,
    /// Ranges that may have changed since.
    may_change: Vec<Range<u64>>,
    /// Nobody can say what may change.
    blind: bool,
}

/// How much is compared at once: a page.
const CHUNK: usize = 0x1000;

impl Watch {
    fn new(driver: &MockDriver) -> Self {
        let mut watch = Self {
            before: vec![0; MEMORY_BYTES as usize],
            may_change: Vec::new(),
            blind: false,
        };
        watch.begin(driver);
        watch
    }

    /// Begins anew, with memory as it is now.
    fn begin(&mut self, driver: &MockDriver) {
        let start = GuestAddress(0);
        driver.memory.read_slice(&mut self.before, start).unwrap();
        self.may_change.clear();
        self.blind = false;
        for queue in 0..driver.queues.len() {
            let [_, available, used] = MockDriver::queue_addresses(queue);
            // The driver's own area changes by the driver.
            self.mark(available, USED - super::AVAILABLE);
            self.mark(used, USED_BYTES);
        }
        // What any descriptor that is there already says.
        let tables = (0..driver.queues.len())
            .map(|queue| {
                let [table, ..] = MockDriver::queue_addresses(queue);
                (table, 16 * u64::from(QUEUE_SIZE))
            })
            .chain([(TABLES, TABLE_COUNT * TABLE_BYTES)]);
        for (table, bytes) in tables {
            for at in (table..table + bytes).step_by(16) {
                let Some(bytes) = self.before[at as usize..].first_chunk::<16>() else {
                    continue;
                };
                // `struct virtq_desc`: address, length, flags, next.
                let descriptor = u128::from_le_bytes(*bytes);
                if (descriptor >> 96) as u16 & WRITE != 0 {
                    let length = (descriptor >> 64) as u32;
                    self.allow(driver, descriptor as u64, length.into());
                }
            }
        }
    }

    fn mark(&mut self, address: u64, length: u64) {
        self.may_change
            .push(address..address.saturating_add(length));
    }

    /// From now on these bytes may be anything. If there are descriptors among them,
    /// or what says which count, nobody can say any more what else may change.
    fn allow(&mut self, driver: &MockDriver, address: u64, length: u64) {
        let end = address.saturating_add(length);
        let meets = |start: u64, bytes: u64| address < start + bytes && start < end;
        let rings = driver.queues.len() as u64 * QUEUE_BYTES;
        if meets(0, rings) || meets(TABLES, TABLE_COUNT * TABLE_BYTES) {
            self.blind = true;
        }
        self.mark(address, length);
    }

    /// The driver writes a descriptor `at` an address; from now on the device may
    /// do what it says, and the descriptor itself is the driver's change.
    fn described(&mut self, driver: &MockDriver, at: u64, descriptor: &Descriptor) {
        self.mark(at, 16);
        if descriptor.flags & WRITE != 0 {
            self.allow(driver, descriptor.address, descriptor.length.into());
        }
    }

    fn check(&self, driver: &MockDriver) -> Result<(), String> {
        if self.blind {
            return Ok(());
        }
        // The driver of a balloon gives whole pages away, and has them back empty; it may
        // have written to them since.
        let may_empty_pages = driver.read(register::DEVICE_ID) == VIRTIO_ID_BALLOON;
        let mut after = [0; CHUNK];
        for (before, start) in self.before.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let after = &mut after[..before.len()];
            driver
                .memory
                .read_slice(after, GuestAddress(start))
                .unwrap();
            if before == after {
                continue;
            }
            let changed = (start..).zip(before.iter().zip(&*after));
            let changed = changed.filter(|(_, (before, after))| {
                before != after && !(may_empty_pages && **after == 0)
            });
            for (address, _) in changed {
                if !self.may_change.iter().any(|range| range.contains(&address)) {
                    return Err(format!("the device wrote to {address:#x}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
