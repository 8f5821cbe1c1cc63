//! Converting a layer: its tar stream to a blob and a skeleton.

use std::io;

use erofs::tar::TarError;

use super::blob::BlobWriter;
use super::error::is_out_of_space;
use super::import::ImportError;
use super::limits;
use super::staging::Staging;
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::layer::{LayerError, LayerSource};
use crate::image::progress::Task;

/// How hard zstd works at a skeleton: a little, since converting waits for it.
pub(super) const SKELETON_LEVEL: i32 = 1;

/// Why a layer's tar stream was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The tar stream is malformed or hostile, or writing failed.
    #[error(transparent)]
    Erofs(erofs::layer::LayerError),
    /// It costs more than this host's administrator allows.
    #[error("it exceeds a limit, which {} can raise", limits::FILE_NAME)]
    Limit(#[source] erofs::layer::LayerError),
    /// The blob could not be made or brought to disk.
    #[error("writing the blob failed")]
    Blob(#[from] io::Error),
}

impl From<erofs::layer::LayerError> for ConvertError {
    fn from(error: erofs::layer::LayerError) -> Self {
        use erofs::layer::LayerError as Error;
        match error {
            Error::Tar(TarError::TooLong { .. })
            | Error::TooManyEntries { .. }
            | Error::TooMuchMetadata { .. }
            | Error::BlobTooLarge { .. } => Self::Limit(error),
            error => Self::Erofs(error),
        }
    }
}

/// Where in a staging directory the blob of a layer is made.
pub(super) const BLOB: &str = "blob";
/// And its skeleton.
pub(super) const SKELETON: &str = "skeleton";

/// What is done, for errors.
pub(super) fn converting(diff_id: Digest) -> String {
    format!("converting layer {diff_id}")
}

/// What a layer was converted to, verified and not on disk yet.
pub(super) struct Conversion {
    /// The length of the tar stream.
    pub tar_bytes: u64,
    /// The blob.
    pub blob: BlobWriter,
    /// What else of the tar stream there is.
    pub skeleton: BlobWriter,
}

impl Store {
    /// Converts a layer into two directories of `staging`.
    pub(super) fn convert(
        &self,
        source: &LayerSource,
        staging: &Staging,
        task: &dyn Task,
    ) -> Result<Conversion, ImportError> {
        let action = || converting(source.diff_id);
        let failed = |error| self.io(action(), error);
        let [blob_directory, skeleton_directory] =
            [BLOB, SKELETON].map(|name| staging.path().join(name));
        for directory in [&blob_directory, &skeleton_directory] {
            std::fs::create_dir(directory).map_err(failed)?;
        }

        let converted = source.read_verified(task, |tar| {
            let mut blob = BlobWriter::for_disk(&blob_directory)?;
            let skeleton = BlobWriter::create(&skeleton_directory)?;
            let packed = zstd::Encoder::new(skeleton, SKELETON_LEVEL)?;
            let mut skeleton = erofs::skeleton::Writer::new(packed);
            let summary =
                erofs::layer::write_recorded(tar, &mut blob, &self.limits, &mut skeleton)?;
            Ok((summary.tar_bytes, blob, skeleton.finish()?.finish()?))
        });
        let (tar_bytes, blob, skeleton) =
            converted.map_err(|error: LayerError<ConvertError>| {
                if !is_out_of_space(&error) {
                    return ImportError::Layer(Box::new(error));
                }
                // Said after what was half-made is gone.
                for directory in [&blob_directory, &skeleton_directory] {
                    let _ = std::fs::remove_dir_all(directory);
                }
                StoreError::no_space(self.root.clone(), action()).into()
            })?;
        Ok(Conversion {
            tar_bytes,
            blob,
            skeleton,
        })
    }
}
