//! Keys of every kind, and what they do not verify.

use std::fs;
use std::path::Path;

use hostagent::trust::TrustedKey;
use hostagent::trust::key::{KeyError, KeyProblem};
use libtest_mimic::Failed;

use crate::Test;
use crate::docker_registry::tool;
use crate::signer::{Kind, Signer};

pub const TESTS: &[Test] = &[
    ("a_signature_of_each_kind_of_key_verifies", every_kind),
    ("a_key_verifies_no_signature_of_another_key", other_key),
    (
        "a_signature_with_another_hash_or_padding_does_not_verify",
        other_scheme,
    ),
    (
        "no_flipped_bit_of_payload_signature_or_key_verifies",
        flipped_bits,
    ),
    (
        "no_part_of_a_signature_and_nothing_more_verifies",
        other_lengths,
    ),
    ("a_fingerprint_is_the_one_of_openssl", fingerprint),
    ("keys_of_other_kinds_and_sizes_are_refused", unsupported),
    ("a_private_key_is_refused", private),
];

const KINDS: [Kind; 5] = [
    Kind::P256,
    Kind::P384,
    Kind::Ed25519,
    Kind::Rsa("2048"),
    Kind::Rsa("3072"),
];
const MESSAGE: &[u8] = b"{\"critical\":{}}";

fn every_kind() -> Result<(), Failed> {
    for kind in KINDS {
        let signer = Signer::new(kind)?;
        assert!(
            signer.key().verifies(MESSAGE, &signer.sign(MESSAGE)?),
            "{kind:?}"
        );
    }
    let signer = Signer::new(Kind::P384)?;
    let signature = signer.sign_with("-sha384", MESSAGE)?;
    assert!(signer.key().verifies(MESSAGE, &signature));
    Ok(())
}

fn other_key() -> Result<(), Failed> {
    let mut signers = Vec::new();
    for kind in KINDS.iter().chain(&KINDS) {
        signers.push(Signer::new(*kind)?);
    }
    for (index, signer) in signers.iter().enumerate() {
        let signature = signer.sign(MESSAGE)?;
        for (other, verifier) in signers.iter().enumerate() {
            let verifies = verifier.key().verifies(MESSAGE, &signature);
            assert_eq!(verifies, index == other, "{index} {other}");
        }
    }
    Ok(())
}

fn other_scheme() -> Result<(), Failed> {
    for kind in [Kind::P256, Kind::Rsa("2048")] {
        let signer = Signer::new(kind)?;
        for hash in ["-sha1", "-sha384", "-sha512"] {
            let signature = signer.sign_with(hash, MESSAGE)?;
            assert!(
                !signer.key().verifies(MESSAGE, &signature),
                "{kind:?} {hash}"
            );
        }
    }
    let signer = Signer::new(Kind::Rsa("2048"))?;
    fs::write(signer.directory.path().join("message"), MESSAGE)?;
    let pss = [
        "dgst",
        "-sha256",
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sign",
        "key.pem",
        "message",
    ];
    let signature = tool("openssl", &pss, signer.directory.path())?;
    assert!(!signer.key().verifies(MESSAGE, &signature));
    Ok(())
}

/// The DER of a public key, and the same in PEM again.
fn der(signer: &Signer) -> Result<Vec<u8>, Failed> {
    let arguments = ["pkey", "-pubin", "-in", "key.pub", "-outform", "DER"];
    tool("openssl", &arguments, signer.directory.path())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// Every bit of each, so that nothing is left to chance.
fn flipped_bits() -> Result<(), Failed> {
    for kind in KINDS {
        let signer = Signer::new(kind)?;
        let (key, signature, der) = (signer.key(), signer.sign(MESSAGE)?, der(&signer)?);
        for bit in 0..8 * MESSAGE.len() {
            let verifies = key.verifies(&flip(MESSAGE, bit), &signature);
            assert!(!verifies, "{kind:?}: bit {bit} of the payload");
        }
        for bit in 0..8 * signature.len() {
            let verifies = key.verifies(MESSAGE, &flip(&signature, bit));
            assert!(!verifies, "{kind:?}: bit {bit} of the signature");
        }
        for bit in 0..8 * der.len() {
            let other = pem(&flip(&der, bit));
            if let Ok(other) = TrustedKey::parse(Path::new("other"), other.as_bytes()) {
                let verifies = other.verifies(MESSAGE, &signature);
                assert!(!verifies, "{kind:?}: bit {bit} of the key");
            }
        }
    }
    Ok(())
}

fn other_lengths() -> Result<(), Failed> {
    for kind in KINDS {
        let signer = Signer::new(kind)?;
        let (key, signature) = (signer.key(), signer.sign(MESSAGE)?);
        for length in 0..signature.len() {
            assert!(
                !key.verifies(MESSAGE, &signature[..length]),
                "{kind:?} {length}"
            );
        }
        assert!(
            !key.verifies(MESSAGE, &[&signature[..], &[0]].concat()),
            "{kind:?}"
        );
        assert!(
            !key.verifies(MESSAGE, &vec![0; signature.len()]),
            "{kind:?}"
        );
    }
    Ok(())
}

fn fingerprint() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    fs::write(signer.directory.path().join("key.der"), der(&signer)?)?;
    let arguments = ["dgst", "-sha256", "-r", "key.der"];
    let printed = String::from_utf8(tool("openssl", &arguments, signer.directory.path())?)?;
    assert_eq!(printed[..64], signer.key().fingerprint().hex());
    Ok(())
}

fn unsupported() -> Result<(), Failed> {
    let refused = |arguments: &[&str]| -> Result<KeyProblem, Failed> {
        let directory = tempfile::tempdir()?;
        let generate = [&["genpkey", "-out", "key.pem"], arguments].concat();
        tool("openssl", &generate, directory.path())?;
        let public = ["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"];
        tool("openssl", &public, directory.path())?;
        match TrustedKey::read(&directory.path().join("key.pub")) {
            Err(KeyError::Unusable { source, .. }) => Ok(source),
            other => Err(format!("{arguments:?}: {other:?}").into()),
        }
    };
    let ec = |option| ["-algorithm", "EC", "-pkeyopt", option];
    for arguments in [
        &ec("ec_paramgen_curve:P-521")[..],
        &ec("ec_paramgen_curve:secp256k1")[..],
        &["-algorithm", "ED448"],
        &["-algorithm", "X25519"],
        &["-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"],
    ] {
        let problem = refused(arguments)?;
        assert!(matches!(problem, KeyProblem::Algorithm(_)), "{problem:?}");
    }
    let small = refused(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])?;
    assert!(matches!(small, KeyProblem::Bits(1024)), "{small:?}");
    let arguments = [
        &ec("ec_paramgen_curve:P-256")[..],
        &["-pkeyopt", "ec_param_enc:explicit"],
    ];
    let explicit = refused(&arguments.concat())?;
    assert!(matches!(explicit, KeyProblem::Structure(_)), "{explicit:?}");
    Ok(())
}

fn private() -> Result<(), Failed> {
    for kind in KINDS {
        let signer = Signer::new(kind)?;
        match TrustedKey::read(&signer.directory.path().join("key.pem")) {
            Err(KeyError::Unusable {
                source: KeyProblem::Private,
                ..
            }) => {}
            other => return Err(format!("{kind:?}: {other:?}").into()),
        }
    }
    Ok(())
}
