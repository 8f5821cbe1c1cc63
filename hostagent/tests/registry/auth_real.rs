//! A real registry that wants to know who asks: by password, and by signed tokens.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hostagent::registry::{Pushed, RegistryError};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Test;
use crate::auth::{parameters, password, query};
use crate::common::{
    LIMIT, assert_says, chain, client, client_with, describe, download, go_on, large, push,
    push_image, repository, settings, tag,
};
use crate::docker_registry::{DockerRegistry, Setup, tool};
use crate::http_server::{Reply, Request, Server};

pub const TESTS: &[Test] = &[
    ("basic_authentication_is_given_where_it_is_asked_for", basic),
    ("tokens_are_fetched_where_they_are_asked_for", tokens),
];

fn basic() -> Result<(), Failed> {
    let directory = TempDir::new()?;
    let entry = tool(
        "htpasswd",
        &["-Bbn", "-C", "4", "me", "hunter2"],
        directory.path(),
    )?;
    let file = directory.path().join("htpasswd");
    fs::write(&file, entry)?;
    let registry = DockerRegistry::start(&Setup {
        tls: None,
        auth: format!(
            "  htpasswd:\n    realm: test\n    path: {}\n",
            file.display()
        ),
    })?;
    let host = registry.host();
    let to = repository(&host, "app");
    let with = |secret: &str| client_with(settings(&[&host]), &password(&host, secret));

    let error = client(&host)
        .manifest(&to, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::NoCredentials { .. }),
        "{error:?}"
    );
    assert_says(&error, &[&format!("docker login {host}"), "app:v1"]);

    let (_directory, wrong) = with("wrong-secret");
    let error = wrong.manifest(&to, &tag("v1"), LIMIT, &go_on).unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    assert_says(&error, &["denied", &format!("docker login {host}")]);
    let text = format!("{} {error:?}", chain(&error));
    assert!(
        !text.contains("wrong-secret") && !text.contains("bWU6"),
        "{text}"
    );

    let (_directory, client) = with("hunter2");
    let layer = large();
    push_image(&client, &to, &layer, "v1")?;
    assert!(download(&client, &to, &layer)? == layer);
    Ok(())
}

/// Signs tokens as docker-registry wants them: JWT with the certificate in `x5c`.
struct Signer {
    directory: TempDir,
    certificate: String,
}

impl Signer {
    fn new() -> Result<Self, Failed> {
        let directory = TempDir::new()?;
        let arguments = [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=tokens",
            "-days",
            "2",
            "-keyout",
            "key.pem",
            "-out",
            "certificate.pem",
        ];
        tool("openssl", &arguments, directory.path())?;
        let to_der = ["x509", "-in", "certificate.pem", "-outform", "DER"];
        let der = tool("openssl", &to_der, directory.path())?;
        Ok(Self {
            directory,
            certificate: STANDARD.encode(der),
        })
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("certificate.pem")
    }

    fn sign(&self, access: &[Value]) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": "issuer", "sub": "me", "aud": "service", "jti": number.to_string(),
            "iat": now, "nbf": now - 10, "exp": now + 300, "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let file = format!("claims-{number}");
        fs::write(self.directory.path().join(&file), &signed).unwrap();
        let arguments = ["dgst", "-sha256", "-sign", "key.pem", &file];
        let signature = tool("openssl", &arguments, self.directory.path()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Whoever knows the password may do all; anybody may pull what is `public/…`.
fn grant(request: &Request) -> Vec<Value> {
    let is_known = request.header("authorization")
        == Some(format!("Basic {}", STANDARD.encode("me:hunter2")).as_str());
    let access = |scope: String| {
        let [kind, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else {
            panic!("{scope}");
        };
        let may = |action: &&str| is_known || (*action == "pull" && name.starts_with("public/"));
        let actions: Vec<&str> = actions.split(',').filter(may).collect();
        json!({"type": kind, "name": name, "actions": actions})
    };
    parameters(query(request), "scope")
        .into_iter()
        .map(access)
        .collect()
}

fn tokens() -> Result<(), Failed> {
    let signer = Signer::new()?;
    let bundle = signer.file();
    let token_server = Server::start(move |request| {
        let token = signer.sign(&grant(request));
        Reply::new(200, json!({"token": token, "expires_in": 300}).to_string())
    });
    let registry = DockerRegistry::start(&Setup {
        tls: None,
        auth: format!(
            "  token:\n    realm: {}\n    service: service\n    issuer: issuer\n    rootcertbundle: {}\n",
            token_server.url("/token"),
            Path::display(&bundle)
        ),
    })?;
    let host = registry.host();
    let (_directory, known) = client_with(settings(&[&host]), &password(&host, "hunter2"));
    let (public, private) = (
        repository(&host, "public/app"),
        repository(&host, "private/app"),
    );
    let layer = large();
    for to in [&public, &private] {
        push_image(&known, to, &layer, "v1")?;
        assert!(download(&known, to, &layer)? == layer);
    }
    // From a repository to another, which takes a token for both.
    let other = repository(&host, "private/other");
    let closed = || Err(std::io::Error::other("it is not to be opened"));
    let mounted = known.push_blob(&other, &describe(&layer), Some(&private), &closed, &go_on)?;
    assert_eq!(mounted, Pushed::Mounted, "{}", registry.log());
    // One token for each set of scopes: pulls, pushes, and a mount.
    assert_eq!(token_server.seen().len(), 5);

    let stranger = client(&host);
    assert!(download(&stranger, &public, &layer)? == layer);
    let error = stranger
        .manifest(&private, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::NoCredentials { .. }),
        "{error:?}"
    );
    let error = push(&stranger, &public, b"graffiti").unwrap_err();
    assert_says(&error, &["docker login", "public/app"]);

    let (_directory, wrong) = client_with(settings(&[&host]), &password(&host, "wrong"));
    let error = wrong
        .manifest(&private, &tag("v1"), LIMIT, &go_on)
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    Ok(())
}
