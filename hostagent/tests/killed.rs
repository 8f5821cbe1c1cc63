//! `kill -9` at every step of the commands that change the store: at each system call by
//! which one changes files. Afterwards the store is as before or as after, and the next
//! command makes it what it would have been.

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
#[path = "support/registry.rs"]
mod registry;
mod support;
#[path = "support/tracer.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tracer;
#[path = "support/tree.rs"]
mod tree;
#[path = "killed/walk.rs"]
mod walk;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;
use support::{Layout, Mote, Stored, layer, noise};
use walk::Walk;

const TESTS: &[tracer::Test] = &[
    (
        "a_load_that_is_killed_at_any_step_is_made_good_by_the_next",
        load,
    ),
    (
        "a_pull_that_is_killed_at_any_step_is_made_good_by_the_next",
        pull,
    ),
    (
        "a_verification_that_is_killed_at_any_step_mends_all_the_next_time",
        mend,
    ),
    (
        "a_push_that_is_killed_at_any_step_leaves_the_store_alone",
        push,
    ),
    (
        "a_save_that_is_killed_while_it_completes_an_image_is_made_good_by_the_next",
        save,
    ),
    (
        "a_removal_that_is_killed_at_any_step_harms_no_other_image",
        rmi,
    ),
    (
        "a_prune_that_is_killed_at_any_step_harms_no_other_image",
        prune,
    ),
];

fn main() -> ExitCode {
    tracer::run_tests(TESTS)
}

/// Small layers, and one of several spans of its hash tree.
fn layers(seed: u32) -> Vec<Vec<u8>> {
    [3_000, 1_500_000, 40_000]
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
        least: 150,
    };
    walk.go()
}

fn pull() -> Result<(), Failed> {
    let (_server, name) = registry::with_image(&layers(1));
    let walk = Walk {
        before: &Mote::new(),
        arguments: &["pull", &name],
        damaged: false,
        least: 150,
    };
    walk.go()
}

fn mend() -> Result<(), Failed> {
    let layers = layers(1);
    let (_server, name) = registry::with_image(&layers);
    let before = Mote::new();
    before.run(&["pull", &name]).expect(0);
    let data = before.layer_blob(Digest::of(&layers[1])).join("data");
    let data = File::options().write(true).open(data).unwrap();
    data.write_all_at(b"wrong", 1_200_000).unwrap();
    let walk = Walk {
        before: &before,
        arguments: &["store", "verify"],
        damaged: true,
        least: 60,
    };
    walk.go()
}

fn push() -> Result<(), Failed> {
    let server = registry::start(Default::default());
    let name = format!("{}/app:v1", server.host());
    let layout = Layout::with_image(&layers(1), Stored::Gzip, &name);
    let before = Mote::new();
    before.load(&layout.reference(&name));
    let walk = Walk {
        before: &before,
        arguments: &["push", &name],
        damaged: false,
        least: 15,
    };
    walk.go()
}

fn save() -> Result<(), Failed> {
    let (_server, name, other) = in_part::pushed(&layers(1));
    let before = Mote::new();
    in_part::begin(before.root.path(), &name)?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("app.tar");
    let walk = Walk {
        before: &before,
        arguments: &["save", "-o", archive.to_str().unwrap(), &name],
        damaged: false,
        least: 200,
    };
    walk.go()?;
    let saved = std::fs::read(&archive)?;
    other.run(walk.arguments).expect(0);
    assert!(std::fs::read(&archive)? == saved, "another image was saved");
    Ok(())
}

/// A store with two images that share a layer: `one` and `two`.
fn two_images() -> Mote {
    let mote = Mote::new();
    let (mut one, two) = (layers(1), layers(11));
    one[0] = two[0].clone();
    for (layers, tag) in [(one, "one:v1"), (two, "two:v1")] {
        let layout = Layout::with_image(&layers, Stored::Gzip, tag);
        mote.load(&layout.reference(tag));
    }
    mote
}

fn rmi() -> Result<(), Failed> {
    let before = two_images();
    let walk = Walk {
        before: &before,
        // Where it was removed before it was killed, there is no such image.
        arguments: &["rmi", "--force", "one:v1"],
        damaged: false,
        least: 40,
    };
    walk.go()
}

fn prune() -> Result<(), Failed> {
    let before = two_images();
    before.run(&["tag", "two:v1", "one:v1"]).expect(0);
    let walk = Walk {
        before: &before,
        arguments: &["image", "prune", "--force"],
        damaged: false,
        least: 40,
    };
    walk.go()
}
