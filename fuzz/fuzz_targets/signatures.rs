//! Signatures of images: their payloads, how they are written, and keys.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use hostagent::registry::Repository;
use hostagent::trust::payload::Payload;
use hostagent::trust::{TrustedKey, cosign};
use libfuzzer_sys::fuzz_target;

/// One of each kind, of which nobody has the other half.
static KEYS: LazyLock<Vec<TrustedKey>> = LazyLock::new(|| {
    let pem = |name: &str, text: &str| TrustedKey::parse(Path::new(name), text.as_bytes());
    let keys = [pem("ed25519", ED25519)];
    keys.into_iter().filter_map(Result::ok).collect()
});
/// The key of RFC 8410, section 10.1.
const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            if let Ok(payload) = Payload::parse(rest) {
                let named = payload.identity.digest();
                let itself = Repository::of(&payload.identity);
                let covers = payload.covers(&itself, payload.digest);
                assert_eq!(covers, named.is_none_or(|named| named == payload.digest));
                let _ = payload.to_string();
            }
        }
        1 => {
            if let Ok(text) = std::str::from_utf8(rest)
                && let Some(signature) = cosign::decode(text)
            {
                assert!(!KEYS.is_empty());
                for key in KEYS.iter() {
                    assert!(!key.verifies(b"what nobody has signed", &signature));
                }
            }
        }
        _ => {
            if let Ok(key) = TrustedKey::parse(Path::new("fuzzed"), rest) {
                let _ = (key.fingerprint(), key.verifies(b"message", rest));
            }
        }
    }
});
