//! What one does with images that are loaded: save, tag, remove, inspect, prune.

mod support;

use std::path::Path;

use hostagent::image::digest::Digest;
use hostagent::running::RunningMachine;
use hostagent::store::{BlobIdentity, BootRecord, Store};
use serde_json::{Value, json};
use support::{Layout, Mote, Stored, config, layer, noise, read_record, write_record};
use tempfile::TempDir;

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("base", &noise(1, 300_000)), ("etc/hosts", b"x")]),
        layer(&[("top", &noise(2, 10_000)), (".wh.base", b"")]),
    ]
}

/// A store with these images; each is named `demo:` and its number, and has one layer
/// more than the one before. Each was built before the one before it.
fn mote_with(count: usize) -> Mote {
    let mote = Mote::new();
    for number in 1..=count {
        let name = format!("demo:v{number}");
        let mut layers = layers();
        layers.extend((2..=number).map(|n| layer(&[("more", &noise(n as u32 + 7, 20_000))])));
        let mut layout = Layout::new();
        let mut config = config(&layers);
        config["created"] = json!(format!("2020-11-{:02}T12:00:00Z", 20 - number));
        config["config"]["Labels"] = json!({"number": number.to_string()});
        config["history"] = json!([
            {"created": "2026-11-01T10:00:00Z", "created_by": "base"},
            {"created_by": "ENV A=b", "empty_layer": true},
            {"created_by": "top", "comment": "a comment"},
        ]);
        let descriptor = layout.image(&config, &layers, Stored::Gzip);
        layout.tag(descriptor, &format!("docker.io/library/{name}"));
        mote.load(&layout.reference(&format!("docker.io/library/{name}")));
    }
    mote
}

fn blob_count(mote: &Mote) -> usize {
    std::fs::read_dir(mote.root.path().join("blobs"))
        .unwrap()
        .count()
}

fn inspected(mote: &Mote, image: &str) -> Value {
    let run = mote
        .run(&["image", "inspect", "--format", "json", image])
        .expect(0);
    run.json().remove(0)
}

#[test]
fn what_is_saved_and_loaded_again_is_the_same_image_to_the_byte() {
    let mote = mote_with(2);
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("all.tar");
    let archive = archive.to_str().unwrap();
    let run = mote
        .run(&["save", "-o", archive, "demo:v1", "demo:v2"])
        .expect(0);
    assert_eq!(run.stdout, "Saved image: demo:v1\nSaved image: demo:v2\n");
    let piped = mote
        .command(&["save", "demo:v1", "demo:v2"])
        .output()
        .unwrap();
    assert!(piped.stdout == std::fs::read(archive).unwrap());
    let layout = format!("oci:{}/layout", directory.path().display());
    mote.run(&["save", "-o", &layout, "demo:v1"]).expect(0);

    for (arguments, count) in [(vec!["load", "-i", archive], 2), (vec!["load", &layout], 1)] {
        let other = Mote::new();
        other.run(&arguments).expect(0);
        let all = ["demo:v1", "demo:v2"];
        assert_eq!(other.images(), all[..count]);
        for name in &all[..count] {
            let (before, after) = (inspected(&mote, name), inspected(&other, name));
            for key in ["Id", "RootFS", "Config", "Created"] {
                assert_eq!(before[key], after[key], "{name} {key}");
            }
            assert_eq!(before["Store"]["Layers"], after["Store"]["Layers"]);
        }
        other.assert_consistent();
    }
}

/// Has a blob hold something else than it should, where only who reads its files sees it.
fn change_byte(blob: &Path) {
    let mut bytes = std::fs::read(blob).unwrap();
    bytes[8192] ^= 1;
    std::fs::write(blob, bytes).unwrap();
}

#[test]
fn a_save_that_fails_leaves_no_directory_that_it_made() {
    for is_there in [false, true] {
        let mote = mote_with(2);
        change_byte(&mote.layer_blob(Digest::of(&layers()[0])).join("data"));
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("one");
        if is_there {
            std::fs::create_dir(&first).unwrap();
        }
        let output = format!("oci:{}", first.join("two").display());
        mote.run(&["save", "-o", &output, "demo:v1"])
            .expect_failure(&["cannot save layer"]);
        assert_eq!(first.exists(), is_there);
        assert!(!first.join("two").exists());
    }
}

