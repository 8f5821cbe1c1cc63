//! Pull and push with a real registry.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hostagent::image::digest::Digest;
use hostagent::image::manifest::Document;
use hostagent::registry::credentials::CredentialStore;
use hostagent::registry::{Client, Fetched, OCI_MANIFEST, Pushed, Reference, RegistryError};
use libtest_mimic::Failed;
use serde_json::json;
use tempfile::TempDir;

use crate::Test;
use crate::common::{
    LIMIT, assert_says, client, describe, download, go_on, large, manifest, opener, push,
    push_image, repository, settings, tag,
};
use crate::docker_registry::{DockerRegistry, Setup, tool};

pub const TESTS: &[Test] = &[
    ("an_image_is_pushed_and_pulled", push_and_pull),
    (
        "a_registry_on_this_machine_is_found_without_configuration",
        unconfigured_loopback,
    ),
    ("a_blob_is_sent_once_and_mounted_elsewhere", mount),
    ("parts_of_a_blob_are_fetched", ranges),
    ("an_empty_blob_is_pushed_and_pulled", empty_blob),
    ("what_a_registry_does_not_have_is_named", not_found),
    ("a_certificate_is_trusted_once_its_ca_is_configured", own_ca),
    (
        "what_refers_to_a_manifest_is_listed_under_a_tag_where_there_is_no_list",
        referrers_by_tag,
    ),
    ("eight_threads_share_a_client", threads),
];

fn push_and_pull() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "team/app");
    let layer = large();
    let bytes = push_image(&client, &to, &layer, "v1")?;
    let expected = Fetched {
        digest: Digest::of(&bytes),
        media_type: OCI_MANIFEST.to_owned(),
        bytes,
    };
    for reference in [tag("v1"), Reference::Digest(expected.digest)] {
        assert_eq!(client.manifest(&to, &reference, LIMIT, &go_on)?, expected);
    }
    let Document::Manifest(manifest) = Document::parse(&expected.bytes)? else {
        panic!("not a manifest");
    };
    let config = client.blob(&to, &manifest.config, LIMIT, &go_on)?;
    assert_eq!(config, b"{}");
    assert!(download(&client, &to, &layer)? == layer);
    Ok(())
}

fn unconfigured_loopback() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = Client::new(settings(&[]), CredentialStore::empty())?;
    for host in ["127.0.0.1", "localhost"] {
        let to = repository(&format!("{host}:{}", registry.address.port()), "app");
        push_image(&client, &to, b"layer", "v1")?;
        assert_eq!(download(&client, &to, b"layer")?, b"layer");
    }
    Ok(())
}

fn mount() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let one = repository(&registry.host(), "one");
    let other = repository(&registry.host(), "other");
    let blob = large();
    let digest = Digest::of(&blob);
    assert!(!client.has_blob(&one, digest, &go_on)?);
    assert_eq!(push(&client, &one, &blob)?, Pushed::Uploaded);
    assert!(client.has_blob(&one, digest, &go_on)?);
    assert_eq!(push(&client, &one, &blob)?, Pushed::AlreadyThere);
    let closed = || Err(std::io::Error::other("it is not to be opened"));
    let mounted = client.push_blob(&other, &describe(&blob), Some(&one), &closed, &go_on)?;
    assert_eq!(mounted, Pushed::Mounted);
    assert!(download(&client, &other, &blob)? == blob);
    // A blob that is not there to be mounted is sent.
    let new = describe(b"new");
    let sent = client.push_blob(&other, &new, Some(&one), &opener(b"new"), &go_on)?;
    assert_eq!(sent, Pushed::Uploaded);
    Ok(())
}

fn ranges() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "app");
    let blob = large();
    push(&client, &to, &blob)?;
    let size = blob.len() as u64;
    for part in [0..1, 0..size, 1_000_000..1_500_000, size - 1..size, 5..5] {
        let (start, end) = (part.start as usize, part.end as usize);
        let found = client
            .blob_range(&to, Digest::of(&blob), part, &go_on)?
            .bytes;
        assert!(found == blob[start..end], "{start}..{end}");
    }
    let beyond = client.blob_range(&to, Digest::of(&blob), size..size + 1, &go_on);
    assert_says(&beyond.unwrap_err(), &["416", &registry.host()]);
    let huge = client.blob_range(&to, Digest::of(&blob), 0..u64::MAX, &go_on);
    assert!(matches!(huge, Err(RegistryError::TooLarge { .. })));
    Ok(())
}

fn empty_blob() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "app");
    push(&client, &to, b"")?;
    assert_eq!(download(&client, &to, b"")?, b"");
    assert_eq!(client.blob(&to, &describe(b""), 0, &go_on)?, b"");
    Ok(())
}

