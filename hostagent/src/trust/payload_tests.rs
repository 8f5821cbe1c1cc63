use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn document() -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "registry.example/team/app"},
            "image": {"docker-manifest-digest": Digest::of(b"manifest")},
            "type": TYPE,
        },
        "optional": null,
    })
}

fn parse(value: &Value) -> Result<Payload, PayloadError> {
    Payload::parse(value.to_string().as_bytes())
}

fn covers(reference: &str, name: &str) -> bool {
    let mut value = document();
    value["critical"]["identity"]["docker-reference"] = json!(reference);
    let name: ImageName = name.parse().unwrap();
    let payload = parse(&value).unwrap();
    payload.covers(&Repository::of(&name), Digest::of(b"manifest"))
}

#[test]
fn what_cosign_writes_is_read() {
    // The spelling and the order are those of cosign 2.
    let digest = Digest::of(b"manifest");
    for optional in [
        "null",
        "{}",
        r#"{"creator":"cosign","timestamp":1e99,"a":{"b":[1,1],"a":0,"a":1}}"#,
    ] {
        let text = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"index.docker.io/library/debian"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{optional}}}"#
        );
        let payload = Payload::parse(text.as_bytes()).unwrap();
        assert_eq!(payload.digest, digest);
        assert_eq!(payload.identity.repository(), "docker.io/library/debian");
    }
}

#[test]
fn a_payload_covers_one_digest_of_one_repository() {
    assert!(covers(
        "registry.example/team/app",
        "registry.example/team/app:1"
    ));
    assert!(covers("index.docker.io/library/debian", "debian:12"));
    assert!(covers("docker.io/library/debian", "debian"));
    assert!(covers("Registry.example:443/app", "registry.example/app"));
    // Podman writes the tag, which `tag_of` compares.
    assert!(covers("registry.example/app:1", "registry.example/app:2"));
    for (reference, name) in [
        ("registry.example/team/app", "registry.example/team/app2"),
        ("registry.example/team/app", "registry.example/team/app/x"),
        (
            "registry.example/team/app",
            "registry.example:5000/team/app",
        ),
        ("team/app", "registry.example/team/app"),
        ("debian", "registry.example/library/debian"),
    ] {
        assert!(!covers(reference, name), "{reference} {name}");
    }
    let payload = parse(&document()).unwrap();
    let repository = Repository::of(&payload.identity);
    assert!(!payload.covers(&repository, Digest::of(b"another")));
}

#[test]
fn a_tag_counts_if_it_was_signed_and_asked_for() {
    let pin = Digest::of(b"manifest");
    let pinned = |text: &str| format!("{text}@{pin}");
    let (untagged, v1) = (&pinned("a.example/b"), &pinned("a.example:1/b:v1"));
    for (signed, asked, expected) in [
        ("a.example/b:v1", "a.example/b:v1", SignedTag::Same),
        ("a.example:1/b:v1", "a.example:1/b:v1", SignedTag::Same),
        (v1, "a.example:1/b:v1", SignedTag::Same),
        ("a.example/b:latest", "a.example/b", SignedTag::Same),
        ("b:latest", "b", SignedTag::Same),
        ("a.example/b:v1", "a.example/b:v2", SignedTag::Another("v1")),
        (v1, "a.example:1/b:v2", SignedTag::Another("v1")),
        ("a.example/b:V1", "a.example/b:v1", SignedTag::Another("V1")),
        ("b:v1", "b", SignedTag::Another("v1")),
        // As cosign writes it. Docker would take it for `latest`.
        ("a.example/b", "a.example/b:v1", SignedTag::Unnamed),
        ("a.example/b", "a.example/b:latest", SignedTag::Unnamed),
        ("a.example:1/b", "a.example:1/b:1", SignedTag::Unnamed),
        ("b", "b", SignedTag::Unnamed),
        (untagged, "a.example/b:v1", SignedTag::Unnamed),
        ("a.example/b:v1", untagged, SignedTag::NotAsked),
        ("a.example:1/b:v2", v1, SignedTag::NotAsked),
        ("a.example/b", untagged, SignedTag::NotAsked),
    ] {
        let mut value = document();
        value["critical"]["identity"]["docker-reference"] = json!(signed);
        let payload = parse(&value).unwrap();
        let asked = asked.parse().unwrap();
        assert_eq!(payload.tag_of(&asked), expected, "{signed} {asked}");
    }
}

#[test]
fn a_payload_is_shown_with_the_tag_that_was_signed() {
    let digest = Digest::of(b"manifest");
    for (reference, shown) in [
        ("a.example/b", "a.example/b"),
        ("a.example/b:v1", "a.example/b:v1"),
        ("debian", "docker.io/library/debian"),
    ] {
        let mut value = document();
        value["critical"]["identity"]["docker-reference"] = json!(reference);
        let payload = parse(&value).unwrap();
        assert_eq!(payload.to_string(), format!("{shown}@{digest}"));
    }
}

