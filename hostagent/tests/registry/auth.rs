//! Registries that want to know who asks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hostagent::registry::{ChallengeProblem, Pushed, RegistryError};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::common::{
    LIMIT, assert_says, client, client_with, describe, go_on, repository, settings, tag,
};
use crate::http_server::{Fault, Reply, Request, Server};

pub const TESTS: &[Test] = &[
    ("a_token_serves_many_requests", one_token),
    ("a_token_that_is_no_longer_accepted_is_replaced", replaced),
    ("an_upload_survives_the_end_of_its_token", upload_expired),
    ("an_identity_token_is_exchanged", identity_token),
    (
        "a_token_server_that_refuses_or_fails_is_named",
        token_server_fails,
    ),
    (
        "a_token_server_is_asked_again_after_failures_that_pass",
        token_server_recovers,
    ),
    ("a_token_request_is_not_redirected", not_redirected),
    (
        "an_authentication_that_is_not_known_is_named",
        unknown_scheme,
    ),
];

/// A `config.json` with a password for a registry.
pub fn password(host: &str, password: &str) -> Value {
    json!({"auths": {host: {"auth": STANDARD.encode(format!("me:{password}"))}}})
}

/// The values of a parameter in a query or form.
pub fn parameters(text: &str, name: &str) -> Vec<String> {
    let url = reqwest::Url::parse(&format!("http://x/?{text}")).unwrap();
    let pairs = url.query_pairs();
    pairs
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

pub fn query(request: &Request) -> &str {
    request
        .target
        .split_once('?')
        .map_or("", |(_, query)| query)
}

/// A registry that wants tokens, and its token server, in one. The first token is
/// good for as many requests as is told, and each other for three.
fn registry(uses: usize, token: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    let current: Mutex<(String, usize)> = Mutex::default();
    let uses = AtomicUsize::new(uses);
    let realm = Arc::new(Mutex::new(String::new()));
    let own_realm = Arc::clone(&realm);
    let server = Server::start(move |request| {
        if request.path() == "/token" {
            let reply = token(request);
            let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let token = answer["token"].as_str().or(answer["access_token"].as_str());
            let uses = uses.swap(3, Ordering::SeqCst);
            *current.lock().unwrap() = (format!("Bearer {}", token.unwrap_or("none")), uses);
            return reply;
        }
        let mut current = current.lock().unwrap();
        if current.1 > 0 && request.header("authorization") == Some(&current.0) {
            current.1 -= 1;
            return match request.method.as_str() {
                "HEAD" => Reply::new(404, ""),
                "POST" => Reply::new(202, "").with("Location", "/upload"),
                "PUT" => Reply::new(201, ""),
                _ => Reply::new(200, "content"),
            };
        }
        let realm = own_realm.lock().unwrap();
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"a:b:c\"");
        Reply::new(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"who"}]}"#,
        )
        .with("WWW-Authenticate", challenge)
    });
    *realm.lock().unwrap() = server.url("/token");
    server
}

/// Tokens that differ.
fn fresh() -> impl Fn(&Request) -> Reply + Send + Sync {
    let count = AtomicUsize::new(0);
    move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        Reply::new(
            200,
            format!("{{\"token\":\"t{number}\",\"expires_in\":300}}"),
        )
    }
}

fn pull_manifests(server: &Server, count: usize) -> Result<(), RegistryError> {
    let client = client(&server.host());
    for _ in 0..count {
        client.manifest(
            &repository(&server.host(), "app"),
            &tag("v1"),
            LIMIT,
            &go_on,
        )?;
    }
    Ok(())
}

fn one_token() -> Result<(), Failed> {
    let server = registry(1000, fresh());
    pull_manifests(&server, 10)?;
    assert_eq!((server.count("/token"), server.count("/v2/")), (1, 11));
    let asked = server.seen()[1].clone();
    assert_eq!(parameters(query(&asked), "service"), ["s"]);
    assert_eq!(
        parameters(query(&asked), "scope"),
        ["repository:app:pull", "a:b:c"]
    );
    Ok(())
}

fn replaced() -> Result<(), Failed> {
    let server = registry(3, fresh());
    pull_manifests(&server, 7)?;
    assert_eq!(server.count("/token"), 3);
    // One that is never accepted is not asked for again and again.
    let server = registry(0, fresh());
    let error = pull_manifests(&server, 1).unwrap_err();
    assert!(
        matches!(error, RegistryError::NoCredentials { .. }),
        "{error:?}"
    );
    assert_says(&error, &["UNAUTHORIZED: who"]);
    assert_eq!((server.count("/token"), server.count("/v2/")), (1, 2));
    Ok(())
}

