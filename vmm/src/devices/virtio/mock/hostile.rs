//! What a driver that means no good might do, for the property tests of any
//! device: chains that loop or are too long, tables within tables, addresses past
//! the end, rings on top of each other, resets in between.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::acts::{Act, OUTSIDE, Play, TABLE_BYTES, TABLE_COUNT, TABLES};
use super::{BUFFERS, Descriptor, INDIRECT, MEMORY_BYTES, MockDriver, NEXT, QUEUE_SIZE, WRITE};

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

/// Does all that; see [`Play`].
pub fn play(driver: &mut MockDriver, acts: &[Act]) -> Result<(), TestCaseError> {
    let mut play = Play::new(driver);
    for act in acts {
        play.act(driver, act).map_err(TestCaseError::fail)?;
    }
    play.end(driver).map_err(TestCaseError::fail)?;
    count();
    Ok(())
}

/// Tells `cargo xtask test` of what was survived, now and then.
fn count() {
    const AT_ONCE: u64 = 64;
    static CASES: AtomicU64 = AtomicU64::new(0);
    if (CASES.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(AT_ONCE) {
        let line = format!("hostile cases: {AT_ONCE}\n");
        // Not by `print!`, which the test harness keeps to itself.
        let _ = std::io::stdout().write_all(line.as_bytes());
    }
}
