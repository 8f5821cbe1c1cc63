//! Layers and images, mounted by the kernel and compared with what GNU tar and
//! overlayfs make of the same.
//!
//! Everything happens on an ext4 file system in a file: trees with extended
//! attributes of users cannot be made on tmpfs of Linux 6.1.

#[path = "../../guest-images/erofs/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::snapshot::{self, Content, Snapshot, assert_same};
use support::tar_builder::TarBuilder;
use support::tools::{self, TAR_FORMATS, run};
use support::{random_layer, random_tree};

/// A folder on ext4, with all that is mounted in it, for as long as it lives.
struct Scratch {
    /// In the order they were mounted; the first is the ext4.
    mounts: Vec<PathBuf>,
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        assert!(
            tools::is_root(),
            "mounting takes root; run these tests with: cargo xtask test"
        );
        prepare_kernel();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ext4");
        File::create(&file).unwrap().set_len(1 << 30).unwrap();
        run("mkfs.ext4", [as_os("-q"), file.clone().into()]);
        let mut scratch = Self {
            mounts: Vec::new(),
            directory,
        };
        let top = scratch.directory.path().join("scratch");
        scratch.mount(&top, ["-o".into(), "loop".into(), file.into()]);
        scratch
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join("scratch").join(name)
    }

    fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn mount<const N: usize>(&mut self, at: &Path, arguments: [OsString; N]) {
        fs::create_dir_all(at).unwrap();
        run("mount", arguments.into_iter().chain([at.into()]));
        self.mounts.push(at.to_owned());
    }

    /// Mounts an EROFS image that is on this file system.
    fn mount_image(&mut self, image: &Path, name: &str) -> PathBuf {
        let at = self.at(name);
        let options = ["-t", "erofs", "-o", "loop,ro"].map(as_os);
        let [a, b, c, d] = options;
        self.mount(&at, [a, b, c, d, image.into()]);
        at
    }

    fn mount_bytes(&mut self, image: &[u8], name: &str) -> PathBuf {
        let file = self.at(&format!("{name}.erofs"));
        fs::write(&file, image).unwrap();
        self.mount_image(&file, name)
    }

    fn unmount(&mut self, at: &Path) {
        run("umount", [at]);
        self.mounts.retain(|mount| mount != at);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            // Not `run`: a second panic would hide the first.
            let _ = std::process::Command::new("umount").arg(mount).status();
        }
    }
}

/// Loads what mount(8) does not ask for by itself.
fn prepare_kernel() {
    static PREPARED: LazyLock<()> = LazyLock::new(|| {
        for module in ["loop", "overlay", "erofs"] {
            // Where it is built in there is nothing to load, and where it is
            // missing the mount says so.
            let _ = std::process::Command::new("modprobe").arg(module).status();
        }
    });
    LazyLock::force(&PREPARED);
}

fn as_os(text: &str) -> OsString {
    text.into()
}

#[test]
fn a_mounted_layer_and_its_image_are_what_gnu_tar_unpacks() {
    let mut scratch = Scratch::new();
    let mut random = TestRunner::default();
    // The crate's own tests try all formats; a mount is dear in the lab.
    for (round, format) in TAR_FORMATS.iter().enumerate().step_by(2) {
        let nodes = random_tree::tree(40..70)
            .new_tree(&mut random)
            .unwrap()
            .current();
        let made = scratch.make_directory(&format!("made{round}"));
        assert!(random_tree::has_user_xattrs(&made));
        random_tree::make(&made, &nodes);
        let archive = scratch.at(&format!("layer{round}.tar"));
        tools::tar_create(&made, &archive, *format);
        let unpacked = scratch.make_directory(&format!("unpacked{round}"));
        tools::tar_extract(&archive, &unpacked);
        let (blob, _) = tools::convert_file(&archive);

        let expected = snapshot::of_directory(&unpacked);
        let mounted = scratch.mount_image(&blob, &format!("mounted{round}"));
        let what = format!("{format:?} of {nodes:?}: the layer");
        assert_same(&expected, &snapshot::of_directory(&mounted), &what);
        scratch.unmount(&mounted);

        let disk = tools::disk_of(&[fs::read(&blob).unwrap()]);
        let mounted = scratch.mount_bytes(&disk, &format!("disk{round}"));
        let what = format!("{format:?} of {nodes:?}: the image");
        assert_same(&expected, &snapshot::of_directory(&mounted), &what);
        scratch.unmount(&mounted);
        for used in [made, unpacked] {
            fs::remove_dir_all(used).unwrap();
        }
    }
}

