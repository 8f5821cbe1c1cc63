//! Signatures as cosign stores them, found in a registry and verified.
//!
//! Source: cosign, `specs/SIGNATURE_SPEC.md`.
//!
//! The signatures of the manifest `sha256:HEX` are a manifest of their own in the same
//! repository, under the tag `sha256-HEX.sig`, or listed among its referrers with the
//! artifact type [`ARTIFACT_TYPE`]. Each of its layers of type [`LAYER_TYPE`] is a
//! payload ([`super::payload`]), and has the signature of the payload's bytes, in
//! Base64, as the annotation [`ANNOTATION`]. Certificates, bundles of transparency logs
//! and time stamps may be beside it; they are not looked at.
//!
//! The payload is interpreted only after a trusted key has been found to have signed
//! it, and must name the digest, the repository, and no other tag than the image was asked
//! for by: the registry, or a mirror of it, may put any signature there is under any tag,
//! and any image.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Signed;
use super::error::{BrokenSignature, DigestList, KeyList, LookedAt, TrustError};
use super::key::TrustedKey;
use super::payload::{Payload, PayloadError, SignedTag};
use super::policy::{RulePlace, Signers};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Document, MAX_DOCUMENT_BYTES};
use crate::image::name::ImageName;
use crate::registry::{Client, Reference, RegistryError, Repository};

/// What a layer with a payload is.
pub const LAYER_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// What a manifest of signatures is, as a referrer.
pub const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Where a layer has its signature.
pub const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// How the artifact type of a signature begins that is in sigstore's bundle format,
/// which names no repository and is not supported.
const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle";

/// The most signatures of one manifest that are looked at.
pub const MAX_SIGNATURES: usize = 64;
/// The most manifests of signatures that are fetched for one manifest.
const MAX_REFERRERS: usize = 16;
/// The longest payload. Those of cosign have about 250 bytes, and whatever the signer
/// adds.
pub const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
/// The longest signature, and half of it to spare: one of RSA with 8192 bits has 1024
/// bytes.
const MAX_SIGNATURE_BYTES: usize = 1536;
/// How long all that is fetched may take. A registry that sends a byte now and then
/// never stalls.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Whose signatures are looked for, and by which keys.
pub(super) struct Search<'a> {
    pub client: &'a Client,
    pub name: &'a ImageName,
    pub signers: &'a Signers,
    pub rule: &'a RulePlace,
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Search<'_> {
    /// The first good signature of any of the digests.
    pub fn find(&self, digests: &[Digest]) -> Result<Signed, TrustError> {
        self.find_within(digests, TIME_LIMIT)
    }

    fn find_within(&self, digests: &[Digest], limit: Duration) -> Result<Signed, TrustError> {
        let deadline = Instant::now() + limit;
        let is_over = || Instant::now() >= deadline;
        let mut progress = Progress {
            search: self,
            repository: Repository::of(self.name),
            stop: &|| (self.cancelled)() || is_over(),
            payloads: BTreeMap::new(),
            looked_at: LookedAt {
                signatures: 0,
                more: false,
            },
            flaw: None,
            has_bundles: false,
        };
        let mut asked: Vec<Digest> = Vec::new();
        for digest in digests {
            if asked.contains(digest) {
                continue;
            }
            asked.push(*digest);
            match progress.of(*digest) {
                Ok(Some(signed)) => return Ok(signed),
                Ok(None) => {}
                Err(RegistryError::Cancelled) if is_over() => {
                    return Err(TrustError::TooSlow {
                        name: Box::new(self.name.clone()),
                        seconds: limit.as_secs(),
                    });
                }
                Err(RegistryError::Cancelled) => return Err(TrustError::Cancelled),
                Err(source) => {
                    return Err(TrustError::Registry {
                        name: Box::new(self.name.clone()),
                        source: Box::new(source),
                    });
                }
            }
        }
        Err(progress.refusal(asked))
    }
}

/// What is wrong with a signature, the least telling first.
enum Flaw {
    Broken(BrokenSignature),
    Untrusted,
    Payload(Box<TrustedKey>, PayloadError),
    Another(Box<TrustedKey>, Digest, Box<Payload>),
    NoTag(Box<TrustedKey>, Digest),
    AnotherTag(Box<TrustedKey>, Digest, String),
}

impl Flaw {
    fn rank(&self) -> u8 {
        match self {
            Self::Broken(_) => 0,
            Self::Untrusted => 1,
            Self::Payload(..) => 2,
            Self::Another(..) => 3,
            Self::NoTag(..) => 4,
            Self::AnotherTag(..) => 5,
        }
    }
}

struct Progress<'a> {
    search: &'a Search<'a>,
    repository: Repository,
    stop: &'a dyn Fn() -> bool,
    /// Signatures by several keys have one payload.
    payloads: BTreeMap<Digest, Vec<u8>>,
    looked_at: LookedAt,
    /// The most telling so far.
    flaw: Option<Flaw>,
    has_bundles: bool,
}

