//! What nodes say to each other: one request and one answer a stream, each a JSON document
//! behind its length. What a version does not know of a document it passes over.

use outboard::BlobHash;
use quinn::{ReadExactError, RecvStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::image::manifest::{MAX_DOCUMENT_BYTES, MAX_LAYERS};
use crate::store::BlobIdentity;

/// The longest request: a name of an image is a few hundred bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 4 << 10;
/// The longest answer: 256 layers with two hashes each are half of it.
pub(super) const MAX_ANSWER_BYTES: usize = 256 << 10;
/// The most ranges of groups that an answer may have.
const MAX_RANGES: usize = 256;

/// What a node asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Part of a blob.
    Blob {
        /// Which.
        hash: BlobHash,
        /// From the first to before the second of these groups, those the blob has.
        groups: [u64; 2],
    },
    /// What an image consists of.
    Image(ImageWanted),
}

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ImageWanted {
    /// That of this id.
    Id(Digest),
    /// That of this name, `REPOSITORY:TAG` or `REPOSITORY[:TAG]@DIGEST`.
    Name(String),
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The blob. What is asked for follows, from its first group to the first that is not
    /// there ([`encoding`](super::encoding)).
    Blob {
        /// The length of the blob.
        bytes: u64,
        /// Which of its groups are there, ascending ranges; today all or nothing.
        has: Vec<[u64; 2]>,
    },
    /// The image. Its configuration follows, then its manifest.
    Image(ImageAnswer),
    /// It is not here.
    NotHere,
    /// It is here, and cannot be given.
    Failed {
        /// Why, in words.
        problem: String,
    },
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageAnswer {
    /// The image id.
    pub id: Digest,
    /// The length of the configuration.
    pub config_bytes: u64,
    /// The length of the manifest, if there is one.
    pub manifest_bytes: Option<u64>,
    /// The layers, base first.
    pub layers: Vec<LayerAnswer>,
}

/// What a layer consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerAnswer {
    /// The digest of the tar stream.
    pub diff_id: Digest,
    /// Its length.
    pub tar_bytes: u64,
    /// What it was converted to.
    pub blob: BlobIdentity,
    /// What else of it there is, in zstd.
    pub skeleton: BlobIdentity,
}

/// Why something was not said as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    /// It did not arrive.
    #[error(transparent)]
    Read(#[from] ReadExactError),
    /// It is longer than any.
    #[error("a message of {0} bytes is longer than any")]
    TooLong(usize),
    /// It is no such message.
    #[error("a message that is none")]
    Json(#[from] serde_json::Error),
    /// It may be right, and is more than this node takes.
    #[error("it has a layer that is longer than limits.toml allows")]
    Limit,
    /// It has numbers that cannot be.
    #[error("{0}")]
    Senseless(&'static str),
}

/// A message behind its length.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Receives a message of at most `max` bytes.
pub(super) async fn receive<T: DeserializeOwned>(
    stream: &mut RecvStream,
    max: usize,
) -> Result<T, MessageError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > max {
        return Err(MessageError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Up to where of `from..` a peer has groups that says it has these; `from` if it has not
/// even the first.
pub(super) fn run_of(has: &[[u64; 2]], from: u64) -> Result<u64, MessageError> {
    if has.len() > MAX_RANGES {
        return Err(MessageError::Senseless("it has more ranges than any"));
    }
    let found = has
        .iter()
        .find(|[first, end]| (*first..*end).contains(&from));
    Ok(found.map_or(from, |[_, end]| *end))
}

impl ImageAnswer {
    /// Refuses numbers that no image has.
    pub fn check(&self, limits: &erofs::Limits) -> Result<(), MessageError> {
        let documents = [self.config_bytes, self.manifest_bytes.unwrap_or(0)];
        if documents.iter().any(|bytes| *bytes > MAX_DOCUMENT_BYTES) {
            return Err(MessageError::Senseless("its documents are longer than any"));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(MessageError::Senseless("it has more layers than any"));
        }
        let fits = |layer: &LayerAnswer| {
            layer.tar_bytes <= limits.max_tar_bytes
                && layer.blob.bytes <= limits.max_blob_bytes
                && layer.skeleton.bytes <= limits.max_tar_bytes
        };
        match self.layers.iter().all(fits) {
            true => Ok(()),
            false => Err(MessageError::Limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_the_form_that_is_documented() {
        let hash = BlobHash::of(b"");
        let groups = [0, 64];
        let request = encode(&Request::Blob { hash, groups }).unwrap();
        let text = format!("{{\"blob\":{{\"hash\":\"{hash}\",\"groups\":[0,64]}}}}");
        assert_eq!(request[..4], (text.len() as u32).to_be_bytes());
        assert_eq!(&request[4..], text.as_bytes());
        let id = Digest::of(b"");
        let text = serde_json::to_string(&Request::Image(ImageWanted::Id(id))).unwrap();
        assert_eq!(text, format!("{{\"image\":{{\"id\":\"{id}\"}}}}"));
        let text = serde_json::to_string(&Answer::NotHere).unwrap();
        assert_eq!(text, "\"not_here\"");
        let newer = r#"{"blob":{"bytes":5,"has":[[0,1]],"since":"yesterday"}}"#;
        assert!(serde_json::from_str::<Answer>(newer).is_ok());
    }

    #[test]
    fn the_largest_answer_fits() {
        let identity = BlobIdentity {
            hash: BlobHash::of(b""),
            bytes: u64::MAX,
        };
        let layer = LayerAnswer {
            diff_id: Digest::of(b""),
            tar_bytes: u64::MAX,
            blob: identity,
            skeleton: identity,
        };
        let answer = Answer::Image(ImageAnswer {
            id: Digest::of(b""),
            config_bytes: MAX_DOCUMENT_BYTES,
            manifest_bytes: Some(MAX_DOCUMENT_BYTES),
            layers: vec![layer; MAX_LAYERS],
        });
        assert!(encode(&answer).unwrap().len() <= MAX_ANSWER_BYTES);
    }

    #[test]
    fn an_image_beyond_the_limits_is_refused() {
        let blob = BlobIdentity {
            hash: BlobHash::of(b""),
            bytes: 1,
        };
        let layer = LayerAnswer {
            diff_id: Digest::of(b""),
            tar_bytes: 1,
            blob,
            skeleton: blob,
        };
        let good = ImageAnswer {
            id: Digest::of(b""),
            config_bytes: 2,
            manifest_bytes: None,
            layers: vec![layer],
        };
        let limits = erofs::Limits::default();
        good.check(&limits).unwrap();
        type Harm = fn(&mut ImageAnswer);
        let harm: [Harm; 6] = [
            |image| image.config_bytes = u64::MAX,
            |image| image.manifest_bytes = Some(MAX_DOCUMENT_BYTES + 1),
            |image| image.layers = vec![image.layers[0].clone(); MAX_LAYERS + 1],
            |image| image.layers[0].tar_bytes = u64::MAX,
            |image| image.layers[0].blob.bytes = u64::MAX,
            |image| image.layers[0].skeleton.bytes = u64::MAX,
        ];
        for harm in harm {
            let mut image = good.clone();
            harm(&mut image);
            assert!(image.check(&limits).is_err(), "{image:?}");
        }
    }

    proptest! {
        #[test]
        fn a_run_begins_where_it_is_asked_for(
            has in proptest::collection::vec(any::<[u64; 2]>(), 0..300),
            from in any::<u64>(),
        ) {
            match run_of(&has, from) {
                Ok(end) => prop_assert!(end >= from),
                Err(_) => prop_assert!(has.len() > MAX_RANGES),
            }
        }
    }
}
