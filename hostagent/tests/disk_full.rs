//! Disks that are full: what needs room says so and leaves nothing half made, and what makes
//! room works.

#[path = "registry/common.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod common;
#[path = "support/http_server.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod http_server;
#[path = "support/in_part.rs"]
mod in_part;
#[path = "support/looks.rs"]
mod looks;
#[path = "disk_full/making_room.rs"]
mod making_room;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/registry.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod registry;
#[path = "support/small_disk.rs"]
mod small_disk;
mod support;
#[path = "support/tree.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tree;
#[path = "disk_full/walk.rs"]
mod walk;

use std::process::ExitCode;
use std::time::Duration;

use hostagent::image::digest::Digest;
use hostagent::lazy::FetchError;
use libtest_mimic::Failed;
use small_disk::{SmallDisk, SmallStore, Test};
use support::{Layout, Mote, Stored, layer, noise};
use walk::Walk;

const TESTS: &[Test] = &[
    (
        "a_load_that_fills_the_disk_says_so_and_leaves_nothing_half_made",
        load,
    ),
    (
        "a_pull_that_fills_the_disk_says_so_and_leaves_nothing_half_made",
        pull,
    ),
    (
        "a_layer_that_fitted_stays_and_nothing_of_the_one_that_did_not",
        what_fits,
    ),
    (
        "a_fetch_from_a_peer_that_fills_the_disk_says_so_and_leaves_nothing_half_made",
        fetch,
    ),
    (
        "a_read_of_what_the_disk_has_no_room_for_fails_with_the_reason",
        lazy_read,
    ),
    (
        "a_save_that_fills_the_disk_while_it_completes_an_image_goes_on_the_next_time",
        complete,
    ),
    (
        "a_verification_that_finds_no_room_for_what_it_fetches_mends_it_the_next_time",
        mend,
    ),
    (
        "an_archive_that_fills_its_disk_leaves_the_one_before_in_its_place",
        archive,
    ),
    ("a_layout_that_fills_its_disk_leaves_nothing_of_it", layout),
    (
        "on_a_full_disk_images_are_named_removed_and_saved_elsewhere",
        making_room::full,
    ),
    ("on_a_full_disk_an_image_is_pushed", making_room::push),
    (
        "what_a_pull_has_filled_a_removal_frees_for_it",
        making_room::after_a_pull,
    ),
];

fn main() -> ExitCode {
    small_disk::run_tests(TESTS)
}

/// Layers of a few pages.
fn layers(seed: u32) -> Vec<Vec<u8>> {
    [3_000, 150_000, 20_000]
        .iter()
        .zip(seed..)
        .map(|(bytes, seed)| layer(&[("data", &noise(seed, *bytes))]))
        .collect()
}

fn load() -> Result<(), Failed> {
    let layout = Layout::with_image(&layers(1), Stored::Gzip, "app:v1");
    let reference = layout.reference("app:v1");
    let walk = Walk {
        before: &Mote::new(),
        arguments: &["load", &reference],
        damaged: false,
        code: 125,
        pages: 1,
        least: 3,
    };
    walk.go()
}

fn pull() -> Result<(), Failed> {
    let (_server, name) = registry::with_image(&layers(1));
    let walk = Walk {
        before: &Mote::new(),
        arguments: &["pull", &name],
        damaged: false,
        code: 125,
        pages: 1,
        least: 3,
    };
    walk.go()
}

fn fetch() -> Result<(), Failed> {
    let pair = peer::with_image(&layers(1));
    let walk = Walk {
        before: &pair.taker,
        arguments: &["node", "fetch", &pair.id],
        damaged: false,
        code: 125,
        pages: 1,
        least: 2,
    };
    walk.go()
}

fn what_fits() -> Result<(), Failed> {
    let layers = [
        layer(&[("fits", &noise(1, 1_000_000))]),
        layer(&[("does not", &noise(2, 30_000_000))]),
    ];
    let layout = Layout::with_image(&layers, Stored::Gzip, "t");
    let SmallStore { disk, mote } = &SmallStore::copy(&Mote::new());
    disk.resize(2048);
    let load = || mote.run(&["load", &layout.reference("t")]);
    load().expect_failure(&["no space left", "MiB are free", "MOTE_ROOT"]);
    let left: Vec<_> = tree::files(mote.root.path()).into_keys().collect();
    let kept = Digest::of(&layers[0]).hex();
    let count = |part: &str| {
        let paths = left.iter().map(|path| path.to_str().unwrap());
        paths.filter(|path| path.contains(part)).count()
    };
    let counted = ["layers/", &kept, "/data", "staging/"].map(count);
    assert_eq!(counted, [1, 1, 2, 0], "{left:?}");
    disk.make_room();
    load().expect(0);
    Ok(())
}

