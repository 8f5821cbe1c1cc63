//! The other processors.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::{interrupts, mmio};

/// A page below 1 MiB that nothing else uses.
const TRAMPOLINE_PAGE: u32 = 2;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const LOCAL_APIC_ID: usize = 0xfee0_0020;

/// What each other processor adds to, so often.
static SUM: AtomicU64 = AtomicU64::new(0);
const TURNS: u64 = 10_000;
/// A bit for each processor that has done its work.
static DONE: AtomicU32 = AtomicU32::new(0);

/// Whether they go on after that, and how far they have come.
static GOES_ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// Starts processors 1 to `count` - 1 and waits until each has worked.
pub fn start(count: u32) {
    let (code, end) = (&raw const trampoline, &raw const trampoline_end);
    let page = (TRAMPOLINE_PAGE << 12) as usize as *mut u8;
    // SAFETY: the code lies between the two symbols (`boot.S`), is shorter than a
    // page, and the page is memory that nothing else is in.
    unsafe { core::ptr::copy_nonoverlapping(code, page, end as usize - code as usize) };
    for cpu in 1..count {
        interrupts::send(cpu, INIT);
        interrupts::send(cpu, STARTUP | TRAMPOLINE_PAGE);
    }
    let all = (((1_u64 << count) - 1) as u32) & !1;
    while DONE.load(Ordering::SeqCst) != all {
        core::hint::spin_loop();
    }
    assert_eq!(
        SUM.load(Ordering::SeqCst),
        u64::from(count - 1) * TURNS,
        "the processors do not see one memory"
    );
}

/// Starts processors 1 to `count` - 1, which never stop counting.
pub fn start_counting(count: u32) {
    GOES_ON.store(true, Ordering::SeqCst);
    start(count);
}

/// What all have counted together.
pub fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

/// Where they arrive.
pub fn entered(cpu: u32) -> ! {
    let id = mmio::read(LOCAL_APIC_ID) >> 24;
    assert_eq!(id, cpu, "the local APIC and CPUID do not agree");
    for _ in 0..TURNS {
        SUM.fetch_add(1, Ordering::SeqCst);
    }
    DONE.fetch_or(1 << cpu, Ordering::SeqCst);
    while GOES_ON.load(Ordering::SeqCst) {
        COUNT.fetch_add(1, Ordering::SeqCst);
    }
    interrupts::sleep_forever();
}
