//! What is asked of a registry, and registries that do not do what they should.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::registry::{Client, OCI_INDEX, OCI_MANIFEST};
use hostagent::trust::cosign::ARTIFACT_TYPE;
use hostagent::trust::{Policy, TrustError, Verdict};
use libtest_mimic::Failed;
use serde_json::json;
use tempfile::TempDir;

use crate::Test;
use crate::common::{assert_says, client, go_on};
use crate::http_server::{Fault, Reply, Request, Server};
use crate::signer::{Kind, Signer, layer, payload, policy, signatures, signed_layer};

pub const TESTS: &[Test] = &[
    (
        "what_is_rejected_or_needs_no_signature_asks_the_registry_nothing",
        nothing_is_asked,
    ),
    (
        "a_signature_is_looked_for_under_its_tag_and_then_among_referrers",
        what_is_asked,
    ),
    ("a_registry_that_cannot_be_reached_is_named", unreachable),
    (
        "a_registry_that_fails_does_not_pass_for_one_without_signatures",
        failing,
    ),
    ("signatures_that_are_no_manifest_are_refused", no_manifest),
    ("a_payload_without_end_is_not_read", endless_payload),
    (
        "a_payload_that_is_another_than_its_digest_is_refused",
        other_payload,
    ),
    (
        "a_list_of_referrers_that_is_not_supported_is_empty",
        no_referrers,
    ),
    ("only_so_many_referrers_are_fetched", many_referrers),
    ("a_check_ends_when_the_caller_wants_to_stop", cancelled),
];

const DIGEST: &[u8] = b"manifest";

/// A policy of these lines for a registry.
fn written(lines: &str) -> Policy {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("policy.toml"), lines).unwrap();
    Policy::load(directory.path()).unwrap()
}

/// The outcome for `app:1` of a server, which is the manifest [`DIGEST`].
fn checked(server: &Server, signer: &Signer) -> Result<Verdict, TrustError> {
    let client = client(&server.host());
    check(&client, server, signer, &go_on)
}

fn check(
    client: &Client,
    server: &Server,
    signer: &Signer,
    cancelled: &dyn Fn() -> bool,
) -> Result<Verdict, TrustError> {
    let policy = policy(&server.host(), &[&signer.public()]);
    let name = format!("{}/app:1", server.host()).parse().unwrap();
    policy.check(client, &name, &[Digest::of(DIGEST)], cancelled)
}

fn is_signature_tag(request: &Request) -> bool {
    request.target.ends_with(".sig")
}

fn nothing_is_asked() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, "{}"));
    let host = server.host();
    let client = client(&host);
    let digest = Digest::of(DIGEST);
    let rule = |require: &str| {
        written(&format!(
            "default = \"accept\"\n[[repository]]\nmatch = \"{host}/*\"\nrequire = \"{require}\"\n"
        ))
    };
    let (tagged, pinned): (ImageName, ImageName) = (
        format!("{host}/app:1").parse()?,
        format!("{host}/app@{digest}").parse()?,
    );
    let check = |policy: &Policy, name| policy.check(&client, name, &[digest], &go_on);
    for name in [&tagged, &pinned] {
        let outcome = check(&rule("reject"), name);
        assert!(matches!(outcome, Err(TrustError::Rejected { .. })));
        assert_eq!(check(&rule("accept"), name)?, Verdict::NothingRequired);
        assert_eq!(
            check(&Policy::accept_everything(), name)?,
            Verdict::NothingRequired
        );
    }
    let outcome = check(&rule("digest"), &tagged);
    assert_says(&outcome.unwrap_err(), &["wants a digest", "app@sha256:"]);
    assert_eq!(check(&rule("digest"), &pinned)?, Verdict::Pinned(digest));
    assert_eq!(server.seen().len(), 0);
    Ok(())
}

fn what_is_asked() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(404, ""));
    let signer = Signer::new(Kind::P256)?;
    let outcome = checked(&server, &signer);
    assert!(
        matches!(outcome, Err(TrustError::NotSigned { .. })),
        "{outcome:?}"
    );
    let digest = Digest::of(DIGEST);
    let asked: Vec<String> = server.seen().into_iter().map(|r| r.target).collect();
    let tag = format!("/v2/app/manifests/sha256-{}", digest.hex());
    let expected = [
        format!("{tag}.sig"),
        format!("/v2/app/referrers/{digest}"),
        tag,
    ];
    assert_eq!(asked, expected);
    Ok(())
}

fn unreachable() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, ""));
    let signer = Signer::new(Kind::P256)?;
    let policy = policy(&server.host(), &[&signer.public()]);
    let (host, name) = (server.host(), format!("{}/app:1", server.host()).parse()?);
    drop(server);
    let outcome = policy.check(&client(&host), &name, &[Digest::of(DIGEST)], &go_on);
    let error = outcome.unwrap_err();
    assert!(matches!(error, TrustError::Registry { .. }), "{error:?}");
    assert_says(
        &error,
        &["its signatures cannot be fetched", &host, "refused"],
    );
    Ok(())
}

