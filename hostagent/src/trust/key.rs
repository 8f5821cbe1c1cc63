//! Public keys that the administrator trusts.
//!
//! A key is a PEM file with one `PUBLIC KEY` (RFC 7468, section 13): a
//! SubjectPublicKeyInfo (RFC 5280, section 4.1), as `cosign generate-key-pair` and
//! `openssl pkey -pubout` write it.
//!
//! | key | signatures |
//! |---|---|
//! | ECDSA on P-256 | SHA-256 |
//! | ECDSA on P-384 | SHA-256, SHA-384: cosign has used both |
//! | Ed25519 | of the payload itself, not of its hash (Ed25519ph) |
//! | RSA of 2048 to 8192 bits | PKCS #1 v1.5 with SHA-256 |
//!
//! A key that could verify nothing is refused when it is read, so that no policy
//! rests on one.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::{agreement, signature};
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use spki::der::asn1::{AnyRef, UintRef};
use spki::der::{self, Decode, Reader, SliceReader};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use crate::image::digest::Digest;

/// Many times the longest key.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// What `ring` verifies with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// RFC 8017, appendix C.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 5480, section 2.1.1.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// RFC 5480, section 2.1.1.1.
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// RFC 5480, section 2.1.1.1.
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// RFC 8410, section 3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A public key from a file.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedKey {
    file: PathBuf,
    fingerprint: Digest,
    algorithm: Algorithm,
    /// What `ring` takes: a point, an RSAPublicKey.
    public: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    EcdsaP256,
    EcdsaP384,
    Ed25519,
    Rsa,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the public key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is far too long to be a key.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes, so it is no public key", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("{} has no public key that can be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyProblem,
    },
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// A section begins but does not end, or is not Base64.
    #[error("it is not PEM")]
    Pem(#[from] pem::Error),
    /// Nothing of the kind is in the file.
    #[error(
        "it has no \"-----BEGIN PUBLIC KEY-----\"; `openssl pkey -in KEY -pubout` and `cosign public-key` write one"
    )]
    Missing,
    /// More than one section.
    #[error("it has more than one section; write each key to a file of its own")]
    Several,
    /// What must never be on the machine that verifies.
    #[error(
        "it is a private key, which does not belong here; `openssl pkey -in KEY -pubout` writes the public one"
    )]
    Private,
    /// A certificate, or another thing that is not a key alone.
    #[error("it has another section than PUBLIC KEY; certificates are not supported")]
    Kind,
    /// Not a SubjectPublicKeyInfo.
    #[error("it is malformed")]
    Structure(#[from] spki::Error),
    /// Its parts are not what its algorithm has.
    #[error("it is malformed")]
    Content(#[from] der::Error),
    /// An algorithm or a curve that is not supported.
    #[error(
        "its kind ({0}) is not supported; ECDSA on P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits are"
    )]
    Algorithm(String),
    /// Other parameters than its algorithm has (RFC 3279, section 2.3.1; RFC 8410,
    /// section 3).
    #[error("its algorithm has other parameters than it should")]
    Parameters,
    /// A point that is compressed, too short or not on the curve.
    #[error("it is not an uncompressed point of its curve")]
    Point,
    /// An RSA modulus that is too small to be safe, or too large to be verified.
    #[error("it has {0} bits; an RSA key may have 2048 to 8192")]
    Bits(usize),
    /// An RSA exponent that no key has.
    #[error("its RSA exponent is even, 1, or longer than 32 bits")]
    Exponent,
}

impl From<der::ErrorKind> for KeyProblem {
    fn from(kind: der::ErrorKind) -> Self {
        Self::Content(kind.into())
    }
}

impl TrustedKey {
    /// Reads the key of a file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = crate::open::at_once(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(KeyError::TooLong {
                path: path.to_owned(),
            });
        }
        Self::parse(path, &bytes).map_err(|source| KeyError::Unusable {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a key in PEM; `file` is where it is from.
    pub fn parse(file: &Path, pem: &[u8]) -> Result<Self, KeyProblem> {
        let spki = only_section(pem)?;
        let (algorithm, public) = algorithm_and_key(&spki)?;
        Ok(Self {
            file: file.to_owned(),
            fingerprint: Digest::of(&spki),
            algorithm,
            public,
        })
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The SHA-256 of its SubjectPublicKeyInfo in DER, as
    /// `openssl pkey -pubin -in KEY -outform DER | sha256sum` prints it.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Whether the private key to it has signed `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let with = |algorithm: &'static dyn signature::VerificationAlgorithm| {
            signature::UnparsedPublicKey::new(algorithm, &self.public)
                .verify(message, signature)
                .is_ok()
        };
        match self.algorithm {
            Algorithm::EcdsaP256 => with(&signature::ECDSA_P256_SHA256_ASN1),
            Algorithm::EcdsaP384 => {
                with(&signature::ECDSA_P384_SHA256_ASN1) || with(&signature::ECDSA_P384_SHA384_ASN1)
            }
            Algorithm::Ed25519 => with(&signature::ED25519),
            Algorithm::Rsa => with(&signature::RSA_PKCS1_2048_8192_SHA256),
        }
    }
}