impl Progress<'_> {
    /// A good signature of a manifest, if it has one.
    fn of(&mut self, digest: Digest) -> Result<Option<Signed>, RegistryError> {
        let mut left = MAX_SIGNATURES;
        let tag = Reference::Tag(format!("sha256-{}.sig", digest.hex()));
        match self.manifest(&tag) {
            Ok(bytes) => {
                let signed = self.in_manifest(digest, &bytes, &mut left)?;
                if signed.is_some() {
                    return Ok(signed);
                }
            }
            Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        for manifest in self.referrers(digest)? {
            let bytes = match self.manifest(&Reference::Digest(manifest)) {
                Ok(bytes) => bytes,
                Err(error) if is_about_content(&error) => {
                    self.note(Flaw::Broken(BrokenSignature::Referrer {
                        manifest,
                        source: Box::new(error),
                    }));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let signed = self.in_manifest(digest, &bytes, &mut left)?;
            if signed.is_some() {
                return Ok(signed);
            }
        }
        Ok(None)
    }

    fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, RegistryError> {
        let client = self.search.client;
        let limit = MAX_DOCUMENT_BYTES;
        let fetched = client.manifest(&self.repository, reference, limit, self.stop)?;
        Ok(fetched.bytes)
    }

    /// The manifests of signatures that refer to one.
    fn referrers(&mut self, digest: Digest) -> Result<Vec<Digest>, RegistryError> {
        let client = self.search.client;
        let listed = match client.referrers(&self.repository, digest, None, self.stop) {
            Ok(listed) => listed,
            // A registry from before the specification has other words than 404.
            Err(RegistryError::Status { status, .. })
                if matches!(status.as_u16(), 400 | 405 | 406 | 415 | 501) =>
            {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let is = |entry: &Descriptor, kind: &str| {
            let artifact_type = entry.artifact_type.as_deref();
            artifact_type.is_some_and(|found| found.starts_with(kind))
        };
        self.has_bundles |= listed.iter().any(|entry| is(entry, BUNDLE_TYPE));
        let signatures = listed.iter().filter(|entry| is(entry, ARTIFACT_TYPE));
        let mut digests: Vec<Digest> = signatures.map(|entry| entry.digest).collect();
        self.looked_at.more |= digests.len() > MAX_REFERRERS;
        digests.truncate(MAX_REFERRERS);
        Ok(digests)
    }

    /// A good signature in a manifest of signatures, of which `left` are looked at.
    fn in_manifest(
        &mut self,
        digest: Digest,
        bytes: &[u8],
        left: &mut usize,
    ) -> Result<Option<Signed>, RegistryError> {
        let manifest = match Document::parse(bytes) {
            Ok(Document::Manifest(manifest)) => manifest,
            Ok(Document::Index(_)) => {
                self.note(Flaw::Broken(BrokenSignature::Index { digest }));
                return Ok(None);
            }
            Err(source) => {
                self.note(Flaw::Broken(BrokenSignature::Manifest { digest, source }));
                return Ok(None);
            }
        };
        let layers = manifest.layers.iter();
        for layer in layers.filter(|layer| layer.media_type == LAYER_TYPE) {
            if *left == 0 {
                self.looked_at.more = true;
                break;
            }
            *left -= 1;
            match self.in_layer(digest, layer) {
                Ok(signed) => return Ok(Some(signed)),
                Err(Trouble::Flaw(flaw)) => self.note(flaw),
                Err(Trouble::Registry(error)) => return Err(*error),
            }
        }
        Ok(None)
    }

    fn in_layer(&mut self, digest: Digest, layer: &Descriptor) -> Result<Signed, Trouble> {
        let payload = layer.digest;
        let annotations = layer.annotations.as_ref();
        let text =
            annotations
                .and_then(|all| all.get(ANNOTATION))
                .ok_or(BrokenSignature::Missing {
                    payload,
                    annotation: ANNOTATION,
                })?;
        let signature = decode(text).ok_or(BrokenSignature::Encoding {
            payload,
            limit: MAX_SIGNATURE_BYTES,
        })?;
        let mut keys = self.search.signers.keys.iter();
        let signed = self.payload(layer)?;
        let key = keys.find(|key| key.verifies(signed, &signature));
        let key = key.ok_or(Flaw::Untrusted)?;
        let signer = || Box::new(key.clone());
        let payload = Payload::parse(signed).map_err(|source| Flaw::Payload(signer(), source))?;
        if !payload.covers(&self.repository, digest) {
            return Err(Flaw::Another(signer(), digest, Box::new(payload)).into());
        }
        match payload.tag_of(self.search.name) {
            SignedTag::Another(tag) => {
                return Err(Flaw::AnotherTag(signer(), digest, tag.to_owned()).into());
            }
            SignedTag::Unnamed if self.search.signers.must_name_tag => {
                return Err(Flaw::NoTag(signer(), digest).into());
            }
            SignedTag::NotAsked | SignedTag::Same | SignedTag::Unnamed => {}
        }
        Ok(Signed {
            key: key.file().to_owned(),
            fingerprint: key.fingerprint(),
            digest,
        })
    }

    fn payload(&mut self, layer: &Descriptor) -> Result<&[u8], Trouble> {
        let payload = layer.digest;
        if layer.size > MAX_PAYLOAD_BYTES {
            return Err(Trouble::from(BrokenSignature::TooLong {
                payload,
                bytes: layer.size,
                limit: MAX_PAYLOAD_BYTES,
            }));
        }
        if !self.payloads.contains_key(&payload) {
            let client = self.search.client;
            let fetched = client.blob(&self.repository, layer, MAX_PAYLOAD_BYTES, self.stop);
            let bytes = fetched.map_err(|error| match is_about_content(&error) {
                true => Trouble::from(BrokenSignature::Payload {
                    payload,
                    source: Box::new(error),
                }),
                false => Trouble::Registry(Box::new(error)),
            })?;
            self.payloads.insert(payload, bytes);
        }
        Ok(self.payloads.get(&payload).map_or(&[], Vec::as_slice))
    }

    /// Counts a signature that is not good.
    fn note(&mut self, flaw: Flaw) {
        self.looked_at.signatures += 1;
        let known = self.flaw.as_ref().map(Flaw::rank);
        if known.is_none_or(|known| flaw.rank() >= known) {
            self.flaw = Some(flaw);
        }
    }

    fn refusal(self, digests: Vec<Digest>) -> TrustError {
        let name = Box::new(self.search.name.clone());
        let rule = self.search.rule.clone();
        let looked_at = self.looked_at;
        match self.flaw {
            None => TrustError::NotSigned {
                name,
                rule,
                digests: DigestList(digests),
                has_bundles: self.has_bundles,
            },
            Some(Flaw::Broken(source)) => TrustError::Broken {
                name,
                looked_at,
                source,
            },
            Some(Flaw::Untrusted) => TrustError::Untrusted {
                name,
                rule,
                looked_at,
                keys: KeyList(self.search.signers.keys.clone()),
            },
            Some(Flaw::Payload(key, source)) => TrustError::Payload { name, key, source },
            Some(Flaw::Another(key, digest, payload)) => TrustError::SignedAnother {
                name,
                key,
                digest,
                payload,
            },
            Some(Flaw::NoTag(key, digest)) => TrustError::NoSignedTag {
                name,
                rule,
                key,
                digest,
            },
            Some(Flaw::AnotherTag(key, digest, signed)) => TrustError::Retagged {
                name,
                key,
                digest,
                signed,
            },
        }
    }
}

/// Why a layer has no good signature.
enum Trouble {
    /// Its own fault: another may be good.
    Flaw(Flaw),
    /// Nothing can be said of any.
    Registry(Box<RegistryError>),
}

impl From<Flaw> for Trouble {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<BrokenSignature> for Trouble {
    fn from(broken: BrokenSignature) -> Self {
        Self::Flaw(Flaw::Broken(broken))
    }
}

/// Whether the registry answered, and what it has is at fault.
fn is_about_content(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::NotFound { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::Digest { .. }
            | RegistryError::TooShort { .. }
            | RegistryError::TooLong { .. }
    )
}

/// A signature as an annotation has it; `None` if it is none, or longer than any.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_SIGNATURE_BYTES.div_ceil(3) * 4 {
        return None;
    }
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::config::Settings;
    use crate::registry::credentials::CredentialStore;

    #[test]
    fn a_search_that_takes_too_long_is_over() {
        let client = Client::new(Settings::default(), CredentialStore::empty()).unwrap();
        let search = Search {
            client: &client,
            name: &"registry.invalid/app".parse().unwrap(),
            signers: &Signers {
                keys: Vec::new(),
                must_name_tag: false,
            },
            rule: &RulePlace {
                path: None,
                line: 0,
            },
            cancelled: &|| false,
        };
        let outcome = search.find_within(&[Digest::of(b"")], Duration::ZERO);
        assert!(matches!(outcome, Err(TrustError::TooSlow { .. })));
    }

    #[test]
    fn a_signature_is_base64_of_bounded_length() {
        let longest = STANDARD.encode([7; MAX_SIGNATURE_BYTES]);
        assert_eq!(decode(&longest), Some(vec![7; MAX_SIGNATURE_BYTES]));
        let longer = STANDARD.encode([7; MAX_SIGNATURE_BYTES + 1]);
        for text in [longer.as_str(), "MEUC IQ==", "MEUCIQ", "_-8=", "\u{0}"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }
}
