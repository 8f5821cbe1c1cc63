//! Images that are broken or hostile: each is refused in clear words, and
//! nothing of it is left behind.

mod support;

use std::io::Write;

use hostagent::image::digest::Digest;
use hostagent::image::oci_layout::OciLayout;
use hostagent::store::{Lease, Store};
use serde_json::json;
use support::{Layout, Mote, Stored, add_file, add_link, config, layer, noise};

fn good_layers() -> Vec<Vec<u8>> {
    vec![layer(&[("file", &noise(3, 200_000))])]
}

/// Loads what must fail, with these words, and leave nothing behind.
#[track_caller]
fn refused(reference: &str, words: &[&str]) {
    let mote = Mote::new();
    let words: Vec<&str> = words.iter().copied().chain([reference]).collect();
    mote.run(&["load", reference]).expect_failure(&words);
    assert_eq!(mote.images(), [""; 0]);
    assert_eq!(mote.layer_count(), 0);
    mote.assert_consistent();
}

#[test]
fn a_layout_or_archive_that_is_not_there_is_named() {
    refused("oci:/no/such/directory:tag", &["/no/such/directory"]);
    refused("docker-archive:/no/such/file", &["/no/such/file"]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    refused(
        &format!("oci:{path}"),
        &["not an OCI image layout", "oci-layout"],
    );
    refused(&format!("docker-archive:{path}"), &["directory", "oci:"]);
    refused("some-name", &["oci:DIR"]);
}

#[test]
fn a_tag_that_is_not_there_is_answered_with_those_that_are() {
    let layout = Layout::with_image(&good_layers(), Stored::Plain, "bookworm");
    refused(&layout.reference("trixie"), &["trixie", "bookworm"]);
}

#[test]
fn a_wrong_digest_names_what_was_expected_and_what_was_found() {
    for stored in [Stored::Plain, Stored::Gzip, Stored::Zstd] {
        let layers = good_layers();
        let layout = Layout::with_image(&layers, stored, "t");
        let blob = stored.pack(&layers[0]);
        let digest = Digest::of(&blob);
        let mut damaged = blob.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        std::fs::write(layout.blob_path(digest), &damaged).unwrap();
        refused(
            &layout.reference("t"),
            &[&digest.to_string(), &Digest::of(&damaged).to_string()],
        );
    }
}

#[test]
fn a_truncated_layer_names_both_lengths() {
    for stored in [Stored::Plain, Stored::Gzip] {
        let layers = good_layers();
        let layout = Layout::with_image(&layers, stored, "t");
        let blob = stored.pack(&layers[0]);
        let path = layout.blob_path(Digest::of(&blob));
        std::fs::write(path, &blob[..blob.len() / 2]).unwrap();
        let expected = blob.len().to_string();
        let found = (blob.len() / 2).to_string();
        refused(&layout.reference("t"), &["truncated", &expected, &found]);
    }
}

#[test]
fn a_missing_blob_is_named() {
    let layers = good_layers();
    let layout = Layout::with_image(&layers, Stored::Plain, "t");
    let digest = Digest::of(&layers[0]);
    std::fs::remove_file(layout.blob_path(digest)).unwrap();
    refused(&layout.reference("t"), &[&digest.to_string()]);
}

#[test]
fn a_wrong_diff_id_names_what_was_expected_and_what_was_found() {
    for stored in [Stored::Plain, Stored::Gzip, Stored::Zstd] {
        let layers = good_layers();
        let mut layout = Layout::new();
        let other = Digest::of(b"something else");
        let mut config = config(&layers);
        config["rootfs"]["diff_ids"] = json!([other]);
        let image = layout.image(&config, &layers, stored);
        layout.tag(image, "t");
        refused(
            &layout.reference("t"),
            &[
                "diff_id",
                &other.to_string(),
                &Digest::of(&layers[0]).to_string(),
            ],
        );
    }
}

#[test]
fn a_manifest_or_configuration_of_another_digest_is_refused() {
    let layers = good_layers();
    let layout = Layout::with_image(&layers, Stored::Plain, "t");
    let text = config(&layers).to_string();
    let path = layout.blob_path(Digest::of(text.as_bytes()));
    // The same length, so that only the digest tells.
    std::fs::write(path, text.replace("/bin/sh", "/bin/xx")).unwrap();
    refused(&layout.reference("t"), &["configuration", "corrupt"]);
}

#[test]
fn hostile_layers_are_refused() {
    type Build = fn(&mut tar::Builder<Vec<u8>>);
    let cases: [(&str, Build); 5] = [
        ("dot dot", |tar| add_file(tar, "../escape", b"x")),
        ("dot dot inside", |tar| {
            add_file(tar, "a/../../escape", b"x")
        }),
        ("through a symbolic link", |tar| {
            add_link(tar, tar::EntryType::Symlink, "link", "/etc");
            add_file(tar, "link/passwd", b"x");
        }),
        ("a hard link out", |tar| {
            add_link(tar, tar::EntryType::Link, "hard", "../../etc/passwd");
        }),
        ("a hard link to nothing", |tar| {
            add_link(tar, tar::EntryType::Link, "hard", "nothing");
        }),
    ];
    for (name, build) in cases {
        let mut tar = tar::Builder::new(Vec::new());
        build(&mut tar);
        let layers = vec![tar.into_inner().unwrap()];
        let layout = Layout::with_image(&layers, Stored::Gzip, "t");
        let digest = Digest::of(&layers[0]).to_string();
        let mote = Mote::new();
        let run = mote.run(&["load", &layout.reference("t")]);
        assert_eq!(run.code, Some(125), "{name}: {run:?}");
        run.expect_failure(&["could not be converted", &digest]);
        assert_eq!(mote.layer_count(), 0, "{name}");
        mote.assert_consistent();
    }
}

#[test]
fn a_layer_that_is_no_tar_stream_is_refused() {
    let layers = vec![noise(5, 5000)];
    let layout = Layout::with_image(&layers, Stored::Plain, "t");
    refused(&layout.reference("t"), &["could not be converted"]);
}

#[test]
fn a_layer_in_another_compression_is_named() {
    let layout = Layout::with_image(&[b"\xfd7zXZ\0\0\0\0\0\0".to_vec()], Stored::Plain, "t");
    refused(&layout.reference("t"), &["xz"]);
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let mut layout = Layout::new();
    let mut config = config(&[]);
    config["architecture"] = json!("arm64");
    let image = layout.image(&config, &[], Stored::Plain);
    layout.tag(image, "t");
    refused(&layout.reference("t"), &["linux/arm64", "linux/amd64"]);
}

#[test]
fn an_index_without_an_image_for_this_machine_says_what_it_has() {
    let mut layout = Layout::new();
    let mut image = layout.image(&config(&[]), &[], Stored::Plain);
    image["platform"] = json!({"os": "linux", "architecture": "s390x"});
    layout.tag(image, "t");
    refused(&layout.reference("t"), &["linux/s390x"]);
}

#[test]
fn an_index_that_contains_itself_in_spirit_ends() {
    let mut layout = Layout::new();
    let mut descriptor = layout.image(&config(&[]), &[], Stored::Plain);
    for _ in 0..10 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        descriptor = layout.blob("", index.to_string().as_bytes());
    }
    layout.tag(descriptor, "t");
    refused(&layout.reference("t"), &["nests"]);
}

