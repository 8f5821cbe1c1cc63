//! Where the guest's text goes: a descriptor that may be slow, or have lost its
//! reader.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

/// How much text waits for a slow reader. What comes after that is lost: Linux waits
/// for its console with a lock held and interrupts off (`hvc_console.c`), so to make
/// it wait for a reader would stop the guest.
pub const BACKLOG_BYTES: usize = 64 << 10;

/// Text on its way to a descriptor that does not block.
#[derive(Debug)]
pub struct Output {
    /// Missing once its reader is gone.
    file: Option<File>,
    backlog: VecDeque<u8>,
}

impl Output {
    /// Text to `file`, whose `O_NONBLOCK` is set.
    pub fn new(file: File) -> Self {
        Self {
            file: Some(file),
            backlog: VecDeque::new(),
        }
    }

    /// Writes all of `bytes`, now or once there is room, but for what the backlog
    /// does not hold.
    pub fn send(&mut self, bytes: &[u8]) {
        self.flush();
        let written = match self.backlog.is_empty() {
            true => write(&mut self.file, bytes),
            false => 0,
        };
        let rest = &bytes[written..];
        let room = BACKLOG_BYTES.saturating_sub(self.backlog.len());
        if self.file.is_some() {
            self.backlog.extend(&rest[..rest.len().min(room)]);
        }
    }

    /// Writes what waits, as far as there is room.
    pub fn flush(&mut self) {
        // Twice at most: a ring has two pieces.
        while let (front @ [_, ..], _) = self.backlog.as_slices() {
            let length = front.len();
            let written = write(&mut self.file, front);
            self.backlog.drain(..written);
            if self.file.is_none() {
                self.backlog.clear();
            }
            if written < length {
                return;
            }
        }
    }
}

/// Writes as much as there is room for.
fn write(to: &mut Option<File>, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Some(file) = to
        && written < bytes.len()
    {
        match file.write(&bytes[written..]) {
            Ok(count) if count > 0 => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Nobody will ever read it.
            Ok(_) | Err(_) => *to = None,
        }
    }
    written
}
