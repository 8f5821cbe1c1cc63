//! The serial console.

use std::fs::File;

use super::descriptor::{non_blocking, readable, stored_size, writable};
use super::error::{ConfigError, kind};
use crate::descriptors::Descriptors;
use crate::spec::SerialSpec;

/// Where its text goes and comes from.
#[derive(Debug)]
pub struct SerialConfig {
    /// Open for writing.
    pub output: File,
    /// Open for reading, and something to poll.
    pub input: Option<File>,
}

/// Validates the serial console.
pub fn serial(spec: SerialSpec, fds: &mut Descriptors) -> Result<SerialConfig, ConfigError> {
    let output = writable(spec.output, "serial.output", fds)?;
    let output = non_blocking(output, "serial.output")?;
    let input = spec
        .input
        .map(|number| {
            let input = readable(number, "serial.input", fds)?;
            match stored_size(&input) {
                None => non_blocking(input, "serial.input"),
                Some(_) => Err(kind("serial.input", "a pipe, a socket or a terminal")),
            }
        })
        .transpose()?;
    Ok(SerialConfig { output, input })
}
