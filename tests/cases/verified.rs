//! What a guest reads of its image is what was loaded, or an error.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use e2e::oci::{Layout, tar};
use e2e::{mote, variable};
use serde_json::Value;

/// Every guest boots the same kernel: no test runs one while another test damages that.
static KERNEL: RwLock<()> = RwLock::new(());

/// A layer with a file that a guest can read a part of, and what is in its blob.
struct Image {
    // Deleted when dropped.
    _layout: Layout,
    reference: String,
    diff_id: String,
}

fn image(seed: &str) -> Image {
    let script =
        format!("mkdir opt; yes {seed} | head -c 3000000 >opt/data; echo {seed} >opt/small");
    let layout = Layout::from_test_image().layer(&tar(&script));
    let mut image = Image {
        diff_id: layout.last_layer(),
        _layout: layout,
        reference: String::new(),
    };
    image.reference = image._layout.finish();
    image
}

fn store() -> PathBuf {
    variable("MOTE_ROOT").into()
}

/// What a record of the store says: its first line.
fn read_record(file: &Path) -> Value {
    let record = fs::read_to_string(file).expect("a record");
    serde_json::from_str(record.lines().next().expect("a line")).expect("JSON")
}

/// Where the blob of a layer is.
fn blob_of(diff_id: &str) -> PathBuf {
    let hex = diff_id.strip_prefix("sha256:").expect("a sha256 digest");
    let record = store().join(format!("layers/v1/{hex}.json"));
    let record = read_record(&record);
    let hash = record["blob"]["hash"].as_str().expect("a hash");
    let hex = hash.strip_prefix("blake3:").expect("a BLAKE3 hash");
    store().join("blobs").join(hex)
}

/// What of the store every guest boots: `kernel` or `initrd`.
fn boot_blob(which: &str) -> PathBuf {
    let record = read_record(&store().join("boot.json"));
    let hash = record[which]["hash"].as_str().expect("a hash");
    let hex = hash.strip_prefix("blake3:").expect("a BLAKE3 hash");
    store().join("blobs").join(hex)
}

/// Changes a bit of a file.
fn flip_bit(path: &Path, offset: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the blob is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1 << bit], offset)
        .expect("a byte is written");
}

fn length(path: &Path) -> u64 {
    path.metadata().expect("the blob is there").len()
}

/// Changes a bit where `text` is in a file.
fn flip_bit_of(path: &Path, text: &str, from: usize) {
    let bytes = fs::read(path).expect("the blob can be read");
    let found = bytes[from..]
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    let offset = from + found.expect("the file's content is in the blob");
    flip_bit(path, offset as u64, 0);
}

fn run(image: &Image, script: &str) -> e2e::Run {
    mote(["run", &image.reference, "/bin/sh", "-c", script])
}

#[test]
fn a_changed_bit_is_an_io_error_and_an_event_then_the_blob_is_quarantined_and_made_again() {
    let _kernel = KERNEL.read().unwrap_or_else(PoisonError::into_inner);
    let image = image("changed-bit-of-data");
    run(&image, "cmp /opt/data /opt/data && cat /opt/small").expect(0);
    let blob = blob_of(&image.diff_id);
    // Past the middle, so that the rest of the file can still be read.
    flip_bit_of(&blob.join("data"), "changed-bit-of-data", 2_000_000);

    let ended = run(
        &image,
        "head -c 100000 /opt/data | tail -c 5; cat /opt/data >/dev/null",
    )
    .expect(1);
    assert_eq!(ended.text(), "data");
    for words in [
        "Input/output error",
        "instead of wrong data",
        "blob blake3:",
        "is quarantined",
    ] {
        assert!(ended.errors().contains(words), "{}", ended.errors());
    }
    let quarantined = store()
        .join("quarantine")
        .join(blob.file_name().expect("a name"));
    // The end of the run has waited for that.
    assert!(quarantined.exists());
    assert!(!blob.exists());

    let ended = run(&image, "cat /opt/data >/dev/null; cat /opt/small").expect(0);
    assert_eq!(ended.text(), "changed-bit-of-data");
    assert!(blob.exists());
}

