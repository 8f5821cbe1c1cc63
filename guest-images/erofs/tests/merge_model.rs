//! Merged layers against a model that knows nothing but paths.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::random_layer::{self, EntrySpec, KindSpec};
use support::snapshot::{self, Content, Facts, Snapshot, assert_same};
use support::tar_builder::TarBuilder;
use support::tools;

/// What an image is to look like.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, ModelNode>,
    next_file: usize,
}

#[derive(Clone)]
struct ModelNode {
    content: Content,
    mode: u32,
    uid: u32,
    mtime: i64,
    xattr: Option<u8>,
    /// Names of one file have the same number.
    file: usize,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        model.put_undescribed(String::new());
        model
    }

    fn put_undescribed(&mut self, path: String) {
        self.next_file += 1;
        let node = ModelNode {
            content: Content::Directory,
            mode: 0o755,
            uid: 0,
            mtime: 0,
            xattr: None,
            file: self.next_file,
        };
        self.nodes.insert(path, node);
    }

    fn is_directory(&self, path: &str) -> bool {
        let node = self.nodes.get(path);
        node.is_some_and(|node| node.content == Content::Directory)
    }

    fn remove_below(&mut self, path: &str) {
        let prefix = format!("{path}/");
        self.nodes.retain(|other, _| !other.starts_with(&prefix));
    }

    fn remove(&mut self, path: &str) {
        self.remove_below(path);
        self.nodes.remove(path);
    }

    /// Applies a layer in which no path occurs twice and no parent is anything
    /// but a directory.
    fn apply(&mut self, entries: &[EntrySpec]) {
        // First what hides: it concerns the lower layers only.
        for entry in entries {
            match entry.kind {
                KindSpec::Whiteout => self.remove(&entry.path.join("/")),
                KindSpec::OpaqueDirectory => self.remove_below(&entry.path.join("/")),
                _ => {}
            }
        }
        let mut linkable: Vec<String> = Vec::new();
        for entry in entries {
            if matches!(entry.kind, KindSpec::HardLink(_)) && linkable.is_empty() {
                continue;
            }
            for length in 1..entry.path.len() {
                let parent = entry.path[..length].join("/");
                if !self.is_directory(&parent) {
                    self.remove(&parent);
                    self.put_undescribed(parent);
                }
            }
            let path = entry.path.join("/");
            let content = match &entry.kind {
                KindSpec::Whiteout => continue,
                KindSpec::HardLink(index) => {
                    let target = self.nodes[index.get(&linkable).as_str()].clone();
                    self.remove(&path);
                    self.nodes.insert(path, target);
                    continue;
                }
                KindSpec::Directory | KindSpec::OpaqueDirectory => Content::Directory,
                KindSpec::File(bytes) => Content::File(bytes.clone()),
                KindSpec::Sparse => Content::File(random_layer::sparse_content()),
                KindSpec::Symlink(target) => Content::Symlink(target.as_bytes().to_vec()),
                KindSpec::Fifo => Content::Fifo,
            };
            if content == Content::Directory {
                if !self.is_directory(&path) {
                    self.remove(&path);
                }
            } else {
                self.remove(&path);
                linkable.push(path.clone());
            }
            self.next_file += 1;
            let node = ModelNode {
                content,
                mode: entry.mode,
                uid: entry.uid,
                mtime: 1_700_000_000,
                xattr: entry.xattr,
                file: self.next_file,
            };
            self.nodes.insert(path, node);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new();
        for (path, node) in &self.nodes {
            let same_file = |other: &&String| self.nodes[*other].file == node.file;
            let names: Vec<_> = self.nodes.keys().filter(same_file).collect();
            let is_subdirectory = |other: &&String| {
                let parent = other.rsplit_once('/').map_or("", |(parent, _)| parent);
                !other.is_empty() && parent == path && self.is_directory(other)
            };
            let links = match node.content {
                Content::Directory => 2 + self.nodes.keys().filter(is_subdirectory).count(),
                _ => names.len(),
            };
            let facts = Facts {
                content: node.content.clone(),
                permissions: node.mode,
                uid: node.uid,
                gid: 0,
                mtime: (node.mtime, 0),
                xattrs: (node.xattr.iter())
                    .map(|value| (b"user.x".to_vec(), vec![*value]))
                    .collect(),
                links: links as u64,
                first_name: names[0].clone().into_bytes(),
            };
            snapshot.insert(path.clone().into_bytes(), facts);
        }
        snapshot
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1000)
    })]

    #[test]
    fn merged_layers_look_like_the_model(layers in random_layer::layers()) {
        let mut model = Model::new();
        let mut blobs = Vec::new();
        for entries in layers {
            model.apply(&entries);
            blobs.push(tools::blob_of(&random_layer::tar_of(&entries)));
        }
        let disk = tools::disk_of(&blobs);
        let merged = snapshot::of_image(&tools::open(&disk));
        assert_same(&model.snapshot(), &merged, "the merged image");
    }
}