#[test]
fn verifying_tells_a_list_of_images_that_is_mended_from_one_that_is_lost() {
    let mote = mote_with(2);
    let verify = |code: i32| mote.run(&["store", "verify"]).expect(code).stdout;
    let damage = |name: &str| std::fs::write(mote.root.path().join(name), "{").unwrap();
    damage("images.json");
    let told = verify(0);
    assert!(told.contains("Mended: images.json"), "{told}");
    assert!(!told.contains("Quarantined"), "{told}");
    damage("images.json");
    damage("images.copy.json");
    let told = verify(1);
    for name in ["images.json", "images.copy.json"] {
        assert!(told.contains(&format!("Lost: {name}")), "{told}");
    }
    verify(0);
}

#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let mote = mote_with(1);
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("demo.tar");
    std::fs::write(&archive, "old").unwrap();
    // A layer that is not what it was.
    change_byte(&mote.layer_blob(Digest::of(&layers()[0])).join("data"));
    let run = mote.run(&["save", "-o", archive.to_str().unwrap(), "demo:v1"]);
    run.expect_failure(&["cannot save layer", "is corrupt"]);
    assert_eq!(std::fs::read(&archive).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    mote.run(&["save", "none"])
        .expect_failure(&["no such image"]);
}

#[test]
fn removing_an_image_keeps_what_others_need_and_no_more() {
    let mote = mote_with(2);
    let both = blob_count(&mote);
    let run = mote.run(&["rmi", "demo:v2"]).expect(0);
    assert!(
        run.stdout
            .starts_with("Untagged: demo:v2\nDeleted: sha256:"),
        "{run:?}"
    );
    // A layer, its skeleton and a merge.
    assert_eq!(blob_count(&mote), both - 3);
    mote.assert_consistent();
    mote.run(&["rmi", "demo:v1"]).expect(0);
    assert_eq!(blob_count(&mote), 0);
    for directory in ["layers/v1", "disks/v1", "content/sha256", "leases"] {
        let left = std::fs::read_dir(mote.root.path().join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{directory}");
    }
    mote.run(&["rmi", "demo:v1"])
        .expect_failure(&["no such image"]);
    mote.run(&["rmi", "-f", "demo:v1"]).expect(0);
}

#[test]
fn an_image_goes_with_its_last_name() {
    let mote = mote_with(1);
    mote.run(&["tag", "demo:v1", "other:v9"]).expect(0);
    let id = inspected(&mote, "demo:v1")["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    mote.run(&["rmi", &id])
        .expect_failure(&["several names", "demo:v1", "other:v9"]);
    let run = mote.run(&["rmi", "demo:v1"]).expect(0);
    assert_eq!(run.stdout, "Untagged: demo:v1\n");
    assert_eq!(mote.images(), ["other:v9"]);
    let run = mote
        .run(&["image", "rm", "--format", "json", &id[7..19]])
        .expect(0);
    assert_eq!(
        run.json(),
        [
            json!({"Untagged": "other:v9", "Deleted": null}),
            json!({"Untagged": null, "Deleted": id})
        ]
    );
    assert!(mote.images().is_empty());
    mote.run(&["tag", "demo:v1", "x"])
        .expect_failure(&["no such image"]);
}

#[test]
fn an_image_that_a_microvm_runs_is_not_removed() {
    let mote = mote_with(1);
    let store = Store::open(mote.root.path()).unwrap();
    let image = store.images().unwrap().remove(0);
    let mut machine: RunningMachine = serde_json::from_value(json!({
        "id": "ab".repeat(32),
        "name": "web",
        "image": "demo:v1",
        "command": [],
        "started_unix_seconds": 1,
    }))
    .unwrap();
    machine.image_id = Some(image.id);
    let registration = store.running().register(machine).unwrap();
    mote.run(&["rmi", "demo:v1"])
        .expect_failure(&["in use", "web", "stop it"]);
    mote.run(&["image", "prune", "-a", "-f"]).expect(0);
    assert_eq!(mote.images(), ["demo:v1"]);
    let run = mote.run(&["system", "df", "--format", "json"]).expect(0);
    let images = &run.json()[0];
    assert_eq!(images["Active"], 1);
    assert_eq!(images["ReclaimableBytes"], 0, "{images}");
    drop(registration);
    mote.run(&["rmi", "demo:v1"]).expect(0);
}

#[test]
fn what_a_lease_names_outlives_its_image() {
    let mote = mote_with(1);
    let store = Store::open(mote.root.path()).unwrap();
    let image = store.images().unwrap().remove(0);
    let lease = store.lease().unwrap();
    let disk = hostagent::disk::of_image(&store, &image, &lease).unwrap();
    let before = blob_count(&mote);
    mote.run(&["rmi", "demo:v1"]).expect(0);
    assert_eq!(blob_count(&mote), before);
    // It is there to be used by whoever loads it again.
    mote.run(&["system", "df"]).expect(0);
    drop((disk, lease));
    mote.run(&["image", "prune", "-f"]).expect(0);
    assert_eq!(blob_count(&mote), 0);
}

#[test]
fn pruning_asks_first_and_takes_images_without_a_name() {
    let mote = mote_with(2);
    mote.run(&["image", "prune"]).expect_failure(&["-f"]);
    mote.run(&["tag", "demo:v1", "demo:v2"]).expect(0);
    let quarantined = mote.root.path().join("quarantine/00");
    std::fs::create_dir(&quarantined).unwrap();
    std::fs::write(quarantined.join("data"), noise(1, 100_000)).unwrap();
    let run = mote.run(&["image", "prune", "-f"]).expect(0);
    assert!(run.stdout.contains("Deleted: sha256:"), "{run:?}");
    assert!(run.stdout.contains("Total reclaimed space: "), "{run:?}");
    assert!(!quarantined.exists());
    assert_eq!(mote.images(), ["demo:v1", "demo:v2"]);
    let run = mote
        .run(&["image", "prune", "-a", "-f", "--format", "json"])
        .expect(0);
    assert!(
        run.json().last().unwrap()["SpaceReclaimed"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert!(mote.images().is_empty());
}

#[test]
fn history_and_inspect_tell_what_the_image_says_of_itself() {
    let mote = mote_with(1);
    let run = mote
        .run(&["image", "history", "--format", "json", "demo:v1"])
        .expect(0);
    let steps = run.json();
    let made: Vec<&str> = steps
        .iter()
        .map(|step| step["CreatedBy"].as_str().unwrap())
        .collect();
    assert_eq!(made, ["top", "ENV A=b", "base"]);
    assert_eq!(steps[1]["SizeBytes"], 0);
    assert!(steps[2]["SizeBytes"].as_u64().unwrap() > 300_000);
    let run = mote.run(&["image", "history", "demo:v1"]).expect(0);
    assert!(
        run.stdout.contains("<missing>") && run.stdout.contains("a comment"),
        "{run:?}"
    );
    let id = inspected(&mote, "demo:v1")["Id"].as_str().unwrap()[7..].to_owned();
    for (flags, id) in [
        (&[][..], id[..12].to_owned()),
        (&["--no-trunc"], format!("sha256:{id}")),
    ] {
        let template = "{{.ID}} {{.CreatedSince}}";
        let history = ["image", "history", "--format", template, "demo:v1"];
        let run = mote.run(&[&history[..], flags].concat()).expect(0);
        let lines: Vec<&str> = run.stdout.lines().collect();
        assert_eq!(lines[..2], [&format!("{id} N/A"), "<missing> N/A"]);
        assert!(lines[2].ends_with(" ago"), "{run:?}");
    }

    let image = inspected(&mote, "demo:v1");
    assert_eq!(image["RepoTags"], json!(["demo:v1"]));
    assert_eq!(image["Config"]["Cmd"], json!(["/bin/sh"]));
    assert_eq!(image["Os"], "linux");
    let run = mote.run(&["image", "inspect", "demo:v1"]).expect(0);
    let documents: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(documents[0], image);
}

/// Every file of the store that is content or says what content there is.
fn stored_files(mote: &Mote) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![mote.root.path().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.retain(|file| file.metadata().unwrap().len() > 0);
    files.sort();
    files
}

#[test]
fn verifying_finds_a_changed_bit_in_any_blob_or_document_and_loading_mends_it() {
    let mote = mote_with(1);
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("demo.tar");
    let archive = archive.to_str().unwrap();
    mote.run(&["save", "-o", archive, "demo:v1"]).expect(0);
    let run = mote.run(&["store", "verify", "--format", "json"]).expect(0);
    assert_eq!(run.json()[0]["blobs"], blob_count(&mote));
    let content = |file: &std::path::PathBuf| {
        let path = file.strip_prefix(mote.root.path()).unwrap();
        path.starts_with("blobs") || path.starts_with("content")
    };
    let files = stored_files(&mote).into_iter().filter(content);
    for (file, seed) in files.zip(1..) {
        let mut bytes = std::fs::read(&file).unwrap();
        let offset = (seed * 7919) % bytes.len();
        bytes[offset] ^= 1 << (seed % 8);
        std::fs::write(&file, bytes).unwrap();
        let merged = mote.disk_blobs().iter().any(|blob| file.starts_with(blob));
        let run = mote.run(&["store", "verify", "--format", "json"]);
        let report = &run.json()[0];
        assert_eq!(
            report["wrong"].as_array().unwrap().len(),
            1,
            "{file:?}: {run:?}"
        );
        // What is made of layers is made again of layers; a manifest is of no use to a run.
        let is_manifest = report["broken"] == json!([]) && !merged;
        assert_eq!(report["merged_again"], u64::from(merged), "{file:?}");
        assert_eq!(
            run.code,
            Some(i32::from(!merged && !is_manifest)),
            "{file:?}: {run:?}"
        );
        mote.run(&["load", "-i", archive]).expect(0);
        let run = mote.run(&["store", "verify"]).expect(0);
        assert!(run.stdout.starts_with("Whole: "), "{run:?}");
    }
    mote.assert_consistent();
}

#[test]
fn a_changed_bit_in_any_record_gives_no_other_image() {
    let mote = mote_with(1);
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("demo.tar");
    let archive = archive.to_str().unwrap();
    mote.run(&["save", "-o", archive, "demo:v1"]).expect(0);
    mote.run(&["tag", "demo:v1", "demo:v3"]).expect(0);
    let before = inspected(&mote, "demo:v1");
    let record = |file: &std::path::PathBuf| {
        file.extension()
            .is_some_and(|extension| extension == "json")
    };
    let files: Vec<_> = stored_files(&mote).into_iter().filter(record).collect();
    assert!(files.len() >= 4, "{files:?}");
    // Where, is another choice each time; what failed can be done again.
    let random = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let mut random = random.subsec_nanos();
    for file in files.iter().cycle().take(160) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let kept = std::fs::read(file).unwrap();
        let mut bytes = kept.clone();
        let bit = random as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(file, &bytes).unwrap();
        let which = format!("bit {bit} of {file:?}");
        let run = mote.run(&["image", "inspect", "--format", "json", "demo:v1"]);
        if run.code == Some(0) {
            let after = run.json().remove(0);
            for key in ["Id", "RepoTags", "RootFS", "Config"] {
                assert_eq!(after[key], before[key], "{which}");
            }
            for key in ["Metadata", "Layers"] {
                assert_eq!(after["Store"][key], before["Store"][key], "{which}");
            }
        }
        let other = directory.path().join("other.tar");
        let run = mote.run(&["save", "-o", other.to_str().unwrap(), "demo:v1"]);
        if run.code == Some(0) {
            assert!(
                std::fs::read(&other).unwrap() == std::fs::read(archive).unwrap(),
                "{which}"
            );
            std::fs::remove_file(&other).unwrap();
        }
        assert!(!other.exists(), "{which}");
        std::fs::write(file, kept).unwrap();
    }
}

#[test]
fn a_layer_that_is_not_as_long_as_its_record_says_is_not_saved() {
    let mote = mote_with(1);
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("demo.tar");
    let record = format!("layers/v1/{}.json", Digest::of(&layers()[0]).hex());
    let record = mote.root.path().join(record);
    let kept = std::fs::read(&record).unwrap();
    for more in [-512_i64, -1, 1] {
        let mut wrong = read_record(&record);
        wrong["tar_bytes"] = (wrong["tar_bytes"].as_i64().unwrap() + more).into();
        write_record(&record, &wrong);
        mote.run(&["save", "-o", archive.to_str().unwrap(), "demo:v1"])
            .expect_failure(&["cannot save"]);
        assert!(!archive.exists(), "{more}");
        std::fs::write(&record, &kept).unwrap();
    }
    std::fs::write(&record, kept).unwrap();
    mote.run(&["save", "-o", archive.to_str().unwrap(), "demo:v1"])
        .expect(0);
}

#[test]
fn a_record_that_cannot_be_read_ends_a_collection_before_anything_is_removed() {
    let mote = mote_with(2);
    let record = format!("layers/v1/{}.json", Digest::of(&layers()[0]).hex());
    let record = mote.root.path().join(record);
    let kept = std::fs::read(&record).unwrap();
    let before = blob_count(&mote);
    // As with a failing disk: it is there, and reading it is an error.
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    mote.run(&["image", "prune", "-f"])
        .expect_failure(&["reading the record", &record.display().to_string()]);
    assert_eq!(blob_count(&mote), before);
    std::fs::remove_dir(&record).unwrap();
    std::fs::write(&record, kept).unwrap();
    mote.run(&["image", "prune", "-f"]).expect(0);
    assert_eq!(blob_count(&mote), before);
    mote.assert_consistent();
}

#[test]
fn images_are_listed_by_filters_with_ids_and_digests_as_asked_for() {
    let mote = mote_with(2);
    mote.run(&["tag", "demo:v1", "team/app:v1"]).expect(0);
    let lines = |arguments: &[&str]| -> Vec<String> {
        let run = mote.run(&[&["images"], arguments].concat()).expect(0);
        run.stdout.lines().map(str::to_owned).collect()
    };
    let ids = ["demo:v1", "demo:v2"]
        .map(|name| inspected(&mote, name)["Id"].as_str().unwrap().to_owned());
    let short = |id: &str| id[7..19].to_owned();
    assert_eq!(lines(&["--format", "{{.ID}}", "demo:v1"]), [short(&ids[0])]);
    assert_eq!(
        lines(&["--no-trunc", "--format", "{{.ID}}", "demo:v1"]),
        [ids[0].clone()]
    );
    let since = lines(&["--format", "{{.CreatedSince}}", "demo:v1"]);
    assert!(since[0].ends_with(" years ago"), "{since:?}");
    assert_eq!(lines(&["-q", "demo:v1"]), [short(&ids[0])]);
    assert_eq!(lines(&["-q", "--no-trunc", "demo:v2"]), [ids[1].clone()]);
    assert_eq!(lines(&["-a", "demo"]).len(), 3);
    assert_eq!(lines(&["-q", "-f", "reference=team/*"]), [short(&ids[0])]);
    assert!(lines(&["-q", "nothing"]).is_empty());
    let template = "{{.Repository}}:{{.Tag}}\\t{{len .Layers}}";
    assert_eq!(
        lines(&["--format", template, "demo"]),
        ["demo:v2\t3", "demo:v1\t2"]
    );
    let columns = format!("table {template}");
    assert_eq!(
        lines(&["--format", &columns, "demo"]),
        [
            "REPOSITORY:TAG   LAYERS",
            "demo:v2          3",
            "demo:v1          2"
        ]
    );
    let table = lines(&["--digests", "demo:v2"]);
    assert!(
        table[0].starts_with("REPOSITORY   TAG   DIGEST"),
        "{table:?}"
    );
    assert!(table[1].contains("   sha256:"), "{table:?}");
    let digest = lines(&["--format", "{{.Digest}}", "demo:v2"]);
    assert!(
        digest[0].starts_with("sha256:") && table[1].contains(&digest[0]),
        "{table:?}"
    );

    assert!(lines(&["-q", "--filter", "dangling=true"]).is_empty());
    mote.run(&["rmi", "team/app:v1"]).expect(0);
    mote.run(&["tag", "demo:v2", "demo:v1"]).expect(0);
    assert_eq!(
        lines(&["-q", "--filter", "dangling=true"]),
        [short(&ids[0])]
    );
    assert_eq!(lines(&["-q", "--filter", "dangling=false"]).len(), 2);
    // By when they were built, not by when they came here.
    for (key, of, found) in [
        ("since", 1, Some(0)),
        ("before", 0, Some(1)),
        ("since", 0, None),
        ("before", 1, None),
    ] {
        let found: Vec<String> = found
            .iter()
            .map(|&index: &usize| short(&ids[index]))
            .collect();
        let filter = format!("{key}={}", ids[of]);
        let mut listed = lines(&["-q", "--filter", &filter]);
        // One image has two names.
        listed.dedup();
        assert_eq!(listed, found, "{filter}");
    }
    assert!(lines(&["-q", "--filter", "label=a"]).is_empty());
    for (wrong, word) in [("colour=red", "no filter"), ("dangling=x", "neither")] {
        mote.run(&["images", "--filter", wrong])
            .expect_failure(&[word]);
    }
}

#[test]
fn what_is_pruned_is_chosen_by_age_and_label_and_what_is_shown_by_size() {
    let mote = mote_with(2);
    let run = mote
        .run(&["system", "df", "-v", "--format", "json"])
        .expect(0);
    let images = run.json();
    assert_eq!(images.len(), 2);
    let shared = |index: usize| images[index]["SharedSizeBytes"].as_u64().unwrap();
    assert!(shared(0) > 300_000 && shared(0) == shared(1), "{images:?}");
    assert!(images[0]["UniqueSizeBytes"].as_u64().unwrap() > 0);
    let run = mote.run(&["system", "df", "-v"]).expect(0);
    assert!(run.stdout.contains("UNIQUE SIZE"), "{run:?}");

    let run = mote.run(&["image", "history", "-q", "demo:v1"]).expect(0);
    assert_eq!(
        run.stdout.lines().skip(1).collect::<Vec<_>>(),
        ["<missing>"; 2]
    );
    let run = mote
        .run(&["image", "history", "--human=false", "demo:v1"])
        .expect(0);
    assert!(run.stdout.contains("2026-11-01T10:00:00Z"), "{run:?}");

    let prune = ["image", "prune", "-a", "-f", "--filter"];
    for kept in ["until=2001-01-01", "label=none"] {
        mote.run(&[&prune[..], &[kept]].concat()).expect(0);
        assert_eq!(mote.images().len(), 2, "{kept}");
    }
    for (filter, words) in [
        ("until=soon", "no time"),
        ("dangling=true", "contradict"),
        ("dangling=maybe", "neither true nor false"),
    ] {
        mote.run(&[&prune[..], &[filter]].concat())
            .expect_failure(&[words]);
    }
    // What cannot be meant is not asked about.
    mote.run(&["image", "prune", "--filter", "until=soon"])
        .expect_failure(&["no time"]);
    let before = blob_count(&mote);
    mote.run(&["rmi", "--no-prune", "demo:v2"]).expect(0);
    assert_eq!(blob_count(&mote), before);
    mote.run(&["image", "prune", "-a", "-f", "--filter", "until=0s"])
        .expect(0);
    assert_eq!(blob_count(&mote), 0);
}

#[test]
fn what_an_image_does_not_say_of_its_configuration_is_null() {
    let mote = Mote::new();
    let mut without = config(&layers());
    without.as_object_mut().unwrap().remove("config");
    for (name, config) in [("with:v1", config(&layers())), ("without:v1", without)] {
        let mut layout = Layout::new();
        let descriptor = layout.image(&config, &layers(), Stored::Gzip);
        layout.tag(descriptor, name);
        mote.load(&layout.reference(name));
        let keys = "User ExposedPorts Entrypoint Volumes WorkingDir Labels StopSignal OnBuild";
        for key in keys.split(' ') {
            assert_eq!(
                inspected(&mote, name)["Config"].get(key),
                Some(&Value::Null)
            );
            let template =
                format!("{{{{json .Config.{key}}}}}{{{{if .Config.{key}}}}} it{{{{end}}}}");
            let run = mote.run(&["image", "inspect", "-f", &template, name]);
            assert_eq!(run.expect(0).stdout, "null\n");
            let plain = format!("{{{{.Config.{key}}}}}");
            mote.run(&["image", "inspect", "-f", &plain, name])
                .expect(0);
        }
    }
    let template = "{{if .Config.Cmd}}{{json .Config.Cmd}}{{end}}";
    for (name, text) in [("with:v1", "[\"/bin/sh\"]\n"), ("without:v1", "\n")] {
        let run = mote.run(&["image", "inspect", "-f", template, name]);
        assert_eq!(run.expect(0).stdout, text);
    }
}

#[test]
fn a_kernel_that_cannot_be_taken_in_again_is_damage_that_verifying_tells() {
    let mote = Mote::new();
    mote.install_idle();
    let [kernel, initrd, says] = ["vmlinux", "initrd", "boot.json"].map(|n| mote.assets().join(n));
    let identity = |path: &std::path::Path| {
        let bytes = std::fs::read(path).unwrap();
        BlobIdentity {
            hash: outboard::BlobHash::of(&bytes),
            bytes: bytes.len() as u64,
        }
    };
    std::fs::write(&initrd, b"an initrd").unwrap();
    let record = BootRecord {
        kernel: identity(&kernel),
        initrd: identity(&initrd),
    };
    let record_text = serde_json::to_string(&record).unwrap();
    std::fs::write(&says, &record_text).unwrap();
    let layout = Layout::with_image(&layers(), Stored::Gzip, "t");
    // The VMM is none; what it would boot is taken in before that.
    mote.run(&["run", &layout.reference("t")]).expect(125);
    let data = |hash: outboard::BlobHash| {
        let blob = mote.root.path().join("blobs").join(hash.hex());
        blob.join("data")
    };
    let damage = || {
        let data = data(record.kernel.hash);
        if let Ok(mut bytes) = std::fs::read(&data) {
            bytes[20] ^= 1;
            std::fs::write(&data, bytes).unwrap();
        }
    };
    let verify = |code: i32| mote.run(&["store", "verify"]).expect(code).stdout;
    verify(0);
    let good = std::fs::read(&kernel).unwrap();
    let mut other = good.clone();
    other.push(0);

    damage();
    assert!(verify(0).contains("Taken in again: "));
    // Nothing says what the file is: it is read.
    std::fs::remove_file(&says).unwrap();
    damage();
    assert!(verify(0).contains("Taken in again: "));

    damage();
    std::fs::write(&kernel, &other).unwrap();
    let broken = verify(1);
    assert!(
        broken.contains("Broken: the guests' kernel: ") && broken.contains("is another than"),
        "{broken}"
    );
    let of_other = BootRecord {
        kernel: identity(&kernel),
        ..record
    };
    // It says of itself that it is another, and that it is what it is not.
    std::fs::write(&says, serde_json::to_string(&of_other).unwrap()).unwrap();
    assert!(verify(1).contains("install the mote again that had the other"));
    std::fs::write(&says, &record_text).unwrap();
    assert!(verify(1).contains("install mote again"));
    std::fs::remove_file(&kernel).unwrap();
    let run = mote.run(&["store", "verify", "--format", "json"]).expect(1);
    let problem = &run.json()[0]["boot_broken"][0];
    assert_eq!(problem["what"], "the guests' kernel");
    let problem = problem["problem"].as_str().unwrap();
    assert!(
        problem.contains("vmlinux was not found") && problem.contains("MOTE_ASSETS"),
        "{problem}"
    );
    std::fs::write(&kernel, &good).unwrap();
    assert!(verify(0).contains("Taken in again: "));
    verify(0);
    mote.assert_consistent();
}

#[test]
fn pruning_by_filters_leaves_the_quarantine_and_what_the_filters_do_not_hold_of() {
    let mote = mote_with(3);
    let quarantined = mote.root.path().join("quarantine/00");
    std::fs::create_dir(&quarantined).unwrap();
    std::fs::write(quarantined.join("data"), b"x").unwrap();
    let prune = |arguments: &[&str]| {
        mote.run(&[&["image", "prune", "-f"], arguments].concat())
            .expect(0);
        mote.images()
    };
    // 2020-11-18T00:00:00Z
    let until = prune(&["-a", "--filter", "until=1605657600"]);
    assert_eq!(until, ["demo:v1", "demo:v2"]);
    assert_eq!(prune(&["--filter", "label!=number=1"]).len(), 2);
    assert_eq!(prune(&["-a", "--filter", "label!=number"]).len(), 2);
    assert_eq!(prune(&["-a", "--filter", "label!=number=1"]), ["demo:v1"]);
    assert_eq!(prune(&["--filter", "dangling=true"]), ["demo:v1"]);
    assert!(prune(&["--filter", "dangling=false"]).is_empty());
    assert!(quarantined.exists());
    prune(&[]);
    assert!(!quarantined.exists());
}

#[test]
fn an_image_that_came_without_manifest_and_time_has_no_digest_and_is_as_old_as_its_load() {
    let mote = mote_with(1);
    let mut config = config(&layers());
    config.as_object_mut().unwrap().remove("created");
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": ["plain:v1"],
        "Layers": ["0.tar", "1.tar"],
    }]);
    let archive = layer(&[
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("0.tar", &layers()[0]),
        ("1.tar", &layers()[1]),
    ]);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("plain.tar");
    std::fs::write(&path, archive).unwrap();
    mote.run(&["load", "-i", path.to_str().unwrap()]).expect(0);
    let template = "{{.Repository}} {{.Digest}} {{.CreatedSince}}";
    for filter in ["reference=plain", "since=demo:v1"] {
        let run = mote.run(&["images", "--format", template, "-f", filter]);
        assert_eq!(run.expect(0).stdout, "plain <none> N/A\n", "{filter}");
    }
}