fn upload_expired() -> Result<(), Failed> {
    // Good for looking and for beginning, not for the upload itself.
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let server = registry(2, fresh());
    let open = move || -> std::io::Result<Box<dyn std::io::Read + Send>> {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(&b"content"[..]))
    };
    let to = repository(&server.host(), "app");
    let client = client(&server.host());
    let pushed = client.push_blob(&to, &describe(b"content"), None, &open, &go_on)?;
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    assert_eq!(server.count("/token"), 2);
    Ok(())
}

fn identity_token() -> Result<(), Failed> {
    let server = registry(10, |request| {
        assert_eq!(request.header("authorization"), None);
        let form = String::from_utf8(request.body.clone()).unwrap();
        let field = |name: &str| parameters(&form, name).join("|");
        let is_right = request.method == "POST"
            && field("grant_type") == "refresh_token"
            && field("refresh_token") == "id+token"
            && field("service") == "s"
            && field("scope") == "repository:app:pull a:b:c";
        match is_right {
            true => Reply::new(200, r#"{"access_token":"x"}"#),
            false => Reply::new(400, r#"{"error":"invalid_request"}"#),
        }
    });
    let config = json!({"auths": {server.host(): {"identitytoken": "id+token"}}});
    let (_directory, client) = client_with(settings(&[&server.host()]), &config);
    client.manifest(
        &repository(&server.host(), "app"),
        &tag("v1"),
        LIMIT,
        &go_on,
    )?;
    Ok(())
}

fn token_server_fails() -> Result<(), Failed> {
    let no_token: [(&str, Fault); 4] = [
        ("{}", Fault::None),
        (r#"{"token":""}"#, Fault::None),
        (r#"{"token":"secr"#, Fault::None),
        (r#"{"token":"a\nb"}"#, Fault::None),
    ];
    for (body, fault) in no_token {
        let server = registry(1, move |_| Reply::new(200, body).fault(fault));
        let error = pull_manifests(&server, 1).unwrap_err();
        assert!(
            matches!(
                &error,
                RegistryError::Challenge {
                    problem: ChallengeProblem::NoToken(_),
                    ..
                }
            ),
            "{body}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("secr"));
    }
    let server = registry(1, |_| {
        Reply::new(200, vec![b' '; 8 << 10]).fault(Fault::Endless)
    });
    let error = pull_manifests(&server, 1).unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");

    let server = registry(1, |_| {
        Reply::new(401, r#"{"details":"incorrect password"}"#)
    });
    let config = password(&server.host(), "hunter2");
    let (_directory, client) = client_with(settings(&[&server.host()]), &config);
    let from = repository(&server.host(), "app");
    let error = client
        .manifest(&from, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    assert_says(&error, &["incorrect password", "docker login", "token"]);
    Ok(())
}

fn token_server_recovers() -> Result<(), Failed> {
    let count = AtomicUsize::new(0);
    let server = registry(10, move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        1 => Reply::new(200, "").fault(Fault::NoAnswer),
        _ => Reply::new(200, r#"{"token":"t"}"#),
    });
    pull_manifests(&server, 2)?;
    assert_eq!(server.count("/token"), 3);
    Ok(())
}

fn not_redirected() -> Result<(), Failed> {
    let other = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#));
    let target = other.url("/token");
    let server = registry(1, move |_| Reply::new(302, "").with("Location", &target));
    let config = password(&server.host(), "hunter2");
    let (_directory, client) = client_with(settings(&[&server.host()]), &config);
    let from = repository(&server.host(), "app");
    let error = client
        .manifest(&from, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert_says(&error, &["302", "token"]);
    assert!(other.seen().is_empty());
    Ok(())
}

fn unknown_scheme() -> Result<(), Failed> {
    for (challenge, words) in [("Negotiate", "asks for negotiate"), (",", "malformed")] {
        let server =
            Server::start(move |_| Reply::new(401, "").with("WWW-Authenticate", challenge));
        let error = pull_manifests(&server, 1).unwrap_err();
        assert!(
            matches!(error, RegistryError::Challenge { .. }),
            "{error:?}"
        );
        assert_says(&error, &[words]);
        assert_eq!(server.seen().len(), 1);
    }
    Ok(())
}
