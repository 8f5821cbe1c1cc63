//! Keys and signatures of openssl's, and how cosign stores them.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hostagent::image::digest::Digest;
use hostagent::registry::{Client, OCI_MANIFEST, Repository};
use hostagent::trust::cosign::{ANNOTATION, LAYER_TYPE};
use hostagent::trust::{Policy, TrustedKey};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{go_on, push, tag};
use crate::docker_registry::tool;

/// The kinds of keys, by the arguments of `openssl genpkey`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa(&'static str),
}

/// A private key and its public one, in files.
pub struct Signer {
    pub directory: TempDir,
    kind: Kind,
}

impl Signer {
    pub fn new(kind: Kind) -> Result<Self, Failed> {
        let directory = TempDir::new()?;
        let bits;
        let arguments: &[&str] = match kind {
            Kind::P256 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Kind::P384 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Kind::Ed25519 => &["ED25519"],
            Kind::Rsa(length) => {
                bits = format!("rsa_keygen_bits:{length}");
                &["RSA", "-pkeyopt", &bits]
            }
        };
        let arguments = [&["genpkey", "-out", "key.pem", "-algorithm"], arguments].concat();
        tool("openssl", &arguments, directory.path())?;
        let public = ["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"];
        tool("openssl", &public, directory.path())?;
        Ok(Self { directory, kind })
    }

    /// The file with the public key.
    pub fn public(&self) -> PathBuf {
        self.directory.path().join("key.pub")
    }

    pub fn key(&self) -> TrustedKey {
        TrustedKey::read(&self.public()).unwrap()
    }

    /// Signs as cosign does with such a key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failed> {
        self.sign_with("-sha256", message)
    }

    /// Signs with a hash of choice.
    pub fn sign_with(&self, hash: &str, message: &[u8]) -> Result<Vec<u8>, Failed> {
        let directory = self.directory.path();
        fs::write(directory.join("message"), message)?;
        let arguments: &[&str] = match self.kind {
            Kind::Ed25519 => &[
                "pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", "message",
            ],
            _ => &["dgst", hash, "-sign", "key.pem", "message"],
        };
        tool("openssl", arguments, directory)
    }
}

/// The payload for a manifest of a repository, as cosign writes it.
pub fn payload(repository: &str, digest: Digest) -> Vec<u8> {
    let value = json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    value.to_string().into_bytes()
}

/// A layer of a manifest of signatures.
pub fn layer(payload: &[u8], signature: &str) -> Value {
    json!({
        "mediaType": LAYER_TYPE,
        "digest": Digest::of(payload),
        "size": payload.len(),
        "annotations": {ANNOTATION: signature},
    })
}

/// A layer with a good signature.
pub fn signed_layer(signer: &Signer, payload: &[u8]) -> Result<Value, Failed> {
    Ok(layer(payload, &STANDARD.encode(signer.sign(payload)?)))
}

/// A manifest of signatures.
pub fn signatures(layers: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(b"{}"),
            "size": 2,
        },
        "layers": layers,
    })
}

/// The tag of the signatures of a manifest.
pub fn signature_tag(digest: Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// Stores signatures, and their payloads, as those of a manifest.
pub fn attach(
    client: &Client,
    to: &Repository,
    digest: Digest,
    payloads: &[&[u8]],
    layers: &[Value],
) -> Result<(), Failed> {
    push(client, to, b"{}")?;
    for payload in payloads {
        push(client, to, payload)?;
    }
    let bytes = signatures(layers).to_string().into_bytes();
    let reference = tag(&signature_tag(digest));
    client.push_manifest(to, &reference, &bytes, OCI_MANIFEST, &go_on)?;
    Ok(())
}

/// Signs a manifest as `cosign sign` does.
pub fn sign(
    client: &Client,
    to: &Repository,
    digest: Digest,
    signer: &Signer,
) -> Result<(), Failed> {
    let payload = payload(&to.to_string(), digest);
    let layer = signed_layer(signer, &payload)?;
    attach(client, to, digest, &[&payload], &[layer])
}

/// The policy that wants a signature by one of these keys for all of a registry.
pub fn policy(host: &str, keys: &[&Path]) -> Policy {
    let directory = TempDir::new().unwrap();
    let text = format!(
        "default = \"reject\"\n[[repository]]\nmatch = \"{host}/*\"\nrequire = \"signature\"\nkeys = {keys:?}\n"
    );
    fs::write(directory.path().join("policy.toml"), text).unwrap();
    Policy::load(directory.path()).unwrap()
}
