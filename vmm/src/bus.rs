//! Routes port and memory-mapped accesses of the vCPUs to devices.

use std::sync::Arc;

/// A device that answers reads and writes at offsets into its range. It is
/// called by vCPU threads, several at a time, with whatever the guest does.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what stands at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`, written at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices want the same addresses.
#[derive(Debug, thiserror::Error)]
#[error("two devices overlap at {start:#x}")]
pub struct Overlap {
    /// Where the later one starts.
    pub start: u64,
}

/// An address space, ports or memory, and the devices in it. It is filled
/// before the vCPUs start and never changes.
#[derive(Default)]
pub struct Bus {
    /// In ascending order, not overlapping.
    ranges: Vec<Range>,
}

struct Range {
    start: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// Gives `start..start + length` to `device`.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let place = self.ranges.partition_point(|range| range.start < start);
        let clear_before = place
            .checked_sub(1)
            .is_none_or(|before| self.ranges[before].start + self.ranges[before].length <= start);
        let clear_after = self
            .ranges
            .get(place)
            .is_none_or(|after| start + length <= after.start);
        if !clear_before || !clear_after {
            return Err(Overlap { start });
        }
        let range = Range {
            start,
            length,
            device,
        };
        self.ranges.insert(place, range);
        Ok(())
    }

    /// Reads; all ones where no device answers, as on a PC's bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((range, offset)) => range.device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; lost where no device answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((range, offset)) = self.find(address) {
            range.device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&Range, u64)> {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let range = &self.ranges[after.checked_sub(1)?];
        let offset = address - range.start;
        (offset < range.length).then_some((range, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_holds_it() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x10, high.clone()).unwrap();
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        bus.write(0x1004, &[1]);
        bus.write(0x200f, &[2]);
        bus.write(0x1010, &[3]);
        bus.write(0xfff, &[4]);
        assert_eq!(*low.0.lock().unwrap(), [(4, vec![1])]);
        assert_eq!(*high.0.lock().unwrap(), [(15, vec![2])]);
        let mut data = [0; 2];
        bus.read(0x2003, &mut data);
        assert_eq!(data, [3, 3]);
        bus.read(0x3000, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x10, 0x10, device.clone()).unwrap();
        for start in [0x8, 0x10, 0x1f] {
            assert!(bus.insert(start, 0x10, device.clone()).is_err());
        }
        bus.insert(0x20, 0x10, device).unwrap();
    }
}
