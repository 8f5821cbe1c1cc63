//! What nodes know each other by: Ed25519 keys.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::store::{Store, StoreError};

/// The node's secret key, in the directory of the store: 64 hexadecimal digits, a line.
pub const KEY_FILE: &str = "node.key";
const KEY_BYTES: usize = 32;

/// What comes before the 32 bytes of a public key in its DER form (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// What comes before the 32 bytes of a secret key in its DER form (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node, by its public Ed25519 key. As text it is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

/// Why a text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 64 lower-case hexadecimal digits, as `mote node key` prints them")]
pub struct PublicKeyError(String);

/// Why this node's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read or made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others may read it.
    #[error("{} is no secret: its mode is {mode:o}; set it to 600, or remove the file to get a new key", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not what `mote` writes.
    #[error("{} is not a node's key; remove the file to get a new one", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl PublicKey {
    /// From the form that TLS has it in.
    pub(super) fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let shown = || PublicKeyError(text.chars().take(100).collect());
        from_hex(text).map(Self).ok_or_else(shown)
    }
}

/// This node's key pair.
#[derive(Debug, Clone)]
pub struct NodeKey {
    public: PublicKey,
    pub(super) certified: Arc<CertifiedKey>,
}

impl NodeKey {
    /// That of the store, which is made if there is none.
    pub fn of(store: &Store) -> Result<Self, KeyError> {
        let path = store.root().join(KEY_FILE);
        let text = store.secret(KEY_FILE, || {
            let mut seed = [0; KEY_BYTES];
            let random = default_provider().secure_random;
            random
                .fill(&mut seed)
                .map_err(|_| io::Error::other("the system gives no random bytes"))?;
            Ok(format!("{}\n", hex(&seed)).into_bytes())
        })?;
        let mode = path
            .metadata()
            .map_err(|source| StoreError::io(store.root(), "reading the node's key", source))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            let mode = mode & 0o7777;
            return Err(KeyError::Mode { path, mode });
        }
        std::str::from_utf8(&text)
            .ok()
            .and_then(|text| from_hex(text.strip_suffix('\n').unwrap_or(text)))
            .and_then(|seed| Self::from_seed(&seed))
            .ok_or(KeyError::Malformed { path })
    }

    /// The key pair whose secret half is this.
    pub(super) fn from_seed(seed: &[u8; KEY_BYTES]) -> Option<Self> {
        let der = [&PKCS8_PREFIX[..], seed].concat();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
        let provider: CryptoProvider = default_provider();
        let signing = provider.key_provider.load_private_key(der).ok()?;
        let spki = signing.public_key()?.to_vec();
        Some(Self {
            public: PublicKey::from_spki(&spki)?,
            certified: Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing)),
        })
    }

    /// What others know this node by.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Option<[u8; KEY_BYTES]> {
    let lower = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; KEY_BYTES];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_key_and_shows_it_to_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = NodeKey::of(&store).unwrap();
        assert_eq!(NodeKey::of(&store).unwrap().public(), key.public());
        let path = directory.path().join(KEY_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = NodeKey::of(&store).unwrap_err();
        assert!(
            matches!(error, KeyError::Mode { mode: 0o640, .. }),
            "{error}"
        );
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "00").unwrap();
        let error = NodeKey::of(&store).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
    }

    #[test]
    fn the_public_key_is_that_of_the_test_vector() {
        // RFC 8032, section 7.1, test 1.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let key = NodeKey::from_seed(&from_hex(seed).unwrap()).unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.public().to_string(), public);
        assert_eq!(public.parse(), Ok(key.public()));
    }

    #[test]
    fn other_texts_are_no_keys() {
        let key = "a".repeat(64);
        for bad in [
            "",
            &key[1..],
            &key.to_uppercase(),
            &format!("{key}\n"),
            &"é".repeat(32),
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