#[test]
fn a_changed_bit_of_a_hash_tree_gives_no_wrong_data() {
    let _kernel = KERNEL.read().unwrap_or_else(PoisonError::into_inner);
    let image = image("changed-bit-of-tree");
    run(&image, "true").expect(0);
    let tree = blob_of(&image.diff_id).join("outboard");
    // In the root: nothing of the blob can be verified.
    flip_bit(&tree, 40, 4);
    let ended = run(&image, "cat /opt/small").expect(1);
    assert!(
        ended.errors().contains("its hash tree is wrong"),
        "{}",
        ended.errors()
    );
    assert_eq!(ended.text(), "");
}

#[test]
fn a_kernel_or_initrd_with_a_changed_bit_is_not_booted_and_the_next_run_has_it_again() {
    let _kernel = KERNEL.write().unwrap_or_else(PoisonError::into_inner);
    let image = image("kernel-and-initrd");
    run(&image, "true").expect(0);
    for which in ["kernel", "initrd"] {
        let blob = boot_blob(which);
        let data = blob.join("data");
        flip_bit(&data, length(&data) / 2, 0);
        let ended = run(&image, "echo booted").expect(125);
        assert_eq!(ended.text(), "");
        for words in [
            &format!("no guest is booted from a wrong boot.{which}"),
            &format!("cannot load boot.{which}"),
            "is quarantined",
        ] {
            assert!(ended.errors().contains(words), "{}", ended.errors());
        }
        assert!(!blob.exists());
        assert_eq!(run(&image, "echo booted").expect(0).text(), "booted");
        assert!(blob.exists());
    }
}

/// Of the merged metadata: what the guest's kernel reads to find anything.
#[test]
fn no_changed_bit_of_an_images_metadata_gives_a_guest_wrong_data() {
    let _kernel = KERNEL.read().unwrap_or_else(PoisonError::into_inner);
    let image = image("metadata");
    let loaded = mote(["load", "--format", "{{.id}}", &image.reference]).expect(0);
    let id = loaded.text();
    let script = "cat /opt/small; for name in /opt/* /usr/bin/*; do echo $name; done";
    let expected = run(&image, script).expect(0).text();
    let inspect = ["image", "inspect", "-f", "{{.Store.Metadata.Hash}}", &id];
    let mut failed = Vec::new();
    let changed = [
        ("data", 0_u8),
        ("data", 1),
        ("data", 5),
        ("outboard", 3),
        ("blocks", 0),
    ];
    for (file, part) in changed {
        let hash = mote(inspect).expect(0).text();
        let hex = hash.strip_prefix("blake3:").expect("a BLAKE3 hash");
        let path = store().join("blobs").join(hex).join(file);
        match file {
            // Which groups it reads a block of, the guest's kernel decides.
            "blocks" => (0..length(&path) / 32).for_each(|at| flip_bit(&path, at * 32 + 9, part)),
            _ => flip_bit(&path, length(&path) * u64::from(part) / 8 + 9, part),
        }
        let ended = run(&image, script);
        match ended.code {
            // A part that nobody needed.
            0 => assert_eq!(ended.text(), expected),
            _ => {
                failed.push(file);
                let said = ended.errors();
                assert!(said.contains("instead of wrong data"), "{said}");
                // A bound against hanging: it is quarantined beside the guest.
                let mut again = (0..20).map(|_| run(&image, script));
                let mended = again.find(|ended| ended.code == 0);
                assert_eq!(mended.expect("it is made again").text(), expected);
            }
        }
    }
    // Inodes and directories are read a block at a time.
    assert!(failed.contains(&"blocks"), "{failed:?}");
}
