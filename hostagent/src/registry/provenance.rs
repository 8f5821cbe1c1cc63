//! Who has given the bytes of a blob, for when they turn out to be others.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::endpoint::{Endpoint, shown};
use super::session::Session;
use crate::image::digest::Digest;

/// The mirrors that have given bytes of one blob, which nobody has verified yet.
#[derive(Clone)]
pub struct Provenance {
    session: Arc<Session>,
    digest: Digest,
    mirrors: Arc<Mutex<BTreeSet<reqwest::Url>>>,
}

impl Provenance {
    pub(super) fn new(session: &Arc<Session>, digest: Digest) -> Self {
        Self {
            session: Arc::clone(session),
            digest,
            mirrors: Arc::default(),
        }
    }

    /// Some of the bytes are from there.
    pub(super) fn add(&self, endpoint: &Endpoint) {
        let mut mirrors = self.mirrors();
        if endpoint.is_mirror() && !mirrors.contains(&endpoint.base) {
            mirrors.insert(endpoint.base.clone());
        }
    }

    /// The bytes are not those of the blob. The mirrors that gave any of them are not asked
    /// for it any more; returns their hosts. `None`: all are the registry's own, and asking
    /// again would ask nobody else.
    pub fn reject(&self) -> Option<String> {
        let mirrors = self.mirrors();
        for mirror in &*mirrors {
            self.session.reject(mirror, self.digest);
        }
        let hosts: Vec<String> = mirrors.iter().map(shown).collect();
        (!hosts.is_empty()).then(|| hosts.join(", "))
    }

    fn mirrors(&self) -> MutexGuard<'_, BTreeSet<reqwest::Url>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provenance")
            .field("digest", &self.digest)
            .field("mirrors", &*self.mirrors())
            .finish_non_exhaustive()
    }
}