#[test]
fn an_identity_with_another_digest_covers_nothing() {
    let other = Digest::of(b"another");
    let this = Digest::of(b"manifest");
    assert!(!covers(&format!("a.example/b@{other}"), "a.example/b"));
    assert!(covers(&format!("a.example/b@{this}"), "a.example/b"));
}

#[test]
fn a_field_that_is_missing_unknown_or_of_another_kind_is_refused() {
    let fields = [
        "/critical",
        "/critical/identity",
        "/critical/identity/docker-reference",
        "/critical/image",
        "/critical/image/docker-manifest-digest",
        "/critical/type",
    ];
    for field in fields {
        for wrong in [
            json!(null),
            json!(1),
            json!(true),
            json!([]),
            json!({}),
            json!(""),
            json!([{"docker-reference": "a.example/b"}]),
        ] {
            let mut value = document();
            *value.pointer_mut(field).unwrap() = wrong.clone();
            assert!(parse(&value).is_err(), "{field}: {wrong}");
        }
        let (parent, name) = field.rsplit_once('/').unwrap();
        let mut value = document();
        let object = value.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        object.remove(name).unwrap();
        assert!(parse(&value).is_err(), "without {field}");
    }
    for parent in ["", "/critical", "/critical/identity", "/critical/image"] {
        let mut value = document();
        let object = value.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        object.insert("new".to_owned(), json!(null));
        assert!(parse(&value).is_err(), "more in {parent:?}");
    }
}

#[test]
fn objects_written_as_arrays_are_refused() {
    let digest = Digest::of(b"manifest");
    for text in [
        format!(r#"[[["a.example/b"],["{digest}"],"{TYPE}"],null]"#),
        format!(r#"{{"critical":[["a.example/b"],["{digest}"],"{TYPE}"]}}"#),
        format!(
            r#"{{"critical":{{"identity":["a.example/b"],"image":["{digest}"],"type":"{TYPE}"}}}}"#
        ),
    ] {
        let outcome = Payload::parse(text.as_bytes());
        assert!(matches!(outcome, Err(PayloadError::Json(_))), "{text}");
    }
}

#[test]
fn a_field_that_is_there_twice_is_refused() {
    let text = document().to_string();
    let twice = |field: &str, value: &str| {
        let once = format!("\"{field}\":");
        assert_eq!(text.matches(&once).count(), 1);
        text.replace(&once, &format!("\"{field}\":{value},{once}"))
    };
    let digest = format!("\"{}\"", Digest::of(b"another"));
    for text in [
        twice("critical", "{}"),
        twice("identity", r#"{"docker-reference":"a.example/b"}"#),
        twice("docker-reference", r#""a.example/b""#),
        twice("docker-manifest-digest", &digest),
        twice("type", r#""another""#),
        twice("optional", "null"),
    ] {
        let error = Payload::parse(text.as_bytes()).unwrap_err();
        let PayloadError::Json(error) = error else {
            panic!("{text}: {error}");
        };
        let message = error.to_string();
        let is_expected = message.contains("duplicate") || message.contains("missing");
        assert!(is_expected, "{text}: {message}");
    }
}

#[test]
fn what_follows_the_document_or_is_no_document_is_refused() {
    let text = document().to_string();
    let deep = "[".repeat(60_000);
    let huge = text.replace("null", &"9".repeat(60_000));
    assert!(Payload::parse(huge.as_bytes()).is_ok());
    let deep_optional = text.replace("null", &deep);
    for bad in [
        "",
        "null",
        "{}",
        &deep,
        &deep_optional,
        &format!("{text}x"),
        &format!("{text}{text}"),
        &format!("\u{feff}{text}"),
        &text[..text.len() - 1],
    ] {
        assert!(Payload::parse(bad.as_bytes()).is_err(), "{bad:.100}");
    }
    let mut not_text = text.into_bytes();
    not_text.push(0xff);
    assert!(Payload::parse(&not_text).is_err());
}

#[test]
fn a_signature_of_something_else_is_refused() {
    for kind in ["atomic container signature", "cosign", ""] {
        let mut value = document();
        value["critical"]["type"] = json!(kind);
        assert!(matches!(parse(&value), Err(PayloadError::Type(_))));
    }
    for digest in ["sha512:00", "SHA256:00", "", "latest"] {
        let mut value = document();
        value["critical"]["image"]["docker-manifest-digest"] = json!(digest);
        assert!(matches!(parse(&value), Err(PayloadError::Json(_))));
    }
    for reference in ["", "Team/App:", "a b", "https://a.example/b"] {
        let mut value = document();
        value["critical"]["identity"]["docker-reference"] = json!(reference);
        assert!(matches!(parse(&value), Err(PayloadError::Identity(_))));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Payload::parse(&bytes);
    }

    #[test]
    fn no_change_of_a_byte_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = document().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Payload::parse(&bytes);
    }
}
