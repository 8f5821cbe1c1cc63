//! What a driver that means no good might do, for the property tests of any
//! device: chains that loop or are too long, tables within tables, addresses past
//! the end, rings on top of each other, resets in between.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{
    BUFFERS, Descriptor, INDIRECT, MEMORY_BYTES, MockDriver, NEXT, QUEUE_SIZE, VERSION_1, WRITE,
    register,
};

/// Where indirect tables are, behind the buffers of good requests.
const TABLES: u64 = BUFFERS + 0x8_0000;
const TABLE_BYTES: u64 = 0x400;
const TABLE_COUNT: u64 = 8;
/// Not memory: a device's window, past the end, and where addition wraps.
const OUTSIDE: [u64; 4] = [0xd000_0000, 1 << 40, u64::MAX - 15, u64::MAX];

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
    /// Resets the device and starts it again.
    Reset,
    /// Takes a queue away.
    TakeAway(usize),
    /// Resets the device and starts it with this queue's three areas here, in
    /// memory or not, on top of each other or not.
    Place(usize, [u64; 3]),
}

/// A descriptor. Mostly near what makes sense: a random address would be outside
/// memory nearly always, and a random length too large.
pub fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        8 => (0_u64..8).prop_map(|index| BUFFERS + index * 0x40),
        8 => (0_u64..0x100).prop_map(|page| BUFFERS + page * 0x100),
        4 => (0..TABLE_COUNT).prop_map(|index| TABLES + index * TABLE_BYTES),
        1 => MEMORY_BYTES - 0x200..MEMORY_BYTES + 0x200,
        1 => proptest::sample::select(&OUTSIDE[..]),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        4 => Just(16_u32),
        4 => Just(512),
        2 => Just(1),
        2 => (0_u32..64).prop_map(|entries| entries * 16),
        2 => 0_u32..0x2000,
        1 => Just(0),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        2 => Just(NEXT),
        2 => Just(NEXT | WRITE),
        2 => Just(WRITE),
        2 => Just(0),
        2 => Just(INDIRECT),
        1 => Just(INDIRECT | NEXT),
        1 => any::<u16>(),
    ];
    (address, length, flags, 0..QUEUE_SIZE + 1).prop_map(|(address, length, flags, next)| {
        // What a table holds must be known, or nobody could say what it permits.
        let elsewhere = flags & INDIRECT != 0 && address < MEMORY_BYTES;
        Descriptor {
            address: match elsewhere {
                true => TABLES + address % TABLE_COUNT * TABLE_BYTES,
                false => address,
            },
            length,
            flags,
            next,
        }
    })
}

fn any_area() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0_u64..64).prop_map(|index| index * 0x10),
        2 => (0_u64..16).prop_map(|page| page * 0x1000),
        1 => MEMORY_BYTES - 0x200..MEMORY_BYTES,
        1 => proptest::sample::select(&OUTSIDE[..]),
    ]
}

/// What a driver does with the queues of a device that has so many.
pub fn any_acts(queues: usize) -> impl Strategy<Value = Vec<Act>> {
    let describe = (0..queues, 0..QUEUE_SIZE, any_descriptor())
        .prop_map(|(queue, index, descriptor)| Act::Describe(queue, index, descriptor));
    let indirect = (0..TABLE_COUNT, 0_u16..64, any_descriptor())
        .prop_map(|(table, index, descriptor)| Act::DescribeIndirect(table, index, descriptor));
    let areas = [any_area(), any_area(), any_area()];
    let act = prop_oneof![
        12 => describe,
        6 => indirect,
        6 => (0..queues, 0..QUEUE_SIZE + 2).prop_map(|(queue, head)| Act::Offer(queue, head)),
        1 => (0..queues, any::<u16>()).prop_map(|(queue, index)| Act::SetAvailable(queue, index)),
        6 => (0..queues).prop_map(Act::Notify),
        2 => Just(Act::LetWork),
        1 => Just(Act::Reset),
        1 => (0..queues).prop_map(Act::TakeAway),
        1 => (0..queues, areas).prop_map(|(queue, areas)| Act::Place(queue, areas)),
    ];
    proptest::collection::vec(act, 1..60)
}