fn failing() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    for status in [401, 403, 500, 503] {
        // The tag cannot be read; or it does not exist, and the list cannot be.
        for at_tag in [true, false] {
            let server = Server::start(move |request| match is_signature_tag(request) {
                true if !at_tag => Reply::new(404, ""),
                _ => Reply::new(status, ""),
            });
            let outcome = checked(&server, &signer);
            assert!(
                matches!(outcome, Err(TrustError::Registry { .. })),
                "{status}: {outcome:?}"
            );
        }
    }
    Ok(())
}

fn no_manifest() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    let many = vec![layer(b"", ""); 300];
    for body in [
        String::new(),
        "{".to_owned(),
        json!({"schemaVersion": 2, "manifests": []}).to_string(),
        json!({"fsLayers": []}).to_string(),
        json!({"layers": []}).to_string(),
        signatures(&many).to_string(),
    ] {
        let server = Server::start(move |request| match is_signature_tag(request) {
            true => Reply::new(200, body.clone()),
            false => Reply::new(404, ""),
        });
        let error = checked(&server, &signer).unwrap_err();
        assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
    }
    let server = Server::start(|request| match is_signature_tag(request) {
        true => Reply::new(200, vec![b' '; 64 << 10]).fault(Fault::Endless),
        false => Reply::new(404, ""),
    });
    let outcome = checked(&server, &signer);
    assert!(
        matches!(outcome, Err(TrustError::Registry { .. })),
        "{outcome:?}"
    );
    Ok(())
}

/// A server with one signature of [`DIGEST`], whose payload it sends as `reply` says.
fn with_payload(signer: &Signer, reply: impl Fn(Vec<u8>) -> Reply) -> Result<Server, Failed> {
    // The server's own name is in the payload, and known only once it runs.
    let good = payload("registry.invalid/app", Digest::of(DIGEST));
    let manifest = signatures(&[signed_layer(signer, &good)?]).to_string();
    let reply = reply(good);
    Ok(Server::start(move |request| {
        if is_signature_tag(request) {
            Reply::new(200, manifest.clone()).with("Content-Type", OCI_MANIFEST)
        } else if request.target.contains("/blobs/") {
            reply.clone()
        } else {
            Reply::new(404, "")
        }
    }))
}

fn endless_payload() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    let server = with_payload(&signer, |bytes| {
        Reply::new(200, bytes).fault(Fault::Endless)
    })?;
    let error = checked(&server, &signer).unwrap_err();
    assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
    assert_says(&error, &["its descriptor says"]);
    // Sent as it should be, it is what it is: a payload for another registry.
    let server = with_payload(&signer, |bytes| Reply::new(200, bytes))?;
    let error = checked(&server, &signer).unwrap_err();
    assert!(
        matches!(error, TrustError::SignedAnother { .. }),
        "{error:?}"
    );
    Ok(())
}

fn other_payload() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    let server = with_payload(&signer, |mut bytes| {
        bytes.reverse();
        Reply::new(200, bytes)
    })?;
    let error = checked(&server, &signer).unwrap_err();
    assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
    assert_says(&error, &["corrupt"]);
    let server = with_payload(&signer, |_| Reply::new(404, ""))?;
    let error = checked(&server, &signer).unwrap_err();
    assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
    // What fails for now is not taken for a signature that is broken.
    let server = with_payload(&signer, |_| Reply::new(500, ""))?;
    let error = checked(&server, &signer).unwrap_err();
    assert!(matches!(error, TrustError::Registry { .. }), "{error:?}");
    Ok(())
}

fn no_referrers() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    for status in [400, 405, 501] {
        let server = Server::start(move |request| match is_signature_tag(request) {
            true => Reply::new(404, ""),
            false => Reply::new(status, ""),
        });
        let outcome = checked(&server, &signer);
        assert!(
            matches!(outcome, Err(TrustError::NotSigned { .. })),
            "{outcome:?}"
        );
    }
    Ok(())
}

fn many_referrers() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    let entry = |n: usize| {
        json!({
            "mediaType": OCI_MANIFEST,
            "digest": Digest::of(&n.to_le_bytes()),
            "size": 8,
            "artifactType": ARTIFACT_TYPE,
        })
    };
    let entries: Vec<_> = (0..1000).map(entry).collect();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let server = Server::start(
        move |request| match request.target.contains("/referrers/") {
            true => Reply::new(200, index.clone()).with("Content-Type", OCI_INDEX),
            false => Reply::new(404, ""),
        },
    );
    let error = checked(&server, &signer).unwrap_err();
    assert!(matches!(error, TrustError::Broken { .. }), "{error:?}");
    assert_says(&error, &["more signatures than the 16 that are looked at"]);
    assert_eq!(server.count("/manifests/sha256:"), 16);
    Ok(())
}

fn cancelled() -> Result<(), Failed> {
    let signer = Signer::new(Kind::P256)?;
    let server = Server::start(|_| Reply::new(200, "{}").fault(Fault::StallAfter(1)));
    let asked = AtomicUsize::new(0);
    let client = client(&server.host());
    let outcome = check(&client, &server, &signer, &|| {
        asked.fetch_add(1, Ordering::SeqCst) >= 2
    });
    assert!(matches!(outcome, Err(TrustError::Cancelled)), "{outcome:?}");
    Ok(())
}
