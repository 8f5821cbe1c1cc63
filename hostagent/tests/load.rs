//! `mote load` on good images, in every form they come in.

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use hostagent::image::digest::Digest;
use serde_json::{Value, json};
use support::{Layout, Mote, Run, Stored, add_file, add_link, config, layer, noise};
use tempfile::TempDir;

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("base", &noise(1, 300_000)), ("etc/hosts", b"x")]),
        layer(&[("top", &noise(2, 10_000)), (".wh.base", b"")]),
    ]
}

#[test]
fn a_layout_is_loaded_whatever_its_compression_and_layers_are_converted_once() {
    let mote = Mote::new();
    let layers = two_layers();
    let mut id = None;
    for (stored, tag, converted) in [
        (Stored::Plain, "plain", 2),
        (Stored::Gzip, "gzip", 0),
        (Stored::Zstd, "zstd", 0),
    ] {
        let layout = Layout::with_image(&layers, stored, tag);
        let loaded = mote.load(&layout.reference(tag));
        assert_eq!(loaded["layers_converted"], converted, "{stored:?}");
        assert_eq!(loaded["layers_reused"], 2 - converted, "{stored:?}");
        // The configuration is the same, so the image is.
        assert_eq!(*id.get_or_insert(loaded["id"].clone()), loaded["id"]);
    }
    for stored in [Stored::Gzip, Stored::Zstd] {
        let mote = Mote::new();
        let loaded = mote.load(&Layout::with_image(&layers, stored, "t").reference("t"));
        assert_eq!(loaded["layers_converted"], 2, "{stored:?}");
        mote.assert_consistent();
    }
    mote.assert_consistent();
}

#[test]
fn the_same_layer_gives_the_same_blob_whatever_its_compression() {
    let layers = two_layers();
    let blobs: Vec<Vec<u8>> = [Stored::Plain, Stored::Gzip, Stored::Zstd]
        .map(|stored| {
            let mote = Mote::new();
            mote.load(&Layout::with_image(&layers, stored, "t").reference("t"));
            let blob = mote.layer_blob(Digest::of(&layers[0]));
            std::fs::read(blob.join("data")).unwrap()
        })
        .into();
    assert!(blobs[0] == blobs[1] && blobs[1] == blobs[2]);
}

#[test]
fn a_layout_gives_its_directory_as_name_unless_it_knows_a_whole_one() {
    let mote = Mote::new();
    let mut layout = Layout::with_image(&two_layers(), Stored::Plain, "v1");
    let descriptor = layout.image(&config(&[]), &[], Stored::Plain);
    layout.tag(descriptor, "registry.example/app:v2");
    let directory = TempDir::new().unwrap();
    let demo = directory.path().join("Demo");
    std::os::unix::fs::symlink(layout.path(), &demo).unwrap();

    let real_name = layout.path().file_name().unwrap().to_str().unwrap();
    let loaded = mote.load(&format!("oci:{}:v1", demo.display()));
    // Temporary directories may have names no image can have.
    let expected = format!("{}:v1", real_name.to_lowercase());
    match expected.parse::<hostagent::image::name::ImageName>() {
        Ok(_) => assert_eq!(loaded["names"], json!([expected])),
        Err(_) => assert_eq!(loaded["names"], json!([])),
    }
    let loaded = mote.load(&layout.reference("registry.example/app:v2"));
    assert_eq!(loaded["names"], json!(["registry.example/app:v2"]));
}

#[test]
fn no_name_of_a_loaded_image_can_be_taken_for_a_layout() {
    let mote = Mote::new();
    let layout = Layout::with_image(&two_layers(), Stored::Plain, "v1");
    let directory = TempDir::new().unwrap();
    let oci = directory.path().join("oci");
    std::fs::rename(layout.path(), &oci).unwrap();
    let loaded = mote.load(&format!("oci:{}:v1", oci.display()));
    assert_eq!(loaded["names"], json!(["localhost/oci:v1"]));
}

