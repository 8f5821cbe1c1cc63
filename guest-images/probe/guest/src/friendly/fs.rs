//! virtio-fs: the messages of FUSE (linux/fuse.h) to whoever serves them.

use alloc::string::String;

use crate::hostile::driver::{Device, WRITE, register};
use crate::scenarios::Context;
use crate::virtio::{self, Window};
use crate::{say, serial};

/// Its type, which `virtio_drivers` does not know.
const FS: u32 = 26;
const QUEUES: usize = 2;
/// The one for all but what must not wait.
const REQUESTS: usize = 1;

/// Operations.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

const ROOT: u64 = 1;
/// `struct fuse_in_header` and `struct fuse_out_header`.
const REQUEST_HEADER: usize = 40;
const ANSWER_HEADER: usize = 16;
/// Where an answer is in the scratch page, and how much fits.
const ANSWER: usize = 1024;
const ANSWER_BYTES: usize = 1024;

/// The first device's registers.
pub fn window() -> Window {
    virtio::find_type(FS, 0)
}

/// The first device, started.
pub fn start() -> Device {
    Device::started(window(), QUEUES)
}

/// The name that the configuration space tells.
fn tag(device: &Device) -> String {
    let words = (0..36).step_by(4);
    let bytes = words.flat_map(|at| device.read(register::CONFIG + at).to_le_bytes());
    let tag = bytes.take_while(|byte| *byte != 0);
    tag.map(char::from).collect()
}

/// Asks for `operation` on `node`; returns how long the body of the answer is.
fn ask(device: &mut Device, operation: u32, node: u64, body: &[u8]) -> usize {
    let length = REQUEST_HEADER + body.len();
    device.put(0, &[0; REQUEST_HEADER]);
    device.put(0, &(length as u32).to_le_bytes());
    device.put(4, &operation.to_le_bytes());
    // What the answer is told by.
    device.put(8, &7_u64.to_le_bytes());
    device.put(16, &node.to_le_bytes());
    device.put(REQUEST_HEADER, body);
    let (request, answer) = (device.scratch(0), device.scratch(ANSWER as u64));
    let rest = (ANSWER_BYTES - ANSWER_HEADER) as u32;
    let pieces = [
        (request, length as u32, 0),
        (answer, ANSWER_HEADER as u32, WRITE),
        (answer + ANSWER_HEADER as u64, rest, WRITE),
    ];
    device.submit(REQUESTS, &pieces);
    device.wait_for_answers_of(REQUESTS);
    let error = i32::from_le_bytes(device.get(ANSWER + 4));
    assert_eq!(error, 0, "operation {operation}");
    assert_eq!(u64::from_le_bytes(device.get(ANSWER + 8)), 7);
    let answered = u32::from_le_bytes(device.get(ANSWER)) as usize;
    answered - ANSWER_HEADER
}

/// The number at `offset` of the answer's body.
fn number(device: &Device, offset: usize) -> u64 {
    u64::from_le_bytes(device.get(ANSWER + ANSWER_HEADER + offset))
}

fn words(words: &[u32], place: &mut [u8]) {
    for (place, word) in place.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// Greets the server as the kernel does (version 7.31, without wishes).
fn greet(device: &mut Device) {
    let mut body = [0; 16];
    words(&[7, 31, 0, 0], &mut body);
    assert!(ask(device, INIT, 0, &body) >= 24);
    assert_eq!(number(device, 0) as u32, 7);
}

/// Reads the file `greeting` and returns it.
fn read(device: &mut Device) -> String {
    ask(device, LOOKUP, ROOT, b"greeting\0");
    let node = number(device, 0);
    // Validity, then attributes: number of the inode and size come first.
    ask(device, GETATTR, node, &[0; 16]);
    let size = number(device, 16 + 8) as usize;
    ask(device, OPEN, node, &[0; 8]);
    let mut body = [0; 40];
    body[..8].copy_from_slice(&number(device, 0).to_le_bytes());
    words(&[512], &mut body[16..]);
    let length = ask(device, READ, node, &body);
    assert_eq!(length, size);
    let bytes = device.get::<512>(ANSWER + ANSWER_HEADER);
    bytes[..length].iter().copied().map(char::from).collect()
}

/// Reads a file, resets the device, and reads it again.
pub fn look(_: &Context) {
    for _ in 0..2 {
        let mut device = start();
        let tag = tag(&device);
        greet(&mut device);
        let text = read(&mut device);
        say!("{tag}: {text}");
        device.reset();
    }
}

/// Starts the device and says so; when it asks for reset, says that, and does so until
/// it reads a byte. Other devices go on.
pub fn survive(_: &Context) {
    let device = start();
    say!("ready");
    device.wait_for_fault();
    super::entropy::check();
    say!("fault");
    serial::wait();
    let mut device = start();
    device.wait_for_fault();
    device.reset();
    super::entropy::check();
    say!("survived");
}

/// Starts and resets the device, and then starts it for good.
pub fn restart(_: &Context) {
    let mut device = start();
    say!("ready");
    serial::wait();
    device.reset();
    super::entropy::check();
    let device = start();
    device.wait_for_fault();
    say!("survived");
}
