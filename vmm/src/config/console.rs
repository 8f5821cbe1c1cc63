//! Consoles: descriptors that can be waited for, and sizes that a terminal has.

use std::fs::File;

use crate::descriptors::Descriptors;
use crate::devices::virtio::console::handle::Size;
use crate::spec::ConsoleSpec;

use super::descriptor::{readable, stored_size, writable};
use super::error::{ConfigError, in_range, kind};

/// A console.
#[derive(Debug)]
pub struct ConsoleConfig {
    /// Open for reading, and something to poll.
    pub input: Option<File>,
    /// Open for writing.
    pub output: File,
    /// Neither number is 0.
    pub size: Size,
}

/// Validates all consoles.
pub fn all(
    specs: Vec<ConsoleSpec>,
    fds: &mut Descriptors,
) -> Result<Vec<ConsoleConfig>, ConfigError> {
    let console = |(spec, index): (ConsoleSpec, usize)| {
        let field = format!("consoles[{index}]");
        let size = size(spec.columns, spec.rows, &format!("{field}."))?;
        let output = writable(spec.output, &format!("{field}.output"), fds)?;
        let input = spec.input.map(|number| {
            let field = format!("{field}.input");
            let input = readable(number, &field, fds)?;
            match stored_size(&input) {
                None => Ok(input),
                Some(_) => Err(kind(field, "a pipe, a socket or a terminal")),
            }
        });
        Ok(ConsoleConfig {
            input: input.transpose()?,
            output,
            size,
        })
    };
    specs.into_iter().zip(0..).map(console).collect()
}

/// A size that a terminal has; `prefix` comes before the names of the fields in the
/// error.
pub fn size(columns: u16, rows: u16, prefix: &str) -> Result<Size, ConfigError> {
    for (name, found) in [("columns", columns), ("rows", rows)] {
        let field = format!("{prefix}{name}");
        in_range(&field, found.into(), 1.., "1 or more")?;
    }
    Ok(Size { columns, rows })
}
