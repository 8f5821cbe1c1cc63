//! virtio-balloon (virtio 1.3, section 5.5): the guest gives memory back.
//!
//! [`handle`] is how the host asks for it, [`discard`] how pages go back, and
//! [`statistics`] what the guest says of its memory. This file is the device.

pub mod discard;
pub mod handle;
pub mod statistics;

use std::os::fd::{AsFd, BorrowedFd};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use super::{VirtioDevice, read_config_bytes};
use crate::memory::GuestMemory;
use discard::{PAGE_BYTES, discard, is_memory};
use handle::{BalloonHandle, DeviceEnd};
use statistics::Statistics;

/// Feature bits (section 5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// The inflate and the deflate queue, and room for the two optional ones. A
/// driver for page reporting wants room for its 32 ranges.
const QUEUE_SIZE: u16 = 64;
const QUEUE_SIZES: [u16; 4] = [QUEUE_SIZE; 4];

/// Page numbers in one request: as many as make a turn's worth of bytes. Linux
/// sends 256.
const MAX_PAGES_A_REQUEST: usize = 4096;
/// What one report makes the device give back. Linux reports 32 blocks of at most
/// 4 MiB at once. The rest of a longer report stays, as the device may choose
/// (section 5.5.6.7.2): to discard more would keep other devices waiting.
const MAX_BYTES_A_REPORT: u64 = 128 << 20;

/// Offsets into `struct virtio_balloon_config`; what follows is for features that
/// are not offered.
const CONFIG_NUM_PAGES: usize = 0;
const CONFIG_ACTUAL: usize = 4;
const CONFIG_BYTES: usize = 8;

/// What the device offers the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonFeatures {
    /// The guest takes pages back before it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest tells how it uses its memory.
    pub statistics: bool,
    /// The guest reports free pages, and the host has them.
    pub free_page_reporting: bool,
}

/// What a queue is for. Optional queues that the driver did not negotiate leave no
/// gap (as in Linux and QEMU, whatever the numbers of section 5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The device.
pub struct Balloon {
    features: u64,
    queues: usize,
    roles: Vec<Role>,
    config: [u8; CONFIG_BYTES],
    configuration_changed: bool,
    host: DeviceEnd,
    /// The head of the driver's statistics buffer, while the device has it.
    statistics_buffer: Option<u16>,
    /// Whether the host waits for the next buffer.
    statistics_wanted: bool,
}

impl Balloon {
    /// An empty balloon in a guest with `memory_bytes` of memory, and the host's
    /// handle of it.
    pub fn new(
        features: BalloonFeatures,
        memory_bytes: u64,
    ) -> std::io::Result<(Self, BalloonHandle)> {
        let (host, handle) = handle::pair(memory_bytes)?;
        let offered = [
            (features.statistics, F_STATS_VQ),
            (features.deflate_on_oom, F_DEFLATE_ON_OOM),
            (features.free_page_reporting, F_PAGE_REPORTING),
        ];
        let bits = offered.iter().filter(|(offer, _)| *offer);
        let device = Self {
            features: bits.fold(0, |all, (_, bit)| all | bit),
            queues: 2
                + usize::from(features.statistics)
                + usize::from(features.free_page_reporting),
            roles: Vec::new(),
            config: [0; CONFIG_BYTES],
            configuration_changed: false,
            host,
            statistics_buffer: None,
            statistics_wanted: false,
        };
        Ok((device, handle))
    }

    /// Takes buffers with statistics. The device keeps the last one, and returns
    /// it when the host wants to know more (section 5.5.6.3).
    fn take_statistics(
        &mut self,
        index: usize,
        queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        let mut budget = QUEUE_SIZE;
        loop {
            // Each turn counts, also one that finds nothing: a driver may move its
            // index forth and back.
            let Some(left) = budget.checked_sub(1) else {
                return Ok(Drained::Again);
            };
            budget = left;
            let Some(chain) = queues.pop(index)? else {
                if queues.want_doorbell(index, true)? {
                    continue;
                }
                return Ok(Drained::Empty);
            };
            let head = chain.head_index();
            let statistics =
                Statistics::read(memory, chain).map_err(|reason| DeviceFault::Chain {
                    queue: index,
                    reason,
                })?;
            // There is one such buffer. A driver with more gets the others back.
            if let Some(earlier) = self.statistics_buffer.replace(head) {
                queues.push_used(index, earlier, 0)?;
                queues.notify(index)?;
            }
            if std::mem::take(&mut self.statistics_wanted) {
                self.host.answer(statistics);
            }
        }
    }

