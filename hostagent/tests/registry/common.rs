//! Clients for tests, and what they push and pull.

use std::error::Error;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::time::Duration;

use hostagent::image::digest::Digest;
use hostagent::image::manifest::Descriptor;
use hostagent::registry::config::{RegistrySettings, Settings};
use hostagent::registry::credentials::CredentialStore;
use hostagent::registry::{
    BlobReader, Cancel, Client, OCI_MANIFEST, Pushed, Reference, RegistryError, Repository,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http_server::{Reply, Request};
use crate::support::noise;

/// The most bytes of a manifest.
pub const LIMIT: u64 = 4 << 20;

/// Where nobody listens: a port that no test is given.
pub const NOBODY: &str = "127.0.0.1:1";

/// Nobody wants to stop.
pub fn go_on() -> bool {
    false
}

/// The same for a reader.
pub fn never() -> Cancel {
    Arc::new(|| false)
}

/// Plain HTTP to these hosts, and no long waits between tries.
pub fn settings(plain: &[&str]) -> Settings {
    let mut settings = Settings::default();
    settings.download.backoff = Duration::from_millis(5);
    for host in plain {
        let registry = RegistrySettings {
            plain_http: true,
            ..RegistrySettings::default()
        };
        settings.registries.insert((*host).to_owned(), registry);
    }
    settings
}

/// A client for one registry without TLS, and without credentials.
pub fn client(host: &str) -> Client {
    Client::new(settings(&[host]), CredentialStore::empty()).unwrap()
}

/// Such a client, for servers that fall silent.
pub fn impatient(host: &str) -> Client {
    let mut settings = settings(&[host]);
    settings.download.stall = Duration::from_millis(400);
    Client::new(settings, CredentialStore::empty()).unwrap()
}

/// A client with what `config.json` says.
pub fn client_with(settings: Settings, config: &Value) -> (TempDir, Client) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let store = CredentialStore::in_directory(directory.path());
    let client = Client::new(settings, store).unwrap();
    (directory, client)
}

pub fn repository(host: &str, path: &str) -> Repository {
    Repository::of(&format!("{host}/{path}").parse().unwrap())
}

pub fn tag(tag: &str) -> Reference {
    Reference::Tag(tag.to_owned())
}

pub fn describe(bytes: &[u8]) -> Descriptor {
    let value = json!({"digest": Digest::of(bytes), "size": bytes.len()});
    serde_json::from_value(value).unwrap()
}

/// A blob that no buffer holds at once.
pub fn large() -> Vec<u8> {
    noise(7, 3_000_000)
}

/// Opens bytes.
pub fn opener(bytes: &[u8]) -> impl Fn() -> io::Result<Box<dyn Read + Send>> {
    let bytes = bytes.to_vec();
    move || Ok(Box::new(Cursor::new(bytes.clone())))
}

pub fn push(client: &Client, to: &Repository, bytes: &[u8]) -> Result<Pushed, RegistryError> {
    client.push_blob(to, &describe(bytes), None, &opener(bytes), &go_on)
}

/// Pushes an image of one layer under a tag, and returns its manifest.
pub fn push_image(
    client: &Client,
    to: &Repository,
    layer: &[u8],
    name: &str,
) -> Result<Vec<u8>, Failed> {
    push(client, to, layer)?;
    push(client, to, b"{}")?;
    let bytes = manifest(layer).to_string().into_bytes();
    let digest = client.push_manifest(to, &tag(name), &bytes, OCI_MANIFEST, &go_on)?;
    assert_eq!(digest, Digest::of(&bytes));
    Ok(bytes)
}

pub fn manifest(layer: &[u8]) -> Value {
    let blob = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": Digest::of(bytes),
            "size": bytes.len(),
        })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob("config.v1+json", b"{}"),
        "layers": [blob("layer.v1.tar", layer)],
    })
}

/// Reads a blob to its end.
pub fn download(client: &Client, from: &Repository, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let reader = client.blob_reader(from, &describe(bytes), never());
    read(reader.map_err(io::Error::other)?)
}

pub fn read(mut reader: BlobReader) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The registry's error in the error of a download.
#[track_caller]
pub fn registry_error(outcome: &io::Result<Vec<u8>>) -> &RegistryError {
    let error = outcome.as_ref().expect_err("the download succeeded");
    BlobReader::error_in(error).unwrap_or_else(|| panic!("not an error of the registry: {error:?}"))
}

/// An error as it is printed: with all that caused it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

/// Asserts that an error says these words.
#[track_caller]
pub fn assert_says(error: &dyn Error, words: &[&str]) {
    let text = chain(error);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

/// The answer that has the part of `bytes` a request asks for, or all.
pub fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let range = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = last.parse().unwrap_or(bytes.len() - 1);
        Some((first.parse::<usize>().ok()?, last.min(bytes.len() - 1)))
    });
    match range {
        None => Reply::new(200, bytes),
        Some((first, last)) => Reply::new(206, &bytes[first..=last]).with(
            "Content-Range",
            format!("bytes {first}-{last}/{}", bytes.len()),
        ),
    }
}
