//! What is damaged here is taken out of use by whoever finds it so, and fetched again.

use std::path::{Path, PathBuf};

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;
use serde_json::Value;

use crate::Test;
use crate::http_server::Server;
use crate::memory_registry::with_image;
use crate::support::{Layout, Mote, Run, Stored, flip_bit, layer, noise, read_record};

pub const TESTS: &[Test] = &[
    (
        "a_damaged_configuration_is_fetched_again_by_what_needs_it",
        configuration,
    ),
    ("a_damaged_manifest_is_fetched_again_by_a_push", manifest),
    (
        "what_is_damaged_and_cannot_be_fetched_is_named_with_what_to_do",
        nowhere,
    ),
    (
        "a_blob_that_a_save_or_push_finds_corrupt_is_quarantined_and_the_next_pull_mends_it",
        found_by_saving,
    ),
    (
        "an_images_own_tree_is_made_again_of_its_layers_by_what_needs_it",
        tree_over_layers,
    ),
];

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("base", &noise(1, 3_000_000))]),
        layer(&[("top", &noise(2, 10_000))]),
    ]
}

struct Pulled {
    server: Server,
    name: String,
    mote: Mote,
    image: Value,
}

impl Pulled {
    fn new() -> Self {
        let (server, name) = with_image(&layers());
        let mote = Mote::new();
        mote.install_idle();
        let run = mote.run(&["pull", "--format", "json", &name]).expect(0);
        let image = run.json().remove(0);
        Self {
            server,
            name,
            mote,
            image,
        }
    }

    fn digest(&self, of: &str) -> Digest {
        self.image[of].as_str().unwrap().parse().unwrap()
    }

    /// Where a document is, and where it is kept when it was quarantined.
    fn document(&self, of: &str) -> (PathBuf, PathBuf) {
        let hex = self.digest(of).hex();
        let root = self.mote.root.path();
        (
            root.join("content/sha256").join(&hex),
            root.join(format!("quarantine/sha256-{hex}/data")),
        )
    }

    fn save(&self) -> Run {
        self.mote.run(&["save", "-o", "/dev/null", &self.name])
    }
}

/// Whether it came as far as to start the VMM, which is none.
#[track_caller]
fn assert_started(run: &Run) {
    assert_eq!(run.code, Some(125), "{run:?}");
    for words in ["in the store", "cannot pull"] {
        assert!(!run.stderr.contains(words), "{run:?}");
    }
}

fn configuration() -> Result<(), Failed> {
    let pulled = Pulled::new();
    let (place, kept) = pulled.document("id");
    let whole = std::fs::read(&place)?;
    let blobs = pulled.server.count("/blobs/");
    let id = pulled.digest("id").to_string();
    for reference in [&pulled.name, &id] {
        flip_bit(&place);
        let never = ["run", "--pull", "never", reference];
        let id = pulled.digest("id").short();
        pulled.mote.run(&never).expect_failure(&[
            &format!("image configuration {id}"),
            "corrupt",
            "mote pull",
        ]);
        assert!(!place.exists() && kept.exists());
        // Now it is missing, and then corrupt.
        for _ in 0..2 {
            assert_started(&pulled.mote.run(&["run", reference]));
            assert!(std::fs::read(&place)? == whole);
            flip_bit(&place);
        }
        std::fs::remove_file(&kept)?;
        pulled.save().expect(0);
        assert!(std::fs::read(&place)? == whole);
        assert!(kept.exists());
    }
    // Each time it alone, and no layer.
    assert_eq!(pulled.server.count("/blobs/") - blobs, 6);
    pulled.mote.assert_consistent();
    Ok(())
}

fn manifest() -> Result<(), Failed> {
    let pulled = Pulled::new();
    let (place, kept) = pulled.document("manifest");
    let whole = std::fs::read(&place)?;
    flip_bit(&place);
    // It is of no use to a run.
    assert_started(&pulled.mote.run(&["run", &pulled.name]));
    pulled.mote.run(&["push", &pulled.name]).expect(0);
    assert!(std::fs::read(&place)? == whole);
    assert!(kept.exists());
    Ok(())
}

