//! Random tar streams of every shape that converts, written as no one tar
//! program writes all of them.

use proptest::collection::vec;
use proptest::prelude::*;

use super::tar_builder::{Header, TarBuilder};

/// One entry, with the headers before it.
#[derive(Debug, Clone)]
pub struct EntrySpec {
    /// One of few, so that paths repeat.
    pub path: &'static str,
    pub kind: KindSpec,
    pub extension: Option<ExtensionSpec>,
}

#[derive(Debug, Clone)]
pub enum KindSpec {
    File(Vec<u8>),
    /// Pieces of data, each after a hole of so many bytes.
    Sparse(SparseFormat, Vec<(u64, Vec<u8>)>),
    Directory,
    /// With content, which no directory has.
    FullDirectory(Vec<u8>),
    HardLink,
    Symlink,
    /// With content, which means nothing.
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
    Aufs(Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
pub enum SparseFormat {
    Gnu,
    Pax00,
    Pax01,
    Pax10,
}

#[derive(Debug, Clone)]
pub enum ExtensionSpec {
    Xattr(Vec<u8>),
    Global(usize),
    /// A name of this length.
    LongName(usize),
}

/// How a stream ends after its last entry.
#[derive(Debug, Clone)]
pub enum EndSpec {
    /// Zero blocks, and what follows them.
    Blocks(usize, Vec<u8>),
    /// Within the padding of its last entry, of which so many bytes are missing.
    WithinPadding(usize),
}

/// The bytes of a stream that converts.
pub fn tar() -> impl Strategy<Value = Vec<u8>> {
    (vec(entry(), 0..20), end()).prop_map(|(entries, end)| tar_of(&entries, &end))
}

fn entry() -> impl Strategy<Value = EntrySpec> {
    let extension = prop_oneof![
        vec(any::<u8>(), 0..2000).prop_map(ExtensionSpec::Xattr),
        (0..2000_usize).prop_map(ExtensionSpec::Global),
        (101..1500_usize).prop_map(ExtensionSpec::LongName),
    ];
    let path = prop::sample::select(vec!["a", "b", "c", "d"]);
    (path, kind(), prop::option::of(extension)).prop_map(|(path, kind, extension)| EntrySpec {
        path,
        kind,
        extension,
    })
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        0..600_usize,
        Just(512),
        4000..4200_usize,
        Just(8192),
        // Larger than every buffer on the way.
        1..300_000_usize,
    ];
    (length, any::<u8>()).prop_map(|(length, seed)| {
        let byte = |at: usize| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31) ^ seed;
        (0..length).map(byte).collect()
    })
}

fn kind() -> impl Strategy<Value = KindSpec> {
    let format = prop::sample::select(vec![
        SparseFormat::Gnu,
        SparseFormat::Pax00,
        SparseFormat::Pax01,
        SparseFormat::Pax10,
    ]);
    let hole = prop_oneof![Just(0_u64), 1..10_000_u64, Just(1 << 22)];
    let pieces = vec((hole, vec(any::<u8>(), 1..6000)), 0..30);
    let useless = || vec(any::<u8>(), 0..2000);
    prop_oneof![
        6 => content().prop_map(KindSpec::File),
        4 => (format, pieces).prop_map(|(format, pieces)| KindSpec::Sparse(format, pieces)),
        1 => Just(KindSpec::Directory),
        1 => useless().prop_map(KindSpec::FullDirectory),
        2 => Just(KindSpec::HardLink),
        1 => Just(KindSpec::Symlink),
        1 => useless().prop_map(KindSpec::Whiteout),
        1 => useless().prop_map(KindSpec::Opaque),
        1 => useless().prop_map(KindSpec::Aufs),
    ]
}

fn end() -> impl Strategy<Value = EndSpec> {
    let garbage = prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..2000),
        Just(vec![0; 9216]),
        // Larger than every buffer on the way.
        Just(vec![0xa5; 200_000]),
    ];
    prop_oneof![
        4 => garbage.prop_map(|garbage| EndSpec::Blocks(2, garbage)),
        1 => (0..2_usize).prop_map(|count| EndSpec::Blocks(count, Vec::new())),
        1 => (0..512_usize).prop_map(EndSpec::WithinPadding),
    ]
}

