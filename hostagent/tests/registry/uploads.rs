//! Pushes that meet obstacles.

use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

use hostagent::image::digest::Digest;
use hostagent::registry::{OCI_MANIFEST, Pushed, RegistryError};
use libtest_mimic::Failed;

use crate::Test;
use crate::common::{
    assert_says, client, describe, download, go_on, large, opener, push, repository, tag,
};
use crate::docker_registry::DockerRegistry;
use crate::fault_proxy::forward;
use crate::http_server::{Fault, Reply, Request, Server};

pub const WITH_REGISTRY: &[Test] = &[
    ("an_upload_that_fails_begins_anew", begins_anew),
    (
        "content_that_is_not_what_was_announced_is_refused",
        other_content,
    ),
];

pub const TESTS: &[Test] = &[
    ("content_that_cannot_be_read_ends_the_push", unreadable),
    ("an_upload_goes_where_the_registry_says", location),
    (
        "credentials_do_not_follow_an_upload_to_another_host",
        other_host,
    ),
    ("a_refused_upload_tells_why", refused),
    (
        "a_manifest_that_is_stored_as_another_is_named",
        stored_as_another,
    ),
    ("a_registry_that_takes_nothing_is_given_up", takes_nothing),
];

fn begins_anew() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let address = registry.address;
    let tries = AtomicUsize::new(0);
    let proxy = Server::start(move |request| {
        if request.method != "PUT" {
            return forward(address, request);
        }
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(503, "").with("Retry-After", "0"),
            1 => Reply::new(200, "").fault(Fault::NoAnswer),
            _ => forward(address, request),
        }
    });
    let client = client(&proxy.host());
    let to = repository(&proxy.host(), "app");
    let blob = large();
    let opened = AtomicUsize::new(0);
    let open = || -> io::Result<Box<dyn Read + Send>> {
        opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Cursor::new(large())))
    };
    let pushed = client.push_blob(&to, &describe(&blob), None, &open, &go_on)?;
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(opened.load(Ordering::SeqCst), 3);
    assert!(download(&client, &to, &blob)? == blob);
    Ok(())
}

fn other_content() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let client = client(&registry.host());
    let to = repository(&registry.host(), "app");
    let outcome = client.push_blob(
        &to,
        &describe(b"content"),
        None,
        &opener(b"c0ntent"),
        &go_on,
    );
    assert_says(&outcome.unwrap_err(), &["400", "DIGEST_INVALID"]);
    assert!(!client.has_blob(&to, Digest::of(b"content"), &go_on)?);
    Ok(())
}

/// A registry that takes what it is sent.
fn taker(location: &str) -> Server {
    let location = location.to_owned();
    Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").with("Location", &location),
        _ => Reply::new(201, ""),
    })
}

fn puts(server: &Server) -> Vec<Request> {
    let seen = server.seen().into_iter();
    seen.filter(|request| request.method == "PUT").collect()
}

fn unreadable() -> Result<(), Failed> {
    for (content, words) in [
        (&b"conten"[..], "ends after 6 of 7 bytes"),
        (b"contents", "longer than 7"),
    ] {
        let server = taker("/upload");
        let to = repository(&server.host(), "app");
        let client = client(&server.host());
        let outcome = client.push_blob(&to, &describe(b"content"), None, &opener(content), &go_on);
        let error = outcome.unwrap_err();
        assert!(matches!(error, RegistryError::Content { .. }), "{error:?}");
        assert_says(&error, &[words]);
        assert_eq!(puts(&server).len(), 0);
    }
    let server = taker("/upload");
    let to = repository(&server.host(), "app");
    let open = || Err(io::Error::other("gone"));
    let outcome = client(&server.host()).push_blob(&to, &describe(b"x"), None, &open, &go_on);
    assert_says(&outcome.unwrap_err(), &["cannot be read here", "gone"]);
    Ok(())
}

