//! The serial console of a lab: what it said last, and when.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use crate::command::last_lines;

/// How much of the console is kept for messages.
const KEPT_BYTES: usize = 64 << 10;
/// How much of that a message has.
const LINES: usize = 25;

/// The end of what a lab's console has said.
#[derive(Clone)]
pub struct Console(Arc<Mutex<Kept>>);

struct Kept {
    bytes: VecDeque<u8>,
    last_heard: Instant,
}

impl Console {
    /// Keeps what `from` says, until it ends; and shows it all, if asked.
    pub fn keep(mut from: UnixStream, show: bool) -> Self {
        let console = Self(Arc::new(Mutex::new(Kept {
            bytes: VecDeque::new(),
            last_heard: Instant::now(),
        })));
        let keeper = console.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = from.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                if show {
                    let _ = io::stderr().write_all(&buffer[..count]);
                }
                keeper.kept().add(&buffer[..count]);
            }
        });
        console
    }

    /// When it last said something; when it was first listened to, if never.
    pub fn last_heard(&self) -> Instant {
        self.kept().last_heard
    }

    /// Its last lines.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(self.kept().bytes.make_contiguous()).into_owned();
        last_lines(&text, LINES)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Kept {
    fn add(&mut self, said: &[u8]) {
        self.last_heard = Instant::now();
        self.bytes
            .extend(said.iter().filter(|byte| **byte != b'\r'));
        let excess = self.bytes.len().saturating_sub(KEPT_BYTES);
        self.bytes.drain(..excess);
    }
}
