//! QEMU's machine type `microvm`, as its documentation recommends to run it.

use std::ffi::OsString;
use std::process::Command;

use super::guest::{Guest, MAC};

/// Adds all arguments.
pub(super) fn configure(command: &mut Command, guest: &Guest) {
    let acpi = if guest.acpi { "on" } else { "off" };
    command
        // What QEMU's documentation of the machine type leaves out for a fast start.
        .arg("-M")
        .arg(format!(
            "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi={acpi}"
        ))
        // Some KVMs report IA32_ARCH_CAPABILITIES and refuse to have it set, at which
        // QEMU aborts.
        .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
        .args(["-smp", "1"])
        .args(["-m", &guest.memory_mib.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        // The guest ends by a reset, which is the end then.
        .args(["-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&guest.kernel)
        .args(["-append", &guest.command_line]);
    if guest.entropy || !guest.disks.is_empty() || guest.nic.is_some() {
        // Virtio 1, as mote's devices, rather than what was before.
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    if guest.entropy {
        command.args(["-device", "virtio-rng-device"]);
    }
    for (index, disk) in guest.disks.iter().enumerate() {
        let read_only = if disk.read_only { "on" } else { "off" };
        let mut drive = OsString::from(format!(
            "id=disk{index},if=none,format=raw,cache=writeback,aio=io_uring,readonly={read_only},file="
        ));
        drive.push(&disk.file);
        command
            .args(["-object", &format!("iothread,id=thread{index}")])
            .arg("-drive")
            .arg(drive)
            .arg("-device")
            .arg(format!(
                "virtio-blk-device,drive=disk{index},iothread=thread{index}"
            ));
    }
    if let Some(nic) = &guest.nic {
        let vhost = if nic.vhost { "on" } else { "off" };
        command
            .arg("-netdev")
            .arg(format!(
                "tap,id=net,ifname={},script=no,downscript=no,vhost={vhost}",
                nic.tap
            ))
            .arg("-device")
            .arg(format!("virtio-net-device,netdev=net,mac={MAC}"));
    }
}
