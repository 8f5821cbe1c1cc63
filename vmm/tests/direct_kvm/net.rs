//! virtio-net on taps in network namespaces of their own: used as it is meant to be,
//! used by drivers that break the rules, and specs that are wrong.

use std::fs::File;

use vmm::event::EventKind;

use crate::machine::{Machine, Outcome, WRONG_USE, probe};
use crate::tap::{TapInterface, good_flags, interface};

pub const MAC: &str = "02:00:00:00:00:07";
const MAC_BYTES: [u8; 6] = [2, 0, 0, 0, 0, 7];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];

pub fn frame(length: usize) -> Vec<u8> {
    let mut frame = [&MAC_BYTES[..], &HOST_MAC, &[0x88, 0xb5]].concat();
    frame.extend((14..length).map(|n| (n * 37 / 11 % 251) as u8));
    frame
}

/// The frame that comes back for [`frame`].
pub fn echo_of(frame: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &MAC_BYTES, &frame[12..]].concat()
}

#[test]
fn frames_of_every_length_come_back_from_the_guest() {
    const LENGTHS: [usize; 8] = [14, 15, 59, 60, 61, 999, 1513, 1514];
    const ROUNDS: usize = 20;
    let frames = LENGTHS.len() * ROUNDS;
    let Some(machine) = probe(&format!("net-echo frames={frames}")) else {
        return;
    };
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut running = machine.nic(MAC, &tap).start();
    assert_eq!(running.console_line(), "ready");
    for length in LENGTHS.repeat(ROUNDS) {
        let frame = frame(length);
        tap.send(&frame).unwrap();
        assert_eq!(tap.receive(), echo_of(&frame));
    }
    let line = format!("{frames} frames");
    running.finish().expect_success(&line);
}

#[test]
fn a_burst_comes_back_in_order_from_a_driver_that_uses_one_pair_of_two() {
    // Fewer than a tap's queue holds.
    const BURST: u8 = 200;
    let Some(machine) = probe(&format!("net-echo frames={BURST}")) else {
        return;
    };
    let Some(tap) = interface(2, good_flags(2)) else {
        return;
    };
    let mut running = machine.vcpus(2).nic(MAC, &tap).start();
    assert_eq!(running.console_line(), "ready");
    let mut frame = frame(500);
    for number in 0..BURST {
        frame[20] = number;
        tap.send(&frame).unwrap();
    }
    for number in 0..BURST {
        frame[20] = number;
        assert_eq!(tap.receive(), echo_of(&frame), "{number}");
    }
    running.finish().expect_success("200 frames");
}

#[test]
fn a_frame_longer_than_the_guests_buffers_is_lost_and_no_other() {
    let Some(machine) = probe("net-echo frames=2") else {
        return;
    };
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    tap.set_mtu(9000);
    for length in [100, 3000, 101] {
        tap.send(&frame(length)).unwrap();
    }
    machine.nic(MAC, &tap).run().expect_success("2 frames");
    for length in [100, 101] {
        assert_eq!(tap.receive(), echo_of(&frame(length)));
    }
}

#[test]
fn a_deleted_interface_is_one_event_and_a_link_that_the_guest_sees_down() {
    let Some(machine) = probe("net-link-down") else {
        return;
    };
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut running = machine.nic(MAC, &tap).start();
    assert_eq!(running.console_line(), "up");
    tap.delete();
    let outcome = running.finish();
    outcome.expect_success("down");
    let downs = outcome.events.iter().filter_map(|event| match &event.kind {
        EventKind::LinkDown { device, .. } => Some(device.as_str()),
        _ => None,
    });
    assert_eq!(downs.collect::<Vec<_>>(), ["net0"], "{outcome:#?}");
}

