//! Which images there are, and their names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::durable::Unsynced;
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::name::ImageName;
use crate::image::reference::StoredReference;

/// What `images.json` has.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    /// By image id, which is the digest of the configuration.
    images: BTreeMap<Digest, ImageRecord>,
    /// `docker.io/library/debian:12` to an image id.
    names: BTreeMap<String, Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageRecord {
    manifest: Option<Digest>,
    diff_ids: Vec<Digest>,
    bytes: u64,
    created: Option<String>,
    loaded_unix_seconds: u64,
    /// `repository@digest` of each registry it was pulled from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    sources: BTreeSet<String>,
}

/// An image that has been loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The image id: the digest of its configuration.
    pub id: Digest,
    /// The digest of its manifest, where it came with one.
    pub manifest: Option<Digest>,
    /// Every name it has.
    pub names: Vec<ImageName>,
    /// Its layers, base first.
    pub diff_ids: Vec<Digest>,
    /// What its layers take in the store, those it shares included.
    pub bytes: u64,
    /// When it was built, as RFC 3339 text.
    pub created: Option<String>,
    /// When it was loaded first.
    pub loaded_unix_seconds: u64,
    /// `repository@digest`, wherever it was pulled from; the digest may be that of an
    /// index.
    pub sources: Vec<ImageName>,
}

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names.
    pub names: Vec<ImageName>,
    /// Whether the image is gone.
    pub image: bool,
}

impl Store {
    /// Every image, the latest loaded first.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let records = self.read_records()?;
        let mut images: Vec<_> = records.images.keys().map(|id| records.image(id)).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.loaded_unix_seconds));
        Ok(images)
    }

    /// The image a user means: by name, by name and manifest digest, by id, or
    /// by the start of an id.
    pub fn find(&self, reference: &StoredReference) -> Result<StoredImage, StoreError> {
        let records = self.read_records()?;
        let found = match reference {
            StoredReference::Id(id) => records.images.contains_key(id).then_some(*id),
            StoredReference::Name(name) => match records.by_name(name) {
                Some(id) => Some(id),
                None => records.by_start_of_id(name)?,
            },
        };
        match found {
            Some(id) if records.images.contains_key(&id) => Ok(records.image(&id)),
            _ => Err(StoreError::NoSuchImage {
                wanted: match reference {
                    StoredReference::Id(id) => id.to_string(),
                    StoredReference::Name(name) => name.to_string(),
                },
            }),
        }
    }

    /// Adds an image and gives it names, taking them from images that had them. What
    /// `unsynced` has is on disk before.
    pub(super) fn record(&self, image: &StoredImage, unsynced: Unsynced) -> Result<(), StoreError> {
        self.change_records("recording the image", unsynced, |records| {
            let entry = records.images.entry(image.id);
            let record = entry.or_insert_with(|| ImageRecord {
                manifest: image.manifest,
                diff_ids: image.diff_ids.clone(),
                bytes: image.bytes,
                created: image.created.clone(),
                loaded_unix_seconds: image.loaded_unix_seconds,
                sources: BTreeSet::new(),
            });
            let sources = image.sources.iter().filter_map(ImageName::pinned);
            record.sources.extend(sources);
            record.manifest = image.manifest.or(record.manifest);
            record.bytes = image.bytes;
            for name in image.names.iter().filter_map(ImageName::tagged) {
                records.names.insert(name, image.id);
            }
        })
    }

    /// Gives an image one more name, taking it from the image that had it. False if there
    /// is no such image.
    pub fn tag(&self, id: Digest, name: &ImageName) -> Result<bool, StoreError> {
        self.change_records("naming the image", Unsynced::default(), |records| {
            let known = records.images.contains_key(&id);
            if let (true, Some(name)) = (known, name.tagged()) {
                records.names.insert(name, id);
            }
            known
        })
    }

    /// Takes these names from an image, as far as they are its, and removes it if it has no
    /// other: in one change, so that nothing comes between. [`Store::collect`] then removes
    /// what it alone needed.
    pub fn remove(&self, id: Digest, names: &[ImageName]) -> Result<Removed, StoreError> {
        self.change_records("removing the image", Unsynced::default(), |records| {
            let mut removed = Removed::default();
            for name in names {
                let Some(tagged) = name.tagged() else {
                    continue;
                };
                if records.names.get(&tagged) == Some(&id) {
                    records.names.remove(&tagged);
                    removed.names.push(name.clone());
                }
            }
            let named = records.names.values().any(|named| *named == id);
            removed.image = !named && records.images.remove(&id).is_some();
            removed
        })
    }
}

impl Records {
    fn image(&self, id: &Digest) -> StoredImage {
        let record = &self.images[id];
        let names = self.names.iter().filter(|(_, named)| *named == id);
        StoredImage {
            id: *id,
            manifest: record.manifest,
            names: names.filter_map(|(name, _)| name.parse().ok()).collect(),
            diff_ids: record.diff_ids.clone(),
            bytes: record.bytes,
            created: record.created.clone(),
            loaded_unix_seconds: record.loaded_unix_seconds,
            sources: record
                .sources
                .iter()
                .filter_map(|source| source.parse().ok())
                .collect(),
        }
    }