#[test]
fn of_a_nested_index_the_image_for_this_machine_is_taken() {
    let mote = Mote::new();
    let mut layout = Layout::new();
    let layers = two_layers();
    let mut arm_config = config(&layers);
    arm_config["architecture"] = json!("arm64");
    let mut arm = layout.image(&arm_config, &layers, Stored::Gzip);
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut amd = layout.image(&config(&layers), &layers, Stored::Gzip);
    amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = layout.manifest(&json!({"config": amd, "layers": []}));
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let expected = Digest::of(config(&layers).to_string().as_bytes());

    let inner = json!({"schemaVersion": 2, "manifests": [attestation, arm, amd]});
    let inner = layout.blob(
        "application/vnd.oci.image.index.v1+json",
        inner.to_string().as_bytes(),
    );
    let outer = json!({"schemaVersion": 2, "manifests": [inner]});
    let outer = layout.blob("", outer.to_string().as_bytes());
    layout.tag(outer, "multi");
    assert_eq!(mote.load(&layout.reference(""))["id"], json!(expected));
}

#[test]
fn one_tag_for_several_platforms_in_the_index_is_one_image() {
    let mote = Mote::new();
    let mut layout = Layout::new();
    for architecture in ["arm64", "amd64"] {
        let mut config = config(&[]);
        config["architecture"] = json!(architecture);
        let mut image = layout.image(&config, &[], Stored::Plain);
        image["platform"] = json!({"os": "linux", "architecture": architecture});
        layout.tag(image, "multi");
    }
    mote.load(&layout.reference("multi"));
}

/// A docker archive under construction.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, name: &str, content: &[u8]) {
        add_file(&mut self.0, name, content);
    }

    fn finish(mut self, manifest: &Value) -> Vec<u8> {
        self.add("manifest.json", manifest.to_string().as_bytes());
        self.0.into_inner().unwrap()
    }
}

/// As `docker save` wrote until version 24: a directory a layer, named by
/// something that is no digest, and links where layers are shared.
fn legacy_archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let config = config(layers).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut archive = Archive::new();
    let mut paths = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("{index:x}").repeat(32);
        let path = format!("{name}/layer.tar");
        match layers[..index].iter().position(|before| before == layer) {
            Some(before) => {
                let target = format!("../{}/layer.tar", format!("{before:x}").repeat(32));
                add_link(&mut archive.0, tar::EntryType::Symlink, &path, &target);
            }
            None => archive.add(&path, layer),
        }
        archive.add(&format!("{name}/VERSION"), b"1.0");
        paths.push(path);
    }
    archive.add(&config_name, config.as_bytes());
    archive.finish(&json!([{"Config": config_name, "RepoTags": [tag], "Layers": paths}]))
}

/// As skopeo writes: `DIFF_ID.tar` and `CONFIG.json` at the top.
fn skopeo_archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let config = config(layers).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut archive = Archive::new();
    let mut paths = Vec::new();
    for layer in layers {
        let path = format!("{}.tar", Digest::of(layer).hex());
        archive.add(&path, layer);
        paths.push(path);
    }
    archive.add(&config_name, config.as_bytes());
    archive.finish(&json!([{"Config": config_name, "RepoTags": [tag], "Layers": paths}]))
}

/// As `docker save` writes since version 25: an OCI layout and `manifest.json`.
fn modern_archive(layers: &[Vec<u8>], tag: &str, stored: Stored, with_manifest: bool) -> Vec<u8> {
    let mut layout = Layout::new();
    let mut image = layout.image(&config(layers), layers, stored);
    image["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{tag}"),
        "org.opencontainers.image.ref.name": tag.split_once(':').unwrap().1,
    });
    layout.tag(image, "");
    let mut archive = Archive::new();
    let blobs = std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap();
    for blob in blobs {
        let blob = blob.unwrap();
        let name = blob.file_name().into_string().unwrap();
        let name = format!("blobs/sha256/{name}");
        archive.add(&name, &std::fs::read(blob.path()).unwrap());
    }
    for name in ["oci-layout", "index.json"] {
        archive.add(name, &std::fs::read(layout.path().join(name)).unwrap());
    }
    if !with_manifest {
        return archive.0.into_inner().unwrap();
    }
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let paths: Vec<_> = layers
        .iter()
        .map(|layer| path(&stored.pack(layer)))
        .collect();
    let config = path(config(layers).to_string().as_bytes());
    archive.finish(&json!([{"Config": config, "RepoTags": [tag], "Layers": paths}]))
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn every_kind_of_docker_archive_is_loaded_under_its_name() {
    let mut layers = two_layers();
    layers.push(layers[0].clone());
    for (kind, bytes) in [
        ("legacy", legacy_archive(&layers, "demo:v1")),
        ("skopeo", skopeo_archive(&layers, "demo:v1")),
        (
            "modern",
            modern_archive(&layers, "demo:v1", Stored::Plain, true),
        ),
        (
            "modern, gzip",
            modern_archive(&layers, "demo:v1", Stored::Gzip, true),
        ),
        (
            "layout only",
            modern_archive(&layers, "demo:v1", Stored::Gzip, false),
        ),
    ] {
        let mote = Mote::new();
        let archive = file(&bytes);
        let path = archive.path().to_str().unwrap();
        let run = mote.run(&["load", "-i", path]).expect(0);
        assert_eq!(run.stdout, "Loaded image: demo:v1\n", "{kind}");
        assert_eq!(mote.images(), ["demo:v1"], "{kind}");
        assert_eq!(mote.layer_count(), 2, "{kind}");
        mote.load(&format!("docker-archive:{path}:demo:v1"));
        mote.assert_consistent();
    }
}