fn tar_of(entries: &[EntrySpec], end: &EndSpec) -> Vec<u8> {
    let mut tar = TarBuilder::new().file("first", b"to link to");
    for entry in entries {
        tar = add(tar, entry);
    }
    match end {
        EndSpec::Blocks(count, garbage) => {
            [tar.unfinished(), vec![0; 512 * count], garbage.clone()].concat()
        }
        EndSpec::WithinPadding(missing) => {
            let data = [1; 100];
            let mut bytes = tar.file("last", &data).unfinished();
            bytes.truncate(bytes.len() - missing.min(&(512 - data.len())));
            bytes
        }
    }
}

fn add(tar: TarBuilder, entry: &EntrySpec) -> TarBuilder {
    let mut path = match &entry.kind {
        KindSpec::Directory | KindSpec::FullDirectory(_) => format!("{}.d/", entry.path),
        KindSpec::Whiteout(_) => format!(".wh.{}", entry.path),
        KindSpec::Opaque(_) => format!("{}.d/.wh..wh..opq", entry.path),
        KindSpec::Aufs(_) => format!(".wh..wh.{}", entry.path),
        _ => entry.path.to_owned(),
    };
    let tar = match &entry.extension {
        None => tar,
        Some(ExtensionSpec::Xattr(value)) => tar.pax(&[("SCHILY.xattr.user.x", value)]),
        Some(ExtensionSpec::Global(length)) => {
            let record = super::tar_builder::pax_record(b"comment", &vec![b'c'; *length]);
            tar.extension(b'g', &record)
        }
        Some(ExtensionSpec::LongName(length)) => {
            // The builder writes a long name before the header that has it.
            path = "n/".repeat(length / 2) + &path;
            tar
        }
    };
    let header = |type_flag, data| Header {
        path: path.as_bytes(),
        type_flag,
        data,
        ..Header::default()
    };
    match &entry.kind {
        KindSpec::File(data)
        | KindSpec::FullDirectory(data)
        | KindSpec::Whiteout(data)
        | KindSpec::Opaque(data)
        | KindSpec::Aufs(data) => tar.add(&header(b'0', data)),
        KindSpec::Directory => tar.add(&header(b'5', b"")),
        KindSpec::HardLink => tar.add(&Header {
            link: b"first",
            ..header(b'1', b"")
        }),
        KindSpec::Symlink => tar.add(&Header {
            link: &[b'l'; 150],
            ..header(b'2', b"")
        }),
        // A name of its own: the formats have their own places for it.
        KindSpec::Sparse(format, pieces) => sparse(tar, *format, entry.path, pieces),
    }
}

fn sparse(
    tar: TarBuilder,
    format: SparseFormat,
    path: &str,
    pieces: &[(u64, Vec<u8>)],
) -> TarBuilder {
    let mut segments = Vec::new();
    let mut size = 0;
    for (hole, data) in pieces {
        segments.push((size + hole, data.len() as u64));
        size += hole + data.len() as u64;
    }
    // A hole at the end, so that it is sparse.
    size += 5000;
    let data: Vec<u8> = pieces.iter().flat_map(|(_, data)| data.clone()).collect();
    let size_text = size.to_string();
    let numbers = segments
        .iter()
        .flat_map(|(offset, length)| [offset, length]);
    let texts: Vec<String> = numbers.map(u64::to_string).collect();
    match format {
        SparseFormat::Gnu => tar.gnu_sparse(path, size, &segments, &data),
        SparseFormat::Pax00 => {
            let mut records = vec![("GNU.sparse.size", size_text.as_bytes())];
            for (key, text) in ["GNU.sparse.offset", "GNU.sparse.numbytes"]
                .into_iter()
                .cycle()
                .zip(&texts)
            {
                records.push((key, text.as_bytes()));
            }
            tar.pax(&records).file(path, &data)
        }
        SparseFormat::Pax01 => {
            let map = texts.join(",");
            tar.pax(&[
                ("GNU.sparse.size", size_text.as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file(path, &data)
        }
        SparseFormat::Pax10 => {
            let mut map = format!("{}\n", segments.len());
            for text in &texts {
                map += &format!("{text}\n");
            }
            let mut stored = map.into_bytes();
            stored.resize(stored.len().next_multiple_of(512), 0);
            stored.extend_from_slice(&data);
            tar.pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", path.as_bytes()),
                ("GNU.sparse.realsize", size_text.as_bytes()),
            ])
            .file("GNUSparseFile.0/x", &stored)
        }
    }
}
