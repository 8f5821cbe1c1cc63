//! What the init says when the system refuses it something.

use std::error::Error;
use std::io;

use guest_protocol::{StartFailure, StartFailureKind};

/// A step of the init that failed.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}")]
pub struct SetupError {
    attempted: String,
    source: io::Error,
}

/// Adds what was attempted to what the system reported.
pub trait Attempt<T> {
    /// `attempted` is said only if it failed.
    fn attempt(self, attempted: impl FnOnce() -> String) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, attempted: impl FnOnce() -> String) -> Result<T, SetupError> {
        self.map_err(|source| SetupError {
            attempted: attempted(),
            source: source.into(),
        })
    }
}

impl From<SetupError> for StartFailure {
    fn from(error: SetupError) -> Self {
        setup_failure(&error)
    }
}

/// A failure that is neither the command's nor the image's fault.
pub fn setup_failure(error: &dyn Error) -> StartFailure {
    StartFailure {
        kind: StartFailureKind::Setup,
        message: chain(error),
    }
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
