//! `kill -9` at every step of the commands that change the store: at each system call by
//! which one changes files. Afterwards the store is as before or as after, and the next
//! command makes it what it would have been.

#[path = "registry/common.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod common;
#[path = "support/http_server.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod http_server;
#[path = "killed/registry.rs"]
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
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::never;
use hostagent::image::digest::Digest;
use hostagent::image::remote;
use hostagent::lazy::start;
use hostagent::store::Store;
use http_server::Server;
use libtest_mimic::Failed;
use support::{Layout, Mote, Stored, config, layer, noise};
use vmm::fetch;
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

/// A registry with an image of these layers, and the image's name.
fn served(layers: &[Vec<u8>]) -> (Server, String) {
    let layout = Layout::new();
    let manifest = layout.image(&config(layers), layers, Stored::Gzip);
    let manifest = manifest["digest"].as_str().unwrap();
    let server = registry::start(registry::content(&layout, "v1", manifest));
    let name = format!("{}/app:v1", server.host());
    (server, name)
}

fn pull() -> Result<(), Failed> {
    let (_server, name) = served(&layers(1));
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
    let (_server, name) = served(&layers);
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

/// A store that has recorded an image which was pushed in converted form, and has fetched a
/// little of it.
fn in_part(name: &str) -> Result<Mote, Failed> {
    let mote = Mote::new();
    let store = Arc::new(Store::open(mote.root.path())?);
    let host = name.split('/').next().unwrap();
    let client = Arc::new(common::client(host));
    let resolved = remote::resolve(&client, &name.parse()?, &never())?;
    let source = remote::image(&client, &resolved, &never())?;
    let lazy = start::find(&client, &source, &|_| Ok(()), &never(), &|_| {})?;
    let lazy = lazy.ok_or("there is no converted image")?;
    let image = store.describe_lazy(&source, &lazy);
    let lease = store.lease()?;
    store.record_lazy(&source, &image, &lazy, &lease)?;
    let started = start::start(
        &store,
        &client,
        &image,
        &lazy,
        &never(),
        Box::new(|error| panic!("{error}")),
    )?;
    // The test is the VMM, and reads of the second layer.
    let socket = started.disk.source.as_ref().ok_or("nothing is missing")?;
    let mut socket = UnixStream::from(socket.try_clone()?);
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = fetch::Request {
        id: 0,
        extent: 2,
        first_group: 30,
        groups: 4,
    };
    socket.write_all(&request.encode())?;
    let mut answer = [0; 64];
    let count = socket.read(&mut answer)?;
    let answer = fetch::Reply::decode(&answer[..count]).ok_or("no answer")?;
    assert!(answer.present);
    Ok(mote)
}

fn save() -> Result<(), Failed> {
    let server = registry::start(Default::default());
    let name = format!("{}/app:v1", server.host());
    let layout = Layout::with_image(&layers(1), Stored::Gzip, &name);
    let other = Mote::new();
    other.load(&layout.reference(&name));
    other.run(&["push", &name]).expect(0);
    let before = in_part(&name)?;
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