fn nowhere() -> Result<(), Failed> {
    let pulled = Pulled::new();
    let (place, kept) = pulled.document("id");
    flip_bit(&place);
    let Pulled {
        server,
        name,
        mote,
        image,
    } = pulled;
    drop(server);
    let id = image["id"].as_str().unwrap().parse::<Digest>()?.short();
    let config = format!("image configuration {id}");
    let words = [config.as_str(), "corrupt", "mote pull", "cannot pull"];
    mote.run(&["run", &name]).expect_failure(&words);
    assert!(!place.exists() && kept.exists());
    let words = [config.as_str(), "missing", "mote pull", "cannot pull"];
    mote.run(&["save", "-o", "/dev/null", &name])
        .expect_failure(&words);

    // What was loaded is known to be nowhere else.
    let loaded = Mote::new();
    loaded.install_idle();
    let layout = Layout::with_image(&layers(), Stored::Gzip, "demo:v1");
    let id: Digest = loaded.load(&layout.reference("demo:v1"))["id"]
        .as_str()
        .unwrap()
        .parse()?;
    let place = loaded.root.path().join("content/sha256").join(id.hex());
    flip_bit(&place);
    let words = [&format!("image configuration {}", id.short()), "mote load"];
    loaded.run(&["run", "demo:v1"]).expect_failure(&words);
    assert!(!place.exists());
    loaded.load(&layout.reference("demo:v1"));
    assert_started(&loaded.run(&["run", "demo:v1"]));
    Ok(())
}

/// The directories of the blob and the skeleton of a layer.
fn layer_blobs(mote: &Mote, diff_id: Digest) -> [PathBuf; 2] {
    let record = format!("layers/v1/{}.json", diff_id.hex());
    let record = read_record(&mote.root.path().join(record));
    ["blob", "skeleton"].map(|of| {
        let hash = record[of]["hash"].as_str().unwrap();
        let hex = hash.strip_prefix("blake3:").unwrap();
        mote.root.path().join("blobs").join(hex)
    })
}

fn found_by_saving() -> Result<(), Failed> {
    let pulled = Pulled::new();
    let mote = &pulled.mote;
    let blobs = layer_blobs(mote, Digest::of(&layers()[0]));
    let quarantined = |blob: &Path| {
        let name = blob.file_name().unwrap();
        mote.root.path().join("quarantine").join(name)
    };
    // Where the image is not yet, its layers are uploaded, too.
    let (elsewhere, _) = with_image(&[layer(&[("other", b"x")])]);
    let other = format!("{}/app:v2", elsewhere.host());
    mote.run(&["tag", &pulled.name, &other]).expect(0);
    let saved = tempfile::tempdir()?;
    let archive = saved.path().join("saved.tar");
    let attempts = [
        vec!["save", "-o", archive.to_str().unwrap(), &pulled.name],
        vec!["push", &pulled.name],
        vec!["push", &other],
    ];
    for arguments in attempts {
        for blob in &blobs {
            flip_bit(&blob.join("data"));
            let run = mote.run(&arguments);
            run.expect_failure(&["is corrupt", "quarantined", "mote pull", "mote load"]);
            assert!(
                !blob.exists() && quarantined(blob).exists(),
                "{arguments:?}"
            );
            std::fs::remove_dir_all(quarantined(blob))?;
            mote.run(&["pull", &pulled.name]).expect(0);
            mote.assert_consistent();
        }
        // What needs it gets it again by itself.
        flip_bit(&blobs[0].join("outboard"));
        mote.run(&arguments).expect_failure(&["quarantined"]);
        mote.run(&arguments).expect(0);
        mote.assert_consistent();
    }
    Ok(())
}

fn tree_over_layers() -> Result<(), Failed> {
    let mote = Mote::new();
    mote.install_idle();
    let layout = Layout::with_image(&layers(), Stored::Gzip, "demo:v1");
    mote.load(&layout.reference("demo:v1"));
    let tree = mote.disk_blobs().remove(0);
    for arguments in [
        vec!["run", "demo:v1"],
        vec!["run", "--pull", "never", "demo:v1"],
        vec!["save", "-o", "/dev/null", "demo:v1"],
    ] {
        // As after it was quarantined.
        std::fs::remove_dir_all(&tree)?;
        let run = mote.run(&arguments);
        match arguments[0] {
            "save" => drop(run.expect(0)),
            _ => assert_started(&run),
        }
        assert!(tree.exists(), "{arguments:?}");
        mote.assert_consistent();
    }
    Ok(())
}
