//! The protocol, without a guest; with one it is tested in `tests/direct_kvm`.

use proptest::prelude::*;

use super::connection::parse;
use super::*;

fn round_trip(command: Command, text: &str) {
    let request = Request {
        version: CONTROL_VERSION,
        id: 7,
        command,
    };
    let json = serde_json::to_string(&request).unwrap();
    assert_eq!(
        json,
        format!("{{\"version\":1,\"id\":7,\"command\":{text}}}")
    );
    assert_eq!(parse(json.as_bytes()), Ok(request));
}

#[test]
fn requests_are_written_as_documented() {
    round_trip(Command::Pause, "\"pause\"");
    round_trip(Command::Resume, "\"resume\"");
    round_trip(Command::Status, "\"status\"");
    let set_balloon = Command::SetBalloon { target_bytes: 4096 };
    round_trip(set_balloon, "{\"set_balloon\":{\"target_bytes\":4096}}");
    round_trip(Command::BalloonStatistics, "\"balloon_statistics\"");
    let set_limits = |device: &str, direction| Command::SetLimits {
        device: device.to_owned(),
        direction,
        limits: LimitsSpec {
            bandwidth: None,
            operations: None,
        },
    };
    let text = r#"{"set_limits":{"device":"blk0","limits":{}}}"#;
    round_trip(set_limits("blk0", None), text);
    let text = r#"{"set_limits":{"device":"net0","direction":"receive","limits":{}}}"#;
    round_trip(set_limits("net0", Some(Direction::Receive)), text);
    let resize = Command::Resize {
        device: "console0".to_owned(),
        columns: 80,
        rows: 25,
    };
    let text = r#"{"resize":{"device":"console0","columns":80,"rows":25}}"#;
    round_trip(resize, text);
    round_trip(Command::PowerButton, "\"power_button\"");
    round_trip(Command::Quit, "\"quit\"");
}

#[test]
fn replies_are_written_as_documented() {
    let reply = |outcome| Reply {
        version: CONTROL_VERSION,
        id: Some(7),
        outcome,
    };
    for (outcome, text) in [
        (Outcome::Result(Answer::Done), r#"{"result":"done"}"#),
        (Outcome::Error("no".to_owned()), r#"{"error":"no"}"#),
    ] {
        let json = serde_json::to_string(&reply(outcome.clone())).unwrap();
        assert_eq!(
            json,
            format!("{{\"version\":1,\"id\":7,\"outcome\":{text}}}")
        );
        assert_eq!(
            serde_json::from_str::<Reply>(&json).unwrap(),
            reply(outcome)
        );
    }
}

#[test]
fn the_longest_reply_is_as_long_as_promised() {
    let device = DeviceStatus {
        name: "a-long-device-name-15".to_owned(),
        state: DeviceState::NeedsReset,
    };
    let status = Status {
        state: RunState::Pausing,
        vcpus: vec![VcpuState::Starting; crate::config::MAX_VCPUS as usize],
        devices: vec![device; crate::arch::layout::MAX_DEVICES],
        balloon: Some(BalloonStatus {
            target_bytes: u64::MAX,
            actual_bytes: u64::MAX,
            reported_bytes: u64::MAX,
        }),
    };
    let reply = Reply {
        version: CONTROL_VERSION,
        id: Some(u64::MAX),
        outcome: Outcome::Result(Answer::Status(status)),
    };
    let length = serde_json::to_vec(&reply).unwrap().len();
    assert!(length <= MAX_REPLY_BYTES, "{length} bytes");
}

#[test]
fn the_reason_is_never_longer_than_a_reply() {
    // An unknown name is repeated in the reason.
    let name = "\u{1}".repeat(600);
    let message = serde_json::json!({"version": 1, "id": 1, "command": name}).to_string();
    let longest = &message.as_bytes()[..message.len().min(MAX_REQUEST_BYTES)];
    let (_, reason) = parse(longest).unwrap_err();
    assert!(serde_json::to_string(&reason).unwrap().len() < MAX_REPLY_BYTES);
}

proptest! {
    #[test]
    fn no_message_breaks_the_parser(message in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&message);
    }

    #[test]
    fn no_change_to_a_request_breaks_the_parser(at in 0_usize..60, byte in any::<u8>()) {
        let mut message = br#"{"version":1,"id":8,"command":{"set_balloon":{"target_bytes":1}}}"#.to_vec();
        message[at] = byte;
        if let Ok(request) = parse(&message) {
            prop_assert_eq!(request.version, CONTROL_VERSION);
        }
    }
}
