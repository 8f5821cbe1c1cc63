//! Which images are accepted, and the signatures that say so.
//!
//! The administrator writes a policy ([`policy`]): for each repository, that anything
//! is accepted, that references must have a digest, that a trusted key ([`key`]) must
//! have signed, or that nothing is accepted. Signatures are those of cosign
//! ([`cosign`]), by a key of the administrator's, offline: no certificate authority, no
//! transparency log, no clock.
//!
//! ```text
//! name ── admits ──► rejected, or without the digest it needs: nothing was fetched
//!   │
//!   ▼ the caller fetches index and manifest: digests
//! check ── cosign ──► registry: signatures of these digests
//!             │         ▼
//!             │   a trusted key has signed the payload
//!             │         ▼
//!             │   the payload names digest, repository, and no other tag
//!             ▼
//!          Verdict, for the record
//! ```
//!
//! A policy protects those who run images from registries, mirrors and networks, and
//! from whoever can write to a registry but has no key. It does not bind the user who
//! runs `mote`, who can name another `$MOTE_CONFIG`. Which image of those that were
//! signed for a tag it points to is up to the registry: an old one, with an old signature,
//! is as good as any. What else is not protected is in `docs/trust.md`.

use std::fmt;
use std::path::PathBuf;

use crate::image::digest::Digest;
use crate::image::name::ImageName;
use crate::registry::Client;

pub mod cosign;
mod error;
pub mod key;
mod pattern;
pub mod payload;
pub mod policy;

pub use error::{BrokenSignature, DigestList, KeyList, LookedAt, TrustError};
pub use key::TrustedKey;
pub use pattern::PatternProblem;
use policy::{Demand, Rule};
pub use policy::{Policy, PolicyError, Signers};

/// What is left to be shown for an image before it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// Nothing.
    Nothing,
    /// That the content has this digest, which is in the reference.
    Digest(Digest),
    /// A signature by one of these.
    Signature(&'a Signers),
}

impl Requirement<'_> {
    /// Whether nothing is required.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// Why an image was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The policy requires nothing of its repository.
    NothingRequired,
    /// The policy requires a digest, and the reference has this one.
    Pinned(Digest),
    /// The policy requires a signature, and there is one.
    Signed(Signed),
}

/// Who signed what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The file of the key, as the policy names it.
    pub key: PathBuf,
    /// The SHA-256 of the key's SubjectPublicKeyInfo in DER.
    pub fingerprint: Digest,
    /// The manifest or index that was signed.
    pub digest: Digest,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingRequired => f.write_str("nothing is required"),
            Self::Pinned(digest) => write!(f, "the reference has the digest {digest}"),
            Self::Signed(signed) => write!(
                f,
                "{} is signed by {} ({})",
                signed.digest,
                signed.key.display(),
                signed.fingerprint
            ),
        }
    }
}

impl Policy {
    /// Whether an image may be accepted, as far as its name tells, and what is left to
    /// be shown. It is to be asked before anything is fetched.
    pub fn admits(&self, name: &ImageName) -> Result<Requirement<'_>, TrustError> {
        let Rule { demand, place } = self.rule(name);
        match (demand, name.digest()) {
            (Demand::Accept, _) => Ok(Requirement::Nothing),
            (Demand::Digest, Some(digest)) => Ok(Requirement::Digest(digest)),
            (Demand::Digest, None) => Err(TrustError::NoDigest {
                name: Box::new(name.clone()),
                rule: place.clone(),
            }),
            (Demand::Signature(signers), _) => Ok(Requirement::Signature(signers)),
            (Demand::Reject, _) => Err(TrustError::Rejected {
                name: Box::new(name.clone()),
                rule: place.clone(),
            }),
        }
    }

    /// Whether the image `id` of a file may be used, and be given the names that it has
    /// there. It is to be asked before anything is converted.
    pub fn admits_local(&self, id: Digest, names: &[ImageName]) -> Result<(), TrustError> {
        match names {
            [] => self.admits_unnamed(id),
            names => names.iter().try_for_each(|name| self.admits_unsigned(name)),
        }
    }

    /// Whether an image that comes without signatures, from a file or a peer, may be given
    /// this name.
    ///
    /// No registry has a hand in it, so `digest`, which is against tags that registries
    /// move, lets it pass. Names in a file are whatever its author wrote: where a
    /// signature is required, such a name would pass the image off as signed. `reject`
    /// refuses it as well.
    pub fn admits_unsigned(&self, name: &ImageName) -> Result<(), TrustError> {
        let Rule { demand, place } = self.rule(name);
        let (name, rule) = (Box::new(name.clone()), place.clone());
        match demand {
            Demand::Accept | Demand::Digest => Ok(()),
            Demand::Signature(_) => Err(TrustError::FromFile { name, rule }),
            Demand::Reject => Err(TrustError::Rejected { name, rule }),
        }
    }

    /// Whether an image without any name may be used: one of a file, or one that a peer
    /// was asked for by its id. No rule is for it, so the default counts. `digest` lets
    /// it pass: an id is a digest, and for a file see [`Self::admits_unsigned`].
    pub fn admits_unnamed(&self, id: Digest) -> Result<(), TrustError> {
        let Rule { demand, place } = self.default_rule();
        match demand {
            Demand::Accept | Demand::Digest => Ok(()),
            Demand::Signature(_) | Demand::Reject => Err(TrustError::Unnamed {
                id,
                rule: place.clone(),
            }),
        }
    }

    /// Whether an image is accepted. `digests` are what its name was resolved to: the
    /// manifest, and before it the index that led there, if one did. Their content must
    /// have been verified against them, and the digest in the name, if there is one, be
    /// the first of them.
    ///
    /// A signature of any of them is enough. That of the index is one of each manifest
    /// in it, which it names by digest: whoever signs an image for several platforms
    /// signs the index alone. That of the manifest is one of all that runs; the index
    /// then only chose it.
    pub fn check(
        &self,
        client: &Client,
        name: &ImageName,
        digests: &[Digest],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Verdict, TrustError> {
        match self.admits(name)? {
            Requirement::Nothing => Ok(Verdict::NothingRequired),
            Requirement::Digest(digest) => Ok(Verdict::Pinned(digest)),
            Requirement::Signature(signers) => {
                let search = cosign::Search {
                    client,
                    name,
                    signers,
                    rule: &self.rule(name).place,
                    cancelled,
                };
                search.find(digests).map(Verdict::Signed)
            }
        }
    }
}
