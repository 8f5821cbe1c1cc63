//! A spec that is wrong in one thing: exit code 2, and the thing by its name. No
//! KVM is touched, so these tests run everywhere.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use serde_json::{Value, json};
use vmm::spec::{LimitsSpec, RateSpec, VmSpec};

use crate::machine::{Machine, Outcome, WRONG_USE, memory_file, pattern, sealed_file};

const RATE: RateSpec = RateSpec {
    per_second: 1,
    burst: 1 << 40,
};

/// A machine with one of everything, on what is not KVM.
fn whole() -> Machine {
    let not_kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let disk = memory_file(&pattern(0, 8));
    Machine::new(not_kvm, "hello")
        .disk_of(&[(&disk, 0, 4096)], false, Some("one"))
        .limits(LimitsSpec {
            bandwidth: Some(RATE),
            operations: Some(RATE),
        })
        .entropy()
        .vsock()
        .balloon()
        .terminal()
        .pmem(&sealed_file(&pattern(0, 4096)), false)
        .filesystem("home", UnixStream::pair().unwrap().0)
        .control()
        .serial_input()
        .initrd(memory_file(b"initrd"))
}

/// Starts the machine after `spoil` has changed its spec's JSON.
fn run_spoiled(machine: Machine, spoil: impl FnOnce(&mut Value)) -> Outcome {
    let mut spec = serde_json::to_value(&machine.spec).unwrap();
    spoil(&mut spec);
    let text = serde_json::to_vec(&spec).unwrap();
    machine.start_with(&text).finish()
}

/// Sets the field at `pointer` to `value` and expects an error that names `names`.
#[track_caller]
fn refused(pointer: &str, value: Value, names: &[&str]) {
    let outcome = run_spoiled(whole(), |spec| {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = spec.pointer_mut(parent).unwrap();
        match (parent, field.parse::<usize>()) {
            (Value::Array(list), Ok(index)) => list[index] = value,
            (Value::Object(fields), _) => {
                fields.insert(field.to_owned(), value);
            }
            (other, _) => panic!("{other} has no {field}"),
        }
    });
    outcome.expect_error(WRONG_USE, names);
    assert_eq!(outcome.console, "");
    assert_eq!(outcome.errors.lines().count(), 1, "{outcome:#?}");
}

#[test]
fn what_is_valid_is_only_refused_by_kvm() {
    let outcome = whole().run();
    outcome.expect_error(WRONG_USE, &["kvm must be /dev/kvm"]);
}

#[test]
fn another_version_is_refused() {
    refused("/version", json!(0), &["version is 0"]);
    refused("/version", json!(1), &["version is 1", "understands 2"]);
}

#[test]
fn unknown_fields_are_refused_by_name_at_every_depth() {
    for place in [
        "/colour",
        "/boot/colour",
        "/serial/colour",
        "/vsock/colour",
        "/balloon/colour",
        "/consoles/0/colour",
        "/pmem/0/colour",
        "/metrics/colour",
        "/filesystems/0/colour",
        "/disks/0/colour",
        "/disks/0/extents/0/colour",
        "/disks/0/limits/colour",
        "/disks/0/limits/bandwidth/colour",
    ] {
        refused(place, json!(1), &["unknown field", "colour"]);
    }
}

#[test]
fn missing_fields_are_refused_by_name() {
    let fields = [
        ("", "version"),
        ("", "kvm"),
        ("", "vcpus"),
        ("", "memory_bytes"),
        ("", "boot"),
        ("/boot", "kernel"),
        ("/serial", "output"),
        ("/vsock", "guest_cid"),
        ("/vsock", "channel"),
        ("/consoles/0", "output"),
        ("/consoles/0", "columns"),
        ("/consoles/0", "rows"),
        ("/filesystems/0", "tag"),
        ("/filesystems/0", "socket"),
        ("/pmem/0", "file"),
        ("/pmem/0", "length_bytes"),
        ("/pmem/0", "read_only"),
        ("/disks/0", "read_only"),
        ("/disks/0", "extents"),
        ("/disks/0/extents/0", "file"),
        ("/disks/0/extents/0", "offset_bytes"),
        ("/disks/0/extents/0", "length_bytes"),
    ];
    for (parent, field) in fields {
        let outcome = run_spoiled(whole(), |spec| {
            let parent = spec.pointer_mut(parent).unwrap();
            assert!(parent.as_object_mut().unwrap().remove(field).is_some());
        });
        outcome.expect_error(WRONG_USE, &["missing field", field]);
    }
}

