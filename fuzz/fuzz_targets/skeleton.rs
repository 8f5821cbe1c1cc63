//! Skeletons of tar streams. By the first byte, an input is a stream, which must be
//! assembled as it was; the segments of a skeleton, under a checksum that is right; or
//! damages to a sound skeleton, each three bytes: where, and by what.
#![no_main]

use std::io::{self, Cursor, Read};
use std::sync::LazyLock;

use erofs::layer::{self, LayerError};
use erofs::{Limits, skeleton};
use libfuzzer_sys::fuzz_target;

/// One of everything, packed by the seed program.
static TAR: &[u8] = include_bytes!("../everything.tar");

const MAGIC: &[u8] = b"tarskel\x01";

fn limits() -> Limits {
    Limits {
        max_tar_bytes: 1 << 20,
        max_blob_bytes: 1 << 20,
        max_entries: 1000,
        max_metadata_bytes: 1 << 20,
    }
}

struct Recorded {
    blob: Vec<u8>,
    skeleton: Vec<u8>,
}

fn record(tar: &[u8]) -> Result<Recorded, LayerError> {
    let mut out = Cursor::new(Vec::new());
    let mut writer = skeleton::Writer::new(Vec::new());
    layer::write_recorded(tar, &mut out, &limits(), &mut writer)?;
    Ok(Recorded {
        blob: out.into_inner(),
        skeleton: writer.finish().expect("a vector takes everything"),
    })
}

fn assemble(skeleton: &[u8], blob: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = Vec::new();
    let mut assembler = skeleton::Assembler::new(skeleton, blob, blob.len() as u64)?;
    let result = assembler.read_to_end(&mut tar);
    assert!(tar.len() <= skeleton.len() + blob.len());
    assert_eq!(assembler.read(&mut [0]).is_err(), result.is_err());
    result.map(|_| tar)
}

static SOUND: LazyLock<Recorded> = LazyLock::new(|| record(TAR).expect("a sound layer"));

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            if let Ok(recorded) = record(data) {
                let tar = assemble(&recorded.skeleton, &recorded.blob);
                assert!(tar.expect("a sound skeleton") == data);
            }
        }
        1 => {
            let mut skeleton = [MAGIC, data].concat();
            let checksum = crc32c::crc32c(&skeleton);
            skeleton.extend(checksum.to_le_bytes());
            let _ = assemble(&skeleton, &SOUND.blob);
        }
        _ => {
            let mut skeleton = SOUND.skeleton.clone();
            for damage in data.chunks_exact(3) {
                let place = usize::from(u16::from_le_bytes([damage[0], damage[1]]));
                let place = place % skeleton.len();
                skeleton[place] ^= damage[2];
            }
            // Enough damage could make its checksum right again; nobody waits for that.
            if let Ok(tar) = assemble(&skeleton, &SOUND.blob) {
                assert!(skeleton != SOUND.skeleton || tar == TAR);
            }
        }
    }
});
