//! The programs that judge: GNU tar and erofs-utils.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs::layer::{self, LayerError, LayerSummary};
use erofs::{Image, Limits, merge, skeleton};

/// Runs a program to success.
pub fn run<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    let output = command.output().unwrap_or_else(|error| {
        let package = match program {
            "fsck.erofs" | "dump.erofs" => "erofs-utils",
            other => other,
        };
        panic!("{program} cannot be run ({error}): install the Debian package {package}")
    });
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?} failed:\n{text}");
    text
}

/// What a tar stream makes: the blob, and what was said about it.
pub fn convert(tar: &[u8]) -> Result<(Vec<u8>, LayerSummary), LayerError> {
    convert_within(tar, &Limits::default())
}

pub fn convert_within(tar: &[u8], limits: &Limits) -> Result<(Vec<u8>, LayerSummary), LayerError> {
    let mut out = Cursor::new(Vec::new());
    let result = layer::write(tar, &mut out, limits);
    let blob = out.into_inner();
    match (&result, convert_recorded(tar, limits)) {
        (Err(error), Err(recorded)) => assert_eq!(error.to_string(), recorded.to_string()),
        (Ok(summary), Ok((same, skeleton))) => {
            assert_eq!(blob.len() as u64, summary.blob_bytes);
            assert_eq!(tar.len() as u64, summary.tar_bytes);
            assert!(blob == same, "recording changes the blob");
            let assembled = assemble(&skeleton, &blob).unwrap_or_else(|error| panic!("{error:?}"));
            assert!(assembled == tar, "another tar stream is assembled");
        }
        _ => panic!("recording changes whether the stream converts"),
    }
    result.map(|summary| (blob, summary))
}

/// The blob of a tar stream, and its skeleton.
pub fn convert_recorded(tar: impl Read, limits: &Limits) -> Result<(Vec<u8>, Vec<u8>), LayerError> {
    let mut out = Cursor::new(Vec::new());
    let mut writer = skeleton::Writer::new(Vec::new());
    let summary = layer::write_recorded(tar, &mut out, limits, &mut writer)?;
    assert_eq!(writer.tar_bytes(), summary.tar_bytes);
    Ok((out.into_inner(), writer.finish().unwrap()))
}

/// The tar stream that a skeleton and a blob make.
pub fn assemble(skeleton: &[u8], blob: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = Vec::new();
    let mut assembler = skeleton::Assembler::new(skeleton, blob, blob.len() as u64)?;
    let result = assembler.read_to_end(&mut tar);
    let bound = (skeleton.len() + blob.len()) as u64;
    assert!(tar.len() as u64 <= bound, "more comes out than went in");
    assert_eq!(assembler.read(&mut [0]).is_err(), result.is_err());
    result.map(|_| tar)
}

/// The blob of a tar stream that must convert.
pub fn blob_of(tar: &[u8]) -> Vec<u8> {
    convert(tar).unwrap_or_else(|error| panic!("{error:?}")).0
}

/// Opens a blob or disk in memory.
pub fn open(bytes: &[u8]) -> Image<&[u8]> {
    Image::open(bytes, bytes.len() as u64).unwrap_or_else(|error| panic!("{error:?}"))
}

/// The disk of an image of these layers.
pub fn disk_of(blobs: &[Vec<u8>]) -> Vec<u8> {
    let layers: Vec<_> = blobs.iter().map(|blob| open(blob)).collect();
    let mut out = Cursor::new(Vec::new());
    let summary = merge::write(&layers, &mut out, &Limits::default())
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut disk = out.into_inner();
    assert_eq!(disk.len() as u64, summary.metadata_bytes);
    for (blob, offset) in blobs.iter().zip(&summary.layer_offsets) {
        assert_eq!(disk.len() as u64, *offset);
        disk.extend_from_slice(blob);
    }
    assert_eq!(disk.len() as u64, summary.disk_bytes);
    disk
}

/// Has `fsck.erofs` check an image.
pub fn fsck(image: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    fsck_file(file.path());
}

pub fn fsck_file(image: &Path) {
    run("fsck.erofs", [image]);
}

/// Has `fsck.erofs` check an image and unpack it to `to`.
pub fn fsck_extract(image: &Path, to: &Path) {
    let mut extract = std::ffi::OsString::from("--extract=");
    extract.push(to);
    let arguments = [extract, "--preserve".into(), image.into()];
    let arguments = if is_root() {
        &arguments[..]
    } else {
        // The owner is who runs the test, in the image too.
        &[
            arguments[0].clone(),
            "--preserve-perms".into(),
            image.into(),
        ]
    };
    run("fsck.erofs", arguments);
}

/// How GNU tar is to write an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarFormat {
    pub pax: bool,
    /// `Some` of the version of PAX' sparse maps; GNU's has none.
    pub sparse: Option<&'static str>,
}

/// Every way in which GNU tar writes archives that keep what a layer has.
pub const TAR_FORMATS: [TarFormat; 6] = [
    TarFormat {
        pax: false,
        sparse: None,
    },
    TarFormat {
        pax: false,
        sparse: Some("1.0"),
    },
    TarFormat {
        pax: true,
        sparse: None,
    },
    TarFormat {
        pax: true,
        sparse: Some("0.0"),
    },
    TarFormat {
        pax: true,
        sparse: Some("0.1"),
    },
    TarFormat {
        pax: true,
        sparse: Some("1.0"),
    },
];

/// Packs a directory with GNU tar.
pub fn tar_create(directory: &Path, archive: &Path, format: TarFormat) {
    let mut arguments: Vec<&OsStr> = vec!["--create".as_ref(), "--file".as_ref()];
    arguments.push(archive.as_ref());
    if format.pax {
        arguments.extend(["--format=pax", "--xattrs", "--xattrs-include=*"].map(OsStr::new));
    } else {
        arguments.push("--format=gnu".as_ref());
    }
    let version;
    if let Some(sparse) = format.sparse {
        arguments.push("--sparse".as_ref());
        version = format!("--sparse-version={sparse}");
        arguments.push(version.as_ref());
    }
    arguments.push("--directory".as_ref());
    arguments.push(directory.as_ref());
    arguments.push(".".as_ref());
    run("tar", arguments);
}

/// Unpacks an archive with GNU tar, as root with everything it can keep.
pub fn tar_extract(archive: &Path, directory: &Path) {
    let flags = [
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--delay-directory-restore",
    ];
    let mut arguments: Vec<&OsStr> = flags.map(OsStr::new).to_vec();
    arguments.push("--file".as_ref());
    arguments.push(archive.as_ref());
    arguments.push("--directory".as_ref());
    arguments.push(directory.as_ref());
    run("tar", arguments);
}

/// Converts an archive to a blob in a file beside it.
pub fn convert_file(archive: &Path) -> (PathBuf, LayerSummary) {
    let path = archive.with_extension("erofs");
    let blob = File::create(&path).unwrap();
    let summary = layer::write(File::open(archive).unwrap(), &blob, &Limits::default())
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(blob.metadata().unwrap().len(), summary.blob_bytes);
    (path, summary)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
