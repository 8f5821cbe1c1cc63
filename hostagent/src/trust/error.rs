//! Why an image is not accepted.

use std::fmt;

use super::key::TrustedKey;
use super::payload::{Payload, PayloadError};
use super::policy::RulePlace;
use crate::image::digest::Digest;
use crate::image::manifest::DocumentError;
use crate::image::name::ImageName;
use crate::registry::RegistryError;

/// Why an image is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The policy accepts nothing of this repository.
    #[error("{name} is not accepted: the policy rejects its repository ({rule})")]
    Rejected {
        /// What was asked for.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
    },
    /// A tag alone, where the policy wants a digest.
    #[error(
        "{name} is not accepted: the policy wants a digest for its repository ({rule}); write {}@sha256:…",
        name.familiar_repository()
    )]
    NoDigest {
        /// What was asked for.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
    },
    /// A file or a peer, where the policy wants a signature.
    #[error(
        "{name} is not accepted from a file or a peer: the policy wants a signature for its repository ({rule}), and they have none; pull it from its registry, or take it under a name of another repository"
    )]
    FromFile {
        /// The name that the image would get.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
    },
    /// No name, and so no rule but the default, which accepts nothing.
    #[error(
        "image {id} is not accepted: it has no name, and the policy rejects what no rule is for ({rule}); take it under a name of a repository that a rule accepts"
    )]
    Unnamed {
        /// The image.
        id: Digest,
        /// Where the default is.
        rule: RulePlace,
    },
    /// There is no signature.
    #[error(
        "{name} is not accepted: it is not signed, and the policy wants a signature ({rule}); none was found in its repository for {digests}{}",
        bundle_hint(.has_bundles)
    )]
    NotSigned {
        /// What was asked for.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
        /// What a signature was looked for of.
        digests: DigestList,
        /// Whether there are signatures in the format of sigstore's bundles.
        has_bundles: bool,
    },
    /// There are signatures, none of them by a trusted key.
    #[error(
        "{name} is not accepted: {looked_at}, none by a key that the policy trusts for its repository ({rule}), or its payload was changed since; the trusted keys are {keys}"
    )]
    Untrusted {
        /// What was asked for.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
        /// How many signatures there are.
        looked_at: LookedAt,
        /// The trusted keys.
        keys: KeyList,
    },
    /// A trusted key has signed, but another image or another repository.
    #[error(
        "{name} is not accepted: the signature by {key} that is stored for {digest} is one of {payload}"
    )]
    SignedAnother {
        /// What was asked for.
        name: Box<ImageName>,
        /// Who signed.
        key: Box<TrustedKey>,
        /// What the signature is stored for.
        digest: Digest,
        /// What it is a signature of.
        payload: Box<Payload>,
    },
    /// A trusted key has signed this image, but under another tag.
    #[error(
        "{name} is not accepted: it is re-tagged, as {key} has signed {digest} as {repository}:{signed}; ask for it by that tag or as {repository}@{digest}, or have it signed as {name} as well",
        repository = .name.familiar_repository()
    )]
    Retagged {
        /// What was asked for.
        name: Box<ImageName>,
        /// Who signed.
        key: Box<TrustedKey>,
        /// What was signed.
        digest: Digest,
        /// The tag that was signed.
        signed: String,
    },
    /// A trusted key has signed this image, but under no tag, and the policy wants one.
    #[error(
        "{name} is not accepted: {key} has signed {digest} without a tag, and the policy wants signatures that name it (require_signed_tag, {rule}); ask for {repository}@{digest}, or have it signed by `cosign sign --sign-container-identity {}:{}`",
        .name.repository(), .name.tag().unwrap_or_default(),
        repository = .name.familiar_repository()
    )]
    NoSignedTag {
        /// What was asked for.
        name: Box<ImageName>,
        /// The rule.
        rule: RulePlace,
        /// Who signed.
        key: Box<TrustedKey>,
        /// What was signed.
        digest: Digest,
    },
    /// A trusted key has signed something that says nothing of an image.
    #[error("{name} is not accepted: what {key} has signed cannot be used")]
    Payload {
        /// What was asked for.
        name: Box<ImageName>,
        /// Who signed.
        key: Box<TrustedKey>,
        /// What is wrong with it.
        source: PayloadError,
    },
    /// There are signatures, all of them broken.
    #[error("{name} is not accepted: {looked_at}, and the last is broken")]
    Broken {
        /// What was asked for.
        name: Box<ImageName>,
        /// How many signatures there are.
        looked_at: LookedAt,
        /// What is wrong with it.
        source: BrokenSignature,
    },
    /// The registry does not tell whether there is a signature.
    #[error("{name} is not accepted: its signatures cannot be fetched")]
    Registry {
        /// What was asked for.
        name: Box<ImageName>,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The registry takes too long to tell.
    #[error(
        "{name} is not accepted: its signatures could not be fetched within {seconds} s; try again"
    )]
    TooSlow {
        /// What was asked for.
        name: Box<ImageName>,
        /// How long that was waited for.
        seconds: u64,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// What is wrong with a signature.
#[derive(Debug, thiserror::Error)]
pub enum BrokenSignature {
    /// What is stored in place of signatures is no manifest.
    #[error("what is stored as the signatures of {digest} is no manifest")]
    Manifest {
        /// What it should sign.
        digest: Digest,
        /// Why.
        source: DocumentError,
    },
    /// An index in place of a manifest.
    #[error("what is stored as the signatures of {digest} is an image index")]
    Index {
        /// What it should sign.
        digest: Digest,
    },
    /// A layer with the payload, but without the signature.
    #[error("the payload {payload} has no signature with it (annotation {annotation})")]
    Missing {
        /// The payload.
        payload: Digest,
        /// What the signature should be in.
        annotation: &'static str,
    },
    /// Not Base64, or longer than any signature.
    #[error("the signature of the payload {payload} is not Base64 of at most {limit} bytes")]
    Encoding {
        /// The payload.
        payload: Digest,
        /// The most bytes of a signature.
        limit: usize,
    },
    /// The payload is longer than any.
    #[error("the payload {payload} has {bytes} bytes; at most {limit} are read")]
    TooLong {
        /// The payload.
        payload: Digest,
        /// Its length.
        bytes: u64,
        /// The most bytes of a payload.
        limit: u64,
    },
    /// The payload is not there, or is not what its descriptor says.
    #[error("the payload {payload} cannot be fetched")]
    Payload {
        /// The payload.
        payload: Digest,
        /// Why.
        source: Box<RegistryError>,
    },
    /// A manifest that the registry lists cannot be fetched.
    #[error("the signatures {manifest} cannot be fetched")]
    Referrer {
        /// The manifest.
        manifest: Digest,
        /// Why.
        source: Box<RegistryError>,
    },
}

/// How many signatures were looked at, as the beginning of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookedAt {
    /// So many.
    pub signatures: usize,
    /// Whether there were more than are looked at.
    pub more: bool,
}

impl fmt::Display for LookedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signatures, self.more) {
            (1, false) => f.write_str("it has 1 signature"),
            (count, false) => write!(f, "it has {count} signatures"),
            (count, true) => write!(
                f,
                "it has more signatures than the {count} that are looked at"
            ),
        }
    }
}

/// Digests in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestList(pub Vec<Digest>);

impl fmt::Display for DigestList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0, " or ")
    }
}

/// Keys in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyList(pub Vec<TrustedKey>);

impl fmt::Display for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0, ", ")
    }
}

fn list(f: &mut fmt::Formatter<'_>, all: &[impl fmt::Display], separator: &str) -> fmt::Result {
    for (index, one) in all.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{one}")?;
    }
    Ok(())
}

fn bundle_hint(has_bundles: &bool) -> &'static str {
    if *has_bundles {
        "; its signatures in sigstore's bundle format are not supported: `cosign sign --new-bundle-format=false` makes those that are"
    } else {
        ""
    }
}
