//! What comes from a registry: pulled, completed, or fetched again.

use std::path::Path;
use std::process::{Command, ExitCode};

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;

use crate::history::{History, Images};
use crate::support::{layer, noise};
use crate::{enough, in_part as parts, registry};

/// Set where this program is to begin an image of this name in the store `MOTE_ROOT`.
const BEGIN: &str = "MOTE_TEST_BEGIN";

fn layers(seed: u32) -> Vec<Vec<u8>> {
    [40_000, 300_000, 3_000]
        .iter()
        .zip(seed..)
        .map(|(bytes, seed)| layer(&[("data", &noise(seed, *bytes))]))
        .collect()
}

pub fn pull() -> Result<(), Failed> {
    let (one, mut two) = (layers(1), layers(11));
    two[0] = one[0].clone();
    let (_server, one) = registry::with_image(&one);
    let (_other_server, two) = registry::with_image(&two);
    let mut both = [one.as_str(), two.as_str()];
    both.sort();
    let mut history = History::new();
    history.run(&["pull", &one], &[&one]);
    history.run(&["pull", &two], &both);
    history.run(&["rmi", &one], &[&two]);
    history.run(&["pull", &one], &both);
    let failures = history.failures();
    let states = history.check(&failures, &|mote| mote.run(&["pull", &one]));
    println!("pull: {} losses of power, {states} states", failures.len());
    enough(states, 150)
}

/// In the process that a test has started for that: begins an image.
pub fn begin() -> Option<ExitCode> {
    let name = std::env::var(BEGIN).ok()?;
    let root = std::env::var_os("MOTE_ROOT").unwrap();
    parts::begin(Path::new(&root), &name).unwrap();
    Some(ExitCode::SUCCESS)
}

pub fn in_part() -> Result<(), Failed> {
    let (_server, name, other) = parts::pushed(&layers(1));
    let save = |mote: &crate::support::Mote| {
        let archive = mote.assets().join("archive");
        let run = mote.run(&["save", "-o", archive.to_str().unwrap(), &name]);
        (run, std::fs::read(archive).unwrap_or_default())
    };
    let (_, saved) = save(&other);
    let mut history = History::new();
    let mut begin = Command::new(std::env::current_exe()?);
    begin
        .env(BEGIN, &name)
        .env("MOTE_ROOT", history.mote.root.path());
    history.run_other(begin, "a start", &[&name], Images::InPart);
    let begun = std::fs::read_dir(history.mote.root.path().join("partial"))?;
    assert!(begun.count() > 0);
    let archive = history.mote.assets().join("archive");
    history.run(&["save", "-o", archive.to_str().unwrap(), &name], &[&name]);
    history.run(&["rmi", &name], &[]);
    let failures = history.failures();
    let states = history.check(&failures, &|mote| {
        if mote.images().is_empty() {
            mote.run(&["pull", &name]).expect(0);
        }
        let (run, bytes) = save(mote);
        assert!(bytes == saved, "another image was saved: {run:?}");
        // It is completed, not fetched in another way.
        assert!(!run.stderr.contains("is not used"), "{run:?}");
        run
    });
    println!(
        "in part: {} losses of power, {states} states",
        failures.len()
    );
    enough(states, 150)
}

pub fn mend() -> Result<(), Failed> {
    let layers = layers(1);
    let (_server, name) = registry::with_image(&layers);
    let mut history = History::new();
    history.run(&["pull", &name], &[&name]);
    for layer in &layers[..2] {
        let data = history.mote.layer_blob(Digest::of(layer)).join("data");
        history.damage(&data, &[&name]);
        history.run(&["store", "verify"], &[&name]);
    }
    history.run(&["image", "prune", "--force"], &[&name]);
    let failures = history.failures();
    let states = history.check(&failures, &|mote| {
        mote.run(&["store", "verify"]).expect(0);
        mote.run(&["pull", &name])
    });
    println!("mend: {} losses of power, {states} states", failures.len());
    enough(states, 150)
}
