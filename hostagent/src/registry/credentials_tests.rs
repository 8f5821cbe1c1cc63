use super::*;

fn store(config: &str) -> (tempfile::TempDir, CredentialStore) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    let store = CredentialStore::in_directory(directory.path());
    (directory, store)
}

fn password(username: &str, password: &str) -> Option<Credential> {
    Some(Credential::Password {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    })
}

/// Base64 of `user:pass:word`.
const AUTH: &str = "dXNlcjpwYXNzOndvcmQ=";

#[test]
fn no_file_means_anonymous() {
    let directory = tempfile::tempdir().unwrap();
    let store = CredentialStore::in_directory(directory.path());
    assert_eq!(store.get("a.example").unwrap(), None);
    assert_eq!(CredentialStore::empty().get("a.example").unwrap(), None);
}

#[test]
fn each_form_of_an_entry_is_read() {
    let config = format!(
        r#"{{"auths":{{
            "a.example":{{"auth":"{AUTH}"}},
            "b.example":{{"username":"u","password":"p"}},
            "c.example":{{"auth":"{AUTH}","identitytoken":"t"}},
            "d.example":{{}},
            "e.example":null
        }},"credsStore":"","HttpHeaders":{{"X":"y"}}}}"#
    );
    let (_directory, store) = store(&config);
    assert_eq!(
        store.get("a.example").unwrap(),
        password("user", "pass:word")
    );
    assert_eq!(store.get("b.example").unwrap(), password("u", "p"));
    let token = Credential::IdentityToken(Secret::new("t".to_owned()));
    assert_eq!(store.get("c.example").unwrap(), Some(token));
    for domain in ["d.example", "e.example", "f.example"] {
        assert_eq!(store.get(domain).unwrap(), None, "{domain}");
    }
}

#[test]
fn keys_are_hosts_with_or_without_scheme_and_api_version() {
    for (key, domain) in [
        ("a.example", "a.example"),
        ("https://a.example", "a.example"),
        ("https://a.example/", "a.example"),
        ("http://a.example:5000/v2/", "a.example:5000"),
        ("https://a.example/v1", "a.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ] {
        let (_directory, store) = store(&format!(r#"{{"auths":{{"{key}":{{"auth":"{AUTH}"}}}}}}"#));
        assert!(store.get(domain).unwrap().is_some(), "{key}");
    }
    for key in [
        "a.example:5000",
        "b.a.example",
        "a.example/team",
        "a.exampl",
    ] {
        let (_directory, store) = store(&format!(r#"{{"auths":{{"{key}":{{"auth":"{AUTH}"}}}}}}"#));
        assert!(store.get("a.example").unwrap().is_none(), "{key}");
    }
}

#[test]
fn errors_name_the_file_and_no_secret() {
    for config in [
        r#"{"auths":{"a.example":{"auth":"c2VjcmV0OnNlY3JldA"#,
        r#"{"auths":{"a.example":"c2VjcmV0OnNlY3JldA=="}}"#,
        r#"{"auths":{"a.example":{"auth":"c2VjcmV0OnNlY3JldA==!"}}}"#,
    ] {
        let (directory, store) = store(config);
        let error = store.get("a.example").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(directory.path().to_str().unwrap()), "{text}");
        assert!(!text.contains("c2Vj"), "{text}");
    }
    let debug = format!("{:?}", password("user", "hunter2"));
    assert!(!debug.contains("hunter2"), "{debug}");
}

#[test]
fn a_helper_that_fails_is_named() {
    let (_directory, store) = store(r#"{"credHelpers":{"a.example":"no-such-helper"}}"#);
    let error = store.get("a.example").unwrap_err().to_string();
    assert!(
        error.contains("docker-credential-no-such-helper"),
        "{error}"
    );
    assert_eq!(store.get("b.example").unwrap(), None);
}

#[test]
fn a_registry_of_its_own_helper_does_not_ask_the_store() {
    let file: ConfigFile = serde_json::from_str(
        r#"{"credsStore":"all","credHelpers":{"https://a.example/v2/":"one"}}"#,
    )
    .unwrap();
    assert_eq!(file.helper("a.example").unwrap(), "docker-credential-one");
    assert_eq!(file.helper("b.example").unwrap(), "docker-credential-all");
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config.json")).unwrap();
    let store = CredentialStore::in_directory(directory.path());
    let error = store.get("a.example").unwrap_err();
    assert!(matches!(error, CredentialsError::Read { .. }), "{error:?}");
}
