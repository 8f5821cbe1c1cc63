//! Acts of a driver, out of the bytes of an input.
//!
//! Most are near what makes sense: an address of 64 random bits would be outside
//! memory nearly always.

use arbitrary::{Result, Unstructured};
use vmm::devices::virtio::mock::acts::{Act, OUTSIDE, Play, TABLE_BYTES, TABLE_COUNT, TABLES};
use vmm::devices::virtio::mock::{
    BUFFERS, Descriptor, INDIRECT, MEMORY_BYTES, MockDriver, NEXT, QUEUE_SIZE, VERSION_1, WRITE,
};

/// Acts in one input; more would only make it slow.
const MAX_ACTS: usize = 64;
/// Pieces of one good chain.
const MAX_PIECES: u16 = 5;

/// One device under a driver, and what else happens to it.
pub struct Game<'a> {
    /// How many queues it has.
    pub queues: usize,
    /// Feature bits of its own that the driver may acknowledge.
    pub features: u64,
    /// What the driver would put into a buffer.
    pub payload: &'a dyn Fn(&mut Unstructured) -> Result<Vec<u8>>,
    /// What happens on the host's side. It does not let the device look.
    pub backend: &'a mut dyn FnMut(&mut Unstructured) -> Result<()>,
}

impl Game<'_> {
    /// Starts the device and does what the input says until it ends; then looks at
    /// what the device has done.
    pub fn play(self, driver: &mut MockDriver, u: &mut Unstructured) {
        let mask = u.arbitrary::<u64>().unwrap_or(0);
        driver.start(VERSION_1 | self.features & mask);
        let mut play = Play::new(driver);
        let mut acts = 0;
        while acts < MAX_ACTS && !u.is_empty() {
            let Ok(next) = self.next(u) else { break };
            let Some(next) = next else {
                // The host's side.
                if (self.backend)(u).is_err() {
                    break;
                }
                acts += 1;
                continue;
            };
            acts += next.len();
            for act in next {
                if let Err(what) = play.act(driver, &act) {
                    panic!("{what} at {act:?}");
                }
            }
        }
        if let Err(what) = play.end(driver) {
            panic!("{what}");
        }
    }

    /// What the driver does next; `None` if it is the host's turn.
    fn next(&self, u: &mut Unstructured) -> Result<Option<Vec<Act>>> {
        let act = match u.int_in_range(0..=25)? {
            0..=2 => Act::Describe(self.queue(u)?, self.index(u)?, descriptor(u)?),
            3 => Act::DescribeIndirect(
                u.int_in_range(0..=TABLE_COUNT - 1)?,
                u.int_in_range(0..=63)?,
                descriptor(u)?,
            ),
            4 => Act::Offer(self.queue(u)?, u.int_in_range(0..=QUEUE_SIZE + 1)?),
            5 => Act::SetAvailable(self.queue(u)?, u.arbitrary()?),
            6..=7 => Act::Notify(self.queue(u)?),
            8..=9 => Act::LetWork,
            10 => Act::Reset,
            11 => Act::TakeAway(self.queue(u)?),
            12 => Act::Place(self.queue(u)?, [area(u)?, area(u)?, area(u)?]),
            13 => Act::WriteRegister(register(u)?, u32::to_le_bytes(value(u)?).to_vec()),
            14 => any_access(u)?,
            15..=17 => Act::Put(buffer(u)?, (self.payload)(u)?),
            18..=21 => return self.submit(u).map(Some),
            _ => return Ok(None),
        };
        Ok(Some(vec![act]))
    }

    fn queue(&self, u: &mut Unstructured) -> Result<usize> {
        u.int_in_range(0..=self.queues - 1)
    }

    fn index(&self, u: &mut Unstructured) -> Result<u16> {
        u.int_in_range(0..=QUEUE_SIZE - 1)
    }

    /// A chain as it should be, offered and rung for, with a payload in its first
    /// buffer.
    fn submit(&self, u: &mut Unstructured) -> Result<Vec<Act>> {
        let queue = self.queue(u)?;
        let first = self.index(u)?;
        let pieces = u.int_in_range(1..=MAX_PIECES)?.min(QUEUE_SIZE - first);
        let writable_from = u.int_in_range(0..=MAX_PIECES)?;
        let start = buffer(u)?;
        let mut acts = vec![Act::Put(start, (self.payload)(u)?)];
        for piece in 0..pieces {
            let more = if piece + 1 < pieces { NEXT } else { 0 };
            let write = if piece >= writable_from { WRITE } else { 0 };
            let descriptor = Descriptor {
                address: if piece == 0 { start } else { buffer(u)? },
                length: length(u)?,
                flags: more | write,
                next: first + piece + 1,
            };
            acts.push(Act::Describe(queue, first + piece, descriptor));
        }
        acts.push(Act::Offer(queue, first));
        acts.push(Act::Notify(queue));
        Ok(acts)
    }
}