    /// Returns the statistics buffer, so that the driver fills it anew.
    fn ask_for_statistics(&mut self, queues: &mut Queues) -> Result<(), DeviceFault> {
        let role = |role: &Role| *role == Role::Statistics;
        let Some(index) = self.roles.iter().position(role) else {
            return Ok(());
        };
        self.statistics_wanted = true;
        if let Some(head) = self.statistics_buffer.take() {
            queues.push_used(index, head, 0)?;
            queues.notify(index)?;
        }
        Ok(())
    }
}

/// Gives the pages of an inflate request back to the host.
fn inflate(memory: &GuestMemory, chain: Chain) -> Result<Served, &'static str> {
    let mut pages = 0;
    discard::for_each_run(memory, chain, MAX_PAGES_A_REQUEST, |start, bytes| {
        pages += bytes / PAGE_BYTES;
        discard(memory, start, bytes);
    })?;
    Ok(Served {
        written: 0,
        moved: pages * PAGE_BYTES,
    })
}

/// Looks at a deflate request; the pages come back by being touched.
fn deflate(memory: &GuestMemory, chain: Chain) -> Result<Served, &'static str> {
    let mut moved = 0;
    discard::for_each_run(memory, chain, MAX_PAGES_A_REQUEST, |_, bytes| {
        moved += bytes
    })?;
    Ok(Served { written: 0, moved })
}

/// Gives the ranges of a report back to the host, and counts their bytes.
fn report(memory: &GuestMemory, chain: Chain) -> Result<Served, &'static str> {
    // All of a report is looked at before anything is done.
    for range in chain.clone().writable() {
        if !is_memory(memory, range.addr(), range.len().into()) {
            return Err("a reported range lies outside guest memory");
        }
    }
    let mut left = MAX_BYTES_A_REPORT;
    for range in chain.writable() {
        let bytes = u64::from(range.len()).min(left);
        discard(memory, range.addr(), bytes);
        left -= bytes;
    }
    Ok(Served {
        written: 0,
        moved: MAX_BYTES_A_REPORT - left,
    })
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.queues]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    /// `actual` is the driver's to write; what it says is shown, never trusted.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let actual = CONFIG_ACTUAL as u64..CONFIG_BYTES as u64;
        for (byte, at) in data.iter().zip(offset..) {
            if actual.contains(&at) {
                self.config[at as usize] = *byte;
            }
        }
        self.host.set_actual(field(&self.config, CONFIG_ACTUAL));
    }

    fn take_configuration_change(&mut self) -> bool {
        std::mem::take(&mut self.configuration_changed)
    }

    fn activate(&mut self, features: u64) {
        let negotiated = features & self.features;
        self.roles = vec![Role::Inflate, Role::Deflate];
        if negotiated & F_STATS_VQ != 0 {
            self.roles.push(Role::Statistics);
        }
        if negotiated & F_PAGE_REPORTING != 0 {
            self.roles.push(Role::Reporting);
        }
        self.host
            .set_reports_statistics(negotiated & F_STATS_VQ != 0);
    }

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let serve = match self.roles.get(index) {
            Some(Role::Inflate) => inflate,
            Some(Role::Deflate) => deflate,
            Some(Role::Reporting) => report,
            Some(Role::Statistics) => return self.take_statistics(index, queues),
            None => return Ok(Drained::Empty),
        };
        let memory = queues.memory();
        let counts_as_reported = self.roles.get(index) == Some(&Role::Reporting);
        let host = &self.host;
        queues.drain(index, |chain| {
            let served = serve(memory, chain).map_err(|reason| DeviceFault::Chain {
                queue: index,
                reason,
            })?;
            if counts_as_reported {
                host.add_reported(served.moved);
            }
            Ok(served)
        })
    }

    fn reset(&mut self) {
        self.roles.clear();
        self.statistics_buffer = None;
        self.statistics_wanted = false;
        self.config[CONFIG_ACTUAL..].fill(0);
        self.host.set_actual(0);
        self.host.set_reports_statistics(false);
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }

    fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let wishes = self.host.take_wishes();
        if field(&self.config, CONFIG_NUM_PAGES) != wishes.target_pages {
            self.config[CONFIG_NUM_PAGES..][..4]
                .copy_from_slice(&wishes.target_pages.to_le_bytes());
            self.configuration_changed = true;
        }
        match queues {
            Some(queues) if wishes.statistics => self.ask_for_statistics(queues),
            _ => Ok(()),
        }
    }
}

/// The little-endian number at `offset`.
fn field(config: &[u8; CONFIG_BYTES], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&config[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
