//! Mirrors before the registry.

use hostagent::image::digest::Digest;
use hostagent::registry::config::Settings;
use hostagent::registry::credentials::CredentialStore;
use hostagent::registry::{Client, RegistryError};
use libtest_mimic::Failed;
use serde_json::json;

use crate::Test;
use crate::common::{
    LIMIT, NOBODY, client_with, describe, download, go_on, large, never, push, ranged, read,
    repository, settings, tag,
};
use crate::http_server::{Fault, Reply, Server};

pub const TESTS: &[Test] = &[
    ("a_mirror_spares_the_registry", spares),
    (
        "a_mirror_that_fails_gives_way_to_the_next_and_to_the_registry",
        gives_way,
    ),
    (
        "a_mirror_that_breaks_off_gives_way_to_the_registry_where_it_was",
        breaks_off,
    ),
    (
        "of_a_mirror_that_goes_on_after_the_end_the_registry_is_not_asked_for_more",
        goes_on_after_the_end,
    ),
    (
        "a_mirror_that_has_a_blob_wrong_is_not_asked_for_it_again",
        rejected,
    ),
    ("a_mirror_gets_no_credentials", no_credentials),
    ("a_mirror_is_not_pushed_to", not_pushed_to),
    (
        "the_registrys_error_is_the_one_that_counts",
        registry_error_counts,
    ),
];

fn mirrored(registry: &Server, mirrors: &[&Server]) -> Settings {
    let mut settings = settings(&[&registry.host()]);
    for entry in settings.registries.values_mut() {
        entry.mirrors = mirrors
            .iter()
            .map(|m| m.url("/").parse().unwrap())
            .collect();
    }
    settings
}

fn anonymous(settings: Settings) -> Client {
    Client::new(settings, CredentialStore::empty()).unwrap()
}

fn content() -> Server {
    Server::start(|request| ranged(request, b"content"))
}

fn spares() -> Result<(), Failed> {
    let document = br#"{"schemaVersion": 2}"#;
    let serve = || Server::start(|request| ranged(request, document));
    let (mirror, registry) = (serve(), serve());
    let client = anonymous(mirrored(&registry, &[&mirror]));
    let from = repository(&registry.host(), "team/app");
    client.manifest(&from, &tag("v1"), LIMIT, &go_on)?;
    client.blob(&from, &describe(document), LIMIT, &go_on)?;
    download(&client, &from, document)?;
    assert_eq!((mirror.seen().len(), registry.seen().len()), (3, 0));
    assert_eq!(mirror.seen()[0].target, "/v2/team/app/manifests/v1");
    Ok(())
}

fn gives_way() -> Result<(), Failed> {
    let wrong = Server::start(|_| Reply::new(200, "c0ntent"));
    let broken = Server::start(|_| Reply::new(500, ""));
    let registry = content();
    let mut settings = mirrored(&registry, &[&wrong, &broken]);
    for entry in settings.registries.values_mut() {
        entry
            .mirrors
            .push(format!("http://{NOBODY}/").parse().unwrap());
    }
    let client = anonymous(settings);
    let from = repository(&registry.host(), "app");
    assert_eq!(
        client.blob(&from, &describe(b"content"), LIMIT, &go_on)?,
        b"content"
    );
    // Each was tried once.
    let tried = [&wrong, &broken, &registry].map(|server| server.seen().len());
    assert_eq!(tried, [1, 1, 1]);
    Ok(())
}

fn breaks_off() -> Result<(), Failed> {
    let blob = large();
    let (one, other) = (blob.clone(), blob.clone());
    let mirror =
        Server::start(move |request| ranged(request, &one).fault(Fault::CutAfter(1_000_000)));
    let registry = Server::start(move |request| ranged(request, &other));
    let client = anonymous(mirrored(&registry, &[&mirror]));
    assert!(download(&client, &repository(&registry.host(), "app"), &blob)? == blob);
    assert_eq!(registry.seen()[0].header("range"), Some("bytes=1000000-"));
    assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 1));
    Ok(())
}

fn goes_on_after_the_end() -> Result<(), Failed> {
    let blob = large();
    let content = blob.clone();
    let mirror = Server::start(move |_| Reply::new(200, content.clone()).fault(Fault::Endless));
    let registry = Server::start(|_| Reply::new(416, ""));
    let client = anonymous(mirrored(&registry, &[&mirror]));
    assert!(download(&client, &repository(&registry.host(), "app"), &blob)? == blob);
    assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 0));
    Ok(())
}

fn rejected() -> Result<(), Failed> {
    let wrong = Server::start(|request| ranged(request, b"c0ntent"));
    let registry = content();
    let client = anonymous(mirrored(&registry, &[&wrong]));
    let from = repository(&registry.host(), "app");
    let (descriptor, digest) = (describe(b"content"), Digest::of(b"content"));
    let ask = || client.blob_range(&from, digest, 1..3, &go_on);
    let range = ask()?;
    assert_eq!(range.bytes, b"0n");
    // Whoever asked at the same time has been given the same.
    let reader = client.blob_reader(&from, &descriptor, never())?;
    let provenance = reader.provenance();
    assert_eq!(read(reader)?, b"c0ntent");
    for provenance in [range.provenance, provenance] {
        assert_eq!(provenance.reject(), Some(wrong.host()));
    }
    let range = ask()?;
    assert_eq!(range.bytes, b"on");
    assert_eq!(range.provenance.reject(), None);
    let reader = client.blob_reader(&from, &descriptor, never())?;
    assert_eq!(read(reader)?, b"content");
    // Of other blobs it may have the right bytes.
    let other = client.blob_range(&from, Digest::of(b"other"), 0..1, &go_on)?;
    assert_eq!(other.provenance.reject(), Some(wrong.host()));
    assert_eq!((wrong.seen().len(), registry.seen().len()), (3, 2));
    Ok(())
}

fn no_credentials() -> Result<(), Failed> {
    let mirror = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"));
    let registry = Server::start(|request| match request.header("authorization") {
        Some(_) => Reply::new(200, "content"),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"),
    });
    let auth = json!({"username": "me", "password": "secret"});
    // Not even those that are stored for it: it is asked as anyone may ask.
    let config = json!({"auths": {registry.host(): auth, mirror.host(): auth}});
    let (_directory, client) = client_with(mirrored(&registry, &[&mirror]), &config);
    let from = repository(&registry.host(), "app");
    assert_eq!(
        client.blob(&from, &describe(b"content"), LIMIT, &go_on)?,
        b"content"
    );
    assert!(!mirror.seen().is_empty());
    assert!(
        mirror
            .seen()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
    Ok(())
}

fn not_pushed_to() -> Result<(), Failed> {
    let (mirror, registry) = (content(), content());
    let client = anonymous(mirrored(&registry, &[&mirror]));
    push(&client, &repository(&registry.host(), "app"), b"content")?;
    assert_eq!((mirror.seen().len(), registry.seen().len()), (0, 1));
    Ok(())
}

fn registry_error_counts() -> Result<(), Failed> {
    let mirror = Server::start(|_| Reply::new(500, ""));
    let registry = Server::start(|_| Reply::new(404, ""));
    let client = anonymous(mirrored(&registry, &[&mirror]));
    let from = repository(&registry.host(), "app");
    let outcome = client.manifest(&from, &tag("v1"), LIMIT, &go_on);
    assert!(
        matches!(outcome, Err(RegistryError::NotFound { .. })),
        "{outcome:?}"
    );
    Ok(())
}
