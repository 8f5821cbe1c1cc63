//! A peer that lies about a blob, or is slow, for tests of those who ask peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        Self::new(bytes, |_, mut answer| {
            if let Some(last) = answer.last_mut() {
                *last ^= 1;
            }
            Reply::Bytes(answer)
        })
    }

    /// It says nothing to the first request, and is right after that.
    pub fn that_is_silent_once(bytes: usize) -> Self {
        Self::new(bytes, |number, answer| match number {
            0 => Reply::ThenSilence(Vec::new()),
            _ => Reply::Bytes(answer),
        })
    }

    fn new(bytes: usize, reply: fn(usize, Vec<u8>) -> Reply) -> Self {
        let (own, good, identity) = nodes(bytes);
        let blob = Arc::new(good.store().blob(identity, String::new).unwrap());
        let all = Geometry::of(identity.bytes).groups();
        let number = AtomicUsize::new(0);
        let hostile = Hostile::new(&own, move |request| {
            let mut answer = announced(identity.bytes, &[[0, all]]);
            if let Request::Blob { groups, .. } = request {
                answer.extend(honest(&blob, groups[0]..groups[1]));
            }
            reply(number.fetch_add(1, Ordering::SeqCst), answer)
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
