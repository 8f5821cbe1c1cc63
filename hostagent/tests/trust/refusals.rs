//! Images that are not accepted, in a real registry.

use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::registry::{Client, OCI_MANIFEST, Repository};
use hostagent::trust::TrustError;
use libtest_mimic::Failed;
use serde_json::json;

use crate::Test;
use crate::common::{assert_says, client, go_on, push, push_image, repository, tag};
use crate::docker_registry::DockerRegistry;
use crate::signer::{
    Kind, Signer, attach, layer, payload, policy, sign, signature_tag, signed_layer,
};

pub const TESTS: &[Test] = &[
    ("an_image_without_signature_is_refused", unsigned),
    ("a_signature_by_another_key_is_refused", other_key),
    ("a_signature_copied_from_another_image_is_refused", copied),
    (
        "a_signature_for_another_repository_is_refused",
        other_repository,
    ),
    ("a_tag_moved_to_an_unsigned_image_is_refused", moved_tag),
    ("a_payload_that_was_swapped_is_refused", swapped_payload),
    ("a_signature_without_sense_is_refused", broken),
    (
        "a_signed_document_that_is_no_payload_is_refused",
        other_document,
    ),
    ("signatures_in_the_bundle_format_are_named", bundles),
];

/// A registry with the image `app:v1`, and a key.
struct Scene {
    registry: DockerRegistry,
    client: Client,
    to: Repository,
    digest: Digest,
    signer: Signer,
}

impl Scene {
    fn new() -> Result<Self, Failed> {
        let registry = DockerRegistry::plain()?;
        let client = client(&registry.host());
        let to = repository(&registry.host(), "app");
        let digest = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
        Ok(Self {
            registry,
            client,
            to,
            digest,
            signer: Signer::new(Kind::P256)?,
        })
    }

    /// The refusal of `app:v1`, which is this manifest.
    #[track_caller]
    fn refused(&self, digest: Digest) -> TrustError {
        let host = self.registry.host();
        let name: ImageName = format!("{host}/app:v1").parse().unwrap();
        let policy = policy(&host, &[&self.signer.public()]);
        let error = policy
            .check(&self.client, &name, &[digest], &go_on)
            .unwrap_err();
        assert_says(&error, &[&format!("{name} is not accepted")]);
        error
    }
}

fn unsigned() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let error = scene.refused(scene.digest);
    assert!(matches!(error, TrustError::NotSigned { .. }), "{error:?}");
    assert_says(
        &error,
        &[
            "it is not signed",
            &scene.digest.to_string(),
            "policy.toml:3",
        ],
    );
    Ok(())
}

fn other_key() -> Result<(), Failed> {
    let scene = Scene::new()?;
    for kind in [Kind::P256, Kind::Ed25519] {
        sign(&scene.client, &scene.to, scene.digest, &Signer::new(kind)?)?;
        let error = scene.refused(scene.digest);
        assert!(matches!(error, TrustError::Untrusted { .. }), "{error:?}");
        let fingerprint = scene.signer.key().fingerprint().to_string();
        assert_says(&error, &["1 signature,", "key.pub", &fingerprint]);
    }
    Ok(())
}

fn copied() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let (client, to) = (&scene.client, &scene.to);
    let other = Digest::of(&push_image(client, to, b"another layer", "v2")?);
    sign(client, to, other, &scene.signer)?;
    let stored = client.manifest(to, &tag(&signature_tag(other)), 1 << 20, &go_on)?;
    let copy = tag(&signature_tag(scene.digest));
    client.push_manifest(to, &copy, &stored.bytes, OCI_MANIFEST, &go_on)?;
    let error = scene.refused(scene.digest);
    let is_named = matches!(
        &error,
        TrustError::SignedAnother { payload, .. } if payload.digest == other
    );
    assert!(is_named, "{error:?}");
    assert_says(&error, &[&other.to_string(), "key.pub"]);
    Ok(())
}