#[test]
fn documents_and_lists_beyond_their_bounds_are_refused() {
    let layout = Layout::new();
    layout.write("index.json", &vec![b' '; 5 << 20]);
    refused(&layout.reference(""), &["index.json"]);

    let mut layout = Layout::new();
    let empty = layout.blob("", b"");
    let config = layout.blob("", config(&[]).to_string().as_bytes());
    let manifest = json!({"config": config, "layers": vec![empty; 300]});
    let manifest = layout.manifest(&manifest);
    layout.tag(manifest, "t");
    refused(&layout.reference("t"), &["300 layers"]);
}

#[test]
fn a_manifest_and_a_configuration_that_disagree_are_refused() {
    let layers = good_layers();
    let mut layout = Layout::new();
    let image = layout.image(&config(&[]), &layers, Stored::Plain);
    layout.tag(image, "t");
    refused(&layout.reference("t"), &["1 layers", "0"]);
}

#[test]
fn several_images_of_one_layout_are_all_loaded() {
    let mote = Mote::new();
    let mut layout = Layout::with_image(&good_layers(), Stored::Plain, "one");
    let second = layout.image(&config(&[]), &[], Stored::Plain);
    layout.tag(second, "two");
    let loaded = mote.run(&["load", &layout.reference("")]).expect(0);
    let images: std::collections::BTreeSet<_> = loaded.stdout.lines().collect();
    assert_eq!(images.len(), 2, "{}", loaded.stdout);
}

#[test]
fn what_is_no_archive_is_refused() {
    for bytes in [&b""[..], b"not a tar archive", &[0; 10240], &noise(9, 4096)] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        refused(&format!("docker-archive:{}", file.path().display()), &[]);
    }
}

#[test]
fn a_truncated_archive_is_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    let text = config(&good_layers()).to_string();
    add_file(&mut tar, "config.json", text.as_bytes());
    add_file(&mut tar, "layer.tar", &good_layers()[0]);
    let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": ["layer.tar"]}]);
    add_file(&mut tar, "manifest.json", manifest.to_string().as_bytes());
    let bytes = tar.into_inner().unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes[..100_000]).unwrap();
    let reference = format!("docker-archive:{}", file.path().display());
    refused(&reference, &["truncated", "layer.tar"]);
}

