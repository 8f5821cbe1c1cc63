//! What can be wrong with a spec.

use std::io;

use crate::descriptors::DescriptorError;
use crate::kvm::vm::NotKvm;
use crate::spec::SPEC_VERSION;

/// What is wrong with a spec.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Another version of the format.
    #[error("version is {found}, this mote-vmm understands {SPEC_VERSION}")]
    Version {
        /// What the spec says.
        found: u32,
    },
    /// A number outside its range.
    #[error("{field} is {found}, it must be {wanted}")]
    Range {
        /// The field of the spec.
        field: String,
        /// What it holds.
        found: u64,
        /// What it may hold.
        wanted: String,
    },
    /// A descriptor that cannot be used.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// A descriptor that is not KVM's.
    #[error("kvm {0}")]
    NotKvm(#[from] NotKvm),
    /// A descriptor of the wrong kind.
    #[error("{field} must be {wanted}")]
    Kind {
        /// The field of the spec.
        field: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// An extent that its file does not hold.
    #[error("{field} ends at byte {end}, its file at {size}")]
    Extent {
        /// The field of the spec.
        field: String,
        /// One past the last byte of the extent.
        end: u64,
        /// The size of the file.
        size: u64,
    },
    /// A descriptor of the right kind that cannot be set up.
    #[error("{field} cannot be set up")]
    Setup {
        /// The field of the spec.
        field: String,
        /// What the system said.
        source: io::Error,
    },
    /// Two values that must differ.
    #[error("{field} is {value}, as {other} is already; each must be given once")]
    Twice {
        /// The field of the spec.
        field: String,
        /// The field that came first.
        other: String,
        /// The value of both.
        value: String,
    },
    /// A field that another one makes impossible.
    #[error("{field} cannot be given together with {other}: {reason}")]
    NotWith {
        /// The field of the spec.
        field: String,
        /// The field beside it that it contradicts.
        other: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Two descriptors that must belong together.
    #[error(
        "{field} is a queue of the interface {found}, {other} of {wanted}: they must be of one"
    )]
    Interface {
        /// The field of the spec.
        field: String,
        /// The interface it belongs to.
        found: String,
        /// The field that came first.
        other: String,
        /// The interface that one belongs to.
        wanted: String,
    },
    /// A name of nothing.
    #[error("{field} is {found:?}, it must be one of {known}")]
    Name {
        /// The field of the spec.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        known: String,
    },
    /// Text that the guest could not be given as it is.
    #[error("{field} {problem}")]
    Text {
        /// The field of the spec.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// `found` if it is in `range`, which `wanted` tells in words.
pub fn in_range(
    field: &str,
    found: u64,
    range: impl std::ops::RangeBounds<u64>,
    wanted: impl Into<String>,
) -> Result<u64, ConfigError> {
    if range.contains(&found) {
        return Ok(found);
    }
    Err(ConfigError::Range {
        field: field.to_owned(),
        found,
        wanted: wanted.into(),
    })
}

/// `field` is not what is `wanted`.
pub fn kind(field: impl Into<String>, wanted: &'static str) -> ConfigError {
    ConfigError::Kind {
        field: field.into(),
        wanted,
    }
}
