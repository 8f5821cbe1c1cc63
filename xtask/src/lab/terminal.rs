//! The caller's terminal, while a terminal in the lab stands in for it.

use anyhow::{Context, Result};
use lab_init::protocol::TerminalSize;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size of the terminal that is standard input.
pub fn size() -> Result<TerminalSize> {
    let size = tcgetwinsize(stdin()).context("cannot get the terminal's size")?;
    Ok(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal hands on every key until this is dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode.
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("cannot get the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)
            .context("cannot put the terminal into raw mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