    fn by_name(&self, name: &ImageName) -> Option<Digest> {
        let Some(digest) = name.digest() else {
            return self.names.get(&name.tagged()?).copied();
        };
        let prefix = format!("{}:", name.repository());
        let mut of_repository = self
            .names
            .iter()
            .filter(|(known, _)| known.starts_with(&prefix));
        let named = of_repository.find(|(_, id)| {
            let record = self.images.get(id);
            **id == digest || record.is_some_and(|record| record.manifest == Some(digest))
        });
        let pulled = || {
            let source = name.pinned()?;
            let mut images = self.images.iter();
            images.find(|(_, record)| record.sources.contains(&source))
        };
        named
            .map(|(_, id)| *id)
            .or_else(|| pulled().map(|(id, _)| *id))
    }

    /// `4f1a…` and `sha256:4f1a…` read as names; they may be the start of an id.
    fn by_start_of_id(&self, name: &ImageName) -> Result<Option<Digest>, StoreError> {
        let start = match (name.familiar_repository(), name.tag()) {
            ("sha256", Some(start)) => start,
            (start, Some("latest")) => start,
            _ => return Ok(None),
        };
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if !start.bytes().all(hexadecimal) {
            return Ok(None);
        }
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(start));
        match (found.next(), found.next()) {
            (first, None) => Ok(first.copied()),
            _ => Err(StoreError::AmbiguousId {
                wanted: start.to_owned(),
            }),
        }
    }
}

pub(super) fn now_unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn image(seed: &str, names: &[&str]) -> StoredImage {
        StoredImage {
            id: Digest::of(seed.as_bytes()),
            manifest: Some(Digest::of(format!("manifest of {seed}").as_bytes())),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            diff_ids: vec![Digest::of(b"layer")],
            bytes: 4096,
            created: None,
            loaded_unix_seconds: 1,
            sources: Vec::new(),
        }
    }

    pub fn record(store: &Store, image: &StoredImage) {
        store.record(image, Unsynced::default()).unwrap();
    }

    fn find(store: &Store, text: &str) -> Result<Digest, StoreError> {
        store.find(&text.parse().unwrap()).map(|image| image.id)
    }

    #[test]
    fn an_image_is_found_by_every_way_of_naming_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let one = image("one", &["demo:v1", "demo"]);
        record(&store, &one);
        let hex = one.id.hex();
        for text in [
            "demo:v1",
            "demo",
            "docker.io/library/demo:latest",
            &one.id.to_string(),
            &hex,
            &hex[..12],
            &format!("sha256:{}", &hex[..8]),
            &format!("demo@{}", one.manifest.unwrap()),
            &format!("demo@{}", one.id),
        ] {
            assert_eq!(find(&store, text).unwrap(), one.id, "{text}");
        }
        for text in ["demo:v2", "other", &format!("other@{}", one.id)] {
            let error = find(&store, text).unwrap_err();
            assert!(matches!(error, StoreError::NoSuchImage { .. }), "{text}");
        }
    }

    #[test]
    fn a_pulled_image_is_found_by_the_digest_it_was_pulled_by() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let index = Digest::of(b"index");
        let mut one = image("one", &[]);
        one.sources = vec![format!("demo@{index}").parse().unwrap()];
        record(&store, &one);
        assert_eq!(find(&store, &format!("demo@{index}")).unwrap(), one.id);
        assert_eq!(find(&store, &format!("demo:v1@{index}")).unwrap(), one.id);
        find(&store, &format!("other@{index}")).unwrap_err();
        assert_eq!(store.images().unwrap()[0].sources, one.sources);
    }

    #[test]
    fn a_name_moves_to_the_image_loaded_last() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (one, two) = (image("one", &["demo"]), image("two", &["demo"]));
        record(&store, &one);
        record(&store, &two);
        assert_eq!(find(&store, "demo").unwrap(), two.id);
        let nameless = store.find(&StoredReference::Id(one.id)).unwrap();
        assert!(nameless.names.is_empty());
        assert_eq!(store.images().unwrap().len(), 2);
    }

    #[test]
    fn an_image_is_forgotten_once_it_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (one, other) = (image("one", &["demo"]), image("other", &[]));
        record(&store, &one);
        let name = |text: &str| text.parse::<ImageName>().unwrap();
        let remove = |id, names: &[ImageName]| store.remove(id, names).unwrap();
        assert!(store.tag(one.id, &name("second:v1")).unwrap());
        assert!(store.tag(one.id, &name("third")).unwrap());
        assert!(!store.tag(other.id, &name("fourth")).unwrap());
        assert_eq!(remove(other.id, &[name("demo")]), Removed::default());
        assert_eq!(remove(one.id, &[]), Removed::default());
        assert!(!remove(one.id, &[name("demo")]).image);
        let names = [name("second:v1"), name("other"), name("third")];
        let removed = remove(one.id, &names);
        assert_eq!(removed.names, [name("second:v1"), name("third")]);
        assert!(removed.image);
        assert!(store.images().unwrap().is_empty());
    }

    #[test]
    fn a_start_that_several_ids_have_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        // 17 ids cannot all differ in their first digit.
        for seed in 0..17 {
            record(&store, &image(&seed.to_string(), &[]));
        }
        let ids: Vec<String> = store.images().unwrap().iter().map(|i| i.id.hex()).collect();
        let shared = ids
            .iter()
            .find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1)
            .unwrap();
        let error = find(&store, &shared[..1]).unwrap_err();
        assert!(matches!(error, StoreError::AmbiguousId { .. }), "{error}");
    }

    #[test]
    fn concurrent_writers_lose_no_record() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let root = directory.path();
                scope.spawn(move || {
                    let store = Store::open(root).unwrap();
                    for i in 0..10 {
                        record(&store, &image(&format!("{thread}-{i}"), &[]));
                    }
                });
            }
        });
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.images().unwrap().len(), 40);
    }
}