/// `/dev/vhost-net`, so many times. `None`, and a line that says why, where there is
/// none.
fn vhost(count: usize) -> Option<Vec<File>> {
    let open = |_| {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-net")
    };
    match (0..count).map(open).collect() {
        Ok(files) => Some(files),
        Err(error) => {
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            let line = format!("skipped: {test}: cannot open /dev/vhost-net: {error}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            None
        }
    }
}

#[test]
fn frames_come_back_through_the_kernel() {
    const FRAMES: usize = 100;
    let Some(machine) = probe(&format!("net-echo frames={FRAMES}")) else {
        return;
    };
    let (Some(tap), Some(vhost)) = (tap(2), vhost(2)) else {
        return;
    };
    let mut machine = machine.vcpus(2).nic(MAC, &tap);
    machine.spec.nics[0].vhost = vhost.into_iter().map(|file| machine.pass(file)).collect();
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    for length in 100..100 + FRAMES {
        tap.send(&frame(length)).unwrap();
        assert_eq!(tap.receive(), echo_of(&frame(length)));
    }
    running.finish().expect_success("100 frames");
}

#[test]
fn a_nic_that_the_kernel_serves_can_be_reset_with_frames_on_their_way() {
    let Some(machine) = probe("net-resets") else {
        return;
    };
    let (Some(tap), Some(vhost)) = (tap(1), vhost(1)) else {
        return;
    };
    let mut machine = machine.entropy().nic(MAC, &tap);
    machine.spec.nics[0].vhost = vhost.into_iter().map(|file| machine.pass(file)).collect();
    machine.run().expect_success("200 resets");
}

#[test]
fn vhost_descriptors_of_another_number_or_kind_are_refused() {
    let Some(tap) = tap(1) else { return };
    let null = || File::open("/dev/null").unwrap();
    let mut machine = machine().nic(MAC, &tap);
    machine.spec.nics[0].vhost = vec![machine.pass(null())];
    machine
        .run()
        .expect_error(WRONG_USE, &["nics[0].vhost[0]", "/dev/vhost-net"]);
    let mut machine = self::machine().nic(MAC, &tap);
    machine.spec.nics[0].vhost = vec![machine.pass(null()), machine.pass(null())];
    machine.run().expect_error(
        WRONG_USE,
        &["vhost descriptors of nics[0] is 2", "none or 1"],
    );
}

/// Plays a scenario with a NIC for which frames are waiting, and a generator of
/// entropy. At its end the guest has sent a frame that says so.
fn play(scenario: &str) -> Option<Outcome> {
    let machine = probe(scenario)?;
    let tap = interface(1, good_flags(1))?;
    for _ in 0..50 {
        tap.send(&frame(100)).unwrap();
    }
    let outcome = machine.entropy().nic(MAC, &tap).run();
    // The attack's frames may come before.
    while !tap.receive()[14..].starts_with(b"survived") {}
    Some(outcome)
}

macro_rules! attacks {
    ($($test:ident, $attack:literal, $outcome:ident;)*) => {$(
        #[test]
        fn $test() {
            let Some(outcome) = play(concat!("hostile-net attack=", $attack)) else { return };
            outcome.expect_success_after_faults("survived", attacks!($outcome));
        }
    )*};
    (reset) => { &["net0"] };
    (answer) => { &[] };
}

attacks! {
    a_frame_to_send_that_is_writable, "frame-writable", reset;
    a_frame_outside_memory, "frame-outside-memory", reset;
    a_frame_that_wraps_around, "frame-wraps-around", reset;
    a_frame_of_four_gigabytes, "frame-of-four-gigabytes", reset;
    a_frame_without_end, "frame-without-end", reset;
    a_frame_past_the_table, "frame-past-the-table", reset;
    a_frame_by_a_table_outside_memory, "indirect-table-outside-memory", reset;
    frames_by_an_index_that_jumps, "available-index-jumps", reset;
    a_buffer_for_frames_that_is_not_writable, "buffer-not-writable", reset;
    a_buffer_for_frames_that_is_too_short, "buffer-too-short", reset;
    a_buffer_for_frames_outside_memory, "buffer-outside-memory", reset;
    a_frame_of_no_length, "frame-of-no-length", answer;
    frames_that_are_too_short, "frame-too-short", answer;
    frames_that_are_too_long, "frame-too-long", answer;
    headers_of_nonsense, "header-of-nonsense", answer;
    doorbells_of_no_queue, "no-such-queue", answer;
}

#[test]
fn a_nic_can_be_reset_with_frames_on_their_way() {
    let Some(outcome) = play("net-resets") else {
        return;
    };
    outcome.expect_success("200 resets");
}

/// A machine on what is not KVM: a good spec gets as far as that.
pub fn machine() -> Machine {
    let not_kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    Machine::new(not_kvm, "hello")
}

pub fn tap(queues: usize) -> Option<TapInterface> {
    interface(queues, good_flags(queues))
}

#[test]
fn good_nics_are_only_refused_by_kvm() {
    let (Some(one), Some(two)) = (tap(1), tap(2)) else {
        return;
    };
    let machine = machine().vcpus(2).nic(MAC, &one);
    let mut machine = machine.nic("0a:00:00:00:00:01", &two);
    machine.spec.nics[1].mtu = Some(9000);
    let outcome = machine.run();
    outcome.expect_error(WRONG_USE, &["kvm must be /dev/kvm"]);
}

#[test]
fn the_same_address_twice_is_refused_by_the_names_of_both() {
    let (Some(one), Some(other)) = (tap(1), tap(1)) else {
        return;
    };
    let outcome = machine().nic(MAC, &one).nic(MAC, &other).run();
    outcome.expect_error(WRONG_USE, &["nics[1].mac", "nics[0].mac", MAC]);
}

#[test]
fn addresses_that_are_none_are_refused() {
    let Some(tap) = tap(1) else { return };
    for mac in ["", "01:00:00:00:00:00", "02:00", "ff:ff:ff:ff:ff:ff", "x"] {
        let outcome = machine().nic(mac, &tap).run();
        outcome.expect_error(WRONG_USE, &["nics[0].mac"]);
    }
}

#[test]
fn numbers_of_queues_out_of_range_are_refused() {
    let Some(tap) = tap(9) else { return };
    let outcome = machine().nic(MAC, &tap).run();
    outcome.expect_error(WRONG_USE, &["taps of nics[0] is 9", "1 to 1"]);
    let outcome = machine().vcpus(32).nic(MAC, &tap).run();
    outcome.expect_error(WRONG_USE, &["taps of nics[0] is 9", "1 to 8"]);
    let mut none = machine().nic(MAC, &tap);
    none.spec.nics[0].taps.clear();
    none.run()
        .expect_error(WRONG_USE, &["taps of nics[0] is 0"]);
}

#[test]
fn mtus_that_no_packet_fits_are_refused() {
    let Some(tap) = tap(1) else { return };
    for mtu in [0, 67] {
        let mut machine = machine().nic(MAC, &tap);
        machine.spec.nics[0].mtu = Some(mtu);
        machine
            .run()
            .expect_error(WRONG_USE, &["nics[0].mtu", "68 or more"]);
    }
}

#[test]
fn descriptors_that_are_no_taps_are_refused_by_name() {
    let not_taps: [fn() -> std::os::fd::OwnedFd; 3] = [
        || File::open("/dev/null").unwrap().into(),
        || std::io::pipe().unwrap().0.into(),
        // Not attached to an interface.
        || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap()
                .into()
        },
    ];
    let Some(tap) = tap(1) else { return };
    for not_tap in not_taps {
        let mut machine = machine().nic(MAC, &tap);
        machine.spec.nics[0].taps = vec![machine.pass(not_tap())];
        machine.run().expect_error(WRONG_USE, &["nics[0].taps[0]"]);
    }
    let mut machine = machine().nic(MAC, &tap);
    machine.spec.nics[0].taps = vec![-1];
    machine
        .run()
        .expect_error(WRONG_USE, &["nics[0].taps[0]", "not open"]);
}

#[test]
fn interfaces_of_the_wrong_kind_are_refused() {
    for flags in [
        libc::IFF_TAP | libc::IFF_NO_PI,
        libc::IFF_TAP | libc::IFF_VNET_HDR,
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
    ] {
        let Some(tap) = interface(1, flags) else {
            return;
        };
        let outcome = machine().nic(MAC, &tap).run();
        outcome.expect_error(WRONG_USE, &["nics[0].taps[0]", "IFF_VNET_HDR"]);
    }
}

#[test]
fn queues_of_two_interfaces_in_one_nic_are_refused() {
    let Some(one) = tap(1) else { return };
    let Some(other) = crate::tap::named("other0", 1, good_flags(1)) else {
        return;
    };
    let mut machine = machine().vcpus(2).nic(MAC, &one);
    let number = machine.pass(other.queues[0].try_clone().unwrap());
    machine.spec.nics[0].taps.push(number);
    machine
        .run()
        .expect_error(WRONG_USE, &["nics[0].taps[1]", "other0", "tap0"]);
}
