//! What `docker save` writes: a tar archive with `manifest.json`.
//!
//! Three generations are about. The first has a directory for each layer with
//! `layer.tar` in it, which is a symbolic link where images share a layer. The
//! second is an OCI image layout with a `manifest.json` beside it. Tools such
//! as skopeo write the third: `DIFF_ID.tar` at the top. In each, `manifest.json`
//! names the files; those under `blobs/sha256/` are named by their digest, which
//! is checked too.
//!
//! Source: Moby, "image/tarexport"; its `manifest.json` has no specification.

use std::sync::Arc;

use serde::Deserialize;

use super::archive::Archive;
use super::digest::Digest;
use super::layer::LayerSource;
use super::manifest::MAX_INDEX_ENTRIES;
use super::name::ImageName;
use super::oci_layout::OciLayout;
use super::source::{
    Available, LOCAL_PARALLEL, SourceError, SourceImage, VerifiedDocument, check_layer_count,
    parse_config, read_document,
};

/// The file that lists the images.
const MANIFEST: &str = "manifest.json";
/// Where newer archives keep blobs named by digest.
const BLOBS: &str = "blobs/sha256/";

/// An archive whose images are known.
#[derive(Debug)]
pub struct DockerArchive(Kind);

#[derive(Debug)]
enum Kind {
    Docker {
        archive: Archive,
        images: Vec<Image>,
    },
    /// Without `manifest.json` it may still be a layout, as `skopeo copy …
    /// oci-archive:` and `podman save` write.
    Oci(OciLayout),
}

/// One element of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    /// Reads what images the archive has.
    pub fn open(archive: Archive) -> Result<Self, SourceError> {
        let Some(region) = archive.file(MANIFEST) else {
            if archive.file("index.json").is_none() {
                return Err(SourceError::NotAnArchive {
                    place: archive.place().to_owned(),
                });
            }
            return OciLayout::in_archive(archive).map(|layout| Self(Kind::Oci(layout)));
        };
        let document = read_document(archive.place(), &region, MANIFEST)?;
        let images: Vec<Image> =
            serde_json::from_slice(&document.bytes).map_err(|error| SourceError::Document {
                place: archive.place().to_owned(),
                what: MANIFEST.to_owned(),
                source: error.into(),
            })?;
        if images.is_empty() || images.len() > MAX_INDEX_ENTRIES {
            return Err(SourceError::Missing {
                place: archive.place().to_owned(),
                what: format!("image: its {MANIFEST} lists {}", images.len()),
            });
        }
        Ok(Self(Kind::Docker { archive, images }))
    }

    /// The image of this name, or the only one.
    /// One that was asked for by name goes by that name alone, whatever else it is called.
    pub fn image(&self, name: Option<&ImageName>) -> Result<SourceImage, SourceError> {
        let mut image = self.find(name)?;
        if let Some(name) = name {
            image.names = vec![name.clone()];
        }
        Ok(image)
    }

    fn find(&self, name: Option<&ImageName>) -> Result<SourceImage, SourceError> {
        let (archive, images) = match &self.0 {
            Kind::Docker { archive, images } => (archive, images),
            Kind::Oci(layout) => return image_of_layout(layout, name),
        };
        let available = || {
            let tags = images.iter().flat_map(|image| image.repo_tags.iter());
            Available(tags.flatten().cloned().collect())
        };
        let place = || archive.place().to_owned();
        let image = match (name, &images[..]) {
            (Some(name), _) => images
                .iter()
                .find(|image| image.names().contains(name))
                .ok_or_else(|| SourceError::TagNotFound {
                    place: place(),
                    wanted: name.to_string(),
                    available: available(),
                })?,
            (None, [image]) => image,
            (None, _) => {
                return Err(SourceError::Ambiguous {
                    place: place(),
                    available: available(),
                });
            }
        };
        image.resolve(archive)
    }

    /// Every image.
    pub fn images(&self) -> Result<Vec<SourceImage>, SourceError> {
        match &self.0 {
            Kind::Docker { archive, images } => {
                images.iter().map(|image| image.resolve(archive)).collect()
            }
            Kind::Oci(layout) => layout.images(),
        }
    }
}

/// In a layout within an archive, images go by reference names, which the
/// archive's reference gives as a full image name.
fn image_of_layout(
    layout: &OciLayout,
    name: Option<&ImageName>,
) -> Result<SourceImage, SourceError> {
    let Some(name) = name else {
        return layout.image(None);
    };
    layout
        .images()?
        .into_iter()
        .find(|image| image.names.contains(name))
        .map_or_else(|| layout.image(Some(&name.to_string())), Ok)
}

impl Image {
    /// Names that cannot be read are left out: they could not be asked for.
    fn names(&self) -> Vec<ImageName> {
        let tags = self.repo_tags.iter().flatten();
        tags.filter_map(|tag| tag.parse().ok()).collect()
    }

    fn resolve(&self, archive: &Archive) -> Result<SourceImage, SourceError> {
        let config_document = self.config(archive)?;
        let config = parse_config(&config_document)?;
        let paths = self.layers.as_deref().unwrap_or_default();
        check_layer_count(paths.len(), &config)?;
        let layers = paths
            .iter()
            .zip(&config.diff_ids)
            .map(|(path, diff_id)| {
                let region = archive.file(path).ok_or_else(|| missing(archive, path))?;
                Ok(LayerSource {
                    diff_id: *diff_id,
                    blob: path.strip_prefix(BLOBS).and_then(Digest::from_hex),
                    content: Arc::new(region),
                })
            })
            .collect::<Result<_, SourceError>>()?;
        Ok(SourceImage {
            names: self.names(),
            manifest: None,
            config_document,
            config,
            layers,
            parallel: LOCAL_PARALLEL,
            origin: None,
        })
    }

    /// The configuration, which is named by its digest: `HEX.json`, or `HEX`
    /// among the blobs.
    fn config(&self, archive: &Archive) -> Result<VerifiedDocument, SourceError> {
        let path = &self.config;
        let region = archive.file(path).ok_or_else(|| missing(archive, path))?;
        let document = read_document(archive.place(), &region, "the image configuration")?;
        let name = path.strip_prefix(BLOBS).unwrap_or(path);
        let expected = Digest::from_hex(name.strip_suffix(".json").unwrap_or(name));
        match expected {
            Some(expected) if expected != document.digest => Err(SourceError::Digest {
                what: "the image configuration".to_owned(),
                expected,
                found: document.digest,
            }),
            _ => Ok(document),
        }
    }
}

fn missing(archive: &Archive, path: &str) -> SourceError {
    let path: String = path.chars().take(300).collect();
    SourceError::Missing {
        place: archive.place().to_owned(),
        what: format!("{path:?}, which its {MANIFEST} names"),
    }
}