#[test]
fn numbers_of_processors_out_of_range_are_refused() {
    for count in [json!(0), json!(33), json!(1000), json!(u32::MAX)] {
        refused("/vcpus", count, &["vcpus", "1 to 32"]);
    }
    for nonsense in [json!(-1), json!(1.5), json!("2"), json!(1_u64 << 40)] {
        refused("/vcpus", nonsense, &["vcpus"]);
    }
}

#[test]
fn sizes_of_memory_out_of_range_are_refused() {
    for bytes in [0, 4096, (2 << 20) - 4096, (8 << 40) + 4096, u64::MAX] {
        refused("/memory_bytes", json!(bytes), &["memory_bytes"]);
    }
    refused(
        "/memory_bytes",
        json!((64 << 20) + 1),
        &["memory_bytes", "multiple of 4096"],
    );
}

#[test]
fn command_lines_that_linux_does_not_take_are_refused() {
    refused(
        "/boot/command_line",
        json!("x".repeat(2048)),
        &["boot.command_line", "2047"],
    );
    refused(
        "/boot/command_line",
        json!("a\0b"),
        &["boot.command_line", "zero byte"],
    );
}

#[test]
fn context_ids_out_of_range_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        refused(
            "/vsock/guest_cid",
            json!(cid),
            &["vsock.guest_cid", "3 to 4294967294"],
        );
    }
}

const DESCRIPTORS: [(&str, &str); 16] = [
    ("/kvm", "kvm"),
    ("/boot/kernel/file", "boot.kernel.file"),
    ("/boot/kernel/outboard", "boot.kernel.outboard"),
    ("/boot/initrd/file", "boot.initrd.file"),
    ("/boot/initrd/outboard", "boot.initrd.outboard"),
    ("/serial/output", "serial.output"),
    ("/serial/input", "serial.input"),
    ("/disks/0/extents/0/file", "disks[0].extents[0].file"),
    ("/entropy", "entropy"),
    ("/vsock/channel", "vsock.channel"),
    ("/control", "control"),
    ("/consoles/0/input", "consoles[0].input"),
    ("/consoles/0/output", "consoles[0].output"),
    ("/pmem/0/file", "pmem[0].file"),
    ("/filesystems/0/socket", "filesystems[0].socket"),
    ("/events", "events"),
];

#[test]
fn descriptors_that_are_not_open_are_refused_by_name() {
    for (pointer, name) in DESCRIPTORS {
        for number in [-1, 100_000] {
            refused(pointer, json!(number), &[name, "not open"]);
        }
        refused(pointer, json!(1_u64 << 31), &[name, "i32"]);
    }
}

#[test]
fn a_descriptor_named_twice_is_refused() {
    for (pointer, name) in DESCRIPTORS.into_iter().skip(1) {
        let machine = whole();
        let kvm = machine.spec.kvm;
        let outcome = run_spoiled(machine, |spec| {
            *spec.pointer_mut(pointer).unwrap() = json!(kvm);
        });
        outcome.expect_error(WRONG_USE, &[name, "another field"]);
    }
}

/// Puts `file` where the spec has another descriptor.
#[track_caller]
fn refused_descriptor(pointer: &str, file: impl Into<std::os::fd::OwnedFd>, names: &[&str]) {
    let mut machine = whole();
    let number = machine.pass(file);
    let outcome = run_spoiled(machine, |spec| {
        *spec.pointer_mut(pointer).unwrap() = json!(number);
    });
    outcome.expect_error(WRONG_USE, names);
}