fn location() -> Result<(), Failed> {
    let digest = Digest::of(b"content").to_string().replace(':', "%3A");
    for (location, target) in [
        (
            "/somewhere/else",
            format!("/somewhere/else?digest={digest}"),
        ),
        (
            "session?state=a%3Db",
            format!("/v2/app/blobs/uploads/session?state=a%3Db&digest={digest}"),
        ),
    ] {
        let server = taker(location);
        push(
            &client(&server.host()),
            &repository(&server.host(), "app"),
            b"content",
        )?;
        let put = puts(&server).remove(0);
        assert_eq!(put.target, target);
        assert_eq!(put.body, b"content");
        assert_eq!(put.header("content-type"), Some("application/octet-stream"));
        assert_eq!(put.header("content-length"), Some("7"));
    }
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::new(202, ""),
    });
    let outcome = push(
        &client(&server.host()),
        &repository(&server.host(), "app"),
        b"content",
    );
    assert!(matches!(
        outcome,
        Err(RegistryError::Header {
            header: "Location",
            ..
        })
    ));
    Ok(())
}

fn other_host() -> Result<(), Failed> {
    let storage = Server::start(|_| Reply::new(201, ""));
    let target = storage.url("/upload");
    let server = Server::start(move |request| {
        match (request.header("authorization"), request.method.as_str()) {
            (None, _) => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"),
            (_, "HEAD") => Reply::new(404, ""),
            _ => Reply::new(202, "").with("Location", &target),
        }
    });
    let config = serde_json::json!({"auths": {server.host(): {"auth": "bWU6c2VjcmV0"}}});
    let settings = crate::common::settings(&[&server.host()]);
    let (_directory, client) = crate::common::client_with(settings, &config);
    push(&client, &repository(&server.host(), "app"), b"content")?;
    let seen = storage.seen();
    assert_eq!((seen.len(), seen[0].header("authorization")), (1, None));
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").with("Location", "/upload"),
        _ => Reply::new(
            413,
            r#"{"errors":[{"code":"SIZE_INVALID","message":"quota exceeded"}]}"#,
        ),
    });
    let blob = large();
    let outcome = push(
        &client(&server.host()),
        &repository(&server.host(), "app"),
        &blob,
    );
    let digest = Digest::of(&blob).to_string();
    assert_says(
        &outcome.unwrap_err(),
        &["413", "quota exceeded", &digest, &server.host()],
    );
    Ok(())
}

fn stored_as_another() -> Result<(), Failed> {
    let server = Server::start(|_| {
        Reply::new(201, "").with("Docker-Content-Digest", Digest::of(b"another"))
    });
    let to = repository(&server.host(), "app");
    let outcome =
        client(&server.host()).push_manifest(&to, &tag("v1"), b"{}", OCI_MANIFEST, &go_on);
    assert!(
        matches!(outcome, Err(RegistryError::Digest { .. })),
        "{outcome:?}"
    );
    Ok(())
}

fn takes_nothing() -> Result<(), Failed> {
    // It listens and answers, but a connection that uploads is never read.
    let storage = std::net::TcpListener::bind("127.0.0.1:0")?;
    let server = taker(&format!("http://{}/upload", storage.local_addr()?));
    let mut settings = crate::common::settings(&[&server.host()]);
    settings.download.attempts = 1;
    settings.download.connect = std::time::Duration::from_millis(500);
    settings.download.stall = std::time::Duration::from_millis(500);
    let store = hostagent::registry::credentials::CredentialStore::empty();
    let client = hostagent::registry::Client::new(settings, store)?;
    let open =
        || -> io::Result<Box<dyn Read + Send>> { Ok(Box::new(io::repeat(0).take(64 << 20))) };
    let mut descriptor = describe(b"zeros");
    descriptor.size = 64 << 20;
    let to = repository(&server.host(), "app");
    let outcome = client.push_blob(&to, &descriptor, None, &open, &go_on);
    assert!(
        matches!(outcome, Err(RegistryError::Stalled { .. })),
        "{outcome:?}"
    );
    Ok(())
}
