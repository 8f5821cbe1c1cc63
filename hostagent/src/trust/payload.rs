//! What a cosign signature says: a document in the format "simple signing".
//!
//! Source: containers/image, `containers-signature.5`, which says that a reader must
//! refuse what it does not know in `critical`; cosign's `SIGNATURE_SPEC.md`.
//!
//! ```json
//! {
//!   "critical": {
//!     "identity": {"docker-reference": "registry.example/team/app"},
//!     "image": {"docker-manifest-digest": "sha256:…"},
//!     "type": "cosign container image signature"
//!   },
//!   "optional": {"creator": "…"}
//! }
//! ```
//!
//! `optional` is not looked at. `docker-reference` may have a tag: Podman writes it, and
//! cosign if it is told to (`--sign-container-identity`); on its own it writes none.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::image::digest::Digest;
use crate::image::name::{ImageName, NameError};
use crate::registry::Repository;

/// The only `type` that speaks of images.
const TYPE: &str = "cosign container image signature";

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The repository that the image is of, and a digest; a tag only if the signer has
    /// named one.
    pub identity: ImageName,
    /// The digest of the manifest or index.
    pub digest: Digest,
}

/// Why a payload says nothing, although a trusted key has signed it.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON, or a field is missing, unknown, twice there or of the wrong kind.
    #[error("it is not a document of the format \"simple signing\"")]
    Json(#[from] serde_json::Error),
    /// A signature of something else than an image.
    #[error("its type is {0:?}, not {TYPE:?}")]
    Type(String),
    /// The identity is no repository.
    #[error("its docker-reference is not the name of an image")]
    Identity(#[from] NameError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Object<Critical>,
    #[serde(default, rename = "optional")]
    _optional: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Object<Identity>,
    image: Object<Image>,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: Digest,
}

impl Payload {
    /// Reads the bytes that a trusted key has signed.
    pub fn parse(bytes: &[u8]) -> Result<Self, PayloadError> {
        let Object(document) = serde_json::from_slice::<Object<Document>>(bytes)?;
        let critical = document.critical.0;
        if critical.r#type != TYPE {
            let shown = critical.r#type.chars().take(100).collect();
            return Err(PayloadError::Type(shown));
        }
        let digest = critical.image.0.docker_manifest_digest;
        let reference = critical.identity.0.docker_reference;
        let mut identity: ImageName = reference.parse()?;
        if identity.digest().is_none() {
            // Of a name with a digest, no tag means none, not `latest`.
            identity = format!("{reference}@{digest}").parse()?;
        }
        Ok(Self { identity, digest })
    }

    /// Whether it is about this manifest of this repository, under whatever tag.
    pub fn covers(&self, repository: &Repository, digest: Digest) -> bool {
        self.digest == digest
            && self.identity.digest() == Some(digest)
            && Repository::of(&self.identity).canonical() == repository.canonical()
    }

    /// What it says of the tag that the image was asked for by.
    pub fn tag_of(&self, asked: &ImageName) -> SignedTag<'_> {
        match (asked.digest(), asked.tag(), self.identity.tag()) {
            (Some(_), ..) | (_, None, _) => SignedTag::NotAsked,
            (None, Some(_), None) => SignedTag::Unnamed,
            (None, Some(asked), Some(signed)) if asked == signed => SignedTag::Same,
            (None, Some(_), Some(signed)) => SignedTag::Another(signed),
        }
    }
}

/// What a payload says of the tag that an image was asked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedTag<'a> {
    /// It was asked for by its digest: no registry chooses which image that is.
    NotAsked,
    /// That it is this image.
    Same,
    /// Nothing: whoever signed did not name one.
    Unnamed,
    /// That the image is another tag's.
    Another(&'a str),
}

/// `REPOSITORY[:TAG]@DIGEST`.
impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.identity.repository())?;
        if let Some(tag) = self.identity.tag() {
            write!(f, ":{tag}")?;
        }
        write!(f, "@{}", self.digest)
    }
}

/// A JSON object. Derived code alone would take an array of the fields' values as
/// well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
