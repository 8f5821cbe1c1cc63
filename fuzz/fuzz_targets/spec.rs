//! The VM spec: JSON to a valid configuration, with descriptors of many kinds.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use fuzz::files;
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::config::Config;
use vmm::spec::{Descriptor, VmSpec};

/// What descriptors are, by the number that the spec has for them.
fn open(number: Descriptor) -> Option<OwnedFd> {
    let sockets = |kind| {
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        pair.expect("sockets").0
    };
    let null = |write: bool| {
        let mut options = File::options();
        options
            .read(!write)
            .write(write)
            .open("/dev/null")
            .expect("/dev/null")
    };
    Some(match number.rem_euclid(8) {
        0 => return None,
        1 => null(false).into(),
        2 => null(true).into(),
        3 => {
            let mut both = File::options();
            both.read(true).write(true);
            // Where there is none, no spec is valid in the end.
            let kvm = both.open("/dev/kvm").or_else(|_| both.open("/dev/null"));
            kvm.expect("/dev/null").into()
        }
        // The hash tree over a file of a page is empty.
        4 if number.rem_euclid(32) == 12 => files::with(b"").into(),
        4 => files::with(&[0; 4096]).into(),
        5 => sockets(SocketType::SEQPACKET),
        6 => sockets(SocketType::STREAM),
        _ => {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .expect("a pipe")
                .0
        }
    })
}

/// Numbers that are open, each once, for those that the spec has.
#[derive(Default)]
struct Table(BTreeMap<Descriptor, Descriptor>);

impl Table {
    fn replace(&mut self, number: &mut Descriptor) {
        let found = self
            .0
            .entry(*number)
            .or_insert_with(|| match open(*number) {
                Some(fd) => fd.into_raw_fd(),
                None => *number | 1 << 30,
            });
        *number = *found;
    }

    fn replace_all(&mut self, spec: &mut VmSpec) {
        self.replace(&mut spec.kvm);
        let boot = [&mut spec.boot.kernel]
            .into_iter()
            .chain(&mut spec.boot.initrd)
            .flat_map(|blob| [&mut blob.file, &mut blob.outboard]);
        let disks = spec.disks.iter_mut().flat_map(|disk| {
            let extents = disk.extents.iter_mut().flat_map(|extent| {
                let blob = extent.blob.iter_mut();
                let beside =
                    blob.flat_map(|blob| [&mut blob.outboard].into_iter().chain(&mut blob.blocks));
                [&mut extent.file].into_iter().chain(beside)
            });
            extents.chain(&mut disk.source)
        });
        let nics = spec
            .nics
            .iter_mut()
            .flat_map(|nic| nic.taps.iter_mut().chain(&mut nic.vhost));
        let consoles = spec.consoles.iter_mut();
        let consoles =
            consoles.flat_map(|console| console.input.iter_mut().chain([&mut console.output]));
        let serial = spec.serial.iter_mut();
        let serial = serial.flat_map(|serial| serial.input.iter_mut().chain([&mut serial.output]));
        let numbers = boot
            .chain(&mut spec.entropy)
            .chain(&mut spec.control)
            .chain(&mut spec.events)
            .chain(spec.vsock.iter_mut().map(|vsock| &mut vsock.channel))
            .chain(disks)
            .chain(serial)
            .chain(nics)
            .chain(consoles)
            .chain(spec.metrics.iter_mut().map(|metrics| &mut metrics.page))
            .chain(spec.pmem.iter_mut().map(|pmem| &mut pmem.file))
            .chain(
                spec.filesystems
                    .iter_mut()
                    .map(|filesystem| &mut filesystem.socket),
            );
        // Enough to have all kinds several times; who has more runs out of them.
        for number in numbers.take(64) {
            self.replace(number);
        }
    }

    /// Closes what nobody has taken. Nothing else in this process opens anything
    /// meanwhile, so a number that is open is still what it was.
    fn close(self) {
        for number in self.0.into_values() {
            // SAFETY: the borrow lasts for one call, which fails if nothing is open.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            if number >= 0 && rustix::io::fcntl_getfd(fd).is_ok() {
                // SAFETY: it was made by `open`, and its new owner never came to be.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
}

fn descriptors(spec: &VmSpec) -> usize {
    let disks = spec.disks.iter().map(|disk| 2 * disk.extents.len() + 1);
    disks.sum::<usize>()
        + 2 * spec.consoles.len()
        + spec.pmem.len()
        + spec.filesystems.len()
        + spec
            .nics
            .iter()
            .map(|nic| nic.taps.len() + nic.vhost.len())
            .sum::<usize>()
}

fuzz_target!(|data: &[u8]| {
    let Ok(mut spec) = serde_json::from_slice::<VmSpec>(data) else {
        return;
    };
    let text = serde_json::to_vec(&spec).expect("a spec can be written");
    let again: VmSpec = serde_json::from_slice(&text).expect("and be read");
    assert_eq!(again, spec);
    let _ = vmm::limits::of(&spec, 1000);
    // Those that are not replaced would be this process's own.
    if descriptors(&spec) > 50 {
        return;
    }
    let mut table = Table::default();
    table.replace_all(&mut spec);
    match Config::from_spec(spec) {
        Ok(config) => {
            assert!(config.memory_bytes.is_multiple_of(4096));
            assert!((1..=32).contains(&config.vcpus));
            assert!(config.boot.command_line.len() < 2048);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    table.close();
});