/// What overlayfs counts differently: names that are hidden remain links.
fn without_links(mut tree: Snapshot) -> Snapshot {
    for facts in tree.values_mut() {
        if facts.content != Content::Directory {
            facts.links = 1;
        }
    }
    tree
}

#[test]
fn merged_layers_are_what_overlayfs_shows_of_them() {
    let mut scratch = Scratch::new();
    let mut random = TestRunner::default();
    for round in 0..3 {
        let layers = random_layer::layers()
            .new_tree(&mut random)
            .unwrap()
            .current();
        // Overlayfs wants two; the root is what the topmost layer says.
        let bottom = TarBuilder::new().directory("./", 0o700).finish();
        let top = TarBuilder::new().directory("./", 0o711).finish();
        let middle = layers.iter().map(|entries| {
            let described = random_layer::describe_parents(entries);
            random_layer::tar_of(&described)
        });
        let tars = [bottom].into_iter().chain(middle).chain([top]);
        let blobs: Vec<_> = tars.map(|tar| tools::blob_of(&tar)).collect();

        let mut mounts = Vec::new();
        for (index, blob) in blobs.iter().enumerate() {
            mounts.push(scratch.mount_bytes(blob, &format!("layer{round}.{index}")));
        }
        let lower: Vec<_> = mounts
            .iter()
            .rev()
            .map(|mount| mount.to_str().unwrap())
            .collect();
        let options = format!("ro,lowerdir={}", lower.join(":"));
        let overlay = scratch.at(&format!("overlay{round}"));
        let [a, b, c, d, e] = ["-t", "overlay", "-o", &options, "overlay"].map(as_os);
        scratch.mount(&overlay, [a, b, c, d, e]);
        let merged = scratch.mount_bytes(&tools::disk_of(&blobs), &format!("merged{round}"));
        assert_same(
            &without_links(snapshot::of_overlay(&overlay)),
            &without_links(snapshot::of_directory(&merged)),
            &format!("{layers:?}"),
        );
        for mount in [merged, overlay].iter().chain(&mounts) {
            scratch.unmount(mount);
        }
    }
}

