//! From what the user wrote to images at their source.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use anyhow::{Context, bail};
use hostagent::image::archive::Archive;
use hostagent::image::docker_archive::DockerArchive;
use hostagent::image::progress::Progress;
use hostagent::image::source::SourceError;
use hostagent::open;
use hostagent::store::{Store, is_compressed};

/// Opens an archive of images. What cannot be read at any position, or is
/// compressed as a whole, is copied to the store's file system first.
pub fn open_archive(
    store: &Store,
    path: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<DockerArchive> {
    let file = open::at_once(path).map_err(|source| SourceError::Open {
        path: path.to_owned(),
        source,
    })?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        bail!(
            "{0} is a directory; for an OCI image layout write oci:{0}",
            path.display()
        );
    }
    read_archive(store, file, path.display().to_string(), progress)
}

/// The same for an open file, which is called `place` in errors.
pub fn read_archive(
    store: &Store,
    mut file: File,
    place: String,
    progress: &dyn Progress,
) -> anyhow::Result<DockerArchive> {
    let as_it_is = file.metadata().is_ok_and(|metadata| metadata.is_file())
        && file.stream_position().is_ok_and(|position| position == 0)
        && !starts_compressed(&mut file)
            .with_context(|| format!("cannot read the archive {place}"))?;
    let file = if as_it_is {
        file
    } else {
        store.spool(file, progress)?
    };
    let archive = Archive::open(file, place.clone())
        .map_err(|source| SourceError::Archive { place, source })?;
    Ok(DockerArchive::open(archive)?)
}

fn starts_compressed(file: &mut File) -> std::io::Result<bool> {
    let mut start = Vec::with_capacity(4);
    file.by_ref().take(4).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(is_compressed(&start))
}
