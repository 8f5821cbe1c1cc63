//! The documents that lead to an image, and the names of images.
#![no_main]

use hostagent::image::config::ImageConfig;
use hostagent::image::manifest::{Document, Index, MAX_INDEX_ENTRIES, MAX_LAYERS};
use hostagent::image::name::ImageName;
use hostagent::image::reference::ImageReference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Document::parse(data) {
        Ok(Document::Index(index)) => {
            assert!(index.manifests.len() <= MAX_INDEX_ENTRIES);
            for entry in &index.manifests {
                let _ = (entry.names().count(), entry.may_run_here());
            }
        }
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= MAX_LAYERS),
        Err(_) => {}
    }
    let _ = Index::parse(data);
    if let Ok(config) = ImageConfig::parse(data) {
        assert!(config.diff_ids.len() <= MAX_LAYERS);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<ImageReference>();
        if let Ok(name) = text.parse::<ImageName>() {
            // What it is called means itself.
            let shown = name.to_string();
            assert_eq!(shown.parse::<ImageName>().as_ref(), Ok(&name), "{shown}");
        }
    }
});
