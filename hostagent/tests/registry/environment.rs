//! What a client takes from its environment: proxies, configuration, credentials.
//! This program starts itself again with another environment.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hostagent::image::name::ImageName;
use hostagent::registry::{Client, Reference, Repository};
use libtest_mimic::Failed;
use tempfile::TempDir;

use crate::Test;
use crate::common::{LIMIT, chain, go_on};
use crate::http_server::{Reply, Server};

pub const TESTS: &[Test] = &[
    (
        "a_registry_on_this_machine_is_reached_without_a_proxy",
        loopback_is_direct,
    ),
    ("another_registry_is_reached_through_the_proxy", proxied),
    (
        "no_proxy_names_registries_that_are_reached_directly",
        no_proxy,
    ),
    (
        "credentials_come_from_the_helper_of_the_users_configuration",
        helper,
    ),
    (
        "a_configuration_that_is_wrong_is_named",
        wrong_configuration,
    ),
];

/// Names the image whose manifest the child fetches.
const IMAGE: &str = "MOTE_TEST_IMAGE";

/// What the child does, if this is one.
pub fn run_as_child() -> Option<ExitCode> {
    let name: ImageName = env::var(IMAGE).ok()?.parse().unwrap();
    let fetched = Client::of_this_machine().and_then(|client| {
        client.manifest(&Repository::of(&name), &Reference::of(&name), LIMIT, &go_on)
    });
    match fetched {
        Ok(fetched) => println!("{}", String::from_utf8_lossy(&fetched.bytes)),
        Err(error) => {
            println!("{}", chain(&error));
            return Some(ExitCode::FAILURE);
        }
    }
    Some(ExitCode::SUCCESS)
}

/// Whether the child succeeded, and what it said.
fn child(image: &str, variables: &[(&str, &str)]) -> Result<(bool, String), Failed> {
    let mut command = Command::new(env::current_exe()?);
    let proxies = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    for name in proxies.iter().chain(&["MOTE_CONFIG", "DOCKER_CONFIG"]) {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    let output = command
        .env("HOME", "/nonexistent")
        .env(IMAGE, image)
        .envs(variables.iter().copied())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success(), text))
}

/// A directory with a `registries.toml`.
fn configured(text: &str) -> Result<(TempDir, String), Failed> {
    let directory = TempDir::new()?;
    fs::write(directory.path().join("registries.toml"), text)?;
    let path = directory.path().display().to_string();
    Ok((directory, path))
}

fn loopback_is_direct() -> Result<(), Failed> {
    let proxy = Server::start(|_| Reply::new(200, "from the proxy"));
    let registry = Server::start(|_| Reply::new(200, "from the registry"));
    let url = proxy.url("");
    let variables = [
        ("HTTP_PROXY", &*url),
        ("HTTPS_PROXY", &url),
        ("ALL_PROXY", &url),
    ];
    for host in ["127.0.0.1", "localhost"] {
        let image = format!("{host}:{}/app", registry.address.port());
        let outcome = child(&image, &variables)?;
        assert_eq!(outcome, (true, "from the registry".to_owned()), "{host}");
    }
    assert!(proxy.seen().is_empty());
    Ok(())
}

const PLAIN: &str = "[registry.\"registry.invalid\"]\nplain_http = true\n";

fn proxied() -> Result<(), Failed> {
    let proxy = Server::start(|_| Reply::new(200, "from the proxy"));
    let (_directory, config) = configured(PLAIN)?;
    let variables = [("HTTP_PROXY", &*proxy.url("")), ("MOTE_CONFIG", &config)];
    let outcome = child("registry.invalid/app", &variables)?;
    assert_eq!(outcome, (true, "from the proxy".to_owned()));
    // The proxy resolves the name.
    let target = &proxy.seen()[0].target;
    assert_eq!(target, "http://registry.invalid/v2/app/manifests/latest");
    // TLS goes through it as a tunnel.
    let variables = [("HTTPS_PROXY", &*proxy.url("")), ("MOTE_CONFIG", &config)];
    let (succeeded, _) = child("other.invalid/app", &variables)?;
    assert!(!succeeded);
    let tunnel = &proxy.seen()[1];
    assert_eq!(
        (&*tunnel.method, &*tunnel.target),
        ("CONNECT", "other.invalid:443")
    );
    Ok(())
}

fn no_proxy() -> Result<(), Failed> {
    let proxy = Server::start(|_| Reply::new(200, "from the proxy"));
    let (_directory, config) = configured(PLAIN)?;
    let variables = [
        ("HTTP_PROXY", &*proxy.url("")),
        ("NO_PROXY", "example.org,.invalid"),
        ("MOTE_CONFIG", &config),
    ];
    let (succeeded, text) = child("registry.invalid/app", &variables)?;
    assert!(!succeeded);
    // RFC 6761, section 6.4: no host has such a name.
    for word in ["registry.invalid/app", "there is no host of that name"] {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(proxy.seen().is_empty());
    Ok(())
}

fn helper() -> Result<(), Failed> {
    let expected = format!("Basic {}", STANDARD.encode("me:hunter2"));
    let registry = Server::start(move |request| match request.header("authorization") {
        Some(given) if given == expected => Reply::new(200, "welcome"),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"),
    });
    let directory = TempDir::new()?;
    let program = directory.path().join("docker-credential-ofthetest");
    fs::write(
        &program,
        "#!/bin/sh\nread -r server\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"me\",\"Secret\":\"hunter2\"}' \"$server\"\n",
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(
        directory.path().join("config.json"),
        r#"{"credsStore":"ofthetest"}"#,
    )?;
    let path = format!("{}:{}", directory.path().display(), env::var("PATH")?);
    let docker = directory.path().display().to_string();
    let image = format!("{}/app", registry.host());
    let variables = [("PATH", &*path), ("DOCKER_CONFIG", &docker)];
    assert_eq!(child(&image, &variables)?, (true, "welcome".to_owned()));

    fs::write(&program, "#!/bin/sh\necho the vault is sealed\nexit 1\n")?;
    let (succeeded, text) = child(&image, &variables)?;
    assert!(!succeeded);
    for word in [
        "docker-credential-ofthetest",
        "the vault is sealed",
        &registry.host(),
    ] {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

fn wrong_configuration() -> Result<(), Failed> {
    let (_directory, config) = configured("[download]\n\nattempt = 3\n")?;
    let (succeeded, text) = child("debian", &[("MOTE_CONFIG", &config)])?;
    assert!(!succeeded);
    assert!(
        text.contains(&format!("{config}/registries.toml:3: unknown field")),
        "{text}"
    );
    Ok(())
}