fn not_found() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "app");
    let error = client.manifest(&to, &tag("v1"), LIMIT, &go_on).unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    let name = format!("{}/app:v1", registry.host());
    assert_says(&error, &[&name, "404", "MANIFEST_UNKNOWN"]);
    let error = client
        .blob(&to, &describe(b"x"), LIMIT, &go_on)
        .unwrap_err();
    assert_says(
        &error,
        &[
            &Digest::of(b"x").to_string(),
            &registry.host(),
            "BLOB_UNKNOWN",
        ],
    );
    // Blobs that a manifest names must be there before it.
    let bytes = manifest(b"never pushed").to_string().into_bytes();
    let pushed = client.push_manifest(&to, &tag("v1"), &bytes, OCI_MANIFEST, &go_on);
    assert_says(
        &pushed.unwrap_err(),
        &["push the manifest", "400", "BLOB_UNKNOWN"],
    );
    Ok(())
}

/// A CA, and a certificate of its for this machine: `ca.pem`, `server.pem`,
/// `server.key`.
fn certificates(directory: &Path) -> Result<(), Failed> {
    fs::write(
        directory.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )?;
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let ca = ["req", "-x509", "-subj", "/CN=CA of a test", "-days", "2"];
    let ca: Vec<&str> = ca.iter().chain(&key).copied().collect();
    let run = |arguments: &[&str]| tool("openssl", arguments, directory).map(drop);
    run(&[&ca[..], &["-keyout", "ca.key", "-out", "ca.pem"]].concat())?;
    let request = [&["req", "-subj", "/CN=localhost"], &key[..]].concat();
    run(&[
        &request[..],
        &["-keyout", "server.key", "-out", "server.csr"],
    ]
    .concat())?;
    run(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "server.pem",
    ])
}

fn own_ca() -> Result<(), Failed> {
    let directory = TempDir::new()?;
    certificates(directory.path())?;
    let file = |name: &str| directory.path().join(name);
    let registry = DockerRegistry::start(&Setup {
        tls: Some((file("server.pem"), file("server.key"))),
        auth: String::new(),
    })?;
    let to = repository(&registry.host(), "app");

    // TLS is spoken, so there is no falling back to plain HTTP.
    let stranger = Client::new(settings(&[]), CredentialStore::empty())?;
    let error = stranger
        .manifest(&to, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Certificate { .. }),
        "{error:?}"
    );
    assert_says(&error, &["not trusted", "`ca`", &registry.host()]);

    let mut trusting = settings(&[&registry.host()]);
    for entry in trusting.registries.values_mut() {
        entry.plain_http = false;
        entry.ca = Some(file("ca.pem"));
    }
    let client = Client::new(trusting.clone(), CredentialStore::empty())?;
    let layer = large();
    push_image(&client, &to, &layer, "v1")?;
    assert!(download(&client, &to, &layer)? == layer);

    for (name, words) in [
        ("no.pem", "cannot read the CA file"),
        ("server.key", "no certificate"),
    ] {
        for entry in trusting.registries.values_mut() {
            entry.ca = Some(file(name));
        }
        let client = Client::new(trusting.clone(), CredentialStore::empty())?;
        let error = client.manifest(&to, &tag("v1"), LIMIT, &go_on).unwrap_err();
        assert_says(&error, &[words, name]);
    }
    Ok(())
}

fn referrers_by_tag() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "app");
    let image = push_image(&client, &to, b"layer", "v1")?;
    let subject = Digest::of(&image);
    assert!(client.referrers(&to, subject, None, &go_on)?.is_empty());

    let mut signatures = Vec::new();
    for (kind, note) in [("example/signature", "one"), ("example/sbom", "two")] {
        let mut artifact = manifest(b"layer");
        artifact["artifactType"] = kind.into();
        artifact["annotations"] = json!({"note": note});
        artifact["subject"] =
            json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": image.len()});
        let bytes = artifact.to_string().into_bytes();
        let reference = Reference::Digest(Digest::of(&bytes));
        // Twice: it is listed once.
        for _ in 0..2 {
            client.push_manifest(&to, &reference, &bytes, OCI_MANIFEST, &go_on)?;
        }
        signatures.push((Digest::of(&bytes), kind, note));
    }
    let found = client.referrers(&to, subject, None, &go_on)?;
    assert_eq!(found.len(), 2, "{found:?}");
    for (entry, (digest, kind, note)) in found.iter().zip(&signatures) {
        assert_eq!(entry.digest, *digest);
        assert_eq!(entry.artifact_type.as_deref(), Some(*kind));
        assert_eq!(entry.annotations.as_ref().unwrap()["note"], *note);
        assert_eq!(entry.media_type, OCI_MANIFEST);
    }
    let filtered = client.referrers(&to, subject, Some("example/sbom"), &go_on)?;
    assert_eq!(filtered.len(), 1);
    assert_eq!(filtered[0].digest, signatures[1].0);
    Ok(())
}

fn threads() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = Arc::new(client(&registry.host()));
    let to = repository(&registry.host(), "app");
    let blob = large();
    push(&client, &to, &blob)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| download(&client, &to, &blob).unwrap() == blob))
            .collect();
        for thread in threads {
            assert!(thread.join().unwrap());
        }
    });
    Ok(())
}
