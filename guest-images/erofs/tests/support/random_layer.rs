//! Random layers that agree with themselves: what merging them gives is not a
//! matter of order.

use proptest::collection::vec;
use proptest::prelude::*;

use super::tar_builder::{Header, TarBuilder};

/// One entry of a random layer. Few names, so that they meet.
#[derive(Debug, Clone)]
pub struct EntrySpec {
    pub path: Vec<&'static str>,
    pub kind: KindSpec,
    pub mode: u32,
    pub uid: u32,
    pub xattr: Option<u8>,
}

#[derive(Debug, Clone)]
pub enum KindSpec {
    Directory,
    OpaqueDirectory,
    File(Vec<u8>),
    Sparse,
    Symlink(&'static str),
    HardLink(prop::sample::Index),
    Fifo,
    Whiteout,
}

fn entry() -> impl Strategy<Value = EntrySpec> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let kind = prop_oneof![
        4 => Just(KindSpec::Directory),
        1 => Just(KindSpec::OpaqueDirectory),
        4 => vec(any::<u8>(), 0..5000).prop_map(KindSpec::File),
        1 => Just(KindSpec::Sparse),
        1 => prop::sample::select(vec!["a", "/b/c", "../a"]).prop_map(KindSpec::Symlink),
        2 => any::<prop::sample::Index>().prop_map(KindSpec::HardLink),
        1 => Just(KindSpec::Fifo),
        3 => Just(KindSpec::Whiteout),
    ];
    (
        vec(name, 1..4),
        kind,
        0..0o10000_u32,
        0..100_000_u32,
        prop::option::of(any::<u8>()),
    )
        .prop_map(|(path, kind, mode, uid, xattr)| EntrySpec {
            path,
            kind,
            mode,
            uid,
            xattr,
        })
}

/// One to four layers, the lowest first.
pub fn layers() -> impl Strategy<Value = Vec<Vec<EntrySpec>>> {
    vec(vec(entry(), 0..12).prop_map(consistent), 1..5)
}

/// Puts an entry for the root and for each other directory that has none before
/// what is in it: all that overlayfs knows is what a layer says itself.
pub fn describe_parents(entries: &[EntrySpec]) -> Vec<EntrySpec> {
    let mut described: Vec<EntrySpec> = Vec::new();
    for entry in entries {
        for length in 0..entry.path.len() {
            let path = &entry.path[..length];
            let is_there = |other: &EntrySpec| {
                other.path == path
                    && matches!(other.kind, KindSpec::Directory | KindSpec::OpaqueDirectory)
            };
            if !described.iter().chain(entries).any(is_there) {
                described.push(EntrySpec {
                    path: path.to_vec(),
                    kind: KindSpec::Directory,
                    mode: 0o751,
                    uid: 17,
                    xattr: None,
                });
            }
        }
        described.push(entry.clone());
    }
    described
}

/// The content of every [`KindSpec::Sparse`].
pub fn sparse_content() -> Vec<u8> {
    let mut content = vec![0; 90_000];
    content[..5].copy_from_slice(b"hello");
    content[80_000..80_005].copy_from_slice(b"world");
    content
}

/// Leaves out of a layer what would be an error or depend on order: the rules
/// for that are tested elsewhere.
fn consistent(entries: Vec<EntrySpec>) -> Vec<EntrySpec> {
    let mut kept: Vec<EntrySpec> = Vec::new();
    for entry in entries {
        let is_parent = |other: &EntrySpec| !matches!(other.kind, KindSpec::Whiteout);
        let is_directory = |other: &EntrySpec| {
            matches!(other.kind, KindSpec::Directory | KindSpec::OpaqueDirectory)
        };
        let clash = kept.iter().any(|other| {
            let same = other.path == entry.path && is_parent(other) == is_parent(&entry);
            let below = |upper: &EntrySpec, lower: &EntrySpec| {
                upper.path.len() < lower.path.len()
                    && lower.path.starts_with(&upper.path)
                    && is_parent(upper)
                    && !is_directory(upper)
            };
            same || below(other, &entry) || below(&entry, other)
        });
        if !clash {
            kept.push(entry);
        }
    }
    kept
}

/// The layer as a tar stream.
pub fn tar_of(entries: &[EntrySpec]) -> Vec<u8> {
    let mut tar = TarBuilder::new();
    let mut linkable: Vec<String> = Vec::new();
    for entry in entries {
        let path = match entry.path.join("/") {
            root if root.is_empty() => "./".to_owned(),
            path => path,
        };
        let (name, parents) = entry.path.split_last().unwrap_or((&"", &[]));
        let beside = |marker: String| [parents, &[&marker[..]]].concat().join("/");
        let xattr_value = entry.xattr.map(|value| [value]);
        let xattr: Vec<(&str, &[u8])> = xattr_value
            .iter()
            .map(|value| ("SCHILY.xattr.user.x", &value[..]))
            .collect();
        let header = Header {
            path: path.as_bytes(),
            mode: entry.mode,
            uid: entry.uid,
            ..Header::default()
        };
        let with_xattr = |tar: TarBuilder| match xattr.is_empty() {
            true => tar,
            false => tar.pax(&xattr),
        };
        let of_type = |type_flag| Header {
            type_flag,
            ..header.clone()
        };
        tar = match &entry.kind {
            KindSpec::Directory => with_xattr(tar).add(&of_type(b'5')),
            KindSpec::OpaqueDirectory => with_xattr(tar)
                .add(&of_type(b'5'))
                .file(&format!("{path}/.wh..wh..opq"), b""),
            KindSpec::File(data) => with_xattr(tar).add(&Header {
                data,
                ..header.clone()
            }),
            KindSpec::Sparse => {
                let mut records = xattr.clone();
                records.push(("GNU.sparse.size", b"90000"));
                records.push(("GNU.sparse.map", b"0,5,80000,5"));
                tar.pax(&records).add(&Header {
                    data: b"helloworld",
                    ..header.clone()
                })
            }
            KindSpec::Symlink(target) => with_xattr(tar).add(&Header {
                link: target.as_bytes(),
                ..of_type(b'2')
            }),
            KindSpec::Fifo => with_xattr(tar).add(&of_type(b'6')),
            KindSpec::Whiteout => tar.file(&beside(format!(".wh.{name}")), b""),
            KindSpec::HardLink(index) => {
                if linkable.is_empty() {
                    tar
                } else {
                    tar.hard_link(&path, index.get(&linkable).as_str())
                }
            }
        };
        if !matches!(
            entry.kind,
            KindSpec::Directory
                | KindSpec::OpaqueDirectory
                | KindSpec::Whiteout
                | KindSpec::HardLink(_)
        ) {
            linkable.push(path);
        }
    }
    tar.finish()
}
