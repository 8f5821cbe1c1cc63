use super::*;

fn challenge(realm: &str) -> Challenge {
    let parameter = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Challenge {
        scheme: "bearer".to_owned(),
        parameters: vec![
            parameter("realm", realm),
            parameter("service", "a service"),
            parameter("scope", "repository:a/b:pull registry:catalog:*"),
        ],
    }
}

fn request(realm: &str) -> TokenRequest<'static> {
    static ATTEMPT: Attempt = Attempt {
        action: String::new(),
        host: String::new(),
    };
    TokenRequest {
        realm: Url::parse(realm).unwrap(),
        service: Some("a service"),
        scopes: vec!["repository:a/b:pull,push".to_owned(), "x:y:z".to_owned()],
        attempt: &ATTEMPT,
    }
}

#[test]
fn a_token_is_asked_for_with_service_scopes_and_password() {
    let credential = Credential::Password {
        username: "me".to_owned(),
        password: Secret::new("p:w".to_owned()),
    };
    let (method, url, headers, body) =
        request("https://t.example/token?x=1").http(Some(&credential));
    assert_eq!(method, Method::GET);
    assert_eq!(
        url.as_str(),
        "https://t.example/token?x=1&service=a+service&scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=x%3Ay%3Az&account=me"
    );
    let header = &headers[reqwest::header::AUTHORIZATION];
    assert_eq!(header, "Basic bWU6cDp3");
    assert!(header.is_sensitive() && body.is_empty());
}

#[test]
fn an_identity_token_travels_in_a_form() {
    let credential = Credential::IdentityToken(Secret::new("s3cret&".to_owned()));
    let (method, url, headers, body) = request("https://t.example/token").http(Some(&credential));
    assert_eq!(
        (method, url.as_str()),
        (Method::POST, "https://t.example/token")
    );
    assert_eq!(headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert!(!headers.contains_key(reqwest::header::AUTHORIZATION));
    assert_eq!(
        body,
        "grant_type=refresh_token&client_id=mote&refresh_token=s3cret%26&scope=repository%3Aa%2Fb%3Apull%2Cpush+x%3Ay%3Az&service=a+service"
    );
}

#[test]
fn a_realm_is_no_less_safe_than_its_registry() {
    let secure = Endpoint::registry("a.example", "https").unwrap();
    let plain = Endpoint::registry("localhost:5000", "http").unwrap();
    assert!(realm(&challenge("https://t.example/"), &secure).is_ok());
    assert!(realm(&challenge("http://t.example/"), &plain).is_ok());
    let refused = realm(&challenge("http://t.example/"), &secure);
    assert!(matches!(refused, Err(ChallengeProblem::InsecureRealm(_))));
    for bad in ["", "/token", "file:///token"] {
        let refused = realm(&challenge(bad), &plain);
        assert!(matches!(refused, Err(ChallengeProblem::Realm(_))), "{bad}");
    }
}

#[test]
fn scopes_of_the_challenge_are_added_unless_they_are_covered() {
    let need = ["repository:a/b:pull,push".to_owned()];
    let wanted = wanted_scopes(&challenge("https://t.example/"), &need);
    assert_eq!(wanted, ["repository:a/b:pull,push", "registry:catalog:*"]);
    let less = ["repository:a/b:push".to_owned()];
    assert_eq!(
        wanted_scopes(&challenge("https://t.example/"), &less).len(),
        3
    );
}

#[test]
fn tokens_are_used_for_less_than_they_are_good_for() {
    assert_eq!(lifetime(None), Duration::from_secs(54));
    assert_eq!(lifetime(Some(0)), Duration::ZERO);
    assert_eq!(lifetime(Some(300)), Duration::from_secs(270));
    assert!(lifetime(Some(u64::MAX)) < Duration::from_secs(MAX_LIFETIME));
}