#[test]
fn an_archive_is_read_from_a_file_and_from_a_pipe_as_standard_input() {
    let bytes = skopeo_archive(&two_layers(), "demo:v1");
    let archive = file(&bytes);
    let mote = Mote::new();
    let mut command = mote.command(&["load"]);
    command.stdin(File::open(archive.path()).unwrap());
    Run::of(command.output().unwrap()).expect(0);

    for (bytes, arguments) in [
        (bytes.clone(), &["load"][..]),
        (Stored::Gzip.pack(&bytes), &["load", "-i", "-"]),
        (Stored::Zstd.pack(&bytes), &["load"]),
    ] {
        let mote = Mote::new();
        let mut command = mote.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let run = Run::of(child.wait_with_output().unwrap()).expect(0);
        assert_eq!(run.stdout, "Loaded image: demo:v1\n");
        mote.assert_consistent();
    }
}

#[test]
fn a_compressed_archive_in_a_file_is_loaded() {
    let mote = Mote::new();
    let archive = file(&Stored::Gzip.pack(&skopeo_archive(&two_layers(), "demo:v1")));
    mote.run(&["load", "-i", archive.path().to_str().unwrap()])
        .expect(0);
    mote.assert_consistent();
}

#[test]
fn several_images_are_loaded_together_and_one_by_name() {
    let layers = two_layers();
    let configs = [config(&layers), config(&layers[..1])].map(|config| config.to_string());
    let build = || {
        let mut archive = Archive::new();
        for layer in &layers {
            archive.add(&format!("{}.tar", Digest::of(layer).hex()), layer);
        }
        let mut images = Vec::new();
        for (config, count, tags) in [
            (&configs[0], 2, json!(["two:v1", "also:v1"])),
            (&configs[1], 1, json!(["one:v1"])),
        ] {
            let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
            archive.add(&name, config.as_bytes());
            let paths: Vec<_> = layers[..count]
                .iter()
                .map(|layer| format!("{}.tar", Digest::of(layer).hex()))
                .collect();
            images.push(json!({"Config": name, "RepoTags": tags, "Layers": paths}));
        }
        archive.finish(&json!(images))
    };
    let archive = file(&build());
    let path = archive.path().to_str().unwrap();

    let mote = Mote::new();
    mote.load(&format!("docker-archive:{path}:also:v1"));
    assert_eq!(mote.images(), ["also:v1"]);
    mote.run(&["load", "-i", path]).expect(0);
    assert_eq!(mote.images(), ["also:v1", "one:v1", "two:v1"]);

    let run = mote.run(&["load", &format!("docker-archive:{path}:three:v1")]);
    run.expect_failure(&["three:v1", "two:v1", "one:v1"]);
    let run = mote.run(&["run", &format!("docker-archive:{path}")]);
    // Assets are looked for first; so only that it is refused is said here.
    run.expect(125);
}

#[test]
fn an_image_without_layers_is_loaded() {
    let mote = Mote::new();
    let layout = Layout::with_image(&[], Stored::Plain, "empty");
    assert_eq!(mote.load(&layout.reference("empty"))["layers"], json!([]));
    mote.assert_consistent();
}

#[test]
fn a_layer_that_ends_without_its_last_padding_is_loaded() {
    let mote = Mote::new();
    let mut tar = layer(&[("file", &noise(4, 1000))]);
    // A header, the content, and neither padding nor the end of the archive.
    tar.truncate(512 + 1000);
    let layout = Layout::with_image(&[tar], Stored::Gzip, "t");
    mote.load(&layout.reference("t"));
    mote.assert_consistent();
}

