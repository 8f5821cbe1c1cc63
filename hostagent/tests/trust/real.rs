//! Signatures that are accepted, in a real registry.

use hostagent::image::digest::Digest;
use hostagent::registry::config::RegistrySettings;
use hostagent::registry::credentials::CredentialStore;
use hostagent::registry::{Client, OCI_INDEX, OCI_MANIFEST};
use hostagent::trust::cosign::{ARTIFACT_TYPE, MAX_SIGNATURES};
use hostagent::trust::{Signed, TrustError, Verdict};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::common::{client, go_on, push, push_image, repository, settings, tag};
use crate::docker_registry::{DockerRegistry, tool};
use crate::signer::{Kind, Signer, attach, layer, payload, policy, sign, signatures, signed_layer};

pub const TESTS: &[Test] = &[
    (
        "an_image_signed_with_each_kind_of_key_is_accepted",
        every_kind,
    ),
    ("a_signature_of_the_index_is_enough", index),
    ("a_signature_of_the_platforms_manifest_is_enough", platform),
    ("a_good_signature_after_bad_ones_is_found", after_bad_ones),
    (
        "a_good_signature_beyond_the_bound_is_not_looked_at",
        beyond_the_bound,
    ),
    ("signatures_by_several_keys_share_a_payload", shared_payload),
    ("a_signature_listed_as_a_referrer_is_found", referrer),
    ("a_mirror_without_signatures_does_not_hide_them", mirror),
];

/// With curl as well.
pub const WITH_CURL: &[Test] = &[(
    "the_commands_of_the_documentation_sign_an_image",
    documented,
)];

fn documented() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "team/app");
    let digest = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
    let text = include_str!("../../../docs/trust.md");
    let script = text
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let (first, commands) = script.and_then(|s| s.split_once('\n')).ok_or("no script")?;
    assert!(first.starts_with("registry="), "{first}");
    let first = format!("registry=http://{host} repository=team/app digest={digest}");
    let signer = Signer::new(Kind::P256)?;
    let script = format!("{first}\n{commands}");
    tool("sh", &["-euc", &script], signer.directory.path())?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/team/app:v1").parse()?;
    let verdict = policy.check(&client, &name, &[digest], &go_on)?;
    assert!(matches!(verdict, Verdict::Signed(_)));
    Ok(())
}

fn every_kind() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let other = Signer::new(Kind::P256)?;
    for (index, kind) in [Kind::P256, Kind::P384, Kind::Ed25519, Kind::Rsa("2048")]
        .into_iter()
        .enumerate()
    {
        let path = format!("team/app{index}");
        let to = repository(&host, &path);
        let digest = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
        let signer = Signer::new(kind)?;
        sign(&client, &to, digest, &signer)?;
        let policy = policy(&host, &[&other.public(), &signer.public()]);
        let name = format!("{host}/{path}:v1").parse()?;
        let verdict = policy.check(&client, &name, &[digest], &go_on)?;
        let expected = Signed {
            key: signer.public(),
            fingerprint: signer.key().fingerprint(),
            digest,
        };
        assert_eq!(verdict, Verdict::Signed(expected), "{kind:?}");
    }
    Ok(())
}

fn index() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "app");
    let manifest = push_image(&client, &to, b"layer", "amd64")?;
    let platform = Digest::of(&manifest);
    let entry = json!({"mediaType": OCI_MANIFEST, "digest": platform, "size": manifest.len()});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
    let index = index.to_string().into_bytes();
    let digest = client.push_manifest(&to, &tag("v1"), &index, OCI_INDEX, &go_on)?;
    let signer = Signer::new(Kind::P256)?;
    sign(&client, &to, digest, &signer)?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/app:v1").parse()?;
    let verdict = policy.check(&client, &name, &[digest, platform], &go_on)?;
    assert!(matches!(verdict, Verdict::Signed(signed) if signed.digest == digest));
    // Without the index, nothing of it is signed.
    let outcome = policy.check(&client, &name, &[platform], &go_on);
    assert!(matches!(outcome, Err(TrustError::NotSigned { .. })));
    Ok(())
}

fn platform() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "app");
    let platform = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
    let signer = Signer::new(Kind::P256)?;
    sign(&client, &to, platform, &signer)?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/app:v1").parse()?;
    let digests = [Digest::of(b"an index"), platform];
    let verdict = policy.check(&client, &name, &digests, &go_on)?;
    assert!(matches!(verdict, Verdict::Signed(signed) if signed.digest == platform));
    Ok(())
}