#[test]
fn what_cannot_be_removed_keeps_nothing_else_from_being_removed() {
    let mote = mote_with(2);
    let run = mote.run(&["rmi", "none:v1", "demo:v1", "Not/A/Name", "demo:v2"]);
    let run = run.expect_failure(&["no such image: none:v1", "upper-case"]);
    assert_eq!(run.stderr.lines().count(), 2, "{run:?}");
    assert!(run.stdout.contains("Untagged: demo:v2"), "{run:?}");
    assert!(mote.images().is_empty());
    assert_eq!(blob_count(&mote), 0);
}

#[test]
fn a_template_tells_what_was_tagged_and_saved() {
    let mote = mote_with(1);
    let id = inspected(&mote, "demo:v1")["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    let run = mote.run(&["tag", "--format", "{{.id}} {{.name}}", "demo:v1", "x:v1"]);
    assert_eq!(run.expect(0).stdout, format!("{id} x:v1\n"));
    let run = mote.run(&["tag", "demo:v1", "x:v2"]).expect(0);
    assert_eq!(run.stdout, "");
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("demo.tar");
    let save = ["save", "-o", archive.to_str().unwrap(), "--format"];
    let run = mote.run(&[&save[..], &["{{.id}}", "demo:v1"]].concat());
    assert_eq!(run.expect(0).stdout, format!("{id}\n"));
    let saved = mote.command(&["save", "--format", "{{.id}}", "demo:v1"]);
    assert!({ saved }.output().unwrap().stdout == std::fs::read(archive).unwrap());
    for (command, words) in [("tag", "Prints nothing"), ("save", "Without -o")] {
        let run = mote.run(&[command, "--help"]).expect(0);
        assert!(run.stdout.contains(words), "{run:?}");
    }
}
