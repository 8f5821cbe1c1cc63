//! What a running guest does, as `mote stats` tells it.

use std::io::{BufRead, BufReader, Write};

use e2e::{finish, image, mote, mote_in_background_with_input};
use serde_json::Value;

/// What is passed through the guest: more than a buffer on the way holds.
const BYTES: usize = 1 << 20;

fn stats() -> Value {
    let told = mote(["stats", "counted", "--format", "json"]).expect(0);
    serde_json::from_str(&told.text()).expect("JSON")
}

fn vsock(stats: &Value) -> &Value {
    let devices = stats["metrics"]["devices"].as_array().unwrap();
    let vsock = devices.iter().find(|device| device["name"] == "vsock");
    vsock.unwrap()
}

fn number(value: &Value, name: &str) -> u64 {
    let number = value[name].as_u64();
    number.unwrap_or_else(|| panic!("{name} of {value}"))
}

#[test]
fn the_counters_of_a_running_guest_grow_by_what_it_does() {
    let run = ["run", "-i", "--name", "counted", &image(), "/bin/cat"];
    let mut run = mote_in_background_with_input(run);
    let mut input = run.stdin.take().unwrap();
    let mut output = BufReader::new(run.stdout.take().unwrap());
    let mut pass = |line: &[u8]| {
        let mut back = Vec::new();
        input.write_all(line).unwrap();
        output.read_until(b'\n', &mut back).unwrap();
        assert!(back == line);
    };
    pass(b"ready\n");
    let before = stats();
    let mut line = vec![b'x'; 1023];
    line.push(b'\n');
    for _ in 0..BYTES / line.len() {
        pass(&line);
    }
    let after = stats();
    for direction in ["bytes_to_guest", "bytes_from_guest"] {
        let [old, new] = [&before, &after].map(|stats| number(vsock(stats), direction));
        assert!(new - old >= BYTES as u64, "{direction}: {old}, then {new}");
    }
    for counter in ["chains", "doorbells", "interrupts"] {
        let [old, new] = [&before, &after].map(|stats| number(vsock(stats), counter));
        assert!(new > old, "{counter}: {old}, then {new}");
    }
    let disk = &after["metrics"]["devices"][0];
    assert_eq!(disk["name"], "blk0", "{after}");
    assert!(number(disk, "bytes_to_guest") > 1 << 20, "{after}");
    assert_eq!(number(disk, "faults"), 0, "{after}");
    assert!(number(&after, "resident_bytes") > 16 << 20, "{after}");
    assert!(after["cpu_percent"].is_number(), "{after}");

    let table = mote(["stats"]).expect(0).text();
    assert!(
        table.contains("BLOCK I/O") && table.contains("counted"),
        "{table}"
    );
    drop(input);
    finish(run).expect(0);
    let gone = mote(["stats", "counted"]).expect(125);
    assert!(gone.errors().contains("mote ps"), "{}", gone.errors());
}