fn other_repository() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let other = format!("{}/app-2", scene.registry.host());
    let payload = payload(&other, scene.digest);
    let layers = [signed_layer(&scene.signer, &payload)?];
    attach(&scene.client, &scene.to, scene.digest, &[&payload], &layers)?;
    let error = scene.refused(scene.digest);
    assert!(
        matches!(error, TrustError::SignedAnother { .. }),
        "{error:?}"
    );
    assert_says(&error, &[&format!("one of {other}@{}", scene.digest)]);
    Ok(())
}

fn moved_tag() -> Result<(), Failed> {
    let scene = Scene::new()?;
    sign(&scene.client, &scene.to, scene.digest, &scene.signer)?;
    let moved = Digest::of(&push_image(&scene.client, &scene.to, b"evil", "v1")?);
    let error = scene.refused(moved);
    assert!(matches!(error, TrustError::NotSigned { .. }), "{error:?}");
    Ok(())
}

fn swapped_payload() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let good = payload(&scene.to.to_string(), Digest::of(b"another"));
    let swapped = payload(&scene.to.to_string(), scene.digest);
    let mut layer = signed_layer(&scene.signer, &good)?;
    layer["digest"] = json!(Digest::of(&swapped));
    layer["size"] = json!(swapped.len());
    attach(
        &scene.client,
        &scene.to,
        scene.digest,
        &[&swapped],
        &[layer],
    )?;
    let error = scene.refused(scene.digest);
    assert!(matches!(error, TrustError::Untrusted { .. }), "{error:?}");
    assert_says(&error, &["its payload was changed since"]);
    Ok(())
}

fn broken() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let good = payload(&scene.to.to_string(), scene.digest);
    let mut bare = layer(&good, "");
    bare.as_object_mut().unwrap().remove("annotations");
    let mut large = layer(&good, "MEUC");
    large["size"] = json!(70_000);
    let mut shorter = layer(&good, "MEUC");
    shorter["size"] = json!(good.len() - 1);
    for (layer, words) in [
        (layer(&good, "not base64"), "not Base64"),
        (layer(&good, &"A".repeat(10_000)), "not Base64 of at most"),
        (bare, "has no signature with it"),
        (large, "70000 bytes; at most 65536"),
        (shorter, "cannot be fetched"),
    ] {
        attach(&scene.client, &scene.to, scene.digest, &[&good], &[layer])?;
        let error = scene.refused(scene.digest);
        assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
        assert_says(
            &error,
            &["it has 1 signature, and the last is broken", words],
        );
    }
    Ok(())
}

fn other_document() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let good = String::from_utf8(payload(&scene.to.to_string(), scene.digest))?;
    for document in [
        "an agreement".to_owned(),
        good.replace("cosign container", "atomic container"),
        format!("{good}{good}"),
        good.replace("\"type\"", "\"kind\""),
    ] {
        let layers = [signed_layer(&scene.signer, document.as_bytes())?];
        let payloads = [document.as_bytes()];
        attach(&scene.client, &scene.to, scene.digest, &payloads, &layers)?;
        let error = scene.refused(scene.digest);
        assert!(matches!(error, TrustError::Payload { .. }), "{error:?}");
        assert_says(&error, &["key.pub"]);
    }
    Ok(())
}

fn bundles() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    push(&scene.client, &scene.to, b"{}")?;
    let empty = json!({"mediaType": kind, "digest": Digest::of(b"{}"), "size": 2});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": OCI_MANIFEST, "digest": scene.digest, "size": 1},
    });
    let bytes = manifest.to_string().into_bytes();
    let reference = hostagent::registry::Reference::Digest(Digest::of(&bytes));
    let to = &scene.to;
    scene
        .client
        .push_manifest(to, &reference, &bytes, OCI_MANIFEST, &go_on)?;
    let error = scene.refused(scene.digest);
    assert!(
        matches!(
            error,
            TrustError::NotSigned {
                has_bundles: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert_says(&error, &["--new-bundle-format=false"]);
    Ok(())
}
