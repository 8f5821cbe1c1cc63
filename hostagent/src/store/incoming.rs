//! A blob that arrives from somewhere else, together with its hash tree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Store;
use super::StoreError;
use super::blob::{BlobIdentity, DATA, OUTBOARD};
use super::leases::Lease;
use super::staging::Staging;

/// Files that become a blob. Whoever writes to them has verified what they write.
#[derive(Debug)]
pub(crate) struct IncomingBlob {
    identity: BlobIdentity,
    data: File,
    outboard: File,
    directory: PathBuf,
    // Removed with all in it unless the blob has been published.
    _staging: Staging,
}

impl IncomingBlob {
    /// Writes bytes of the blob that have been verified.
    pub fn write_data(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, offset)
    }

    /// Writes nodes of its hash tree that have been verified.
    pub fn write_nodes(&self, offset: u64, nodes: &[u8]) -> io::Result<()> {
        self.outboard.write_all_at(nodes, offset)
    }
}

impl Store {
    /// Will take in a blob, into a temporary directory.
    pub(crate) fn incoming(&self, identity: BlobIdentity) -> Result<IncomingBlob, StoreError> {
        let staging = self.scratch()?;
        let directory = staging.path().join("blob");
        let create = |directory: &Path, name: &str| {
            let mut options = File::options();
            let options = options.write(true).create_new(true);
            options.open(directory.join(name))
        };
        let made = || {
            std::fs::create_dir(&directory)?;
            Ok((create(&directory, DATA)?, create(&directory, OUTBOARD)?))
        };
        let (data, outboard) =
            made().map_err(|error| self.io(format!("taking in blob {}", identity.hash), error))?;
        Ok(IncomingBlob {
            identity,
            data,
            outboard,
            directory,
            _staging: staging,
        })
    }

    /// Brings to disk and to its place a blob that has all of its bytes and nodes, and holds
    /// on to it.
    pub(crate) fn take_in(&self, blob: &IncomingBlob, lease: &Lease) -> Result<(), StoreError> {
        let hash = blob.identity.hash;
        let synced = blob
            .outboard
            .sync_data()
            .and_then(|()| blob.data.sync_data());
        synced.map_err(|error| self.io(format!("taking in blob {hash}"), error))?;
        self.hold(lease, || Ok::<_, StoreError>(((), vec![hash])))?;
        self.publish_blob(&blob.directory, blob.identity)
    }
}

#[cfg(test)]
impl Store {
    /// Puts these bytes into the store.
    pub(crate) fn put_for_tests(&self, bytes: &[u8]) -> BlobIdentity {
        use std::io::Write;
        let staging = self.scratch().unwrap();
        let directory = staging.path().join("blob");
        std::fs::create_dir(&directory).unwrap();
        let mut writer = super::blob::BlobWriter::create(&directory).unwrap();
        writer.write_all(bytes).unwrap();
        let identity = writer
            .finish(&mut super::durable::Unsynced::default())
            .unwrap();
        self.publish_blob(&directory, identity).unwrap();
        identity
    }
}
