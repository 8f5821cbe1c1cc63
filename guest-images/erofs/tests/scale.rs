//! Sizes and counts that no ordinary test tree has.

mod support;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use erofs::{Image, Limits, layer};
use support::snapshot::{self, Content};
use support::tar_builder::{Header, TarBuilder};
use support::tools;

#[test]
fn a_directory_holds_a_hundred_thousand_files() {
    let mut tar = TarBuilder::new();
    for n in 0..100_000_u32 {
        // Not in order, and of many lengths.
        let name = n.wrapping_mul(2_654_435_761);
        let path = format!("d/{name:0width$x}", width = 8 + (n % 240) as usize);
        tar = tar.file(&path, if n % 1000 == 0 { b"data" } else { b"" });
    }
    let tar = tar.finish();
    let (blob, summary) = tools::convert(&tar).unwrap();
    assert_eq!(summary.inodes, 100_002);
    tools::fsck(&blob);
    let disk = tools::disk_of(&[blob]);
    tools::fsck(&disk);
    let tree = snapshot::of_image(&tools::open(&disk));
    let is = |content: &[u8]| {
        let facts = tree.values();
        facts
            .filter(|facts| facts.content == Content::File(content.into()))
            .count()
    };
    assert_eq!((is(b"data"), is(b"")), (100, 99_900));
}

/// A file in which zeros become holes, so that a test may write gigabytes.
struct HoleyFile(File);

impl Write for HoleyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() == 1 << 20 && bytes.iter().all(|byte| *byte == 0) {
            self.0.seek(SeekFrom::Current(bytes.len() as i64))?;
        } else {
            self.0.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for HoleyFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_file_may_exceed_four_gibibytes() {
    let size = (4 << 30) + 5000;
    let zeros = size - 5 - 3;
    let head = TarBuilder::new()
        .add(&Header {
            path: b"big",
            size: Some(size),
            ..Header::default()
        })
        .unfinished();
    let rest = {
        let padding = size.next_multiple_of(512) - size;
        let after = TarBuilder::new().file("after", b"it").finish();
        [b"end", vec![0; padding as usize].as_slice(), &after].concat()
    };
    let tar = head
        .chain(&b"begin"[..])
        .chain(io::repeat(0).take(zeros))
        .chain(rest.as_slice());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let out = HoleyFile(file.reopen().unwrap());
    let summary = layer::write(tar, out, &Limits::default()).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), summary.blob_bytes);
    tools::fsck_file(file.path());

    let image = Image::open(file.as_file_mut().try_clone().unwrap(), summary.blob_bytes).unwrap();
    let inode = image.lookup(b"big").unwrap().unwrap();
    assert_eq!(inode.size(), size);
    let mut start = [1; 8];
    image.read_at(&inode, &mut start, 0).unwrap();
    assert_eq!(&start, b"begin\0\0\0");
    let mut end = [1; 8];
    assert_eq!(image.read_at(&inode, &mut end, size - 5).unwrap(), 5);
    assert_eq!(&end[..5], b"\0\0end");
    assert!(image.lookup(b"after").unwrap().is_some());
}

#[test]
fn holes_of_any_size_are_kept() {
    for size in [1 << 30, (1 << 40) + 7, 16 << 40] {
        let last = size - 3;
        let tar = TarBuilder::new()
            .pax(&[
                ("GNU.sparse.size", size.to_string().as_bytes()),
                ("GNU.sparse.map", format!("{last},3").as_bytes()),
            ])
            .file("sparse", b"end")
            .finish();
        let (blob, summary) = tools::convert(&tar).unwrap();
        assert!(summary.blob_bytes < 17 << 20, "{size}: {summary:?}");
        tools::fsck(&blob);
        let disk = tools::disk_of(&[blob]);
        tools::fsck(&disk);
        let image = tools::open(&disk);
        let inode = image.lookup(b"sparse").unwrap().unwrap();
        assert_eq!(inode.size(), size);
        let mut tail = [1; 6];
        assert_eq!(image.read_at(&inode, &mut tail, size - 6).unwrap(), 6);
        assert_eq!(&tail, b"\0\0\0end");
    }
}

#[test]
fn a_sparse_map_with_extension_headers_is_read_whole() {
    // 4 segments in the header and 21 in each extension block.
    let segments: Vec<(u64, u64)> = (0..100).map(|n| (n * 1_000_000, 10)).collect();
    let mut data = Vec::new();
    for n in 0..100_u8 {
        data.extend_from_slice(&[n + 1; 10]);
    }
    let real_size = 100_000_000_u64;
    let tar = TarBuilder::new()
        .gnu_sparse("sparse", real_size, &segments, &data)
        .file("after", b"it")
        .finish();

    let blob = tools::blob_of(&tar);
    tools::fsck(&blob);
    let image = tools::open(&blob);
    let inode = image.lookup(b"sparse").unwrap().unwrap();
    assert_eq!(inode.size(), real_size);
    for n in 0..100_u8 {
        let mut piece = [9; 12];
        let offset = u64::from(n) * 1_000_000;
        image.read_at(&inode, &mut piece, offset).unwrap();
        assert_eq!(piece[..10], [n + 1; 10]);
        assert_eq!(piece[10..], [0; 2]);
    }
    assert!(image.lookup(b"after").unwrap().is_some());
}

#[test]
fn paths_may_be_as_deep_as_linux_allows() {
    let path = "d/".repeat(2047) + "f";
    let tar = TarBuilder::new().file(&path, b"deep").finish();
    let blob = tools::blob_of(&tar);
    let disk = tools::disk_of(&[blob]);
    let image = tools::open(&disk);
    assert_eq!(image.inodes(), 2049);
    assert!(image.lookup(path.as_bytes()).unwrap().is_some());
}

#[test]
fn a_stream_is_read_in_large_pieces_and_written_so() {
    struct Counting<T>(T, usize);
    impl<T: Read> Read for Counting<T> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            self.0.read(into)
        }
    }
    impl<T: Write> Write for Counting<T> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    impl<T: Seek> Seek for Counting<T> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.1 += 1;
            self.0.seek(to)
        }
    }
    let mut tar = TarBuilder::new();
    for n in 0..4000 {
        tar = tar.file(&format!("{n}"), &[1; 3000]);
    }
    let tar = tar.file("big", &vec![2; 20 << 20]).finish();
    let mut input = Counting(tar.as_slice(), 0);
    let mut output = Counting(io::Cursor::new(Vec::new()), 0);
    layer::write(&mut input, &mut output, &Limits::default()).unwrap();
    // 34 MB in, 37 MB out, 4001 files.
    assert!(input.1 < 400, "{} reads", input.1);
    assert!(output.1 < 160, "{} writes and seeks", output.1);
}