impl fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedKey({self})")
    }
}

/// `FILE (sha256:…)`.
impl fmt::Display for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.file.display(), self.fingerprint)
    }
}

/// The one section of a PEM file, which must be a public key.
fn only_section(pem: &[u8]) -> Result<Vec<u8>, KeyProblem> {
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem);
    let (kind, der) = sections.next().ok_or(KeyProblem::Missing)??;
    match kind {
        SectionKind::PublicKey => {}
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
            return Err(KeyProblem::Private);
        }
        _ => return Err(KeyProblem::Kind),
    }
    match sections.next() {
        None => Ok(der),
        Some(_) => Err(KeyProblem::Several),
    }
}

fn algorithm_and_key(spki: &[u8]) -> Result<(Algorithm, Vec<u8>), KeyProblem> {
    let spki = SubjectPublicKeyInfoRef::from_der(spki)?;
    let oid = spki.algorithm.oid;
    let parameters = spki.algorithm.parameters;
    let key = spki
        .subject_public_key
        .as_bytes()
        .ok_or(der::ErrorKind::Value {
            tag: der::Tag::BitString,
        })?;
    let algorithm = match oid {
        EC => match spki.algorithm.parameters_oid()? {
            P256 => on_curve(&agreement::ECDH_P256, key).map(|()| Algorithm::EcdsaP256)?,
            P384 => on_curve(&agreement::ECDH_P384, key).map(|()| Algorithm::EcdsaP384)?,
            curve => return Err(KeyProblem::Algorithm(format!("curve {curve}"))),
        },
        // What is not said of a key must not be in it: one key, one fingerprint.
        ED25519 if parameters.is_some() => return Err(KeyProblem::Parameters),
        ED25519 if key.len() != 32 => return Err(KeyProblem::Point),
        ED25519 => Algorithm::Ed25519,
        RSA if parameters != Some(AnyRef::NULL) => return Err(KeyProblem::Parameters),
        RSA => check_rsa(key).map(|()| Algorithm::Rsa)?,
        other => return Err(KeyProblem::Algorithm(format!("algorithm {other}"))),
    };
    Ok((algorithm, key.to_vec()))
}

/// `ring` looks at a point only when it is used, and then does not say that the
/// point was at fault; an agreement with a key of the moment does.
fn on_curve(curve: &'static agreement::Algorithm, point: &[u8]) -> Result<(), KeyProblem> {
    let ours = agreement::EphemeralPrivateKey::generate(curve, &SystemRandom::new())
        .map_err(|_| KeyProblem::Point)?;
    let theirs = agreement::UnparsedPublicKey::new(curve, point);
    agreement::agree_ephemeral(ours, &theirs, |_| ()).map_err(|_| KeyProblem::Point)
}

/// RSAPublicKey (RFC 8017, appendix A.1.1).
fn check_rsa(key: &[u8]) -> Result<(), KeyProblem> {
    let mut reader = SliceReader::new(key)?;
    let (modulus, exponent) = reader.sequence(|parts| -> Result<_, der::Error> {
        Ok((UintRef::decode(parts)?, UintRef::decode(parts)?))
    })?;
    reader.finish()?;
    let modulus = modulus.as_bytes();
    let zeros = modulus.first().map_or(0, |first| first.leading_zeros());
    let bits = 8 * modulus.len() - zeros as usize;
    if !RSA_BITS.contains(&bits) {
        return Err(KeyProblem::Bits(bits));
    }
    let exponent = exponent.as_bytes();
    let is_odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if !is_odd || exponent == [1] || exponent.len() > 4 {
        return Err(KeyProblem::Exponent);
    }
    Ok(())
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
