//! Limits of NICs: kept on a tap, changed while the guest runs, and refused where they
//! cannot be kept.

use std::fs::File;

use vmm::control::Command;
use vmm::devices::virtio::limiter::Direction;
use vmm::spec::{LimitsSpec, NicLimitsSpec, RateSpec};

use crate::machine::{WRONG_USE, probe};
use crate::net::{MAC, echo_of, frame, machine, tap};

const NONE: LimitsSpec = LimitsSpec {
    bandwidth: None,
    operations: None,
};

fn frames(per_second: u64, burst: u64) -> LimitsSpec {
    LimitsSpec {
        bandwidth: None,
        operations: Some(RateSpec { per_second, burst }),
    }
}

fn set(device: &str, direction: Option<Direction>, limits: LimitsSpec) -> Command {
    Command::SetLimits {
        device: device.to_owned(),
        direction,
        limits,
    }
}

#[test]
fn frames_within_limits_come_back_in_order() {
    const FRAMES: u8 = 100;
    let Some(machine) = probe(&format!("net-echo frames={FRAMES}")) else {
        return;
    };
    let Some(tap) = tap(1) else { return };
    let limits = LimitsSpec {
        bandwidth: Some(RateSpec {
            per_second: 200_000,
            burst: 1000,
        }),
        ..frames(2000, 2)
    };
    let limits = NicLimitsSpec {
        transmit: Some(limits),
        receive: Some(limits),
    };
    let mut running = machine.nic(MAC, &tap).nic_limits(limits).start();
    assert_eq!(running.console_line(), "ready");
    let mut frame = frame(500);
    for number in 0..FRAMES {
        frame[20] = number;
        tap.send(&frame).unwrap();
    }
    for number in 0..FRAMES {
        frame[20] = number;
        assert_eq!(tap.receive(), echo_of(&frame), "{number}");
    }
    running.finish().expect_success("100 frames");
}

#[test]
fn a_nic_takes_other_limits_while_it_runs() {
    const FRAMES: usize = 40;
    for direction in [Direction::Transmit, Direction::Receive] {
        let Some(machine) = probe(&format!("net-echo frames={FRAMES}")) else {
            return;
        };
        let Some(tap) = tap(1) else { return };
        // At this rate it would take an hour.
        let slow = frames(1, 1);
        let slow = LimitsSpec {
            bandwidth: Some(RateSpec {
                per_second: 1,
                burst: 100,
            }),
            ..slow
        };
        let limits = match direction {
            Direction::Transmit => NicLimitsSpec {
                transmit: Some(slow),
                receive: None,
            },
            Direction::Receive => NicLimitsSpec {
                transmit: None,
                receive: Some(slow),
            },
        };
        let machine = machine.entropy().control();
        let mut running = machine.nic(MAC, &tap).nic_limits(limits).start();
        assert_eq!(running.console_line(), "ready");
        for _ in 0..FRAMES {
            tap.send(&frame(100)).unwrap();
        }
        assert_eq!(tap.receive(), echo_of(&frame(100)));
        let controller = running.controller();
        controller.refused(
            set("net0", None, NONE),
            &["net0", "\"transmit\" or \"receive\""],
        );
        controller.refused(set("net1", Some(direction), NONE), &["no device", "net1"]);
        let zero = frames(1, 0);
        controller.refused(
            set("net0", Some(direction), zero),
            &["limits.operations.burst", "1 to"],
        );
        controller.command(set("net0", Some(direction), NONE));
        for _ in 1..FRAMES {
            assert_eq!(tap.receive(), echo_of(&frame(100)));
        }
        running.finish().expect_success("40 frames");
    }
}

#[test]
fn a_limited_nic_can_be_reset_with_frames_held_back() {
    let Some(machine) = probe("net-resets") else {
        return;
    };
    let Some(tap) = tap(1) else { return };
    for _ in 0..50 {
        tap.send(&frame(100)).unwrap();
    }
    let limits = NicLimitsSpec {
        transmit: Some(frames(1_000_000, 1)),
        receive: Some(frames(1, 1)),
    };
    let machine = machine.entropy().nic(MAC, &tap).nic_limits(limits);
    machine.run().expect_success("200 resets");
}

#[test]
fn limits_that_the_kernel_would_not_keep_are_refused() {
    let Some(tap) = tap(1) else { return };
    let mut machine = machine().nic(MAC, &tap).nic_limits(NicLimitsSpec {
        transmit: Some(frames(1, 1)),
        receive: None,
    });
    machine.spec.nics[0].vhost = vec![machine.pass(File::open("/dev/null").unwrap())];
    machine
        .run()
        .expect_error(WRONG_USE, &["nics[0].limits", "vhost", "the kernel"]);
}

#[test]
fn limits_out_of_range_are_refused_by_their_names() {
    let Some(tap) = tap(1) else { return };
    let bad = [
        (
            NicLimitsSpec {
                transmit: Some(frames(0, 1)),
                receive: None,
            },
            "nics[0].limits.transmit.operations.per_second",
        ),
        (
            NicLimitsSpec {
                transmit: None,
                receive: Some(frames(1, 1 << 41)),
            },
            "nics[0].limits.receive.operations.burst",
        ),
    ];
    for (limits, field) in bad {
        let outcome = machine().nic(MAC, &tap).nic_limits(limits).run();
        outcome.expect_error(WRONG_USE, &[field, "1 to"]);
    }
}