#[test]
fn every_name_of_a_large_directory_is_found() {
    let mut scratch = Scratch::new();
    let name = |n: u32| format!("{:0width$}", n, width = 6 + (n % 249) as usize);
    let mut tar = TarBuilder::new();
    for n in 0..100_000 {
        tar = tar.file(&format!("d/{}", name(n)), b"");
    }
    let disk = tools::disk_of(&[tools::blob_of(&tar.finish())]);
    let mounted = scratch.mount_bytes(&disk, "mounted").join("d");
    // The kernel bisects to find a name, and reads on to list them.
    for n in (0..100_000).step_by(331) {
        fs::symlink_metadata(mounted.join(name(n))).unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    for absent in ["0", "zzz", "05", &"9".repeat(255)] {
        assert!(fs::symlink_metadata(mounted.join(absent)).is_err());
    }
    let mut listed: Vec<_> = fs::read_dir(&mounted)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.sort();
    let mut expected: Vec<_> = (0..100_000).map(name).collect();
    expected.sort();
    assert!(listed == expected);
}

#[test]
fn a_sparse_file_of_gigabytes_reads_as_it_was() {
    let mut scratch = Scratch::new();
    let made = scratch.make_directory("made");
    let size = 5 << 30;
    let pieces: BTreeMap<u64, &[u8]> = BTreeMap::from([
        (0, &b"begin"[..]),
        (4095, b"across blocks"),
        ((4 << 30) - 3, b"across 32 bits"),
        (size - 3, b"end"),
    ]);
    let file = File::create(made.join("sparse")).unwrap();
    for (offset, bytes) in &pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
    for format in [TAR_FORMATS[1], TAR_FORMATS[5]] {
        let archive = scratch.at("layer.tar");
        tools::tar_create(&made, &archive, format);
        let (blob, summary) = tools::convert_file(&archive);
        assert!(summary.blob_bytes < 1 << 20);
        let disk = tools::disk_of(&[fs::read(&blob).unwrap()]);
        let mounted = scratch.mount_bytes(&disk, "mounted");
        let file = File::open(mounted.join("sparse")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        for (offset, bytes) in &pieces {
            let mut found = vec![1; bytes.len()];
            file.read_exact_at(&mut found, *offset).unwrap();
            assert_eq!(&found, bytes, "{format:?} at {offset}");
        }
        let mut hole = [1; 1 << 16];
        file.read_exact_at(&mut hole, 3 << 30).unwrap();
        assert!(hole == [0; 1 << 16]);
        drop(file);
        scratch.unmount(&mounted);
    }
}

#[test]
fn attributes_that_tar_programs_leave_out_are_there_too() {
    // A POSIX ACL in the kernel's form (linux/posix_acl_xattr.h): version 2,
    // then tag, permissions and id of each entry.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let large = vec![7; 60_000];
    let tar = TarBuilder::new()
        .pax(&[
            ("SCHILY.xattr.system.posix_acl_access", &acl),
            ("SCHILY.xattr.user.large", &large),
            ("SCHILY.xattr.user.empty", b""),
        ])
        .file("f", b"content")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
        .directory("d", 0o755)
        .finish();
    let mut scratch = Scratch::new();
    let disk = tools::disk_of(&[tools::blob_of(&tar)]);
    let mounted = scratch.mount_bytes(&disk, "mounted");
    let get = |file: &str, name: &str| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(mounted.join(file), name, &mut value).unwrap();
        value.truncate(length);
        value
    };
    assert_eq!(get("f", "system.posix_acl_access"), acl);
    assert_eq!(get("d", "system.posix_acl_default"), acl);
    assert!(get("f", "user.large") == large);
    assert!(get("f", "user.empty").is_empty());
}

#[test]
fn the_limits_of_the_format_hold_in_the_kernel() {
    let deep = "d/".repeat(500) + "f";
    let target = "t".repeat(4095);
    let longest = "n".repeat(255);
    let mut tar = TarBuilder::new()
        .file(&deep, b"deep")
        .symlink("s", &target)
        .symlink("short", "t")
        .file(&longest, &[5; 4096]);
    for n in 0..1000 {
        tar = tar.hard_link(&format!("link{n}"), &longest);
    }
    let mut scratch = Scratch::new();
    let disk = tools::disk_of(&[tools::blob_of(&tar.finish())]);
    let mounted = scratch.mount_bytes(&disk, "mounted");
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let mut file = File::open(mounted.join(path)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(read(&deep), b"deep");
    assert_eq!(read(&longest), [5; 4096]);
    assert_eq!(read("link999"), [5; 4096]);
    assert_eq!(
        fs::read_link(mounted.join("s")).unwrap().to_str(),
        Some(&*target)
    );
    assert_eq!(
        fs::read_link(mounted.join("short")).unwrap().to_str(),
        Some("t")
    );
    let metadata = fs::metadata(mounted.join(&longest)).unwrap();
    assert_eq!(metadata.nlink(), 1001);
    let other = fs::metadata(mounted.join("link0")).unwrap();
    assert_eq!(metadata.ino(), other.ino());
}
