//! What `cargo xtask lab` and the lab's init say to each other.
//!
//! Four virtio serial ports join them. [`CONTROL_PORT`] carries
//! [`HostMessage`]s one way and [`GuestMessage`]s the other, framed by
//! [`guest_protocol::write_message`]. The others carry the bytes of the
//! command's standard streams and nothing else. A serial port has no end of
//! file: the end of each stream is said on the control port, as the number of
//! bytes it has had.
//!
//! ```text
//! host                                      guest
//!   Run                                ->
//!                                      <-   Started  or  Failed
//!   Signal, Resize, StdinEnded …       ->
//!                                      <-   Alive, StdinClosed …
//!                                      <-   Exited
//!   close                              ->   power off
//! ```

use std::ffi::OsString;
use std::io::{self, Read};
use std::time::Duration;

use guest_protocol::Decoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use guest_protocol::{ExitStatus, WireError, write_message};

/// The name of the virtio serial port for messages.
pub const CONTROL_PORT: &str = "lab.control";
/// The name of the port for the command's standard input.
pub const STDIN_PORT: &str = "lab.stdin";
/// The name of the port for its standard output, or its terminal.
pub const STDOUT_PORT: &str = "lab.stdout";
/// The name of the port for its standard error.
pub const STDERR_PORT: &str = "lab.stderr";

/// The virtiofs tag of the machine's root directory.
pub const ROOT_TAG: &str = "root";
/// The virtio-blk serial of the scratch disk.
pub const SCRATCH_SERIAL: &str = "scratch";
/// Where the scratch disk is mounted.
pub const SCRATCH_DIRECTORY: &str = "/scratch";
/// The archive's directory of modules, named so that their order is the order
/// in which they are loaded.
pub const MODULES_DIRECTORY: &str = "/modules";

/// How often the lab says that it is there while the command runs.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The reading end of a control port.
#[derive(Debug)]
pub struct Messages<R> {
    from: R,
    decoder: Decoder,
}

impl<R: Read> Messages<R> {
    /// Reads messages from `from`.
    pub fn new(from: R) -> Self {
        Self {
            from,
            decoder: Decoder::default(),
        }
    }

    /// Waits for the next message; `None` once the other side has closed.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.from.read(&mut buffer) {
                Ok(0) if self.decoder.is_inside_message() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// From the machine to the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostMessage {
    /// Run this. Sent once and first.
    Run(Command),
    /// Send this Linux signal number to the command: to its process group if
    /// it is one a terminal sends to a group (SIGINT, SIGQUIT).
    Signal(i32),
    /// The terminal's size has changed.
    Resize(TerminalSize),
    /// Standard input has ended after this many bytes.
    StdinEnded {
        /// How many bytes it had in all.
        bytes: u64,
    },
    /// Nobody reads this output any more.
    OutputClosed(Output),
}

/// From the lab to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestMessage {
    /// The command runs.
    Started,
    /// The command could not be started.
    Failed(StartFailure),
    /// The lab is there, whatever the command does: said every [`ALIVE_EVERY`].
    Alive,
    /// The command reads its standard input no more.
    StdinClosed,
    /// The command has ended and its output is on its way.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// How many bytes of standard output there are in all.
        stdout_bytes: u64,
        /// How many bytes of standard error there are in all.
        stderr_bytes: u64,
    },
}

/// One of the command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The command to run, as root, in the machine's own file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; a program without a slash is looked up in `PATH`.
    pub args: Vec<OsString>,
    /// The whole environment, as names and values.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub working_dir: OsString,
    /// Run on a terminal of this size instead of three streams.
    pub terminal: Option<TerminalSize>,
    /// A directory of the machine to be seen as `/lib/modules`.
    pub modules_dir: OsString,
    /// Whether there is a scratch disk to mount.
    pub scratch: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// Why the command was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFailure {
    /// The exit code a shell would give: 127 not found, 126 not executable,
    /// 125 for whatever is the lab's own fault.
    pub exit_code: u8,
    /// What was attempted, on what, and why it failed.
    pub message: String,
}
