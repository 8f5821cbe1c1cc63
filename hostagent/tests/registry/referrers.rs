//! Lists of referrers from registries that have them.

use hostagent::image::digest::Digest;
use hostagent::registry::{OCI_INDEX, OCI_MANIFEST, RegistryError};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::common::{assert_says, client, go_on, repository, tag};
use crate::http_server::{Reply, Server};

pub const TESTS: &[Test] = &[
    ("all_pages_of_a_list_are_read_and_filtered", pages),
    ("a_list_without_end_is_not_read", endless),
    ("the_next_page_is_not_looked_for_on_another_host", elsewhere),
    ("a_list_that_is_no_list_is_named", broken),
    ("a_registry_that_lists_by_itself_needs_no_tag", oci_subject),
];

fn entry(content: &str, kind: &str) -> Value {
    json!({
        "mediaType": OCI_MANIFEST,
        "digest": Digest::of(content.as_bytes()),
        "size": content.len(),
        "artifactType": kind,
        "annotations": {"content": content},
    })
}

fn page(entries: &[Value]) -> Reply {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    Reply::new(200, index.to_string()).with("Content-Type", OCI_INDEX)
}

fn pages() -> Result<(), Failed> {
    let server = Server::start(|request| match request.target.contains("page=2") {
        false => page(&[entry("a", "x/sig"), entry("b", "x/sbom")])
            .with("Link", format!("<{}?page=2>; rel=\"next\"", request.path())),
        // It has not filtered either.
        true => page(&[entry("c", "x/sig")]),
    });
    let client = client(&server.host());
    let from = repository(&server.host(), "app");
    let subject = Digest::of(b"subject");
    let content = |filter| -> Result<Vec<String>, Failed> {
        let found = client.referrers(&from, subject, filter, &go_on)?;
        let content = found
            .iter()
            .map(|e| e.annotations.as_ref().unwrap()["content"].clone());
        Ok(content.collect())
    };
    assert_eq!(content(None)?, ["a", "b", "c"]);
    assert_eq!(content(Some("x/sig"))?, ["a", "c"]);
    let asked = &server.seen()[2].target;
    assert_eq!(
        *asked,
        format!("/v2/app/referrers/{subject}?artifactType=x%2Fsig")
    );
    Ok(())
}

fn endless() -> Result<(), Failed> {
    let server = Server::start(|request| {
        page(&[]).with("Link", format!("<{}>; rel=\"next\"", request.target))
    });
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).referrers(&from, Digest::of(b""), None, &go_on);
    let error = outcome.unwrap_err();
    assert!(matches!(error, RegistryError::TooMany { .. }), "{error:?}");
    assert_says(&error, &["more than 32 pages"]);
    let many: Vec<Value> = (0..2000).map(|n| entry(&n.to_string(), "x")).collect();
    let server = Server::start(move |_| page(&many));
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).referrers(&from, Digest::of(b""), None, &go_on);
    assert_says(&outcome.unwrap_err(), &["more than 1024 entries"]);
    Ok(())
}

fn elsewhere() -> Result<(), Failed> {
    let other = Server::start(|_| page(&[]));
    let link = format!("<{}>; rel=\"next\"", other.url("/"));
    let server = Server::start(move |_| page(&[]).with("Link", &link));
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).referrers(&from, Digest::of(b""), None, &go_on);
    assert!(matches!(
        outcome,
        Err(RegistryError::Header { header: "Link", .. })
    ));
    assert!(other.seen().is_empty());
    Ok(())
}

fn broken() -> Result<(), Failed> {
    for body in [
        "",
        "{\"manifests\": [{\"digest\": \"sha2",
        "{\"manifests\": [{}]}",
        "[]",
    ] {
        let server = Server::start(move |_| Reply::new(200, body));
        let from = repository(&server.host(), "app");
        let outcome = client(&server.host()).referrers(&from, Digest::of(b""), None, &go_on);
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, RegistryError::Document { .. }),
            "{body}: {error:?}"
        );
    }
    let server = Server::start(move |_| Reply::new(200, "{\"manifests\":null}"));
    let from = repository(&server.host(), "app");
    let none = client(&server.host()).referrers(&from, Digest::of(b""), None, &go_on)?;
    assert!(none.is_empty());
    Ok(())
}

fn oci_subject() -> Result<(), Failed> {
    let subject = Digest::of(b"subject");
    let server = Server::start(move |_| Reply::new(201, "").with("OCI-Subject", subject));
    let client = client(&server.host());
    let manifest = json!({"subject": {"digest": subject}}).to_string();
    let to = repository(&server.host(), "app");
    client.push_manifest(&to, &tag("sig"), manifest.as_bytes(), OCI_MANIFEST, &go_on)?;
    assert_eq!(server.seen().len(), 1);
    Ok(())
}