#[test]
fn a_docker_archive_whose_layer_or_configuration_is_not_what_it_says_is_refused() {
    let layers = good_layers();
    let text = config(&[layer(&[("another", b"x")])]).to_string();
    let archive = |config_name: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        add_file(&mut tar, config_name, text.as_bytes());
        add_file(&mut tar, "layer.tar", &layers[0]);
        let manifest =
            json!([{"Config": config_name, "RepoTags": ["t:1"], "Layers": ["layer.tar"]}]);
        add_file(&mut tar, "manifest.json", manifest.to_string().as_bytes());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&tar.into_inner().unwrap()).unwrap();
        file
    };
    let wrong_layer = archive("config.json");
    let reference = format!("docker-archive:{}", wrong_layer.path().display());
    refused(
        &reference,
        &["diff_id", &Digest::of(&layers[0]).to_string()],
    );

    let wrong_config = archive(&format!("{}.json", Digest::of(b"another").hex()));
    let reference = format!("docker-archive:{}", wrong_config.path().display());
    refused(
        &reference,
        &["configuration", &Digest::of(text.as_bytes()).to_string()],
    );
}

#[test]
fn a_failed_load_keeps_what_was_loaded_before() {
    let mote = Mote::new();
    let good = Layout::with_image(&good_layers(), Stored::Gzip, "registry.example/app:good");
    mote.load(&good.reference("registry.example/app:good"));
    let layers = vec![good_layers().remove(0), layer(&[("other", b"x")])];
    let bad = Layout::with_image(&layers, Stored::Plain, "registry.example/app:good");
    std::fs::write(
        bad.blob_path(Digest::of(&layers[1])),
        vec![0; layers[1].len()],
    )
    .unwrap();
    let before = mote.run(&["images", "--format", "json"]).stdout;
    mote.run(&["load", &bad.reference("registry.example/app:good")])
        .expect_failure(&["corrupt"]);
    assert_eq!(mote.run(&["images", "--format", "json"]).stdout, before);
    mote.assert_consistent();
}

/// A layout with an image `good` of the first layer, and `bad` of that and of one that is not
/// what its configuration says.
fn good_and_bad(first: &[u8]) -> Layout {
    let layers = vec![first.to_vec(), layer(&[("other", b"x")])];
    let mut layout = Layout::with_image(&layers[..1], Stored::Gzip, "good");
    let mut config = config(&layers);
    config["rootfs"]["diff_ids"][1] = json!(Digest::of(b"something else"));
    let bad = layout.image(&config, &layers, Stored::Gzip);
    layout.tag(bad, "bad");
    layout
}

/// Takes in the image `good` of a layout, and removes it; its layer stays.
fn leave_layer(store: &Store, layout: &Layout, lease: &Lease) {
    let source = OciLayout::open(layout.path()).unwrap();
    let source = source.image(Some("good")).unwrap();
    let image = store.import(&source, &[], lease, &()).unwrap().image;
    assert!(store.remove(image.id, &[]).unwrap().image);
}

#[test]
fn of_a_refused_image_stays_what_another_process_needs_as_long_as_it_does() {
    let mote = Mote::new();
    let layout = good_and_bad(&good_layers()[0]);
    let store = Store::open(mote.root.path()).unwrap();
    let lease = store.lease().unwrap();
    leave_layer(&store, &layout, &lease);
    let load = || mote.run(&["load", &layout.reference("bad")]);
    load().expect_failure(&["diff_id"]);
    assert_eq!(mote.layer_count(), 1);
    mote.assert_consistent();
    drop(lease);
    load().expect_failure(&["diff_id"]);
    assert_eq!(mote.layer_count(), 0);
    mote.assert_consistent();
}

#[test]
fn a_layer_that_stays_keeps_the_skeleton_that_it_shares_with_a_refused_one() {
    // They differ in what the file holds alone.
    let [kept, refused] = [3, 4].map(|seed| layer(&[("file", &noise(seed, 200_000))]));
    let mote = Mote::new();
    let store = Store::open(mote.root.path()).unwrap();
    let lease = store.lease().unwrap();
    leave_layer(&store, &good_and_bad(&kept), &lease);
    drop(lease);
    let skeleton = |layer: &[u8]| {
        let layer = store.layer(Digest::of(layer)).unwrap().unwrap();
        layer.skeleton.identity.hash
    };
    let lease = store.lease().unwrap();
    leave_layer(&store, &good_and_bad(&refused), &lease);
    assert_eq!(skeleton(&kept), skeleton(&refused));
    drop(lease);
    mote.run(&["load", &good_and_bad(&refused).reference("bad")])
        .expect_failure(&["diff_id"]);
    assert!(store.layer(Digest::of(&refused)).unwrap().is_none());
    skeleton(&kept);
    mote.assert_consistent();
}