/// Anything at all, of any width.
fn any_access(u: &mut Unstructured) -> Result<Act> {
    let offset = match u.int_in_range(0..=3)? {
        0 => u.arbitrary::<u64>()?,
        _ => u.int_in_range(0..=0x140)?,
    };
    let width = [1, 2, 4, 8][u.int_in_range(0..=3)?];
    Ok(match u.arbitrary()? {
        true => Act::ReadRegister(offset, width),
        false => Act::WriteRegister(offset, u.bytes(width)?.to_vec()),
    })
}

/// A register that a driver writes to.
pub fn register(u: &mut Unstructured) -> Result<u64> {
    const REGISTERS: [u64; 17] = [
        0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x70, 0x70, 0x80, 0x84, 0x90, 0x94,
        0xa0, 0xa4,
    ];
    u.choose(&REGISTERS).copied()
}

/// Something to write to one.
pub fn value(u: &mut Unstructured) -> Result<u32> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.arbitrary()?,
        // The steps of a life.
        1 => *u.choose(&[0, 1, 3, 11, 15, 0x40, 0x80, 0xff])?,
        2 => u.int_in_range(0..=32)?,
        _ => u32::from(u.arbitrary::<u8>()?) << 8,
    })
}

fn buffer(u: &mut Unstructured) -> Result<u64> {
    Ok(match u.int_in_range(0..=7)? {
        0..=3 => BUFFERS + u.int_in_range(0..=7)? * 0x40,
        4..=5 => BUFFERS + u64::from(u.arbitrary::<u8>()?) * 0x100,
        6 => BUFFERS + u64::from(u.arbitrary::<u16>()?),
        _ => u.int_in_range(MEMORY_BYTES - 0x2000..=MEMORY_BYTES)?,
    })
}

fn length(u: &mut Unstructured) -> Result<u32> {
    Ok(match u.int_in_range(0..=7)? {
        0 => 16,
        1 => 512,
        2 => 1,
        3 => 44,
        4 => u.int_in_range(0..=63)? * 16,
        5 => u.int_in_range(0..=0x2000)?,
        6 => u.arbitrary::<u16>()?.into(),
        _ => u.arbitrary()?,
    })
}

fn descriptor(u: &mut Unstructured) -> Result<Descriptor> {
    let address = match u.int_in_range(0..=7)? {
        0..=4 => buffer(u)?,
        5 => TABLES + u.int_in_range(0..=TABLE_COUNT - 1)? * TABLE_BYTES,
        6 => *u.choose(&OUTSIDE)?,
        _ => u.arbitrary()?,
    };
    let flags = match u.int_in_range(0..=7)? {
        0..=1 => NEXT,
        2 => NEXT | WRITE,
        3 => WRITE,
        4 => 0,
        5 => INDIRECT,
        6 => INDIRECT | NEXT,
        _ => u.arbitrary()?,
    };
    // What a table holds must be known, or nobody could say what it permits.
    let elsewhere = flags & INDIRECT != 0 && address < MEMORY_BYTES;
    Ok(Descriptor {
        address: match elsewhere {
            true => TABLES + address % TABLE_COUNT * TABLE_BYTES,
            false => address,
        },
        length: length(u)?,
        flags,
        next: u.int_in_range(0..=QUEUE_SIZE)?,
    })
}

fn area(u: &mut Unstructured) -> Result<u64> {
    Ok(match u.int_in_range(0..=7)? {
        0..=3 => u.int_in_range(0..=63)? * 0x10,
        4..=5 => u.int_in_range(0..=15)? * 0x1000,
        6 => u.int_in_range(MEMORY_BYTES - 0x200..=MEMORY_BYTES)?,
        _ => *u.choose(&OUTSIDE)?,
    })
}