/// `count` bad signatures of all kinds, then a good one, and the outcome.
fn bad_then_good(count: usize) -> Result<Result<Verdict, TrustError>, Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "app");
    let digest = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
    let (signer, stranger) = (Signer::new(Kind::P256)?, Signer::new(Kind::Ed25519)?);
    let good = payload(&to.to_string(), digest);
    let another = payload(&to.to_string(), Digest::of(b"another"));
    let mut nameless = layer(&good, "");
    nameless.as_object_mut().unwrap().remove("annotations");
    let mut oversized = layer(&good, "MEUC");
    oversized["size"] = json!(1 << 20);
    let bad = [
        layer(&good, "!"),
        layer(&good, "MEUC"),
        nameless,
        oversized,
        signed_layer(&stranger, &good)?,
        signed_layer(&signer, b"not a payload")?,
        signed_layer(&signer, &another)?,
    ];
    let mut layers: Vec<Value> = bad.iter().cycle().take(count).cloned().collect();
    layers.push(signed_layer(&signer, &good)?);
    let payloads: [&[u8]; 3] = [&good, &another, b"not a payload"];
    attach(&client, &to, digest, &payloads, &layers)?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/app:v1").parse()?;
    Ok(policy.check(&client, &name, &[digest], &go_on))
}

fn after_bad_ones() -> Result<(), Failed> {
    let verdict = bad_then_good(MAX_SIGNATURES - 1)??;
    assert!(matches!(verdict, Verdict::Signed(_)));
    Ok(())
}

fn beyond_the_bound() -> Result<(), Failed> {
    let error = bad_then_good(MAX_SIGNATURES)?.unwrap_err();
    assert!(
        matches!(error, TrustError::SignedAnother { .. }),
        "{error:?}"
    );
    Ok(())
}

fn shared_payload() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "app");
    let digest = Digest::of(&push_image(&client, &to, b"layer", "v1")?);
    let signers = [Signer::new(Kind::P256)?, Signer::new(Kind::P384)?];
    let payload = payload(&to.to_string(), digest);
    let layers = [
        signed_layer(&signers[0], &payload)?,
        signed_layer(&signers[1], &payload)?,
    ];
    attach(&client, &to, digest, &[&payload], &layers)?;
    let name = format!("{host}/app:v1").parse()?;
    for signer in &signers {
        let policy = policy(&host, &[&signer.public()]);
        let verdict = policy.check(&client, &name, &[digest], &go_on)?;
        let expected = signer.key().fingerprint();
        assert!(matches!(verdict, Verdict::Signed(signed) if signed.fingerprint == expected));
    }
    Ok(())
}

fn referrer() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let host = registry.host();
    let client = client(&host);
    let to = repository(&host, "app");
    let manifest = push_image(&client, &to, b"layer", "v1")?;
    let digest = Digest::of(&manifest);
    let signer = Signer::new(Kind::P256)?;
    let payload = payload(&to.to_string(), digest);
    push(&client, &to, &payload)?;
    let mut signatures = signatures(&[signed_layer(&signer, &payload)?]);
    signatures["artifactType"] = json!(ARTIFACT_TYPE);
    signatures["subject"] =
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len()});
    let bytes = signatures.to_string().into_bytes();
    let reference = hostagent::registry::Reference::Digest(Digest::of(&bytes));
    client.push_manifest(&to, &reference, &bytes, OCI_MANIFEST, &go_on)?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/app:v1").parse()?;
    let verdict = policy.check(&client, &name, &[digest], &go_on)?;
    assert!(matches!(verdict, Verdict::Signed(_)));
    Ok(())
}

fn mirror() -> Result<(), Failed> {
    let (registry, mirror) = (DockerRegistry::plain()?, DockerRegistry::plain()?);
    let host = registry.host();
    let to = repository(&host, "app");
    let digest = Digest::of(&push_image(&client(&host), &to, b"layer", "v1")?);
    let signer = Signer::new(Kind::P256)?;
    sign(&client(&host), &to, digest, &signer)?;
    let mut settings = settings(&[]);
    let mirrored = RegistrySettings {
        mirrors: vec![reqwest::Url::parse(&format!("http://{}", mirror.host()))?],
        plain_http: true,
        ..RegistrySettings::default()
    };
    settings.registries.insert(host.clone(), mirrored);
    let client = Client::new(settings, CredentialStore::empty())?;
    let policy = policy(&host, &[&signer.public()]);
    let name = format!("{host}/app:v1").parse()?;
    let verdict = policy.check(&client, &name, &[digest], &go_on)?;
    assert!(matches!(verdict, Verdict::Signed(_)));
    Ok(())
}
