//! The VMM's side: the page, mapped and given its header.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::Ordering;

use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::device::DeviceMetrics;
use super::layout::{DeviceBlock, MAGIC, NAME_BYTES, Page, VERSION};
use super::vcpu::VcpuMetrics;

/// What the spec asks for.
#[derive(Debug)]
pub struct Options {
    /// A file that [`super::is_page`] accepts, open for reading and writing.
    pub page: File,
    /// Whether to measure times.
    pub latencies: bool,
}

/// Gives out blocks, each once; nothing at all where no metrics are wanted.
#[derive(Debug)]
pub struct Metrics {
    page: Option<&'static Page>,
    latencies: bool,
    devices: usize,
}

impl Metrics {
    /// No metrics.
    pub fn none() -> Self {
        Self {
            page: None,
            latencies: false,
            devices: 0,
        }
    }

    /// Maps the page for as long as this process lives. Of its memory there is what is
    /// written to: a small microVM's counters are in two pages.
    pub fn map(options: &Options) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes, which changes no other.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                size_of::<Page>(),
                protection,
                MapFlags::SHARED,
                options.page.as_fd(),
                0,
            )?
        };
        // SAFETY: the mapping has the size of a `Page`, for ever: it is never unmapped,
        // and the file is sealed against shrinking (`config` made sure). It begins on a
        // memory page, which is more than a `Page` is aligned to. A `Page` is made of
        // atomics, for which any bytes are valid, and which others may write too.
        let page = unsafe { &*address.cast::<Page>() };
        Ok(Self {
            page: Some(page),
            latencies: options.latencies,
            devices: 0,
        })
    }

    /// The counters of vCPU `index`.
    pub fn vcpu(&self, index: u8) -> VcpuMetrics {
        let block = self
            .page
            .and_then(|page| page.vcpus.get(usize::from(index)));
        VcpuMetrics::new(block, self.latencies)
    }

    /// The counters of the next device.
    pub fn add_device(&mut self, name: &str, kind: u32) -> DeviceMetrics {
        let block = self.page.and_then(|page| page.devices.get(self.devices));
        if let Some(block) = block {
            self.devices += 1;
            introduce(block, name, kind);
        }
        DeviceMetrics::new(block, self.latencies)
    }

    /// Lets readers in: all devices have been added, and there are `vcpus` vCPUs.
    pub fn publish(&self, vcpus: u8) {
        let Some(Page { header, .. }) = self.page else {
            return;
        };
        for (field, value) in [
            (&header.version, VERSION),
            (&header.vcpus, vcpus.into()),
            (&header.devices, self.devices as u64),
            (&header.latencies, self.latencies.into()),
        ] {
            field.store(value, Ordering::Relaxed);
        }
        header.magic.store(MAGIC, Ordering::Release);
    }
}

fn introduce(block: &DeviceBlock, name: &str, kind: u32) {
    let mut bytes = [0; NAME_BYTES];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    for (word, bytes) in block.name.iter().zip(bytes.as_chunks().0) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    block.kind.store(kind.into(), Ordering::Relaxed);
}
