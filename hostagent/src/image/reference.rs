//! What `mote run` and `mote load` accept for an image.

use std::path::PathBuf;
use std::str::FromStr;

use super::digest::Digest;
use super::name::{ImageName, NameError};

/// Where an image is, as the user wrote it. Nothing has been looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageReference {
    /// `oci:DIR[:TAG]`: an OCI image layout.
    OciLayout {
        /// The directory with `oci-layout` and `index.json`.
        directory: PathBuf,
        /// The `org.opencontainers.image.ref.name` to choose.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// The image to choose from it.
        name: Option<ImageName>,
    },
    /// Something loaded before.
    Stored(StoredReference),
}

/// How an image loaded before is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredReference {
    /// `name[:tag]` or `name@digest`; one of hexadecimal digits only may be
    /// the start of an image id as well.
    Name(ImageName),
    /// `sha256:…`, or the 64 digits alone: the image id.
    Id(Digest),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// `oci:` or `docker-archive:` without a path.
    #[error("{0:?} names no path; write {1}")]
    NoPath(String, &'static str),
    /// A path was followed by a colon and nothing.
    #[error("{0:?} ends in a colon; write {1}")]
    NoTag(String, &'static str),
    /// It is not an image name either.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// What comes before the colon where a reference is not a name.
pub const TRANSPORTS: [&str; 2] = ["oci", "docker-archive"];

const OCI_FORM: &str = "oci:DIRECTORY[:TAG]";
const ARCHIVE_FORM: &str = "docker-archive:FILE[:NAME]";

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_rest(text, rest, OCI_FORM)?;
            return Ok(Self::OciLayout {
                directory: path,
                tag: tag.map(str::to_owned),
            });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = path_and_rest(text, rest, ARCHIVE_FORM)?;
            return Ok(Self::DockerArchive {
                file: path,
                name: name.map(str::parse).transpose()?,
            });
        }
        text.parse().map(Self::Stored).map_err(ReferenceError::Name)
    }
}

/// The first colon ends the path, because tags and names have colons too; so
/// such a path has none (as in `skopeo`).
fn path_and_rest<'a>(
    whole: &str,
    rest: &'a str,
    form: &'static str,
) -> Result<(PathBuf, Option<&'a str>), ReferenceError> {
    let (path, after) = match rest.split_once(':') {
        Some((path, after)) => (path, Some(after)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::NoPath(whole.to_owned(), form));
    }
    if after == Some("") {
        return Err(ReferenceError::NoTag(whole.to_owned(), form));
    }
    Ok((PathBuf::from(path), after))
}

impl FromStr for StoredReference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let id = text.parse().ok().or_else(|| Digest::from_hex(text));
        match id {
            Some(id) => Ok(Self::Id(id)),
            None => text.parse().map(Self::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oci_layout_may_have_a_tag_with_colons() {
        assert_eq!(
            "oci:/images/demo:docker.io/library/debian:12".parse(),
            Ok(ImageReference::OciLayout {
                directory: "/images/demo".into(),
                tag: Some("docker.io/library/debian:12".into()),
            })
        );
        assert_eq!(
            "oci:demo".parse(),
            Ok(ImageReference::OciLayout {
                directory: "demo".into(),
                tag: None,
            })
        );
    }

    #[test]
    fn a_docker_archive_may_name_an_image() {
        assert_eq!(
            "docker-archive:a.tar:demo".parse(),
            Ok(ImageReference::DockerArchive {
                file: "a.tar".into(),
                name: Some("demo:latest".parse().unwrap()),
            })
        );
    }

    #[test]
    fn references_without_a_path_or_with_an_empty_tag_are_refused() {
        for text in [
            "oci:",
            "oci::tag",
            "docker-archive:",
            "oci:dir:",
            "docker-archive:f:",
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_id_is_told_from_a_name() {
        let id = Digest::of(b"config");
        let expected = ImageReference::Stored(StoredReference::Id(id));
        assert_eq!(id.to_string().parse(), Ok(expected.clone()));
        assert_eq!(id.hex().parse(), Ok(expected));
        assert!(matches!(
            "debian".parse(),
            Ok(ImageReference::Stored(StoredReference::Name(_)))
        ));
    }
}
