//! Power that fails while `mote` works on its store: what was not synced is lost, or a part
//! of it. What a command has said to have done is there all the same, and all of the
//! images; the next command works.
//!
//! Which changes are on disk for certain is a matter of what was synced, and is modelled
//! here for any file system ([`disk`]); the changes are those of the real `mote`.

#[path = "registry/common.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod common;
#[path = "power_loss/disk.rs"]
mod disk;
#[path = "power_loss/fetched.rs"]
mod fetched;
#[path = "power_loss/history.rs"]
mod history;
#[path = "support/http_server.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod http_server;
#[path = "support/in_part.rs"]
mod in_part;
#[path = "support/registry.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod registry;
mod support;
#[path = "support/tracer.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tracer;

use std::process::ExitCode;

use history::History;
use libtest_mimic::Failed;
use support::{Layout, Stored, layer, noise};

const TESTS: &[tracer::Test] = &[
    (
        "after_a_power_loss_images_are_whole_and_what_was_done_is_done",
        power_loss,
    ),
    (
        "what_a_killed_command_left_is_on_disk_when_the_next_one_relies_on_it",
        killed_before,
    ),
    (
        "after_a_power_loss_what_was_pulled_is_whole_and_can_be_pulled",
        fetched::pull,
    ),
    (
        "after_a_power_loss_what_is_here_in_part_is_right_and_is_completed",
        fetched::in_part,
    ),
    (
        "after_a_power_loss_what_was_quarantined_is_mended_or_will_be",
        fetched::mend,
    ),
];

fn main() -> ExitCode {
    if let Some(code) = fetched::begin() {
        return code;
    }
    tracer::run_tests(TESTS)
}

/// Two images that share a layer.
fn layouts() -> [Layout; 2] {
    let shared = layer(&[("shared", &noise(1, 40_000))]);
    let own = |seed, bytes| layer(&[("own", &noise(seed, bytes))]);
    let one = [shared.clone(), own(2, 1_200_000), own(3, 3_000)];
    let two = [shared, own(4, 20_000)];
    [
        Layout::with_image(&one, Stored::Gzip, "one:v1"),
        Layout::with_image(&two, Stored::Gzip, "two:v1"),
    ]
}

fn power_loss() -> Result<(), Failed> {
    let [one, two] = layouts();
    let [one, two] = [one.reference("one:v1"), two.reference("two:v1")];
    let mut history = History::new();
    history.run(&["load", &one], &["one:v1"]);
    history.run(&["load", &two], &["one:v1", "two:v1"]);
    history.run(&["rmi", "one:v1"], &["two:v1"]);
    history.run(&["image", "prune", "--force"], &["two:v1"]);
    history.run(&["load", &one], &["one:v1", "two:v1"]);
    let failures = history.failures();
    let states = history.check(&failures, &|mote| mote.run(&["load", &one]));
    println!("{} losses of power, {states} states", failures.len());
    enough(states, 150)
}

/// An error if these states are fewer than there must be.
fn enough(states: usize, least: usize) -> Result<(), Failed> {
    match states >= least {
        true => Ok(()),
        false => Err("too few: the changes are not all seen".into()),
    }
}

fn killed_before() -> Result<(), Failed> {
    // Of one layer: with several, what other threads do when it is killed is not seen.
    let layers = [layer(&[("own", &noise(2, 50_000))])];
    let layout = Layout::with_image(&layers, Stored::Gzip, "one:v1");
    let reference = layout.reference("one:v1");
    let mut states = 0;
    for placed in 1.. {
        let mut history = History::new();
        let arguments = ["load", &reference];
        if !history.run_killed(&arguments, &["one:v1"], placed) {
            break;
        }
        history.run(&arguments, &["one:v1"]);
        states += history.check(&history.ends(), &|mote| mote.run(&["load", &reference]));
    }
    println!("killed before that: {states} states");
    enough(states, 10)
}