/// Does all that, and leaves the device reset and started. It is the device's
/// business not to panic; here is checked that it writes nowhere but into buffers
/// that it was given to write and into used rings, faults once in a life at most,
/// and lets go of everything when it is reset.
pub fn play(driver: &mut MockDriver, acts: &[Act]) -> Result<(), TestCaseError> {
    let mut lives = 1;
    let mut watch = Watch::new(driver);
    for act in acts {
        match act {
            Act::Describe(queue, index, descriptor) => {
                let [table, ..] = MockDriver::queue_addresses(*queue);
                watch.described(table + u64::from(*index) * 16, descriptor);
                driver.describe(*queue, *index, *descriptor);
            }
            Act::DescribeIndirect(table, index, descriptor) => {
                let at = TABLES + table * TABLE_BYTES + u64::from(*index) * 16;
                watch.described(at, descriptor);
                driver.describe_at(at, *descriptor);
            }
            Act::Offer(queue, head) => driver.offer(*queue, *head),
            Act::SetAvailable(queue, index) => driver.set_available(*queue, *index),
            Act::Notify(queue) => driver.transport.process_queue(*queue),
            Act::LetWork => {
                std::thread::yield_now();
                driver.transport.process_backend();
            }
            Act::Reset => {
                lives += 1;
                driver.reset();
                watch.check(driver)?;
                driver.start(VERSION_1);
                watch = Watch::new(driver);
            }
            Act::TakeAway(queue) => {
                driver.write(register::QUEUE_SEL, *queue as u32);
                driver.write(register::QUEUE_READY, 0);
            }
            Act::Place(queue, areas) => {
                lives += 1;
                driver.reset();
                watch.check(driver)?;
                driver.negotiate(VERSION_1);
                driver.place_queue(*queue as u32, QUEUE_SIZE.into(), *areas);
                driver.add_status(super::DRIVER_OK);
                // What it makes of its own rings is its business, and is nowhere
                // but in memory.
                watch = Watch::blind();
            }
        }
    }
    driver.reset();
    watch.check(driver)?;
    let faults = driver.faults().len();
    prop_assert!(faults <= lives, "{faults} faults in {lives} lives");
    driver.start(VERSION_1);
    // Nothing of an earlier life comes back.
    let before = driver.bytes(0, MEMORY_BYTES as usize);
    std::thread::yield_now();
    driver.transport.process_backend();
    prop_assert!(before == driver.bytes(0, MEMORY_BYTES as usize));
    prop_assert!(!driver.needs_reset());
    Ok(())
}

/// Which bytes the device may change, in one life of it.
struct Watch {
    may_change: Option<Vec<bool>>,
    before: Vec<u8>,
}

impl Watch {
    fn new(driver: &MockDriver) -> Self {
        let mut watch = Self {
            may_change: Some(vec![false; MEMORY_BYTES as usize]),
            before: driver.bytes(0, MEMORY_BYTES as usize),
        };
        for queue in 0..driver.queues.len() {
            let [.., used] = MockDriver::queue_addresses(queue);
            // The used ring with its flags, index and event index.
            watch.allow(used, 0x100);
        }
        // What any descriptor that is there already says.
        let tables = (0..driver.queues.len())
            .map(|queue| {
                (
                    MockDriver::queue_addresses(queue)[0],
                    16 * QUEUE_SIZE as u64,
                )
            })
            .chain([(TABLES, TABLE_COUNT * TABLE_BYTES)]);
        for (table, bytes) in tables {
            for at in (table..table + bytes).step_by(16) {
                watch.allow_described(driver, at);
            }
        }
        watch
    }

    fn blind() -> Self {
        Self {
            may_change: None,
            before: Vec::new(),
        }
    }

    fn allow(&mut self, address: u64, length: u64) {
        let Some(may_change) = &mut self.may_change else {
            return;
        };
        let start = address.min(MEMORY_BYTES) as usize;
        let end = address.saturating_add(length).min(MEMORY_BYTES) as usize;
        may_change[start..end].fill(true);
    }

    fn allow_described(&mut self, driver: &MockDriver, at: u64) {
        let read = |offset| driver.memory.read_obj::<u64>(GuestAddress(at + offset));
        let (address, rest) = (read(0).unwrap(), read(8).unwrap());
        if (rest >> 32) as u16 & WRITE != 0 {
            self.allow(address, rest & u64::from(u32::MAX));
        }
    }

    /// The driver writes a descriptor `at` an address; from now on the device may
    /// do what it says, and the descriptor itself is the driver's change.
    fn described(&mut self, at: u64, descriptor: &Descriptor) {
        self.allow(at, 16);
        if descriptor.flags & WRITE != 0 {
            self.allow(descriptor.address, descriptor.length.into());
        }
    }

    fn check(&self, driver: &MockDriver) -> Result<(), TestCaseError> {
        let Some(may_change) = &self.may_change else {
            return Ok(());
        };
        let after = driver.bytes(0, MEMORY_BYTES as usize);
        if after == self.before {
            return Ok(());
        }
        // The driver's own area changes by the driver.
        let available = |address: usize| {
            (0..driver.queues.len()).any(|queue| {
                let [_, available, used] = MockDriver::queue_addresses(queue);
                (available..used).contains(&(address as u64))
            })
        };
        let elsewhere = (0..after.len()).find(|address| {
            self.before[*address] != after[*address]
                && !may_change[*address]
                && !available(*address)
        });
        prop_assert_eq!(elsewhere, None, "the address that was written");
        Ok(())
    }
}