#[test]
fn descriptors_of_the_wrong_kind_are_refused_by_name() {
    let null = || File::open("/dev/null").unwrap();
    let write_only = || File::options().write(true).open("/dev/null").unwrap();
    let pipe = || std::os::fd::OwnedFd::from(std::io::pipe().unwrap().0);
    let kernel = "/boot/kernel/file";
    refused_descriptor(kernel, pipe(), &["boot.kernel.file", "regular file"]);
    refused_descriptor(kernel, write_only(), &["boot.kernel.file", "reading"]);
    let tree = "/boot/kernel/outboard";
    refused_descriptor(tree, pipe(), &["boot.kernel.outboard", "regular file"]);
    let short = memory_file(b"short");
    refused_descriptor(tree, short, &["the size of boot.kernel.outboard is 5"]);
    let initrd = "/boot/initrd/file";
    refused_descriptor(initrd, null(), &["boot.initrd.file", "regular file"]);
    refused_descriptor("/serial/output", null(), &["serial.output", "writing"]);
    refused_descriptor("/serial/input", memory_file(b""), &["serial.input", "pipe"]);
    refused_descriptor("/serial/input", write_only(), &["serial.input", "reading"]);
    let extent = "/disks/0/extents/0/file";
    refused_descriptor(extent, null(), &["disks[0].extents[0]"]);
    refused_descriptor(extent, pipe(), &["disks[0].extents[0]"]);
    refused_descriptor("/entropy", write_only(), &["entropy", "reading"]);
    refused_descriptor(
        "/vsock/channel",
        null(),
        &["vsock.channel", "SOCK_SEQPACKET"],
    );
    for (pointer, name) in [("/vsock/channel", "vsock.channel"), ("/control", "control")] {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        refused_descriptor(pointer, stream, &[name, "SOCK_SEQPACKET"]);
    }
    refused_descriptor("/control", null(), &["control", "SOCK_SEQPACKET"]);
    for (pointer, name) in [("/vsock/channel", "vsock.channel"), ("/control", "control")] {
        let kind = rustix::net::SocketType::SEQPACKET;
        let alone = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
        refused_descriptor(pointer, alone, &[name, "connected"]);
    }
    for not_random in [
        File::open("/").unwrap(),
        memory_file(b""),
        File::from(pipe()),
    ] {
        refused_descriptor("/entropy", not_random, &["entropy", "character device"]);
    }
    let input = "/consoles/0/input";
    refused_descriptor(input, memory_file(b""), &["consoles[0].input", "pipe"]);
    refused_descriptor(input, write_only(), &["consoles[0].input", "reading"]);
    let output = "/consoles/0/output";
    refused_descriptor(output, null(), &["consoles[0].output", "writing"]);
    let file = "/pmem/0/file";
    refused_descriptor(file, null(), &["pmem[0].file", "writing"]);
    refused_descriptor(file, pipe(), &["pmem[0].file", "writing"]);
    refused_descriptor(file, write_only(), &["pmem[0].file", "reading"]);
    let unsealed = memory_file(&pattern(0, 4096));
    refused_descriptor(file, unsealed, &["pmem[0].file", "F_SEAL_SHRINK"]);
    let null_device = File::options().read(true).write(true).open("/dev/null");
    refused_descriptor(
        file,
        null_device.unwrap(),
        &["pmem[0].file", "regular file"],
    );
    refused_descriptor("/events", null(), &["events", "writing"]);
}

#[test]
fn a_disk_whose_writes_would_go_to_its_end_is_refused() {
    let file = memory_file(&pattern(0, 8));
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND).unwrap();
    let extent = "/disks/0/extents/0/file";
    refused_descriptor(extent, file, &["disks[0].extents[0]", "O_APPEND"]);
}

#[test]
fn standard_streams_are_refused_by_name() {
    for (pointer, name) in DESCRIPTORS {
        for number in 0..=2 {
            refused(pointer, json!(number), &[name, "standard input"]);
        }
    }
}

#[test]
fn a_disk_to_write_on_needs_a_file_to_write_to() {
    let directory = tempfile();
    std::fs::write(&directory, pattern(0, 8)).unwrap();
    let read_only = File::open(&directory).unwrap();
    std::fs::remove_file(&directory).unwrap();
    refused_descriptor(
        "/disks/0/extents/0/file",
        read_only,
        &["disks[0].extents[0]"],
    );
}

