//! Archives of images: what `docker save` writes, and OCI layouts in a tar.
#![no_main]

use std::io::Read;

use fuzz::files;
use hostagent::image::archive::Archive;
use hostagent::image::docker_archive::DockerArchive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(archive) = Archive::open(files::with(data), "the archive".to_owned()) else {
        return;
    };
    let Ok(archive) = DockerArchive::open(archive) else {
        return;
    };
    let _ = archive.image(None);
    let Ok(images) = archive.images() else { return };
    for image in images {
        assert!(image.layers.len() <= image.config.diff_ids.len());
        for layer in &image.layers {
            let length = layer.content.length();
            assert!(length <= data.len() as u64);
            let mut content = Vec::new();
            let reader = layer.content.open().expect("it is part of a file");
            reader
                .take(length + 1)
                .read_to_end(&mut content)
                .expect("all of it is there");
            assert_eq!(content.len() as u64, length);
        }
    }
});
