//! A peer that lies about a blob, for tests of those who ask peers.

use std::sync::Arc;

use outboard::Geometry;

use super::super::config::Settings;
use super::super::message::Request;
use super::blobs::{announced, honest, nodes};
use super::hostile::{Hostile, Reply};
use super::{Node, RangeClient};
use crate::store::{Blob, BlobIdentity, Store};

pub(crate) struct Liar {
    pub identity: BlobIdentity,
    own: Node,
    good: Node,
    hostile: Hostile,
}

impl Liar {
    /// It has the last byte wrong of whatever is asked for.
    pub fn about_a_blob_of(bytes: usize) -> Self {
        let (own, good, identity) = nodes(bytes);
        let blob = Arc::new(good.store().blob(identity, String::new).unwrap());
        let all = Geometry::of(identity.bytes).groups();
        let hostile = Hostile::new(&own, move |request| {
            let mut lie = announced(identity.bytes, &[[0, all]]);
            if let Request::Blob { groups, .. } = request {
                lie.extend(honest(&blob, groups[0]..groups[1]));
            }
            if let Some(last) = lie.last_mut() {
                *last ^= 1;
            }
            Reply::Bytes(lie)
        });
        Self {
            identity,
            own,
            good,
            hostile,
        }
    }

    /// The store of whom it lies to.
    pub fn store(&self) -> Store {
        self.own.store()
    }

    /// The blob as it is.
    pub fn blob(&self) -> Blob {
        let found = self.good.store().blob(self.identity, String::new);
        found.unwrap()
    }

    /// What is in it.
    pub fn content(&self) -> Vec<u8> {
        self.good.content(self.identity)
    }

    /// Asks it, and nobody else.
    pub fn client(&self) -> RangeClient {
        let settings = Settings {
            peers: vec![self.hostile.as_peer()],
            ..Settings::default()
        };
        RangeClient::new(&settings, self.own.key.clone()).unwrap()
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.hostile.asked()
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.hostile.as_peer().key.to_string()
    }
}
