//! The serial console of a lab: what it said last, and when.

use super::patience::Patience;
use crate::command::last_lines;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// How much of the console is kept for messages.
const KEPT_BYTES: usize = 64 << 10;
/// How much of that a message has.
const LINES: usize = 25;

/// The end of what a lab's console has said.
#[derive(Clone)]
pub struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
    patience: Patience,
}

impl Console {
    /// Keeps what `from` says, until it ends, and tells `patience` that it is heard;
    /// shows it all, if asked.
    pub fn keep(mut from: UnixStream, show: bool, patience: Patience) -> Self {
        let console = Self {
            kept: Arc::default(),
            patience,
        };
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
                keeper.add(&buffer[..count]);
            }
        });
        console
    }

    /// Its last lines.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(self.kept().make_contiguous()).into_owned();
        last_lines(&text, LINES)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.kept
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, said: &[u8]) {
        self.patience.heard();
        let mut kept = self.kept();
        kept.extend(said.iter().filter(|byte| **byte != b'\r'));
        let excess = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..excess);
    }
}