fn tempfile() -> std::path::PathBuf {
    let name = format!("mote-vmm-test-{}", std::process::id());
    std::env::temp_dir().join(name)
}

#[test]
fn extents_that_are_none_are_refused_by_name() {
    refused("/disks/0/extents", json!([]), &["extents of disks[0]"]);
    let length = "/disks/0/extents/0/length_bytes";
    let name = "disks[0].extents[0]";
    for bytes in [0, 1, 511, 513] {
        refused(length, json!(bytes), &[name, "length_bytes"]);
    }
    refused(length, json!(8192), &[name, "byte 8192", "at 4096"]);
    refused(length, json!(u64::MAX - 511), &[name]);
    let offset = "/disks/0/extents/0/offset_bytes";
    refused(offset, json!(1), &[name]);
    refused(offset, json!(u64::MAX), &[name]);
}

#[test]
fn extents_without_end_are_refused() {
    let extent = |file| json!({"file": file, "offset_bytes": 0, "length_bytes": 512});
    let machine = whole();
    let file = machine.spec.disks[0].extents[0].file;
    let outcome = run_spoiled(machine, |spec| {
        spec["disks"][0]["extents"] = vec![extent(file); 4097].into();
    });
    outcome.expect_error(WRONG_USE, &["extents of disks[0]", "4097", "1 to 4096"]);
}

#[test]
fn more_devices_than_interrupts_are_refused() {
    let outcome = run_spoiled(whole(), |spec| {
        let disk = spec["disks"][0].clone();
        spec["disks"] = vec![disk; 15].into();
    });
    outcome.expect_error(WRONG_USE, &["number of devices is 21", "at most 19"]);
}

#[test]
fn identities_that_a_guest_cannot_read_are_refused() {
    for text in ["x".repeat(21).as_str(), "a b", "é", "a\nb"] {
        refused("/disks/0/serial", json!(text), &["disks[0].serial"]);
    }
}

#[test]
fn generation_ids_that_are_not_16_bytes_are_refused() {
    let wrong = ["", "0", "g", "0x", "é"].map(str::to_owned).into_iter();
    let lengths = [31, 33, 64, 100_000].map(|length| "0".repeat(length));
    for text in wrong.chain(lengths).chain([format!("{:+>32}", 1)]) {
        refused(
            "/generation_id",
            json!(text),
            &["generation_id", "32 hexadecimal digits"],
        );
    }
    refused("/generation_id", json!(16), &["generation_id", "string"]);
}

#[test]
fn what_a_balloon_offers_is_yes_or_no() {
    for field in ["deflate_on_oom", "statistics", "free_page_reporting"] {
        refused(&format!("/balloon/{field}"), json!(1), &[field, "boolean"]);
    }
}

#[test]
fn terminals_without_room_for_a_character_are_refused() {
    for field in ["columns", "rows"] {
        let name = format!("consoles[0].{field}");
        let pointer = format!("/consoles/0/{field}");
        refused(&pointer, json!(0), &[&name, "1 or more"]);
        for number in [json!(65_536), json!(-1), json!("80")] {
            refused(&pointer, number, &[&name]);
        }
    }
}

#[test]
fn persistent_memory_of_another_size_than_its_file_is_refused() {
    let length = "/pmem/0/length_bytes";
    let name = "pmem[0].length_bytes";
    for bytes in [0, (1_u64 << 40) + 1, u64::MAX] {
        refused(length, json!(bytes), &[name, "1 to 1099511627776"]);
    }
    for bytes in [1, 4096, (2 << 20) - 1, 4 << 20] {
        refused(length, json!(bytes), &[name, "size of its file, 2097152"]);
    }
    // What is behind the end of one that is written would be lost.
    let mut machine = whole();
    let number = machine.pass(sealed_file(&pattern(0, 8)));
    let outcome = run_spoiled(machine, |spec| {
        spec["pmem"][0] = json!({"file": number, "length_bytes": 4096, "read_only": false});
    });
    outcome.expect_error(WRONG_USE, &[name, "multiple of 2097152", "read_only"]);
}

