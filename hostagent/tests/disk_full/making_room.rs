//! What must work on a full disk, for it is how room is made.

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;

use crate::looks::Looks;
use crate::small_disk::SmallStore;
use crate::support::{Layout, Mote, Stored};
use crate::{in_part, layers, registry, support};

/// A store with the images `one` and `two`, an image without a name, and something in
/// quarantine.
fn with_images() -> Mote {
    let mote = Mote::new();
    for (tag, seed) in [("one:v1", 1), ("two:v1", 11), ("two:v1", 21)] {
        let layout = Layout::with_image(&layers(seed), Stored::Gzip, tag);
        mote.load(&layout.reference(tag));
    }
    // The one that was loaded first is damaged, and loaded again.
    support::flip_bit(&mote.layer_blob(Digest::of(&layers(1)[1])).join("data"));
    mote.run(&["store", "verify", "--no-fetch"]).expect(1);
    let layout = Layout::with_image(&layers(1), Stored::Gzip, "one:v1");
    mote.load(&layout.reference("one:v1"));
    mote
}

pub fn full() -> Result<(), Failed> {
    let before = with_images();
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("archive");
    let archive = archive.to_str().unwrap();
    let commands: [&[&str]; 10] = [
        &["images"],
        &["tag", "one:v1", "three:v1"],
        &["rmi", "one:v1"],
        &["rmi", "--no-prune", "one:v1"],
        &["rmi", "one:v1", "two:v1"],
        &["image", "prune", "--force"],
        &["image", "prune", "--all", "--force"],
        &["system", "df"],
        &["store", "verify"],
        &["save", "-o", archive, "one:v1", "two:v1"],
    ];
    for command in commands {
        works_when_full(&before, command);
    }
    let (_server, name, _) = in_part::pushed(&layers(1));
    let before = Mote::new();
    in_part::begin(before.root.path(), &name)?;
    works_when_full(&before, &["rmi", &name]);
    Ok(())
}

/// On a disk without a free page, as often as one likes, it does what it does elsewhere.
fn works_when_full(before: &Mote, command: &[&str]) {
    let ample = SmallStore::copy(before);
    ample.mote.run(command).expect(0);
    let SmallStore { disk, mote } = &SmallStore::copy(before);
    disk.fill();
    mote.run(command).expect(0);
    assert_eq!(Looks::of(mote), Looks::of(&ample.mote), "{command:?}");
    // Names come and go.
    for number in 0..20 {
        let mut names = mote.images().into_iter();
        let Some(name) = names.find(|name| !name.contains("<none>")) else {
            break;
        };
        let other = format!("other:v{number}");
        mote.run(&["tag", &name, &other]).expect(0);
        mote.run(&["rmi", &other]).expect(0);
    }
    mote.assert_consistent();
}

pub fn push() -> Result<(), Failed> {
    let server = registry::start(Default::default());
    let name = format!("{}/app:v1", server.host());
    let layout = Layout::with_image(&layers(1), Stored::Gzip, &name);
    let before = Mote::new();
    before.load(&layout.reference(&name));
    let SmallStore { disk, mote } = &SmallStore::copy(&before);
    disk.fill();
    mote.run(&["push", &name]).expect(0);
    mote.assert_consistent();
    // All of it is there: converted, too.
    let other = Mote::new();
    in_part::begin(other.root.path(), &name)?;
    other.run(&["pull", &name]).expect(0);
    other.assert_consistent();
    Ok(())
}

pub fn after_a_pull() -> Result<(), Failed> {
    let (_server, name) = registry::with_image(&layers(31));
    let before = with_images();
    let SmallStore { disk, mote } = &SmallStore::copy(&before);
    disk.fill();
    let words = ["no space left for the store", "MiB are free"];
    mote.run(&["pull", &name]).expect_failure(&words);
    mote.run(&["image", "prune", "--all", "--force"]).expect(0);
    mote.run(&["pull", &name]).expect(0);
    assert_eq!(mote.images(), [name]);
    mote.assert_consistent();
    Ok(())
}
