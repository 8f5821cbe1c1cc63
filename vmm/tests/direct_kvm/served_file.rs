//! A file of a file system in this process (FUSE, Documentation/filesystems/fuse): it
//! answers reads and writes when the test says so.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Requests of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Somebody who has not asked by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

const IN_HEADER_BYTES: usize = 40;
const FILE_NODE: u64 = 2;
const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_666;

/// The file and what its reader waits for.
pub struct ServedFile {
    pub file: File,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    /// Whether it answers.
    answers: bool,
    /// Whether somebody has asked for content.
    asked: bool,
}

impl ServedFile {
    /// A file with this content that answers nothing but what opening it takes; `None`,
    /// and a line that says why, where this user may not mount it.
    pub fn new(content: Vec<u8>) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("served-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let mounted = Self::mount(&directory);
        let device = match mounted {
            Ok(device) => device,
            Err(error) => {
                let line = format!("skipped: cannot mount a file system (FUSE): {error}\n");
                let _ = io::stderr().write_all(line.as_bytes());
                return None;
            }
        };
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let server = Server {
            device: device.try_clone().unwrap(),
            content: Arc::new(Mutex::new(content)),
            state: Arc::clone(&state),
        };
        std::thread::spawn(move || server.serve());
        let path = directory.join("file");
        let file = File::options().read(true).write(true).open(path);
        // It stays for as long as the file is open.
        unmount(&directory, UnmountFlags::DETACH).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        Some(Self {
            file: file.unwrap(),
            state,
        })
    }

    fn mount(directory: &std::path::Path) -> io::Result<File> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        std::fs::create_dir(directory)?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0",
            device.as_raw_fd()
        );
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = mount(c"test", directory, c"fuse", flags, Some(options));
        if mounted.is_err() {
            std::fs::remove_dir(directory)?;
        }
        mounted?;
        Ok(device)
    }

    /// Whether it answers.
    pub fn set_answers(&self, answers: bool) {
        self.state.0.lock().unwrap().answers = answers;
        self.state.1.notify_all();
    }

    /// Waits until somebody asks for content.
    pub fn wait_until_asked(&self) {
        let state = self.state.0.lock().unwrap();
        let wait = self
            .state
            .1
            .wait_timeout_while(state, PATIENCE, |state| !state.asked);
        assert!(wait.unwrap().0.asked, "nobody reads the file");
    }
}

struct Server {
    device: File,
    content: Arc<Mutex<Vec<u8>>>,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Server {
    fn serve(mut self) {
        let mut request = vec![0; 256 << 10];
        // Fails when nobody has the file any more.
        while let Ok(length) = self.device.read(&mut request) {
            self.answer(&request[..length]);
        }
    }

    fn answer(&self, request: &[u8]) {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (kind, unique, node) = (number(4), long(8), long(16));
        let size = self.content.lock().unwrap().len() as u64;
        let reply = match kind {
            FORGET | BATCH_FORGET | INTERRUPT => return,
            INIT => init(),
            LOOKUP => [
                FILE_NODE.to_le_bytes().to_vec(),
                // Generation, and how long the entry and its attributes hold: for good.
                [0, 1 << 30, 1 << 30, 0].map(u64::to_le_bytes).concat(),
                attributes(FILE_NODE, size, REGULAR),
            ]
            .concat(),
            GETATTR => {
                let (size, mode) = match node {
                    FILE_NODE => (size, REGULAR),
                    _ => (0, DIRECTORY),
                };
                let valid = [1 << 30, 0].map(u64::to_le_bytes).concat();
                [valid, attributes(node, size, mode)].concat()
            }
            // A handle, and flags: past the page cache (FOPEN_DIRECT_IO).
            OPEN => [0, 1].map(u64::to_le_bytes).concat(),
            STATFS => vec![0; 80],
            READ | WRITE => {
                let body = request[IN_HEADER_BYTES..].to_vec();
                self.answer_later(unique, kind, body);
                return;
            }
            _ => {
                reply(&self.device, unique, -libc::ENOSYS, &[]);
                return;
            }
        };
        self::reply(&self.device, unique, 0, &reply);
    }

    /// Reads or writes when the test says so.
    fn answer_later(&self, unique: u64, kind: u32, body: Vec<u8>) {
        let device = self.device.try_clone().unwrap();
        let state = Arc::clone(&self.state);
        let content = Arc::clone(&self.content);
        std::thread::spawn(move || {
            let (lock, changed) = &*state;
            let mut state = lock.lock().unwrap();
            state.asked = true;
            changed.notify_all();
            drop(changed.wait_while(state, |state| !state.answers).unwrap());
            // Handle, offset, size, and then 20 bytes more of both structures.
            let offset = u64::from_le_bytes(body[8..16].try_into().unwrap()) as usize;
            let size = u32::from_le_bytes(body[16..20].try_into().unwrap()) as usize;
            let mut content = content.lock().unwrap();
            let end = (offset + size).min(content.len());
            if kind == READ {
                reply(&device, unique, 0, &content[offset.min(end)..end]);
            } else {
                content[offset..end].copy_from_slice(&body[40..][..end - offset]);
                reply(&device, unique, 0, &(size as u64).to_le_bytes());
            }
        });
    }
}

/// `struct fuse_init_out`: version 7.31, and what may be in flight.
fn init() -> Vec<u8> {
    let mut reply = vec![0; 64];
    reply[..4].copy_from_slice(&7_u32.to_le_bytes());
    reply[4..8].copy_from_slice(&31_u32.to_le_bytes());
    reply[8..12].copy_from_slice(&(128_u32 << 10).to_le_bytes());
    reply[16..18].copy_from_slice(&16_u16.to_le_bytes());
    reply[18..20].copy_from_slice(&12_u16.to_le_bytes());
    reply[20..24].copy_from_slice(&(128_u32 << 10).to_le_bytes());
    reply
}

/// `struct fuse_attr`.
fn attributes(node: u64, size: u64, mode: u32) -> Vec<u8> {
    let longs = [node, size, size.div_ceil(512), 0, 0, 0].map(u64::to_le_bytes);
    // Nanoseconds of three times, mode, links, owner, group, device, block, flags.
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes);
    [longs.concat(), words.concat()].concat()
}

/// `struct fuse_out_header` and what follows it, in one write.
fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let mut message = (16 + body.len() as u32).to_le_bytes().to_vec();
    message.extend(error.to_le_bytes());
    message.extend(unique.to_le_bytes());
    message.extend(body);
    // Whoever asked may be gone.
    let _ = device.write(&message);
}
