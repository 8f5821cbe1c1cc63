//! How long somebody has not been heard of, and how long that may be.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A limit on somebody's silence. Its clones are about the same silence.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    last_heard: Arc<Mutex<Instant>>,
}

impl Patience {
    /// With somebody who is heard of now.
    pub fn of(limit: Duration) -> Self {
        Self {
            limit,
            last_heard: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// They are heard of now.
    pub fn heard(&self) {
        *self.last_heard() = Instant::now();
    }

    /// When it is over, if nothing is heard until then.
    pub fn ends(&self) -> Instant {
        *self.last_heard() + self.limit
    }

    /// What to say of `who` if it is over.
    pub fn complaint(&self, who: &str) -> Option<String> {
        let seconds = self.limit.as_secs();
        (self.ends() <= Instant::now()).then(|| format!("{who} was silent for {seconds} s"))
    }

    fn last_heard(&self) -> MutexGuard<'_, Instant> {
        self.last_heard
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
