//! Makes a disk image of layer tars, the lowest first:
//! `cargo run -p erofs --example image -- disk.erofs base.tar app.tar`,
//! then `mount -o loop disk.erofs /mnt`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Seek};
use std::time::Instant;

use erofs::{Image, Limits, layer, merge};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(disk_path) = arguments.next() else {
        return Err("usage: image DISK LAYER.tar…".into());
    };
    let limits = Limits::default();
    let mut layers = Vec::new();
    let mut blobs = Vec::new();
    for tar in arguments {
        let start = Instant::now();
        let blob = tempfile::tempfile()?;
        let summary = layer::write(File::open(&tar)?, &blob, &limits)?;
        println!("{}: {summary:?} in {:?}", tar.display(), start.elapsed());
        layers.push(Image::open(blob.try_clone()?, summary.blob_bytes)?);
        blobs.push(blob);
    }
    let start = Instant::now();
    let mut disk = File::create(&disk_path)?;
    let summary = merge::write(&layers, &disk, &limits)?;
    println!("merged: {summary:?} in {:?}", start.elapsed());
    disk.seek(io::SeekFrom::End(0))?;
    for mut blob in blobs {
        blob.seek(io::SeekFrom::Start(0))?;
        io::copy(&mut blob, &mut disk)?;
    }
    Ok(())
}
