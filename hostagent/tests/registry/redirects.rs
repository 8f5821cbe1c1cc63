//! Servers that send a client elsewhere.

use hostagent::registry::{RedirectProblem, RegistryError};
use libtest_mimic::Failed;
use serde_json::json;

use crate::Test;
use crate::common::{
    LIMIT, assert_says, client, client_with, download, go_on, large, ranged, read, repository,
    settings, tag,
};
use crate::http_server::{Fault, Reply, Server};

pub const TESTS: &[Test] = &[
    (
        "credentials_do_not_follow_a_redirect_to_another_host",
        credentials_stay,
    ),
    (
        "a_redirected_download_goes_on_after_a_cut",
        redirected_resume,
    ),
    ("redirects_in_a_circle_are_named", circle),
    ("redirects_without_end_are_named", too_many),
    ("a_redirect_that_leads_nowhere_is_named", nowhere),
];

fn credentials_stay() -> Result<(), Failed> {
    let other = Server::start(|_| Reply::new(200, "content"));
    let target = other.url("/storage?signature=x");
    let server = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"test\"");
        }
        Reply::new(307, "").with("Location", &target)
    });
    let config = json!({"auths": {server.host(): {"username": "me", "password": "secret"}}});
    let (_directory, client) = client_with(settings(&[&server.host()]), &config);
    let from = repository(&server.host(), "app");
    assert_eq!(download(&client, &from, b"content")?, b"content");
    let seen = other.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].target, "/storage?signature=x");
    for header in ["authorization", "referer", "cookie"] {
        assert_eq!(seen[0].header(header), None, "{header}");
    }
    assert_eq!(seen[0].header("host"), Some(other.host().as_str()));

    // Nor are they given to a target that asks for them.
    let asking = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"));
    let target = asking.url("/");
    let server = Server::start(move |_| Reply::new(302, "").with("Location", &target));
    let config = json!({"auths": {server.host(): {"username": "me", "password": "secret"}}});
    let (_directory, client) = client_with(settings(&[&server.host()]), &config);
    let from = repository(&server.host(), "app");
    let error = client
        .manifest(&from, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert_says(&error, &["401", &asking.host()]);
    assert_eq!(asking.seen().len(), 1);
    assert_eq!(asking.seen()[0].header("authorization"), None);
    Ok(())
}

fn redirected_resume() -> Result<(), Failed> {
    let blob = large();
    let whole = blob.clone();
    let other = Server::start(move |request| {
        let reply = ranged(request, &whole);
        match request.header("range") {
            None => reply.fault(Fault::CutAfter(777)),
            Some(_) => reply,
        }
    });
    let target = other.url("/storage");
    let server = Server::start(move |_| Reply::new(307, "").with("Location", &target));
    let client = client(&server.host());
    assert!(download(&client, &repository(&server.host(), "app"), &blob)? == blob);
    // A signed URL may have expired: the registry is asked again.
    assert_eq!((server.seen().len(), other.seen().len()), (2, 2));
    Ok(())
}

fn problem(server: &Server) -> RedirectProblem {
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).manifest(&from, &tag("v1"), LIMIT, &go_on);
    match outcome {
        Err(RegistryError::Redirect { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

fn circle() -> Result<(), Failed> {
    let server = Server::start(|request| {
        let next = match request.path() {
            "/a" => "/b",
            _ => "/a",
        };
        Reply::new(302, "").with("Location", next)
    });
    assert_eq!(problem(&server), RedirectProblem::Loop(server.host()));
    assert_eq!(server.seen().len(), 3);
    Ok(())
}

fn too_many() -> Result<(), Failed> {
    let server = Server::start(|request| {
        Reply::new(302, "").with("Location", format!("{}x", request.path()))
    });
    assert_eq!(problem(&server), RedirectProblem::TooMany(server.host()));
    assert_eq!(server.seen().len(), 11);
    Ok(())
}

fn nowhere() -> Result<(), Failed> {
    for location in ["", "file:///etc/passwd", "http://"] {
        let server = Server::start(move |_| match location {
            "" => Reply::new(302, ""),
            location => Reply::new(302, "").with("Location", location),
        });
        assert_eq!(problem(&server), RedirectProblem::Location, "{location}");
    }
    // The reader says so before it is one.
    let server = Server::start(|_| Reply::new(302, "").with("Location", "ftp://x/"));
    let client = client(&server.host());
    let from = repository(&server.host(), "app");
    let outcome = client.blob_reader(
        &from,
        &crate::common::describe(b"x"),
        crate::common::never(),
    );
    assert!(outcome.map(read).is_err());
    Ok(())
}
