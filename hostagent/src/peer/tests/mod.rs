//! Nodes in one process, honest ones and others.

mod blobs;
mod hostile;
mod images;
pub(crate) mod liar;
mod ranges;
mod server;

use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::config::{Peer, Settings};
use super::transport::Patience;
use super::*;
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::layer::{LayerContent, LayerSource};
use crate::image::progress::Progress;
use crate::image::source::{SourceImage, VerifiedDocument};
use crate::store::{BlobIdentity, StoredImage};

/// Enough for a busy machine, little for a test that waits for it.
pub(super) const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    stall: Duration::from_secs(2),
    idle: Duration::from_secs(5),
    unused: Duration::from_secs(8),
    retry: Duration::from_secs(60),
};

/// A node with a store of its own, which may serve.
pub struct Node {
    pub directory: TempDir,
    pub key: NodeKey,
    pub notes: Arc<Mutex<Vec<String>>>,
    server: Option<Server>,
}

impl Node {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = NodeKey::of(&Store::open(directory.path()).unwrap()).unwrap();
        Self {
            directory,
            key,
            notes: Arc::default(),
            server: None,
        }
    }

    pub fn store(&self) -> Store {
        Store::open(self.directory.path()).unwrap()
    }

    /// Serves these peers from now on.
    pub fn serving(mut self, peers: &[&Node]) -> Self {
        let settings = Settings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            peers: peers.iter().map(|peer| listed(&peer.key, None)).collect(),
            ..Settings::default()
        };
        let notes = Arc::clone(&self.notes);
        let note = move |note: &str| notes.lock().unwrap().push(note.to_owned());
        let server =
            Server::with_patience(self.store(), &settings, &self.key, Box::new(note), PATIENCE);
        self.server = Some(server.unwrap());
        self
    }

    /// As it is in the configuration of others.
    pub fn as_peer(&self) -> Peer {
        let address = self.server.as_ref().map(Server::address);
        listed(&self.key, address)
    }

    /// A client of this node that asks these peers.
    pub fn client(&self, peers: Vec<Peer>) -> Client {
        let settings = Settings {
            peers,
            ..Settings::default()
        };
        Client::with_patience(&settings, self.key.clone(), PATIENCE).unwrap()
    }

    /// That nothing half-made is left, and how many blobs there are.
    #[track_caller]
    pub fn blob_count(&self) -> usize {
        let count = |name: &str| {
            std::fs::read_dir(self.directory.path().join(name))
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().path().is_dir())
                .count()
        };
        assert_eq!(count("staging"), 0, "left in staging");
        count("blobs")
    }

    /// The bytes of a blob, verified.
    #[track_caller]
    pub fn content(&self, identity: BlobIdentity) -> Vec<u8> {
        let mut content = Vec::new();
        let blob = self.store().blob(identity, || "it".to_owned()).unwrap();
        blob.read_all(|piece| {
            content.extend_from_slice(piece);
            true
        })
        .unwrap();
        content
    }
}

pub fn listed(key: &NodeKey, address: Option<std::net::SocketAddr>) -> Peer {
    Peer {
        key: key.public(),
        address,
        names: false,
    }
}

/// Bytes that differ from seed to seed.
pub fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Keeps what is noted.
#[derive(Default)]
pub struct Told(Mutex<Vec<String>>);

impl Told {
    pub fn all(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

impl Progress for Told {
    fn note(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

pub fn go_on() -> Cancel {
    Arc::new(|| false)
}

/// A layer: its tar stream.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[derive(Debug)]
struct InMemory(Vec<u8>);

impl LayerContent for InMemory {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(self.0.clone())))
    }
}

/// Loads an image of these layers, under these names.
pub fn load(store: &Store, layers: &[Vec<u8>], names: &[&str]) -> StoredImage {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let document = |value: &serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        VerifiedDocument {
            digest: Digest::of(&bytes),
            bytes,
        }
    };
    let config_document = document(&config);
    let manifest = document(&json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_document.digest,
            "size": config_document.bytes.len(),
        },
        "layers": [],
    }));
    let sources = layers
        .iter()
        .zip(&diff_ids)
        .map(|(tar, diff_id)| LayerSource {
            diff_id: *diff_id,
            blob: None,
            content: Arc::new(InMemory(tar.clone())),
        });
    let source = SourceImage {
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
        manifest: Some(manifest),
        config: ImageConfig::parse(&config_document.bytes).unwrap(),
        config_document,
        layers: sources.collect(),
        parallel: 1,
        origin: None,
    };
    let imported = store.import(&source, &source.names, &store.lease().unwrap(), &());
    imported.unwrap().image
}
