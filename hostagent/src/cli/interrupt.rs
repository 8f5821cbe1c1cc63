//! Ctrl-C and its like while an image is loaded: the work stops at the next
//! opportunity and removes what is half-made.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The first such signal that arrived; 0 if none has.
static ARRIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Catches the signals from now on, except those this process was started with
/// ignored.
pub fn watch() -> std::io::Result<()> {
    let arrived = ARRIVED.get_or_init(Arc::default);
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        if !hostagent::guest::is_ignored(signal) {
            signal_hook::flag::register_usize(signal, Arc::clone(arrived), signal as usize)?;
        }
    }
    Ok(())
}

/// The signal that arrived, if any.
pub fn arrived() -> Option<i32> {
    match ARRIVED.get()?.load(Ordering::Relaxed) {
        0 => None,
        signal => i32::try_from(signal).ok(),
    }
}