/// The merged tree of these layers, which `fsck.erofs` finds sound.
fn merged(layers: &[TarBuilder]) -> Snapshot {
    let tars = layers.iter().map(|tar| tar.clone().finish());
    let blobs: Vec<_> = tars.map(|tar| tools::blob_of(&tar)).collect();
    let disk = tools::disk_of(&blobs);
    tools::fsck(&disk);
    snapshot::of_image(&tools::open(&disk))
}

fn paths(tree: &Snapshot) -> Vec<String> {
    let text = |path: &Vec<u8>| String::from_utf8(path.clone()).unwrap();
    tree.keys()
        .map(text)
        .filter(|path| !path.is_empty())
        .collect()
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let tree = merged(&[]);
    assert_eq!(tree.len(), 1);
    assert_eq!(tree[&b""[..]].permissions, 0o755);
}

#[test]
fn a_layer_cannot_reach_through_the_symbolic_links_of_another() {
    let tree = merged(&[
        TarBuilder::new()
            .directory("etc", 0o755)
            .file("etc/passwd", b"root")
            .symlink("innocent", "etc")
            .symlink("absolute", "/etc"),
        TarBuilder::new()
            .file("innocent/passwd", b"evil")
            .directory("absolute", 0o755)
            .file("absolute/.wh.passwd", b""),
    ]);
    assert_eq!(
        tree[&b"etc/passwd"[..]].content,
        Content::File(b"root".into())
    );
    assert_eq!(tree[&b"innocent"[..]].content, Content::Directory);
    assert_eq!(
        paths(&tree),
        [
            "absolute",
            "etc",
            "etc/passwd",
            "innocent",
            "innocent/passwd"
        ]
    );
}

#[test]
fn a_directory_that_a_layer_does_not_describe_keeps_its_attributes() {
    let tree = merged(&[
        TarBuilder::new()
            .directory("./", 0o711)
            .pax(&[("SCHILY.xattr.user.a", b"1"), ("uid", b"70000")])
            .directory("d", 0o700),
        TarBuilder::new().file("d/f", b"x"),
        TarBuilder::new().file("d/.wh.g", b""),
    ]);
    assert_eq!(tree[&b""[..]].permissions, 0o711);
    let directory = &tree[&b"d"[..]];
    assert_eq!((directory.permissions, directory.uid), (0o700, 70_000));
    assert_eq!(directory.xattrs.len(), 1);
}

#[test]
fn an_upper_directory_brings_its_own_extended_attributes_only() {
    let tree = merged(&[
        TarBuilder::new()
            .pax(&[("SCHILY.xattr.user.lower", b"1")])
            .directory("d", 0o700)
            .file("d/kept", b"x"),
        TarBuilder::new()
            .pax(&[("SCHILY.xattr.user.upper", b"2")])
            .directory("d", 0o750),
    ]);
    assert_eq!(paths(&tree), ["d", "d/kept"]);
    let directory = &tree[&b"d"[..]];
    assert_eq!(directory.permissions, 0o750);
    let names: Vec<_> = directory.xattrs.keys().cloned().collect();
    assert_eq!(names, [b"user.upper".to_vec()]);
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let tree = merged(&[
        TarBuilder::new().file("a", b"x").file("b/c", b"x"),
        TarBuilder::new().file(".wh..wh..opq", b"").file("d", b"y"),
    ]);
    assert_eq!(paths(&tree), ["d"]);
    assert!(tree[&b""[..]].xattrs.is_empty());
}

#[test]
fn whiteouts_of_what_is_not_there_leave_nothing_behind() {
    let tree = merged(&[
        TarBuilder::new().file("a/.wh.b", b"").file(".wh.c", b""),
        TarBuilder::new().file(".wh.a", b""),
    ]);
    assert!(paths(&tree).is_empty());
}

#[test]
fn a_device_that_overlayfs_takes_for_a_whiteout_is_one() {
    let tree = merged(&[
        TarBuilder::new().file("a", b"x"),
        TarBuilder::new().char_device("a", 0, 0),
    ]);
    assert!(paths(&tree).is_empty());
}

#[test]
fn hard_links_stay_together_until_one_name_is_replaced() {
    let lower = TarBuilder::new()
        .file("a", b"shared")
        .hard_link("b", "a")
        .hard_link("c", "a");
    let tree = merged(&[lower.clone(), TarBuilder::new().file("d", b"")]);
    assert_eq!(tree[&b"c"[..]].links, 3);
    assert_eq!(tree[&b"c"[..]].first_name, b"a");
    let tree = merged(&[lower, TarBuilder::new().file("a", b"own")]);
    assert_eq!(tree[&b"a"[..]].links, 1);
    assert_eq!(tree[&b"b"[..]].links, 2);
    assert_eq!(tree[&b"c"[..]].first_name, b"b");
}
