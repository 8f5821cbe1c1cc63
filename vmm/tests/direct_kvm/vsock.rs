//! virtio-vsock: connections in both directions.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use probe_guests::pattern;

use crate::machine::{POWERED_OFF, probe};

/// Many times what either side has room for.
const BYTES: u64 = 3 << 20;

fn read_pattern(stream: &mut UnixStream, seed: u64) -> u64 {
    let mut buffer = vec![0; 100_000];
    let mut position = 0;
    loop {
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            return position;
        }
        assert_eq!(pattern::difference(seed, position, &buffer[..length]), None);
        position += length as u64;
    }
}

fn pattern_bytes(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    pattern::fill(seed, 0, &mut bytes);
    bytes
}

#[test]
fn a_guest_sends_more_than_there_is_room_for_and_reads_after_its_own_end() {
    let line = format!("vsock-upload port=5000 seed=1 bytes={BYTES}");
    let Some(machine) = probe(&line) else { return };
    let mut running = machine.vsock().start();
    let (port, mut stream) = running.agent().accept();
    assert_eq!(port, 5000);
    let received = read_pattern(&mut stream, 1);
    // The guest has ended its direction, and still listens.
    stream.write_all(received.to_string().as_bytes()).unwrap();
    drop(stream);
    running.finish().expect_success(&format!("answer {BYTES}"));
}

#[test]
fn a_guest_receives_more_than_there_is_room_for() {
    let Some(machine) = probe("vsock-download port=5001 seed=2") else {
        return;
    };
    let mut running = machine.vsock().start();
    let (port, mut stream) = running.agent().accept();
    assert_eq!(port, 5001);
    stream.write_all(&pattern_bytes(2, BYTES)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    running.finish().expect_success(&format!("{BYTES} bytes"));
}

#[test]
fn a_reader_that_is_slow_holds_the_guest_back_and_loses_nothing() {
    let line = format!("vsock-upload port=5000 seed=7 bytes={BYTES}");
    let Some(machine) = probe(&line) else { return };
    let mut running = machine.vsock().start();
    let (_, mut stream) = running.agent().accept();
    // Long enough that the guest runs out of credit and asks for more.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(read_pattern(&mut stream, 7), BYTES);
    drop(stream);
    running.finish().expect_success("answer ");
}

#[test]
fn the_agent_connects_to_the_guest() {
    let Some(machine) = probe("vsock-serve port=7000 connections=1") else {
        return;
    };
    let mut running = machine.vsock().start();
    assert_eq!(running.console_line(), "serving");
    let mut stream = running.agent().connect(7000);
    let data = pattern_bytes(3, 1 << 20);
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(read_pattern(&mut stream, 3), data.len() as u64);
    writing.join().unwrap();
    running.finish().expect_success("served 1");
}

#[test]
fn many_connections_at_once_do_not_mix() {
    const CONNECTIONS: u64 = 200;
    let line = format!("vsock-serve port=7000 connections={CONNECTIONS}");
    let Some(machine) = probe(&line) else { return };
    let mut running = machine.vsock().start();
    assert_eq!(running.console_line(), "serving");
    let streams: Vec<_> = (0..CONNECTIONS)
        .map(|seed| {
            let mut stream = running.agent().connect(7000);
            stream.write_all(&pattern_bytes(seed, 4000)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    for (mut stream, seed) in streams.into_iter().zip(0..) {
        assert_eq!(read_pattern(&mut stream, seed), 4000, "connection {seed}");
    }
    running.finish().expect_success("served 200");
}

#[test]
fn a_port_that_the_agent_does_not_serve_is_refused() {
    let Some(machine) = probe("vsock-refused refused=6000 accepted=6001") else {
        return;
    };
    let mut running = machine.vsock().start();
    let (port, stream) = running.agent().accept();
    assert_eq!(port, 6000);
    drop(stream);
    let (port, _stream) = running.agent().accept();
    assert_eq!(port, 6001);
    running.finish().expect_success("refused");
}

#[test]
fn a_port_that_the_guest_does_not_serve_is_refused() {
    // The scenario of the other direction: it listens nowhere.
    let Some(machine) = probe("vsock-strangers") else {
        return;
    };
    let mut running = machine.entropy().vsock().start();
    running.take_agent().accept_all();
    running.finish().expect_success("answered");
}

#[test]
fn a_connection_to_a_guest_without_a_driver_ends_at_once() {
    let Some(machine) = probe("echo") else { return };
    let mut running = machine.serial_input().vsock().start();
    assert_eq!(running.console_line(), "ready");
    let mut stream = running.agent().connect(7000);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    running
        .input
        .take()
        .unwrap()
        .write_all(b"bye\n\x04")
        .unwrap();
    running.finish().expect_success("bye");
}

#[test]
fn a_host_that_hangs_up_is_noticed_by_a_guest_that_sends() {
    let Some(machine) = probe("vsock-reset-by-host port=6000") else {
        return;
    };
    let mut running = machine.vsock().start();
    let (_, mut stream) = running.agent().accept();
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop(stream);
    running.finish().expect_success("hung up");
}

#[test]
fn without_an_agent_connections_are_refused_and_the_guest_lives() {
    let Some(machine) = probe("vsock-refused refused=6000 accepted=6001") else {
        return;
    };
    let mut running = machine.vsock().start();
    drop(running.take_agent());
    let outcome = running.finish();
    // The second connection is refused as well, of which the guest complains.
    assert!(outcome.console.contains("the host accepts"), "{outcome:#?}");
    assert_eq!(outcome.faults(), [""; 0]);
}

#[test]
fn connections_outlive_the_channel_they_came_by() {
    let line = format!("vsock-upload port=5000 seed=5 bytes={BYTES}");
    let Some(machine) = probe(&line) else { return };
    let mut running = machine.vsock().start();
    let (_, mut stream) = running.agent().accept();
    drop(running.take_agent());
    assert_eq!(read_pattern(&mut stream, 5), BYTES);
    drop(stream);
    running.finish().expect_success("answer ");
}

#[test]
fn messages_that_are_none_are_dropped() {
    let Some(machine) = probe("vsock-serve port=7000 connections=1") else {
        return;
    };
    let mut running = machine.vsock().start();
    assert_eq!(running.console_line(), "serving");
    let (one, two) = UnixStream::pair().unwrap();
    let agent = running.agent();
    agent.send(b"{\"port\":7000}", &[]);
    agent.send(b"{\"port\":7000}", &[&one, &two]);
    agent.send(b"{\"port\":7000,\"more\":1}", &[&one]);
    agent.send(b"{\"port\":-1}", &[&one]);
    agent.send(&[0xff; 200], &[&one]);
    agent.send(&[b' '; 4096], &[&one, &two, &one, &two, &one, &two, &one]);
    let mut stream = agent.connect(7000);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    // What came with them was closed, not kept.
    drop(one);
    let mut two = two;
    assert_eq!(two.read(&mut [0; 1]).unwrap(), 0);
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
}
