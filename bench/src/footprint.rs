//! What an idling monitor costs beyond its guest's memory.

use std::io;

use serde::Serialize;

/// Memory of a process, without that of its guest, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Resident: shared pages count in full.
    pub rss_kib: u64,
    /// Proportional: shared pages count in parts.
    pub pss_kib: u64,
    /// What is resident of the guest's own memory.
    pub guest_rss_kib: u64,
}

/// One mapping in `/proc/PID/smaps` (proc(5)), in KiB.
#[derive(Debug, Default, Clone, Copy)]
struct Mapping {
    size: u64,
    rss: u64,
    pss: u64,
}

/// Reads `/proc/PID/smaps`. The guest's memory is the one mapping that is at least
/// `guest_kib` large; the error is how many such there are, if not one.
pub fn read(pid: u32, guest_kib: u64) -> io::Result<Result<Footprint, usize>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(footprint(&text, guest_kib))
}

fn footprint(smaps: &str, guest_kib: u64) -> Result<Footprint, usize> {
    let (guest, own): (Vec<Mapping>, Vec<Mapping>) = mappings(smaps)
        .into_iter()
        .partition(|mapping| mapping.size >= guest_kib);
    let &[guest] = guest.as_slice() else {
        return Err(guest.len());
    };
    Ok(Footprint {
        rss_kib: own.iter().map(|mapping| mapping.rss).sum(),
        pss_kib: own.iter().map(|mapping| mapping.pss).sum(),
        guest_rss_kib: guest.rss,
    })
}

/// A mapping is a line with its addresses and then lines such as `Rss: 4 kB`.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), value) = (words.next(), words.next()) else {
            continue;
        };
        if !key.ends_with(':') {
            mappings.push(Mapping::default());
            continue;
        }
        let value = value.and_then(|value| value.parse().ok());
        if let (Some(mapping), Some(value)) = (mappings.last_mut(), value) {
            match key {
                "Size:" => mapping.size = value,
                "Rss:" => mapping.rss = value,
                "Pss:" => mapping.pss = value,
                _ => {}
            }
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00600000 r-xp 00000000 fe:01 1234                /usr/bin/mote-vmm
Size:               2048 kB
KernelPageSize:        4 kB
Rss:                 900 kB
Pss:                 450 kB
Pss_Dirty:             8 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:                  64 kB
Pss:                  64 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0           [stack]
Size:                132 kB
Rss:                  12 kB
Pss:                  12 kB
";

    #[test]
    fn the_guests_memory_is_told_apart() {
        let expected = Footprint {
            rss_kib: 912,
            pss_kib: 462,
            guest_rss_kib: 64,
        };
        assert_eq!(footprint(SMAPS, 131_072), Ok(expected));
    }

    #[test]
    fn a_process_without_a_guest_has_no_footprint() {
        assert_eq!(footprint(SMAPS, 131_073), Err(0));
        assert_eq!(footprint(SMAPS, 100), Err(3));
    }

    #[test]
    fn a_process_has_mappings_that_can_be_read() {
        let own = read(std::process::id(), u64::MAX).unwrap();
        assert_eq!(own, Err(0));
    }
}
