//! The control socket: good requests, bad ones, and an agent that misbehaves.

use rustix::io::Errno;
use rustix::net::SendFlags;
use vmm::control::{Answer, Command, DeviceState, MAX_REQUEST_BYTES, Outcome, RunState};
use vmm::devices::virtio::limiter::Direction;
use vmm::spec::{LimitsSpec, RateSpec};

use crate::machine::{POWERED_OFF, Running, memory_file, pattern, probe};

/// A guest that ends when it reads a control-D.
fn start() -> Option<Running> {
    let machine = probe("echo")?.serial_input().entropy().control();
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    Some(running)
}

/// The guest lives, and ends as it should.
fn ends_well(mut running: Running) {
    let mut input = running.input.take().unwrap();
    std::io::Write::write_all(&mut input, b"alive\n\x04").unwrap();
    assert_eq!(running.console_line(), "alive");
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

#[test]
fn the_status_tells_of_every_vcpu_and_device() {
    let Some(machine) = probe("echo") else {
        return;
    };
    let machine = machine.vcpus(3).entropy().vsock().serial_input().control();
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    let status = running.controller().status();
    assert_eq!(status.state, RunState::Running);
    assert_eq!(status.vcpus.len(), 3);
    let devices = status.devices.iter().map(|d| (d.name.as_str(), d.state));
    let expected = [("rng", DeviceState::Idle), ("vsock", DeviceState::Idle)];
    assert!(devices.eq(expected), "{status:?}");
    ends_well(running);
}

#[test]
fn the_power_button_reaches_the_guest() {
    let Some(machine) = probe("power-button") else {
        return;
    };
    let mut running = machine.control().start();
    assert_eq!(running.console_line(), "ready");
    running.controller().command(Command::PowerButton);
    running.finish().expect_success("pressed");
}

#[test]
fn the_generation_id_is_where_the_tables_say() {
    let Some(mut machine) = probe("generation-id") else {
        return;
    };
    let id = "00112233445566778899aabbccddeeff";
    machine.spec.generation_id = Some(id.to_uppercase());
    machine.run().expect_success(id);
}

#[test]
fn every_bad_message_is_answered_with_its_reason() {
    let Some(mut running) = start() else { return };
    let long = format!(
        "{{\"version\":1,\"id\":1,\"command\":\"{}\"}}",
        "x".repeat(3000)
    );
    let deep = "[".repeat(4000);
    let cases: &[(&[u8], Option<u64>, &str)] = &[
        (b"", None, "EOF"),
        (b"pause", None, "no request"),
        (b"{\"version\":1", None, "EOF"),
        (b"\xff\xfe", None, "no request"),
        (b"null", None, "no request"),
        (deep.as_bytes(), None, "no request"),
        (b"{}", None, "missing field `version`"),
        (b"{\"version\":1,\"id\":3}", Some(3), "missing field `command`"),
        (b"{\"version\":1,\"command\":\"pause\"}", None, "missing field `id`"),
        (b"{\"version\":2,\"id\":4,\"command\":\"fly\"}", Some(4), "version is 2"),
        (b"{\"version\":0,\"id\":5,\"command\":\"pause\"}", Some(5), "version is 0"),
        (b"{\"version\":1,\"id\":6,\"command\":\"fly\"}", Some(6), "unknown variant `fly`"),
        (b"{\"version\":1,\"id\":7,\"command\":\"pause\",\"colour\":1}", Some(7), "unknown field `colour`"),
        (b"{\"version\":1,\"id\":8,\"command\":{\"set_balloon\":{}}}", Some(8), "missing field `target_bytes`"),
        (b"{\"version\":1,\"id\":9,\"command\":{\"set_balloon\":{\"target_bytes\":0,\"colour\":1}}}", Some(9), "unknown field `colour`"),
        (b"{\"version\":1,\"id\":10,\"command\":{\"set_balloon\":{\"target_bytes\":-1}}}", Some(10), "-1"),
        (b"{\"version\":1,\"id\":11,\"command\":{\"pause\":{\"colour\":1}}}", Some(11), "expected unit"),
        (b"{\"version\":1,\"id\":12,\"command\":\"pause\"}{}", None, "trailing"),
        (b"{\"version\":1,\"id\":-1,\"command\":\"pause\"}", None, "-1"),
        (long.as_bytes(), Some(1), "unknown variant"),
    ];
    for (message, id, part) in cases {
        let shown = String::from_utf8_lossy(message);
        running.controller().send_bytes(message);
        let reply = running.controller().receive();
        assert_eq!(reply.id, *id, "{shown}");
        let Outcome::Error(reason) = reply.outcome else {
            panic!("{shown} was obeyed");
        };
        assert!(reason.contains(part), "{shown}: {reason}");
    }
    assert_eq!(running.controller().status().state, RunState::Running);
    ends_well(running);
}

#[test]
fn a_message_that_is_too_long_is_refused_and_costs_nothing() {
    let Some(mut running) = start() else { return };
    let resident = |running: &Running| {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", running.child.id()));
        let pages = text.unwrap().split(' ').nth(1).unwrap().parse::<u64>();
        pages.unwrap() * 4096
    };
    running.controller().status();
    let before = resident(&running);
    // 1 GiB is more than a socket carries: the sender is told.
    let huge = vec![b' '; 1 << 30];
    let flags = SendFlags::NOSIGNAL;
    let sent = running.controller().try_send(&huge, flags);
    assert!(
        matches!(sent, Err(Errno::MSGSIZE | Errno::NOBUFS)),
        "{sent:?}"
    );
    for length in [MAX_REQUEST_BYTES + 1, 16 << 10, 100 << 10] {
        running.controller().send_bytes(&huge[..length]);
        let reply = running.controller().receive();
        let Outcome::Error(reason) = reply.outcome else {
            panic!("{reply:?}");
        };
        assert_eq!(reply.id, None);
        assert!(reason.contains(&format!("{length} bytes")), "{reason}");
    }
    let after = resident(&running);
    assert!(after < before + (1 << 20), "{before} bytes, then {after}");
    ends_well(running);
}

#[test]
fn an_agent_that_does_not_read_is_not_listened_to_and_blocks_nobody() {
    let Some(mut running) = start() else { return };
    let mut controller = running.take_controller();
    let request = br#"{"version":1,"id":1,"command":"status"}"#;
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let mut sent = 0_u32;
    // Until neither direction has room.
    let mut refused = 0;
    while refused < 1000 {
        match controller.try_send(request, flags) {
            Ok(_) => (sent, refused) = (sent + 1, 0),
            Err(Errno::AGAIN) => {
                refused += 1;
                std::thread::yield_now();
            }
            Err(other) => panic!("{other}"),
        }
        assert!(sent < 1 << 20, "it takes requests without end");
    }
    // The guest goes on.
    let mut input = running.input.take().unwrap();
    std::io::Write::write_all(&mut input, b"alive\n").unwrap();
    assert_eq!(running.console_line(), "alive");
    // Whoever reads is answered to the last.
    for _ in 0..sent {
        assert_eq!(controller.receive().id, Some(1));
    }
    controller.command(Command::Quit);
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

#[test]
fn an_agent_that_is_gone_changes_nothing_for_the_guest() {
    let Some(mut running) = start() else { return };
    let mut controller = running.take_controller();
    controller.command(Command::Pause);
    controller.command(Command::Resume);
    controller.send(Command::Status);
    drop(controller);
    ends_well(running);
}

#[test]
fn what_was_asked_before_the_socket_was_closed_is_done() {
    let Some(mut running) = start() else { return };
    let mut controller = running.take_controller();
    for _ in 0..10 {
        controller.send(Command::Status);
    }
    controller.send(Command::Quit);
    drop(controller);
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

#[test]
fn what_was_asked_is_done_though_replies_were_never_read() {
    use rustix::process::{Signal, kill_process};
    let Some(mut running) = start() else { return };
    let mut controller = running.take_controller();
    controller.send(Command::Status);
    // Its reply is there, and stays.
    controller.wait_readable();
    let pid = running.child.pid();
    kill_process(pid, Signal::STOP).unwrap();
    for _ in 0..10 {
        controller.send(Command::Status);
    }
    controller.send(Command::Quit);
    drop(controller);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

#[test]
fn a_socket_closed_at_one_end_still_carries_replies() {
    let Some(mut running) = start() else { return };
    let mut controller = running.take_controller();
    let ids: Vec<u64> = (0..10).map(|_| controller.send(Command::Status)).collect();
    let pause = controller.send(Command::Pause);
    controller.close_writing();
    for id in ids {
        assert_eq!(controller.receive().id, Some(id));
    }
    let reply = controller.receive();
    assert_eq!(reply.id, Some(pause));
    assert_eq!(reply.outcome, Outcome::Result(Answer::Done));
    drop(controller);
    running.child.kill();
    running.finish();
}

#[test]
fn empty_messages_are_answered_while_the_agent_is_there() {
    let Some(mut running) = start() else { return };
    for _ in 0..10 {
        running.controller().send_bytes(b"");
        assert_eq!(running.controller().receive().id, None);
    }
    assert_eq!(running.controller().status().state, RunState::Running);
    ends_well(running);
}

#[test]
fn a_disk_takes_other_limits_while_it_runs() {
    let Some(machine) = probe("block-read seed=6") else {
        return;
    };
    // At this rate the guest would read for minutes.
    let one = Some(RateSpec {
        per_second: 1,
        burst: 1,
    });
    let limits = LimitsSpec {
        bandwidth: None,
        operations: one,
    };
    let file = memory_file(&pattern(6, 300));
    let machine = machine.disk(&file, true).limits(limits);
    let mut running = machine.entropy().control().start();
    let set = |device: &str, operations| Command::SetLimits {
        device: device.to_owned(),
        direction: None,
        limits: LimitsSpec {
            bandwidth: None,
            operations,
        },
    };
    let controller = running.controller();
    controller.refused(set("blk1", one), &["no device", "blk1"]);
    controller.refused(set("rng", one), &["rng", "no limits"]);
    let one_way = Command::SetLimits {
        device: "blk0".to_owned(),
        direction: Some(Direction::Transmit),
        limits,
    };
    controller.refused(one_way, &["blk0", "both directions together"]);
    let none = Some(RateSpec {
        per_second: 0,
        burst: 1,
    });
    controller.refused(set("blk0", none), &["limits.operations.per_second", "1 to"]);
    controller.command(set("blk0", None));
    running.finish().expect_success("300 sectors");
}