fn lazy_read() -> Result<(), Failed> {
    let (_server, name, _) = in_part::pushed(&layers(1));
    let SmallStore { disk, mote } = &SmallStore::copy(&Mote::new());
    let (told, reasons) = std::sync::mpsc::channel();
    let tell = move |error: &FetchError| drop(told.send(report(error)));
    let started = in_part::start_at(mote.root.path(), &name, Box::new(tell))?;
    disk.fill();
    assert!(!in_part::read(&started)?.present);
    let reason = reasons.recv_timeout(Duration::from_secs(10))?;
    for words in ["no space left for the store", "MiB are free", "MOTE_ROOT"] {
        assert!(reason.contains(words), "{reason}");
    }
    // The guest may read again, and does when there is room.
    disk.make_room();
    assert!(in_part::read(&started)?.present);
    drop(started);
    mote.run(&["pull", &name]).expect(0);
    mote.run(&["store", "verify"]).expect(0);
    mote.assert_consistent();
    Ok(())
}

/// An error, and what led to it.
fn report(error: &FetchError) -> String {
    let first: &dyn std::error::Error = error;
    let errors = std::iter::successors(Some(first), |error| error.source());
    let words: Vec<String> = errors.map(ToString::to_string).collect();
    words.join(": ")
}

fn complete() -> Result<(), Failed> {
    let (_server, name, _) = in_part::pushed(&layers(1));
    let before = Mote::new();
    in_part::begin(before.root.path(), &name)?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("app.tar");
    let walk = Walk {
        before: &before,
        arguments: &["save", "-o", archive.to_str().unwrap(), &name],
        damaged: false,
        code: 125,
        pages: 1,
        least: 2,
    };
    walk.go()
}

fn mend() -> Result<(), Failed> {
    let layers = layers(1);
    let (_server, name) = registry::with_image(&layers);
    let before = Mote::new();
    before.run(&["pull", &name]).expect(0);
    support::flip_bit(&before.layer_blob(Digest::of(&layers[1])).join("data"));
    let walk = Walk {
        before: &before,
        arguments: &["store", "verify"],
        damaged: true,
        code: 1,
        pages: 1,
        least: 1,
    };
    walk.go()
}

fn archive() -> Result<(), Failed> {
    saved_to("app.tar", "")
}

fn layout() -> Result<(), Failed> {
    saved_to("layout", "oci:")
}

/// Saves to a disk on which something is already, until it has room for both.
fn saved_to(name: &str, kind: &str) -> Result<(), Failed> {
    let large = Layout::with_image(&layers(1), Stored::Gzip, "large:v1");
    let small = Layout::with_image(&[layer(&[])], Stored::Gzip, "small:v1");
    let mote = Mote::new();
    mote.load(&large.reference("large:v1"));
    mote.load(&small.reference("small:v1"));
    let directory = tempfile::tempdir()?;
    let disk = SmallDisk::on(directory.path());
    let place = directory.path().join(name);
    let place = place.to_str().unwrap();
    let output = format!("{kind}{place}");
    mote.run(&["save", "-o", &output, "small:v1"]).expect(0);
    let before = tree::files(directory.path());
    let used = disk.used();
    let loaded = || {
        let other = Mote::new();
        let input: &[&str] = match kind {
            "" => &["-i", place],
            _ => &[&output],
        };
        other.run(&[&["load"], input].concat()).expect(0);
        other.images()
    };
    // As many as have failed.
    for pages in 0..100 {
        disk.resize(used + pages);
        let run = mote.run(&["save", "-o", &output, "large:v1"]);
        if run.code == Some(0) {
            assert!(pages >= 40, "{pages}");
            assert_eq!(loaded(), ["large:v1"]);
            return Ok(());
        }
        run.expect_failure(&[&format!("cannot write {place}"), "No space left on device"]);
        assert_eq!(tree::files(directory.path()), before, "{pages} pages");
        assert_eq!(disk.used(), used, "{pages} pages");
        assert_eq!(loaded(), ["small:v1"], "{pages} pages");
    }
    Err("it never succeeds".into())
}
