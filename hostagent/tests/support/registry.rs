//! A registry in memory: it gives what it was given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hostagent::image::digest::Digest;
use hostagent::registry::{OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::http_server::{Reply, Request, Server};
use crate::support::{Layout, Stored, config};

pub type Content = HashMap<String, Vec<u8>>;

/// A registry of one repository, `app`; what it has is named by digest or tag.
pub fn start(content: Content) -> Server {
    let content = Arc::new(Mutex::new(content));
    Server::start(move |request| answer(request, &mut content.lock().unwrap()))
}

/// A registry with an image of these layers, and the image's name.
pub fn with_image(layers: &[Vec<u8>]) -> (Server, String) {
    let layout = Layout::new();
    let manifest = layout.image(&config(layers), layers, Stored::Gzip);
    let manifest = manifest["digest"].as_str().unwrap();
    let server = start(content(&layout, "v1", manifest));
    let name = format!("{}/app:v1", server.host());
    (server, name)
}

/// What an image layout has, and the manifest under this tag.
pub fn content(layout: &Layout, tag: &str, manifest: &str) -> Content {
    let blobs = std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap();
    let mut content: Content = blobs
        .map(|blob| {
            let blob = blob.unwrap();
            let digest = format!("sha256:{}", blob.file_name().to_str().unwrap());
            (digest, std::fs::read(blob.path()).unwrap())
        })
        .collect();
    content.insert(tag.to_owned(), content[manifest].clone());
    content
}

/// Answers one request.
pub fn answer(request: &Request, content: &mut Content) -> Reply {
    let path = request.path();
    let name = path.rsplit('/').next().unwrap();
    match request.method.as_str() {
        "POST" => Reply::new(202, "").with("Location", "/upload"),
        "PUT" => {
            let digest = Digest::of(&request.body).to_string();
            content.insert(digest.clone(), request.body.clone());
            content.insert(name.to_owned(), request.body.clone());
            // Its own list of referrers spares the client one.
            let reply = Reply::new(201, "").with("Docker-Content-Digest", &digest);
            reply.with("OCI-Subject", digest)
        }
        _ if path == "/v2/" => Reply::new(200, ""),
        _ if path.contains("/referrers/") => referrers(name, content),
        _ => match content.get(name) {
            Some(bytes) if path.contains("/manifests/") => {
                Reply::new(200, bytes.clone()).with("Content-Type", OCI_MANIFEST)
            }
            Some(bytes) => crate::common::ranged(request, bytes),
            None => Reply::new(404, ""),
        },
    }
}

/// The manifests whose subject is this one.
fn referrers(subject: &str, content: &Content) -> Reply {
    let all = content.iter().filter(|(name, _)| name.contains(':'));
    let manifests = all.filter_map(|(digest, bytes)| {
        let manifest: Value = serde_json::from_slice(bytes).ok()?;
        (manifest["subject"]["digest"] == subject).then(|| {
            json!({
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": bytes.len(),
                "artifactType": manifest["artifactType"],
            })
        })
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": manifests.collect::<Vec<_>>(),
    });
    Reply::new(200, index.to_string()).with("Content-Type", OCI_INDEX)
}
