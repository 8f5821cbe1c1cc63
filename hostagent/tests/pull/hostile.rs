//! Registries that send what nobody asked for: `mote pull` says what is wrong with it, and
//! keeps nothing.

use hostagent::registry::{OCI_INDEX, OCI_MANIFEST};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::http_server::{Fault, Reply, Request, Server};
use crate::memory_registry::{Content, answer, content};
use crate::support::{Layout, Mote, Stored, config, layer, noise};
use crate::{Test, blob_count};

pub const TESTS: &[Test] = &[
    (
        "redirects_in_a_circle_end_a_pull_and_are_told",
        redirects_in_a_circle,
    ),
    (
        "a_layer_of_another_length_than_its_descriptor_says_is_refused",
        other_length,
    ),
    ("a_manifest_without_end_is_refused", endless_manifest),
    (
        "a_digest_of_another_algorithm_or_length_is_refused_wherever_it_is",
        other_digests,
    ),
    (
        "sound_layers_stay_when_a_registry_fails_or_declines",
        declined,
    ),
    (
        "a_refused_image_takes_nothing_along_that_another_left",
        nothing_else,
    ),
];

/// The first is what is harmed; nothing of the other stays either.
fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("data", &noise(90, 200_000))]),
        layer(&[("small", b"sound")]),
    ]
}

/// An image, and its manifest after `change`, as a registry has them under `v1`.
fn image(change: impl FnOnce(&mut Value)) -> Content {
    let layout = Layout::new();
    let descriptor = layout.image(&config(&layers()), &layers(), Stored::Gzip);
    let digest = descriptor["digest"].as_str().unwrap();
    let mut content = content(&layout, "v1", digest);
    let mut manifest: Value = serde_json::from_slice(&content["v1"]).unwrap();
    change(&mut manifest);
    content.insert("v1".to_owned(), manifest.to_string().into_bytes());
    content
}

/// A registry that has this, and answers some requests as it likes.
fn serve(
    content: Content,
    harm: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    // Nobody pushes: each request may have content of its own.
    Server::start(move |request| {
        harm(request).unwrap_or_else(|| answer(request, &mut content.clone()))
    })
}

#[track_caller]
fn refused(server: &Server, words: &[&str]) {
    let name = format!("{}/app:v1", server.host());
    let mote = Mote::new();
    mote.run(&["pull", &name])
        .expect_failure(&[&format!("cannot pull {name}: ")])
        .expect_failure(words);
    assert!(mote.images().is_empty());
    assert_eq!(blob_count(&mote), 0);
    for directory in ["layers/v1", "content/sha256", "disks/v1"] {
        let kept = std::fs::read_dir(mote.root.path().join(directory));
        assert_eq!(kept.map_or(0, Iterator::count), 0, "{directory}");
    }
    mote.assert_consistent();
}

fn redirects_in_a_circle() -> Result<(), Failed> {
    let good = image(|_| ());
    let manifest: Value = serde_json::from_slice(&good["v1"])?;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    for part in ["manifests/v1".to_owned(), format!("blobs/{layer}")] {
        let path = format!("/v2/app/{part}");
        let server = serve(good.clone(), move |request| {
            let next = match request.path() {
                "/elsewhere" => &path,
                at if at == path => "/elsewhere",
                _ => return None,
            };
            Some(Reply::new(307, "").with("Location", next))
        });
        refused(&server, &["redirects lead in a circle", &server.host()]);
    }
    Ok(())
}

/// A registry whose first layer of the image cannot be had.
fn declining(content: &Content, status: u16) -> Server {
    let manifest: Value = serde_json::from_slice(&content["v1"]).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    serve(content.clone(), move |request| {
        let is_layer = request.path().ends_with(&layer);
        is_layer.then(|| Reply::new(status, ""))
    })
}

fn declined() -> Result<(), Failed> {
    for status in [400, 401, 403, 404] {
        let server = declining(&image(|_| ()), status);
        let mote = Mote::new();
        let name = format!("{}/app:v1", server.host());
        mote.run(&["pull", &name]).expect(125);
        assert_eq!(mote.layer_count(), 1, "{status}");
        mote.assert_consistent();
    }
    Ok(())
}

fn nothing_else() -> Result<(), Failed> {
    let mote = Mote::new();
    let declining = declining(&image(|_| ()), 403);
    let name = format!("{}/app:v1", declining.host());
    mote.run(&["pull", &name]).expect(125);
    let layout = Layout::new();
    let sound = layer(&[("another", b"sound")]);
    let hostile = layer(&[("../up", b"hostile")]);
    let layers = [sound, hostile];
    let image = layout.image(&config(&layers), &layers, Stored::Plain);
    let mut layout = layout;
    layout.tag(image, "hostile:v1");
    mote.run(&["load", &layout.reference("hostile:v1")])
        .expect(125);
    assert_eq!(mote.layer_count(), 1, "that of the other image");
    mote.assert_consistent();
    Ok(())
}

fn other_length() -> Result<(), Failed> {
    for (difference, words) in [(-1, "longer than the"), (1, "it ends after")] {
        let changed = image(|manifest| {
            let size = &mut manifest["layers"][0]["size"];
            *size = (size.as_i64().unwrap() + difference).into();
        });
        let manifest: Value = serde_json::from_slice(&changed["v1"])?;
        let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        for fault in [Fault::None, Fault::Chunked] {
            let (all, layer) = (changed.clone(), digest.clone());
            let server = serve(changed.clone(), move |request| {
                let is_layer = request.path().ends_with(&layer);
                is_layer.then(|| Reply::new(200, all[&layer].clone()).fault(fault))
            });
            refused(&server, &[&digest, words]);
        }
    }
    Ok(())
}

fn endless_manifest() -> Result<(), Failed> {
    let server = serve(Content::new(), |request| {
        let is_manifest = request.path().contains("/manifests/");
        is_manifest.then(|| {
            Reply::new(200, vec![b' '; 64 << 10])
                .with("Content-Type", OCI_MANIFEST)
                .fault(Fault::Endless)
        })
    });
    refused(&server, &["longer than 4194304 bytes"]);
    Ok(())
}

fn other_digests() -> Result<(), Failed> {
    for (digest, words) in [
        (format!("sha512:{}", "0".repeat(128)), "does not use sha256"),
        (format!("sha256:{}", "0".repeat(63)), "64 lower-case"),
        (format!("sha256:{}", "0".repeat(65)), "64 lower-case"),
        ("0".repeat(64), "64 lower-case"),
    ] {
        let of_config = image(|manifest| manifest["config"]["digest"] = json!(digest));
        let of_entry = image(|manifest| {
            let mut entry = manifest["config"].take();
            entry["digest"] = json!(digest);
            entry["mediaType"] = json!(OCI_MANIFEST);
            *manifest = json!({
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [entry],
            });
        });
        for content in [of_config, of_entry] {
            let document = content["v1"].clone();
            let server = serve(content, move |request| {
                let is_manifest = request.path().contains("/manifests/");
                let media_type = match document.windows(9).any(|part| part == b"manifests") {
                    true => OCI_INDEX,
                    false => OCI_MANIFEST,
                };
                is_manifest
                    .then(|| Reply::new(200, document.clone()).with("Content-Type", media_type))
            });
            // A long one is cut.
            refused(&server, &[&digest[..60], words]);
            // Nothing was asked for by such a name.
            assert_eq!(server.count(&digest[..60]), 0);
        }
    }
    Ok(())
}
