//! An OCI image layout: a directory, or a tar archive of one.
//!
//! Source: OCI image specification 1.1, "Image Layout".

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::archive::Archive;
use super::digest::Digest;
use super::layer::LayerContent;
use super::manifest::{Descriptor, Index};
use super::name::ImageName;
use super::reference::TRANSPORTS;
use super::region::FileRegion;
use super::source::{
    Available, Blobs, SourceError, SourceImage, VerifiedDocument, for_this_machine, image_of,
    read_document, sized,
};

/// A layout whose index has been read.
#[derive(Debug)]
pub struct OciLayout {
    files: Files,
    place: String,
    /// What the repository is called when a tag alone names an image.
    default_repository: Option<String>,
    index: Index,
}

#[derive(Debug)]
enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

/// The file `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl OciLayout {
    /// Opens the layout in a directory.
    pub fn open(directory: &Path) -> Result<Self, SourceError> {
        let opened = std::fs::metadata(directory).and_then(|metadata| {
            if metadata.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        opened.map_err(|source| SourceError::Open {
            path: directory.to_owned(),
            source,
        })?;
        let default_repository = directory
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_str()?.to_lowercase()))
            // `oci:TAG` would be a directory to `mote run`.
            .map(|name| match TRANSPORTS.contains(&name.as_str()) {
                true => format!("localhost/{name}"),
                false => name,
            });
        let files = Files::Directory(directory.to_owned());
        Self::read(files, directory.display().to_string(), default_repository)
    }

    /// Opens the layout in an archive.
    pub fn in_archive(archive: Archive) -> Result<Self, SourceError> {
        let place = archive.place().to_owned();
        Self::read(Files::Archive(archive), place, None)
    }

    fn read(
        files: Files,
        place: String,
        default_repository: Option<String>,
    ) -> Result<Self, SourceError> {
        let not_a_layout = |reason: String| SourceError::NotALayout {
            place: place.clone(),
            reason,
        };
        let document = |name: &str| {
            let region = files
                .open(name)
                .map_err(|error| not_a_layout(format!("it has no {name} ({error})")))?;
            read_document(&place, &region, name)
        };
        let marker: Marker = serde_json::from_slice(&document("oci-layout")?.bytes)
            .map_err(|error| not_a_layout(format!("its oci-layout cannot be read ({error})")))?;
        if !marker.image_layout_version.starts_with("1.") {
            let version: String = marker.image_layout_version.chars().take(20).collect();
            return Err(not_a_layout(format!(
                "its version is {version:?}; 1.x is supported"
            )));
        }
        let index = Index::parse(&document("index.json")?.bytes).map_err(|source| {
            SourceError::Document {
                place: place.clone(),
                what: "index.json".to_owned(),
                source,
            }
        })?;
        Ok(Self {
            files,
            place,
            default_repository,
            index,
        })
    }

    /// The image of this tag, or the only one, or the one tagged `latest`.
    pub fn image(&self, tag: Option<&str>) -> Result<SourceImage, SourceError> {
        let mut groups = self.groups();
        let available = || Available(self.groups().into_keys().flatten().collect());
        let entries = match tag {
            Some(tag) => groups
                .into_iter()
                .find(|(_, entries)| entries.iter().any(|e| e.names().any(|name| name == tag)))
                .map(|(_, entries)| entries)
                .ok_or_else(|| SourceError::TagNotFound {
                    place: self.place.clone(),
                    wanted: tag.to_owned(),
                    available: available(),
                })?,
            None if groups.len() > 1 => {
                groups
                    .remove(&Some("latest".to_owned()))
                    .ok_or_else(|| SourceError::Ambiguous {
                        place: self.place.clone(),
                        available: available(),
                    })?
            }
            None => groups.into_values().next().unwrap_or_default(),
        };
        self.resolve(&entries)
    }

    /// Every image.
    pub fn images(&self) -> Result<Vec<SourceImage>, SourceError> {
        let groups = self.groups();
        if groups.is_empty() {
            return Err(SourceError::NotALayout {
                place: self.place.clone(),
                reason: "its index.json lists no images".to_owned(),
            });
        }
        groups.values().map(|group| self.resolve(group)).collect()
    }

    /// Entries of one name are one image for several platforms.
    fn groups(&self) -> BTreeMap<Option<String>, Vec<&Descriptor>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for entry in &self.index.manifests {
            let name = entry.ref_name().or(entry.containerd_name());
            let group = groups.entry(name.map(str::to_owned)).or_default();
            group.push(entry);
        }
        groups
    }

    fn resolve(&self, entries: &[&Descriptor]) -> Result<SourceImage, SourceError> {
        let entries: Vec<Descriptor> = entries.iter().copied().cloned().collect();
        let chosen = for_this_machine(&entries, &self.place)?;
        let names = self.name_of(chosen).into_iter().collect();
        image_of(self, chosen, names)
    }

    /// containerd's whole name, or a reference name that is one, or the
    /// directory's name with the reference name as tag, so that
    /// `oci:images/demo:debian` is `demo:debian`.
    fn name_of(&self, entry: &Descriptor) -> Option<ImageName> {
        if let Some(name) = entry.containerd_name().and_then(|name| name.parse().ok()) {
            return Some(name);
        }
        let tag = entry.ref_name()?;
        if tag.contains(['/', ':']) {
            return tag.parse().ok();
        }
        match &self.default_repository {
            Some(repository) => format!("{repository}:{tag}").parse().ok(),
            None => tag.parse().ok(),
        }
    }
}

impl Files {
    fn open(&self, name: &str) -> io::Result<FileRegion> {
        match self {
            Self::Directory(directory) => FileRegion::open(&directory.join(name)),
            Self::Archive(archive) => archive
                .file(name)
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }
}

impl Blobs for OciLayout {
    fn place(&self) -> &str {
        &self.place
    }

    fn document(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
    ) -> Result<VerifiedDocument, SourceError> {
        let region = sized(self.blob(descriptor.digest)?, descriptor, what)?;
        let document = read_document(&self.place, &region, what)?;
        if document.digest != descriptor.digest {
            return Err(SourceError::Digest {
                what: what.to_owned(),
                expected: descriptor.digest,
                found: document.digest,
            });
        }
        Ok(document)
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Arc<dyn LayerContent>, SourceError> {
        let region = sized(self.blob(descriptor.digest)?, descriptor, "layer")?;
        Ok(Arc::new(region))
    }
}

impl OciLayout {
    /// The blob as it is there; nothing has been verified.
    fn blob(&self, digest: Digest) -> Result<FileRegion, SourceError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        self.files
            .open(&name)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => SourceError::Missing {
                    place: self.place.clone(),
                    what: format!("blob {digest}, which its manifest names"),
                },
                _ => SourceError::Read {
                    place: self.place.clone(),
                    what: format!("blob {digest}"),
                    source,
                },
            })
    }
}