#[test]
fn two_loads_at_once_convert_each_layer_once() {
    let layers = vec![
        layer(&[("large", &noise(7, 30_000_000))]),
        layer(&[("small", b"x")]),
    ];
    let layout = Layout::with_image(&layers, Stored::Plain, "t");
    let mote = Mote::new();
    let reference = layout.reference("t");
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut command = mote.command(&["load", "--format", "json", &reference]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let converted: u64 = children
        .into_iter()
        .map(|child| {
            let run = Run::of(child.wait_with_output().unwrap()).expect(0);
            run.json()[0]["layers_converted"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(converted, 2);
    mote.assert_consistent();
}

#[test]
fn a_damaged_layer_is_found_by_verify_and_mended_by_the_next_load() {
    let layers = two_layers();
    let layout = Layout::with_image(&layers, Stored::Gzip, "t");
    let mote = Mote::new();
    mote.load(&layout.reference("t"));
    let hex = Digest::of(&layers[0]).hex();
    let blob = mote.layer_blob(Digest::of(&layers[0]));
    flip_a_bit(&blob.join("data"));

    let store = hostagent::store::Store::open(mote.root.path()).unwrap();
    let image = store.images().unwrap().remove(0);
    let error = store.verify(&image).unwrap_err();
    assert!(error.to_string().contains(&hex), "{error}");
    assert_eq!(mote.load(&layout.reference("t"))["layers_converted"], 1);
    store.verify(&image).unwrap();
    mote.assert_consistent();

    // One that lost its end is found by its length alone.
    File::options()
        .write(true)
        .open(blob.join("data"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert_eq!(mote.load(&layout.reference("t"))["layers_converted"], 1);
    store.verify(&image).unwrap();
}

#[test]
fn a_damaged_layer_is_not_merged_into_another_image_but_converted_again() {
    let mote = Mote::new();
    let layers = two_layers();
    mote.load(&Layout::with_image(&layers[..1], Stored::Gzip, "one").reference("one"));
    let blob = mote.layer_blob(Digest::of(&layers[0]));
    // The metadata of a layer is at its end.
    let length = blob.join("data").metadata().unwrap().len();
    let file = File::options().write(true).open(blob.join("data")).unwrap();
    file.write_all_at(&[0xff; 64], length - 4096).unwrap();
    let quarantined = mote
        .root
        .path()
        .join("quarantine")
        .join(blob.file_name().unwrap());
    assert!(!quarantined.exists());

    let loaded = mote.load(&Layout::with_image(&layers, Stored::Gzip, "both").reference("both"));
    assert_eq!(loaded["layers_converted"], 2);
    assert!(quarantined.join("data").exists());
    mote.assert_consistent();
}

#[test]
fn what_verifies_a_blob_is_found_damaged_like_the_blob() {
    let mote = Mote::new();
    let layers = two_layers();
    let layout = Layout::with_image(&layers, Stored::Gzip, "t");
    mote.load(&layout.reference("t"));
    let store = hostagent::store::Store::open(mote.root.path()).unwrap();
    let image = store.images().unwrap().remove(0);
    for file in ["outboard", "blocks"] {
        flip_a_bit(&mote.layer_blob(Digest::of(&layers[0])).join(file));
        store.verify(&image).unwrap_err();
        assert_eq!(mote.load(&layout.reference("t"))["layers_converted"], 1);
        store.verify(&image).unwrap();
    }
}

#[test]
fn an_image_may_have_more_layers_than_the_shells_limit_has_descriptors_for() {
    let mote = Mote::new();
    let layers: Vec<_> = (0..40)
        .map(|seed| layer(&[("own", &noise(seed, 20_000))]))
        .collect();
    let layout = Layout::with_image(&layers, Stored::Plain, "t");
    let reference = layout.reference("t");
    let few = |arguments: &[&str]| {
        let direct = mote.command(arguments);
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"ulimit -Sn 100; exec "$0" "$@""#])
            .arg(direct.get_program())
            .args(direct.get_args());
        for (name, value) in direct.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        Run::of(command.output().unwrap()).expect(0)
    };
    few(&["load", "-q", &reference]);
    let image = mote.run(&["images", "-q"]).expect(0).stdout;
    let saved = TempDir::new().unwrap();
    let archive = saved.path().join("saved.tar");
    few(&["save", "-o", archive.to_str().unwrap(), image.trim()]);
}

/// Changes the bit in the middle of a file.
fn flip_a_bit(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, &bytes).unwrap();
}