#[test]
fn names_that_no_guest_can_mount_by_are_refused() {
    let long = "é".repeat(18) + "x";
    for tag in ["", "a\0b", "\0", &long, &"x".repeat(100_000)] {
        let names = ["filesystems[0].tag", "1 to 36 bytes", "zero byte"];
        refused("/filesystems/0/tag", json!(tag), &names);
    }
    for nonsense in [json!(1), json!(null), json!(["home"])] {
        refused("/filesystems/0/tag", nonsense, &["filesystems[0].tag"]);
    }
    let outcome = run_spoiled(whole(), |spec| {
        let filesystem = spec["filesystems"][0].clone();
        spec["filesystems"].as_array_mut().unwrap().push(filesystem);
    });
    let names = ["filesystems[1].tag is home", "filesystems[0].tag"];
    outcome.expect_error(WRONG_USE, &names);
}

#[test]
fn backends_that_are_not_connected_are_refused() {
    let names = ["filesystems[0].socket", "connected Unix SOCK_STREAM"];
    let socket = "/filesystems/0/socket";
    refused_descriptor(socket, File::open("/dev/null").unwrap(), &names);
    refused_descriptor(socket, std::io::pipe().unwrap().1, &names);
    let path = tempfile().with_extension("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    refused_descriptor(socket, listener, &names);
    refused_descriptor(
        socket,
        std::os::unix::net::UnixDatagram::pair().unwrap().0,
        &names,
    );
    let local = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(local.local_addr().unwrap()).unwrap();
    refused_descriptor(socket, stream, &names);
}

#[test]
fn a_spec_that_is_no_json_is_refused() {
    for text in ["", "{", "[]", "null", "{\"version\":1}{}", "\u{0}"] {
        let outcome = whole().start_with(text.as_bytes()).finish();
        outcome.expect_error(WRONG_USE, &["the VM spec is not valid"]);
    }
    let long = vec![b' '; (4 << 20) + 1];
    let outcome = whole().start_with(&long).finish();
    outcome.expect_error(WRONG_USE, &["longer than 4194304 bytes"]);
}

#[test]
fn a_spec_nested_without_end_is_refused() {
    let text = "[".repeat(1 << 20);
    let outcome = whole().start_with(text.as_bytes()).finish();
    outcome.expect_error(WRONG_USE, &["the VM spec is not valid"]);
}

#[test]
fn the_wire_form_comes_back_as_it_went() {
    let spec = whole().spec;
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec);
}

#[test]
fn wrong_arguments_get_the_usage() {
    let wrong: [&[&str]; 6] = [
        &[],
        &["--spec-fd"],
        &["--spec-fd", "x"],
        &["--spec-fd", "3", "4"],
        &["--help", "3"],
        &["3"],
    ];
    for arguments in wrong {
        let output = Command::new(env!("CARGO_BIN_EXE_mote-vmm"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(WRONG_USE), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("usage:"), "{arguments:?}: {said}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_mote-vmm"))
        .args(["--spec-fd", "99"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(WRONG_USE));
}

#[test]
fn limits_that_let_nothing_through_or_everything_are_refused() {
    for limit in ["bandwidth", "operations"] {
        for part in ["per_second", "burst"] {
            let pointer = format!("/disks/0/limits/{limit}/{part}");
            let name = format!("disks[0].limits.{limit}.{part}");
            for number in [0, (1_u64 << 40) + 1, u64::MAX] {
                refused(&pointer, json!(number), &[&name, "1 to 1099511627776"]);
            }
            refused(&pointer, json!(-1), &[&name]);
        }
    }
}

#[test]
fn a_page_of_metrics_must_keep_its_size() {
    let unsealed = memory_file(&vec![0; vmm::metrics::FILE_BYTES as usize]);
    let short = sealed_file(&pattern(0, 8));
    for file in [unsealed, short, File::open("/dev/zero").unwrap()] {
        let mut machine = whole();
        let page = machine.pass(file);
        machine.spec.metrics.as_mut().unwrap().page = page;
        let outcome = machine.run();
        outcome.expect_error(WRONG_USE, &["metrics.page must be"]);
    }
}
