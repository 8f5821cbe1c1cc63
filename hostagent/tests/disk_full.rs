//! A disk that fills up during a load. Needs a file system of its own: a small
//! tmpfs in a private mount namespace, which takes root or user namespaces.

mod support;

use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{Layout, Mote, Run, Stored, layer, noise};

/// How a program gets a mount namespace here, if at all.
fn unshare() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    WAYS.into_iter().find(|flags| {
        let script = "mount -t tmpfs none /mnt";
        let mut command = Command::new("unshare");
        command.args(*flags).args(["sh", "-c", script]);
        command.output().is_ok_and(|output| output.status.success())
    })
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let way = unshare();
    let trial = Trial::test(
        "a_full_disk_is_named_and_nothing_half_made_stays_on_it",
        move || match way {
            Some(flags) => full_disk(flags),
            None => Err(Failed::from("there is no way to mount a file system here")),
        },
    );
    let trials = vec![trial.with_ignored_flag(way.is_none())];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn full_disk(flags: &[&str]) -> Result<(), Failed> {
    let layers = vec![
        layer(&[("fits", &noise(1, 1_000_000))]),
        layer(&[("does not", &noise(2, 30_000_000))]),
    ];
    let layout = Layout::with_image(&layers, Stored::Gzip, "t");
    let mote = Mote::new();
    let script = r#"
        mount -t tmpfs -o size=8m none "$MOTE_ROOT" || exit 1
        "$0" load "$1"; echo "code $?"
        "$0" images --format json; echo "images $?"
        find "$MOTE_ROOT" -type f -printf '%P %s\n'
        mount -t tmpfs -o remount,size=80m none "$MOTE_ROOT" || exit 1
        "$0" load "$1"; echo "again $?"
    "#;
    let mut command = Command::new("unshare");
    command
        .args(flags)
        .args(["sh", "-c", script, env!("CARGO_BIN_EXE_mote")])
        .arg(layout.reference("t"))
        .env("MOTE_ROOT", mote.root.path());
    let run = Run::of(command.output()?).expect(0);

    assert!(run.stdout.contains("code 125\nimages 0\n"), "{run:#?}");
    assert!(run.stdout.contains("again 0"), "{run:#?}");
    for word in ["no space left", "MiB are free", "MOTE_ROOT"] {
        assert!(run.stderr.contains(word), "{run:#?}");
    }
    let count = |part: &str| {
        run.stdout
            .lines()
            .filter(|line| line.contains(part))
            .count()
    };
    // The layer that fitted is whole and stays; of the other there is nothing.
    let kept = hostagent::image::digest::Digest::of(&layers[0]).hex();
    let left = ["layers/", &kept, "blobs/", "staging/"].map(count);
    assert_eq!(left, [1, 1, 4, 0], "{run:#?}");
    Ok(())
}
