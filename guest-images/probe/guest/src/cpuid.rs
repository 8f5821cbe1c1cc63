//! CPUID as level 0 reads it: where only kernel code is virtualized, level 3 reads the
//! host's.

use core::arch::asm;

use crate::say;
use crate::scenarios::Context;

/// Leaves that have subleaves.
const WITH_SUBLEAVES: [u32; 4] = [0x4, 0x7, 0xb, 0xd];

/// EAX to EDX for a leaf and a subleaf.
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: `clts` faults at level 3, and the handler runs CPUID in its place
    // (`boot.S`), which changes these four registers; RBX is the compiler's own and is
    // as it was at the end. The handler has a stack of its own.
    unsafe {
        asm!(
            "mov r8, rbx",
            "clts",
            "xchg r8, rbx",
            inout("eax") leaf => a,
            inout("ecx") subleaf => c,
            out("edx") d,
            out("r8") b,
        );
    }
    let b: u64 = b;
    [a, b as u32, c, d]
}

/// Prints all that CPUID says, a line for each leaf or subleaf that is not zero: its
/// number, then EAX to EDX.
pub fn tell(_: &Context) {
    for range in [0, 0x4000_0000, 0x8000_0000] {
        let [last, ..] = cpuid(range, 0);
        for leaf in range..=last {
            let subleaves = if WITH_SUBLEAVES.contains(&leaf) {
                64
            } else {
                1
            };
            for subleaf in 0..subleaves {
                let [a, b, c, d] = cpuid(leaf, subleaf);
                // Past its last level, topology repeats the level's number.
                let past = leaf == 0xb && a == 0 && b == 0 && d == 0;
                if (a, b, c, d) != (0, 0, 0, 0) && !past {
                    say!("{leaf:x}.{subleaf:x} {a:x} {b:x} {c:x} {d:x}");
                }
            }
        }
    }
}
