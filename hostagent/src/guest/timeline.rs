//! When each phase of a run was reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm::event::monotonic_ns;

/// Moments on the host's `CLOCK_MONOTONIC`, in nanoseconds. What has not
/// happened is `None`.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// `mote` was started.
    pub started_ns: u64,
    /// The image's disk could be attached.
    pub image_ready_ns: Option<u64>,
    /// The VMM entered its `main`.
    pub vm_process_started_ns: Option<u64>,
    /// vCPU 0 was about to execute its first instruction.
    pub guest_entered_ns: Option<u64>,
    /// The init's `Ready` arrived.
    pub init_ready_ns: Option<u64>,
    /// The init's `Started` arrived.
    pub workload_started_ns: Option<u64>,
    /// The init's `Exited` arrived.
    pub exited_ns: Option<u64>,
    /// The VMM had ended.
    pub vm_ended_ns: Option<u64>,
    /// Guest time from the start of the kernel to the init, by the guest's clock.
    pub kernel_to_init_ns: Option<u64>,
    /// Counts what has come from the image's registry since the start, if it was started
    /// before all of it was here.
    pub fetched_bytes: Option<Arc<AtomicU64>>,
    /// Its value when the workload had exited.
    pub fetched_bytes_at_exit: Option<u64>,
}

impl Timeline {
    /// Starts now; call it first thing in `main`.
    pub fn start() -> Self {
        Self {
            started_ns: monotonic_ns(),
            image_ready_ns: None,
            vm_process_started_ns: None,
            guest_entered_ns: None,
            init_ready_ns: None,
            workload_started_ns: None,
            exited_ns: None,
            vm_ended_ns: None,
            kernel_to_init_ns: None,
            fetched_bytes: None,
            fetched_bytes_at_exit: None,
        }
    }

    /// The workload has exited.
    pub fn workload_has_exited(&mut self) {
        self.exited_ns = Some(monotonic_ns());
        let fetched = self.fetched_bytes.as_ref();
        self.fetched_bytes_at_exit = fetched.map(|bytes| bytes.load(Ordering::Relaxed));
    }

    /// The image's disk can be attached from now on.
    pub fn image_is_ready(&mut self) {
        self.image_ready_ns = Some(monotonic_ns());
    }

    /// The phases that were reached, in order, in milliseconds since the start.
    pub fn phases(&self) -> Vec<(&'static str, f64)> {
        let phases = [
            ("image ready", self.image_ready_ns),
            ("VM process started", self.vm_process_started_ns),
            ("first guest instruction", self.guest_entered_ns),
            ("init", self.init_ready_ns),
            ("workload started", self.workload_started_ns),
            ("workload exited", self.exited_ns),
            ("VM ended", self.vm_ended_ns),
        ];
        let since_start = |ns: u64| ns.saturating_sub(self.started_ns) as f64 / 1e6;
        phases
            .into_iter()
            .filter_map(|(name, ns)| Some((name, since_start(ns?))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_order_and_those_not_reached_are_left_out() {
        let mut timeline = Timeline::start();
        timeline.started_ns = 1_000_000;
        timeline.image_ready_ns = Some(3_500_000);
        timeline.init_ready_ns = Some(5_000_000);
        assert_eq!(timeline.phases(), [("image ready", 2.5), ("init", 4.0)]);
    }
}
