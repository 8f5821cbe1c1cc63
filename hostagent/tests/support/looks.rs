//! Stores, compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::Mote;
use crate::tree;

/// What a store looks like from outside.
#[derive(Debug, PartialEq)]
pub struct Looks {
    pub images: Vec<Value>,
    files: BTreeMap<PathBuf, u64>,
}

impl Looks {
    pub fn of(mote: &Mote) -> Self {
        let mut files = tree::files(mote.root.path());
        // What a dead process needed is forgotten when something is collected.
        files.retain(|path, _| !path.starts_with("leases"));
        // It is filled again when there is room.
        files.remove(Path::new("reserve"));
        // What was there of a blob before all of it was does no harm beside it.
        files.retain(|path, _| !(path.starts_with("blobs") && path.ends_with("present")));
        Self {
            images: images(mote),
            files,
        }
    }
}

/// Its images, without what differs from one time to the next.
pub fn images(mote: &Mote) -> Vec<Value> {
    let run = mote.run(&["images", "--format", "json"]).expect(0);
    let mut images = run.json();
    for image in &mut images {
        // When it was loaded, and how long ago it was built.
        image
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !["LoadedUnixSeconds", "CreatedSince"].contains(&key.as_str()));
    }
    images.sort_by_key(Value::to_string);
    images
}
