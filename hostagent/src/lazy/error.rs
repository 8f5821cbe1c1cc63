//! Why what is missing of an image could not be fetched.

use std::fmt::Display;

use outboard::BlobHash;

use crate::registry::RegistryError;
use crate::runtime::Cancelled;
use crate::store::{BlobError, Store, StoreError};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What the registry gave is not part of the blob, or could not be written.
    #[error("what {repository} sent cannot be used")]
    Blob {
        /// Where it is from.
        repository: String,
        /// What is wrong.
        source: BlobError,
    },
    /// The registry says of a blob that is here that it has another length.
    #[error("{repository} says that blob {hash} has {said} bytes, which has {found}")]
    Length {
        /// Who says so.
        repository: String,
        /// The blob.
        hash: BlobHash,
        /// What it says.
        said: u64,
        /// The length of the blob of this hash.
        found: u64,
    },
    /// A peer did not give it; others are asked.
    #[error("{0}")]
    Peer(String),
    /// A hash tree did not arrive, or could not be written.
    #[error("a hash tree could not be fetched")]
    Tree(#[source] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FetchError {
    /// Of what `sender` sent and could not be written.
    pub(super) fn of_write(store: &Store, sender: &dyn Display, source: BlobError) -> Self {
        match source {
            BlobError::Write { hash, source, .. } => {
                StoreError::io(store.root(), format!("fetching blob {hash}"), source).into()
            }
            source => Self::Blob {
                repository: sender.to_string(),
                source,
            },
        }
    }
}

impl From<Cancelled> for FetchError {
    fn from(cancelled: Cancelled) -> Self {
        RegistryError::from(cancelled).into()
    }
}
